import inspect

import pytest

from tippingpoint import errors
from tippingpoint.errors import InputError, TippingPointError, UnsupportedError, WontFitError, unknown


def test_every_error_has_one_base_and_an_exit_code():
    classes = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]
    assert len(classes) > 5
    for kind in classes:
        assert issubclass(kind, TippingPointError)
        assert kind.exit_code == (2 if issubclass(kind, InputError) else 1)


def test_what_the_caller_gave_is_also_a_value_error():
    assert issubclass(InputError, ValueError)
    assert issubclass(UnsupportedError, InputError)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "longfromer",
            "unknown architecture 'longfromer'; expected one of bert, longformer. Did you mean 'longformer'?",
        ),
        ("gpt", "unknown architecture 'gpt'; expected one of bert, longformer."),
    ],
)
def test_an_unknown_name_is_answered_with_every_legal_one_and_the_nearest(name, message):
    assert str(unknown("architecture", name, iter(["bert", "longformer"]))) == message


def test_a_refusal_says_what_it_rests_on():
    assert WontFitError("too much", measured=True).measured
    assert not WontFitError("too much", measured=False).measured
