"""`python -m tippingpoint` is the command line."""

from tippingpoint.cli import run

if __name__ == "__main__":
    run()
