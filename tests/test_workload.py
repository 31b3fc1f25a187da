import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tippingpoint.errors import InputError
from tippingpoint.workload import DTYPES, PHASES, SIZES, Study, Subject, Variant, Workload

words = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,8}", fullmatch=True)
values = (
    st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(1e-6, 1e6)
    | st.floats(-1e6, -1e-6)
    | words.filter(lambda text: text not in ("true", "false"))
)
options = st.dictionaries(words, values, max_size=3).map(lambda found: tuple(found.items()))
variants = st.builds(Variant, words, options)
architectures = words | st.sampled_from(["./my-checkpoint", "org/model-v2", "/a/b.c", "my.package:build"])
subjects = st.builds(
    Subject, architectures, st.lists(variants, max_size=3, unique_by=lambda variant: variant.name).map(tuple)
)


@st.composite
def workloads(draw):
    device = draw(st.sampled_from(["cpu", "cuda", "cuda:3"]))
    dtypes = [dtype for dtype in DTYPES if device != "cpu" or dtype != "float16"]
    return Workload(
        draw(subjects),
        draw(st.integers(1, 10**7) | st.floats(0.001, 1e5)),
        batch_size=draw(st.integers(1, 512)),
        phase=draw(st.sampled_from(PHASES)),
        device=device,
        dtype=draw(st.sampled_from(dtypes)),
        threads=draw(st.none() | st.integers(1, 256)),
        size=draw(st.sampled_from(SIZES)),
    )


@given(subjects)
def test_a_printed_subject_reads_back_as_itself(subject):
    again = Subject.parse(str(subject))
    assert again == subject
    assert hash(again) == hash(subject)
    types = [[type(value) for _, value in variant.options] for variant in again.variants]
    assert types == [[type(value) for _, value in variant.options] for variant in subject.variants]


@given(subjects)
def test_a_subject_written_in_canonical_form_prints_as_it_was_written(subject):
    text = str(subject)
    assert str(Subject.parse(text)) == text


@given(st.text(max_size=30) | st.text("ab@:=,+ 1.", max_size=12))
def test_any_text_is_a_subject_that_prints_and_reads_back_or_an_error_that_says_what_was_expected(text):
    try:
        spelled = str(Subject.parse(text))
    except InputError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert str(Subject.parse(spelled)) == spelled
    assert not refusal or "ARCHITECTURE[@VARIANT[:key=value,...][+VARIANT...]]" in refusal


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("bert", Subject("bert")),
        ("bert@eager", Subject("bert", (Variant("eager"),))),
        ("hubert@local:window=50", Subject("hubert", (Variant("local", (("window", 50),)),))),
        (
            "hubert@local:window=50+reuse:group=3",
            Subject("hubert", (Variant("local", (("window", 50),)), Variant("reuse", (("group", 3),)))),
        ),
        (
            "./dir@linear:feature_map=favor,num_features=256,redraw=true,eps=1e-06",
            Subject(
                "./dir",
                (
                    Variant(
                        "linear",
                        (("num_features", 256), ("feature_map", "favor"), ("eps", 1e-6), ("redraw", True)),
                    ),
                ),
            ),
        ),
        ("my.package:build@local", Subject("my.package:build", (Variant("local"),))),
    ],
)
def test_the_documented_spellings_are_read(text, subject):
    assert Subject.parse(text) == subject


