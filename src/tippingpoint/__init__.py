"""At what input length does an efficient Transformer become worth it, on your machine, for your data?"""

__version__ = "0.1.0"
