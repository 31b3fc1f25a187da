"""The mathematics of each attention variant on query, key and value; torch only."""

from tippingpoint.attention.local import local_attention

__all__ = ["local_attention"]
