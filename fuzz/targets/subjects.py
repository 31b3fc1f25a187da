"""The grammar that names a subject, and the catalogue that knows what it may say."""

from contextlib import suppress

from tippingpoint.errors import TippingPointError
from tippingpoint.models.catalog import check_subject
from tippingpoint.models.own import is_own
from tippingpoint.workload import Subject

TOKENS = (
    b"@",
    b"+",
    b":",
    b"=",
    b",",
    b"-",
    b"_",
    b"local",
    b"window",
    b"bert",
    b"layers=0-5",
    b"0-99999999",
    b"group=0-1_2-3",
    b"+linear",
    b"reuse:group=2",
    b"1e9",
)


def one_input(data: bytes) -> None:
    """Parse a subject; what is legal is printed as it was read."""
    text = data.decode("utf-8", "surrogateescape")
    with suppress(TippingPointError):
        subject = Subject.parse(text)
        assert Subject.parse(str(subject)) == subject
        assert not (is_own(subject.architecture) and "/" in subject.architecture)
        checked = check_subject(subject)
        assert check_subject(checked) == checked
