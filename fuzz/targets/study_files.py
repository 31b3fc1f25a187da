"""Study files and names of components: YAML of a person or a stranger."""

from contextlib import suppress

from targets.scratch import written
from tippingpoint.errors import TippingPointError
from tippingpoint.models.own import is_own
from tippingpoint.study.files import load_components, load_study

TOKENS = (
    b"&a ",
    b"*a",
    b"!!",
    b"<<: ",
    b"- ",
    b": ",
    b"? ",
    b"[",
    b"{",
    b"|\n",
    b">\n",
    b"%YAML",
    b"---\n",
    b"1e999",
    b".nan",
    b"~",
    b"\\ud800",
    b"\\UFFFFFFFF",
    b"name: ",
    b"lengths: ",
    b"device: ",
    b"os:system",
    b"0777",
    b"no",
)


def one_input(data: bytes) -> None:
    """Load a file as a study and as names; an untrusted study names no code."""
    path = written(data, ".yaml")
    with suppress(TippingPointError):
        study = load_study(path)
        assert not any(is_own(subject.architecture) for subject in study.subjects)
        str(study)
    with suppress(TippingPointError):
        load_components(path)