def test_options_are_printed_in_alphabetical_order_whatever_order_they_came_in():
    subject = Subject.parse("bert@local:window=3,num_global=1")
    assert str(subject) == "bert@local:num_global=1,window=3"
    assert subject == Subject.parse("bert@local:num_global=1,window=3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an architecture's name must be free of spaces and of @, got ''"),
        ("@local", "an architecture's name must be free of spaces and of @, got ''"),
        ("be rt", "an architecture's name must be free of spaces and of @, got 'be rt'"),
        ("bert@", "a variant must follow '@' in 'bert@'"),
        ("bert@+local", "a variant's name must be a word, got ''"),
        ("bert@local+", "a variant's name must be a word, got ''"),
        ("bert@3d", "a variant's name must be a word, got '3d'"),
        ("bert@local:", "expected key=value after 'local', got ''"),
        ("bert@local:window", "expected key=value after 'local', got 'window'"),
        ("bert@local:window=", "expected key=value after 'local', got 'window='"),
        ("bert@local:=3", "expected key=value after 'local', got '=3'"),
        ("bert@local:window=3,", "expected key=value after 'local', got ''"),
        ("bert@local:3=window", "option names of variant 'local' must be words, got '3'"),
        ("bert@local:window=3 4", "the value of local:window must be free of spaces .* got '3 4'"),
        ("bert@local:window=3=4", "the value of local:window must be free of spaces .* got '3=4'"),
        ("bert@local:window=3,window=4", "variant 'local' was given an option twice: window, window"),
        ("bert@local+local", r"subject bert@local\+local names a variant twice"),
    ],
)
def test_a_subject_that_breaks_the_grammar_is_answered_with_the_grammar(text, message):
    with pytest.raises(InputError, match=message) as caught:
        Subject.parse(text)
    assert "ARCHITECTURE[@VARIANT[:key=value,...][+VARIANT...]], such as bert@local:window=128" in str(caught.value)


@pytest.mark.parametrize("value", ["12", "1.5", "true", "a,b", "", float("nan"), float("inf"), 1e300])
def test_an_option_value_that_would_read_back_as_another_is_refused(value):
    with pytest.raises(InputError, match="the value of local:window"):
        Variant("local", (("window", value),))


def test_what_is_no_text_is_no_subject():
    with pytest.raises(InputError, match="a subject must be a text, got int"):
        Subject.parse(3)  # pyright: ignore[reportArgumentType]


def test_the_plain_subject_has_the_architectures_own_attention():
    assert Subject.parse("hubert@local:window=50").plain == Subject("hubert")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": 0}, "a length must be positive, got 0"),
        ({"length": -3.5}, "a length must be positive, got -3.5"),
        ({"length": float("nan")}, "a length must be a number, got nan"),
        ({"length": float("inf")}, "a length must be a number, got inf"),
        ({"length": "512"}, "a length must be a number, got '512'"),
        ({"length": True}, "a length must be a number, got True"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.0}, "batch_size must be a whole number of at least 1, got 2.0"),
        ({"batch_size": True}, "batch_size must be a whole number of at least 1, got True"),
        ({"threads": 0}, "threads must be a whole number of at least 1, got 0"),
        ({"phase": "train"}, "unknown phase 'train'; expected one of inference, training. Did you mean 'training'?"),
        ({"device": "gpu"}, "unknown device 'gpu'; expected cpu, cuda or cuda:N"),
        ({"device": "cuda:"}, "unknown device 'cuda:'; expected cpu, cuda or cuda:N"),
        ({"dtype": "fp32"}, "unknown dtype 'fp32'; expected one of float32, bfloat16, float16"),
        ({"size": "large"}, "unknown size 'large'; expected one of base, small, tiny"),
        ({"dtype": "float16"}, "float16 needs a CUDA device; use float32 or bfloat16 on the CPU"),
        ({"subject": "bert@"}, "a variant must follow '@'"),
    ],
)
def test_a_workload_with_an_illegal_field_says_what_the_field_must_be(fields, message):
    with pytest.raises(InputError) as caught:
        Workload(**{"subject": "bert", "length": 512, **fields})
    assert message in str(caught.value)


@given(workloads())
def test_a_workload_survives_json(workload):
    adapter = TypeAdapter(Workload)
    again = adapter.validate_json(adapter.dump_json(workload))
    assert again == workload
    assert hash(again) == hash(workload)


def test_a_workload_in_json_is_as_strict_as_one_in_python():
    adapter = TypeAdapter(Workload)
    legal = adapter.dump_python(Workload("bert", 512))
    with pytest.raises(ValidationError, match="batch_size must be a whole number of at least 1, got 0"):
        adapter.validate_python({**legal, "batch_size": 0})
    with pytest.raises(ValidationError, match="a variant must follow '@'"):
        adapter.validate_python({**legal, "subject": "bert@"})


@given(workloads(), workloads())
def test_replacing_every_field_by_anothers_gives_the_other(first, second):
    fields = {field.name: getattr(second, field.name) for field in dataclasses.fields(Workload)}
    assert first.replace(**fields) == second
    assert first.replace() == first


