import os
from pathlib import Path

import pytest
import yaml

from tippingpoint.errors import InputError
from tippingpoint.models.catalog import architecture_of
from tippingpoint.study.comparisons import comparisons
from tippingpoint.study.files import StudyFile, load_study
from tippingpoint.study.presets import PRESETS
from tippingpoint.study.run import resolve_study
from tippingpoint.units import MODALITIES
from tippingpoint.workload import METRICS, PHASES, Place, Study, Subject

MINIMAL = {
    "name": "mine",
    "modality": "text",
    "baselines": ["bert"],
    "variants": ["nystromformer"],
    "lengths": [128, 1024],
}
EVERYTHING = """\
# every key a study file may have
name: all of it
modality: speech
baselines: [hubert, hubert@eager]
variants:
  - hubert@local:window=50
  - hubert@local:window=25
lengths: [1.5, 30]
metrics: [latency, peak_memory]
phases: [training]
device: cuda:1
apart: true
dtype: bfloat16
threads: 3
size: small
compile: true
affinity: [2, 0, 1]
batch_size: 4
batch_budget: 60.5
padded: true
budget: 10m
precision: 5%
target: 1%
repeats: 3
screening: false
whole_range: true
about: how far it pays
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.yaml"


def load(path: Path, text: str) -> Study:
    path.write_text(text, encoding="utf-8")
    return load_study(path)


def load_with(path: Path, **changes: object) -> Study:
    return load(path, yaml.safe_dump({**MINIMAL, **changes}))


def complaint(path: Path, text: str) -> str:
    with pytest.raises(InputError) as caught:
        load(path, text)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert "pydantic" not in message
    return message.removeprefix(str(path))


def complaint_with(path: Path, **changes: object) -> str:
    return complaint(path, yaml.safe_dump({**MINIMAL, **changes}))


def test_a_short_file_gets_the_defaults_of_a_study(path):
    study = load_with(path)
    assert study == Study(
        name="mine",
        modality="text",
        baselines=(Subject.parse("bert"),),
        variants=(Subject.parse("nystromformer"),),
        lengths=(128, 1024),
    )


def test_every_field_of_a_study_can_be_said(path):
    assert load(path, EVERYTHING) == Study(
        name="all of it",
        modality="speech",
        baselines=(Subject.parse("hubert"), Subject.parse("hubert@eager")),
        variants=(Subject.parse("hubert@local:window=50"), Subject.parse("hubert@local:window=25")),
        lengths=(1.5, 30),
        metrics=("latency", "peak_memory"),
        phases=("training",),
        device="cuda:1",
        apart=True,
        dtype="bfloat16",
        threads=3,
        size="small",
        compiled=True,
        affinity=(0, 1, 2),
        batch_size=4,
        batch_budget=60.5,
        padded=True,
        budget_s=600.0,
        precision=0.05,
        target=0.01,
        repeats=3,
        screening=False,
        whole_range=True,
        about="how far it pays",
    )


def test_the_file_has_a_key_for_every_field_of_a_study():
    renamed = {"budget": "budget_s", "compile": "compiled"}
    keys = {renamed.get(key, key) for key in StudyFile.model_fields}
    # `device` is a name or the places.
    assert keys | {"places"} == set(Study.__dataclass_fields__)
    assert set(yaml.safe_load(EVERYTHING)) == set(StudyFile.model_fields)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), (120, 120), (1.5, 1.5), ("0.5h", 1800)])
def test_a_budget_has_a_unit_or_is_in_seconds(path, text, seconds):
    assert load_with(path, budget=text).budget_s == seconds


@pytest.mark.parametrize("path_as", [str, Path])
def test_a_path_may_be_text(path, path_as):
    path.write_text(yaml.safe_dump(MINIMAL))
    assert load_study(path_as(path)).name == "mine"


def test_text_other_than_ascii_is_read(path):
    assert load_with(path, name="Länge 長さ").name == "Länge 長さ"


def test_an_unknown_key_is_named_with_those_that_are_known(path):
    message = complaint_with(path, lenghts=[1, 2])
    assert "unknown key 'lenghts'" in message
    for key in StudyFile.model_fields:
        assert key in message


def test_a_missing_key_is_named(path):
    text = yaml.safe_dump({key: value for key, value in MINIMAL.items() if key != "variants"})
    assert complaint(path, text) == ": variants: Field required"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("lengths", "long", "lengths: "),
        ("lengths", [128], "lengths.1: "),
        ("lengths", [128, "far"], "lengths.1: "),
        ("lengths", [1, 2, 3], "lengths: "),
        ("baselines", "bert", "baselines: "),
        ("baselines", [], "baselines: "),
        ("variants", [3], "variants.0: a subject must be a text, got int"),
        ("threads", "many", "threads: "),
        ("batch_size", 1.5, "batch_size: "),
        ("name", [1], "name: "),
        ("budget", "soon", "budget: a duration must be a number with a unit, such as 90s or 5m, got 'soon'"),
        ("budget", 0, "budget: a duration must be positive"),
        ("budget", [5], "budget: "),
        ("precision", "150%", "precision: a share must be between 0 and 1"),
        ("target", "tight", "target: a share must be a number with a unit, such as 2%"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_by_the_path_to_its_key(path, key, value, expected):
    assert complaint_with(path, **{key: value}).startswith(f": {expected}")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"variants": ["bert@"]}, "variants.0: a variant must follow '@' in 'bert@'; a subject is written"),
        ({"variants": ["nystromformer", "bert@local:window"]}, "variants.1: expected key=value after 'local'"),
        ({"lengths": [1024, 128]}, "the shortest length must be below the longest, got 1024 and 128"),
        ({"lengths": [-1, 128]}, "a length must be positive"),
        ({"metrics": ["speed"]}, "unknown metric 'speed'"),
        ({"metrics": ["latencie"]}, "Did you mean 'latency'?"),
        ({"metrics": []}, "a study needs at least one metric and one phase"),
        ({"phases": ["sleeping"]}, "unknown phase 'sleeping'"),
        ({"device": "tpu"}, "unknown device 'tpu'; expected cpu, cuda or cuda:N"),
        ({"dtype": "float64"}, "unknown dtype 'float64'"),
        ({"dtype": "float16"}, "float16 needs a CUDA device"),
        ({"size": "huge"}, "unknown size 'huge'"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"threads": 0}, "threads must be a whole number of at least 1, got 0"),
        ({"variants": ["bert"]}, "bert is both a baseline and a variant"),
    ],
)
def test_a_value_that_is_not_legal_says_what_was_expected(path, changes, expected):
    assert expected in complaint_with(path, **changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"variants": ["longfromer"]}, "unknown architecture 'longfromer'.*Did you mean 'longformer'"),
        ({"variants": ["bert@lokal"]}, "unknown variant 'lokal'.*Did you mean 'local'"),
        ({"variants": ["bert@local:windows=3"]}, "unknown option of 'local' 'windows'.*Did you mean 'window'"),
        ({"modality": "vision"}, "the study says modality 'vision', and its subjects are of text"),
        ({"variants": ["vit"]}, "subjects of different modalities cannot be compared"),
        ({"variants": ["longformer@local"]}, "longformer has an attention of its own"),
        ({"lengths": [10, 64]}, "nystromformer takes no input shorter than 65 tokens"),
    ],
)
def test_what_only_the_catalogue_knows_is_checked_before_anything_is_measured(path, changes, expected):
    with pytest.raises(InputError, match=expected):
        resolve_study(load_with(path, **changes))


@pytest.mark.parametrize("text", ["name: [unclosed", "a: b: c", "\tname: x", "name: *nobody"])
def test_a_file_that_is_no_yaml_says_so_with_the_place(path, text):
    message = complaint(path, text)
    assert message.startswith(" is no YAML: ")
    assert "line" in message


@pytest.mark.parametrize("text", ["", "- bert\n- vit\n", "just words", "42", "# nothing but a comment"])
def test_a_file_without_keys_says_which_ones_there_are(path, text):
    assert complaint(path, text) == " must hold keys such as name, modality, baselines, variants, lengths"


def test_a_yaml_file_cannot_make_objects(path):
    assert "is no YAML" in complaint(path, "name: !!python/object/apply:os.getcwd []")


def test_a_missing_file_names_the_presets(path):
    with pytest.raises(InputError, match="No such file or directory") as caught:
        load_study(path)
    assert f"cannot read the study {str(path)!r}" in str(caught.value)
    assert "expected a YAML file or one of text, speech, vision" in str(caught.value)


def test_a_folder_is_no_study(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the study .*Is a directory"):
        load_study(tmp_path)


def test_a_file_of_bytes_that_are_no_text_is_no_study(path):
    path.write_bytes(b"\xff\xfe\x00\x80" * 10)
    with pytest.raises(InputError, match="cannot read the study"):
        load_study(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_no_study(path):
    path.write_text(yaml.safe_dump(MINIMAL))
    path.chmod(0)
    with pytest.raises(InputError, match=r"cannot read the study .*Permission denied"):
        load_study(path)


def test_there_is_a_preset_for_every_modality():
    assert list(PRESETS) == list(MODALITIES)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_legal(name):
    study = resolve_study(PRESETS[name])
    assert (study.name, study.modality) == (name, name)
    assert study.threads is not None
    assert study.metrics == METRICS
    assert set(study.phases) <= set(PHASES)
    low, high = study.lengths
    for subject in study.subjects:
        # The search takes the nearest length that is legal for all of them.
        row = architecture_of(subject)
        assert row.nearest_legal(low) < row.nearest_legal(high)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_written_as_a_file(name, path):
    study = PRESETS[name]
    fields = {
        "name": study.name,
        "modality": study.modality,
        "baselines": [str(subject) for subject in study.baselines],
        "variants": [str(subject) for subject in study.variants],
        "lengths": list(study.lengths),
        "metrics": list(study.metrics),
        "phases": list(study.phases),
    }
    assert load(path, yaml.safe_dump(fields)) == study


def test_a_device_can_be_a_kind_of_machine_or_several(path):
    one = load_with(path, device={"kind": "cpu", "cores": 8, "resources": {"quiet": 1}})
    assert one.places == (Place(kind="cpu", cores=8, resources=(("quiet", 1.0),)),)
    assert (one.device, one.threads, one.apart) == ("cpu", None, True)
    assert [part.threads for part in comparisons(one)] == [8, 8]
    two = load_with(path, device=[{"kind": "H100"}, {"kind": "A100", "share_socket": True}], apart=False)
    assert two.places == (Place(kind="H100"), Place(kind="A100", share_socket=True))
    assert (two.device, two.threads, two.apart) == ("cuda", None, False)


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ([], "device: List should have at least 1 item"),
        ([1], "device.0"),
        (7, "device: Input should be a valid list"),
        ({"cores": 3}, "device.0.kind: Field required"),
        ({"kind": "cpu"}, "needs its number of cores"),
        ({"kind": "cpu", "cores": 0}, "cores"),
        ({"kind": "cpu", "cores": 2, "share_socket": True}, "never share a socket"),
        ({"kind": "../H100"}, "the kind of a device must be"),
        ({"kind": "H100", "resources": {"quiet": -1}}, "an amount of at least 0.0001"),
        ({"kind": "H100", "resources": {"quiet": 1e-6}}, "an amount of at least 0.0001"),
        ({"kind": "H100", "resources": {"GPU": 2}}, "one of the cluster's own"),
        ({"kind": "H100", "color": "red"}, "device.0.color"),
        ([{"kind": "H100"}, {"kind": "h100"}], "twice for the same place"),
    ],
)
def test_a_kind_of_machine_that_cannot_be_is_refused(path, device, said):
    assert said in complaint_with(path, device=device)


def test_more_threads_than_cores_are_refused(path):
    assert "3 threads are more than the 2 cores" in complaint_with(
        path, device={"kind": "cpu", "cores": 2}, threads=3
    )


def test_cores_to_pin_to_and_kinds_to_find_exclude_each_other(path):
    assert "leave one out" in complaint_with(path, device={"kind": "cpu", "cores": 1}, affinity=[0])
