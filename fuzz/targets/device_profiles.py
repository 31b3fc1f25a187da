"""Device profiles: YAML of a stranger."""

from contextlib import suppress

from targets.scratch import written
from targets.study_files import TOKENS  # noqa: F401
from tippingpoint.device_profiles import load_profile
from tippingpoint.errors import TippingPointError


def one_input(data: bytes) -> None:
    """Load a profile and say what it holds."""
    with suppress(TippingPointError):
        profile = load_profile(written(data, ".yaml"))
        str(profile)
        profile.peaks("float32")
