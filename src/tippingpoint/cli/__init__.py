"""The command line: each verb is one library call plus formatting.

Data goes to stdout, progress and warnings to stderr. Exit code 0: done; 1: the answer could not be had; 2: the
command was not legal.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

_INTERRUPTED = "interrupted; what was measured before is kept in the store"
_SHELL_INTERRUPT = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors become one sentence on stderr.

    Args:
        arguments: Without the program's name; those of the process by default.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    if debug:
        given = [argument for argument in given if argument != "--debug"]
        _log_everything()
    # Typer is imported here, so that importing this module costs nothing.
    import typer

    from tippingpoint.cli.app import app
    from tippingpoint.errors import TippingPointError

    # Newer Typer carries its own Click and exports only these; the base of usage errors is two levels up.
    click_exception: type[Exception] = typer.BadParameter.__mro__[2]

    try:
        code = app(given, prog_name="tippingpoint", standalone_mode=False)
    except typer.Exit as exit_:
        return exit_.exit_code
    except typer.Abort:
        return _complain(_INTERRUPTED, 1)
    except click_exception as error:
        if debug:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.stderr.write(f"{error}\n")  # its message is the help
            return 2
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context else ""
        message = getattr(error, "format_message", error.__str__)()
        return _complain(f"{' '.join(message.split())}{hint}", 2)
    except TippingPointError as error:
        if debug:
            raise
        return _complain(" ".join(str(error).split()), error.exit_code)
    except KeyboardInterrupt:
        return _complain(_INTERRUPTED, 1)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does; there is nobody left to complain to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if debug:
            raise
        return _complain(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1)
    # Some versions of Typer return the code of an exit, 130 for an interrupt among them, instead of raising it.
    if code == _SHELL_INTERRUPT:
        return _complain(_INTERRUPTED, 1)
    return code if isinstance(code, int) else 0


def _complain(message: str, code: int) -> int:
    from tippingpoint.report.visible import visible

    sys.stderr.write(f"error: {visible(message)}\n")
    return code


def _log_everything() -> None:
    import logging

    logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s", stream=sys.stderr)
    for noisy in ("filelock", "urllib3", "httpcore", "httpx", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def run() -> None:
    """Run the command line and leave the process."""
    # What is computed here are small products, many of them: sharing them out takes longer than working on them, and
    # far longer beside a measurement. To be said before NumPy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from tippingpoint.report.visible import visible

    # Where in the code a warning was made tells its reader nothing.
    warnings.formatwarning = lambda message, *_, **__: f"warning: {visible(str(message))}\n"
    sys.exit(main())
