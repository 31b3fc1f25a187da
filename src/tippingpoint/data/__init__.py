"""The lengths of a person's own data: found, read from headers or counted, and summarised."""

from tippingpoint.data.lengths import LengthData
from tippingpoint.data.readers import read_lengths
from tippingpoint.data.skipped import Skipped
from tippingpoint.data.tokens import estimate_tokens

__all__ = ["LengthData", "Skipped", "estimate_tokens", "read_lengths"]