def test_replacing_a_field_checks_it():
    workload = Workload("bert", 512)
    assert workload.replace(subject="bert@eager").subject == Subject("bert", (Variant("eager"),))
    assert workload.replace(batch_size=3).batch_size == 3
    assert workload.batch_size == 1
    with pytest.raises(InputError, match="a length must be positive"):
        workload.replace(length=0)
    with pytest.raises(InputError, match="float16 needs a CUDA device"):
        Workload("bert", 512, device="cuda", dtype="float16").replace(device="cpu")


@pytest.mark.parametrize("field", ["layers", "width"])
@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_depth_and_width_are_whole_numbers(field, value):
    with pytest.raises(InputError, match=f"{field} must be a whole number of at least 1"):
        Workload("bert", 512, **{field: value})


def test_another_depth_and_width_show_in_the_shape():
    assert Workload("bert", 512).shape == "base"
    assert Workload("bert", 512, layers=24).shape == "base, 24 layers"
    assert Workload("bert", 512, size="tiny", layers=3, width=96).shape == "tiny, 3 layers, 96 wide"
    assert "base, 24 layers" in str(Workload("bert", 512, layers=24))
    assert Workload("bert", 512, layers=24) != Workload("bert", 512)


def test_a_workload_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Workload("bert", 512).length = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_a_workload_reads_as_a_line():
    workload = Workload("hubert@local:window=50", 12.5, batch_size=4, phase="training", threads=2, size="tiny")
    assert str(workload) == ("hubert@local:window=50 at length 12.5, batch 4, training, cpu float32, 2 threads, tiny")
    assert str(Workload("bert", 512)) == "bert at length 512, batch 1, inference, cpu float32"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"baselines": ()}, "a study needs at least one baseline and one variant"),
        ({"variants": ()}, "a study needs at least one baseline and one variant"),
        ({"variants": (Subject("bert"),)}, "bert is both a baseline and a variant"),
        ({"lengths": (512, 512)}, "the shortest length must be below the longest, got 512 and 512"),
        ({"lengths": (0, 512)}, "a length must be positive, got 0"),
        ({"metrics": ("speed",)}, "unknown metric 'speed'; expected one of latency, throughput, peak_memory"),
        ({"metrics": ()}, "a study needs at least one metric and one phase"),
        ({"phases": ("testing",)}, "unknown phase 'testing'; expected one of inference, training"),
        ({"phases": ()}, "a study needs at least one metric and one phase"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"dtype": "float16"}, "float16 needs a CUDA device"),
    ],
)
def test_a_study_with_an_illegal_field_says_what_the_field_must_be(fields, message):
    legal = {
        "name": "mine",
        "modality": "text",
        "baselines": (Subject("bert"),),
        "variants": (Subject.parse("bert@local"),),
        "lengths": (128, 4096),
    }
    study = Study(**legal)
    assert study.subjects == (Subject("bert"), Subject.parse("bert@local"))
    assert study.workload(Subject("bert"), 256, "training") == Workload("bert", 256, phase="training")
    with pytest.raises(InputError, match=message):
        study.replace(**fields)


def test_a_padded_batch_says_so_and_has_several_sequences():
    assert str(Workload("bert", 128, batch_size=4, padded=True)).endswith(", padded")
    assert "padded" not in str(Workload("bert", 128, batch_size=4))
    with pytest.raises(InputError, match="a batch of one sequence has no padding; give a larger batch_size"):
        Workload("bert", 128, padded=True)


@given(workloads(), st.integers(2, 64))
def test_workloads_that_differ_by_their_batch_size_alone_share_any_batch(workload, batch_size):
    for padded in (False, True):
        one, other = (workload.replace(batch_size=size, padded=padded) for size in (batch_size, batch_size + 1))
        assert one.any_batch == other.any_batch == one.replace(batch_size=one.any_batch.batch_size)
    assert one.any_batch != one.replace(padded=False).any_batch


def test_a_number_of_hundreds_of_digits_is_a_text_or_a_number_and_no_more():
    for digits in (300, 400, 5000):
        variant = Variant.parse(f"local:window={'9' * digits}")
        assert Variant.parse(str(variant)) == variant
