"""The lengths of a person's own data: found, read from headers or counted, and summarised."""

from tippingpoint.data.length_files import length_file_of, write_lengths
from tippingpoint.data.lengths import LengthData
from tippingpoint.data.readers import Progress, read_lengths
from tippingpoint.data.skipped import Skipped
from tippingpoint.data.tokens import estimate_tokens

__all__ = ["LengthData", "Progress", "Skipped", "estimate_tokens", "length_file_of", "read_lengths", "write_lengths"]
