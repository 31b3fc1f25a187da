"""Profiles of other machines: shipped ones name their source, wrong ones name the key."""

from pathlib import Path

import pytest
import yaml

from tippingpoint.device_profiles import DeviceProfile, load_profile, shipped_profiles, write_profile
from tippingpoint.errors import InputError

GOOD = {
    "name": "Imaginary GPU",
    "source": "its data sheet",
    "kind": "datasheet",
    "flops_per_s": {"float32": 1e13, "bfloat16": 1e14},
    "bytes_per_s": 1e12,
    "memory_bytes": 8 * 10**9,
}


def written(folder: Path, **changes: object) -> Path:
    path = folder / "gpu.yaml"
    path.write_text(
        yaml.safe_dump(
            {key: value for key, value in {**GOOD, **changes}.items() if value is not None}, sort_keys=False
        )
    )
    return path


@pytest.mark.parametrize("name", shipped_profiles())
def test_shipped_profiles_are_dense_and_say_where_they_come_from(name):
    profile = load_profile(name)
    assert profile.kind == "datasheet"
    assert profile.source.partition("https://www.nvidia.com/")[2]
    peaks = profile.peaks("float32")
    assert 1e13 < peaks.flops_per_s < 1e14, "true float32, not TF32"
    # Sparse rates would be over 20 times those of float32.
    assert profile.flops_per_s["bfloat16"] / peaks.flops_per_s < 17
    assert 1e11 < peaks.bytes_per_s < 1e13
    assert 1e10 < profile.memory_bytes < 1e12


def test_the_larger_machine_is_not_slower():
    h100, h200 = load_profile("h100"), load_profile("h200")
    assert h200.flops_per_s == h100.flops_per_s
    assert h200.bytes_per_s > h100.bytes_per_s
    assert h200.memory_bytes > h100.memory_bytes


def test_a_profile_is_written_and_read_again(tmp_path):
    profile = load_profile(written(tmp_path, note="kept at 60 degrees"))
    write_profile(profile, tmp_path / "again.yaml")
    assert load_profile(tmp_path / "again.yaml") == profile
    assert "Imaginary GPU: 10.0TFLOP/s in float32" in str(profile)
    assert str(profile).endswith("(datasheet: its data sheet)")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "gpu.yaml: name: Field required"),
        ({"source": ""}, "gpu.yaml: source: .*at least 1 character"),
        ({"kind": "guessed"}, "gpu.yaml: kind: .*'datasheet' or 'measured'"),
        ({"flops_per_s": {"fp32": 1e13}}, "gpu.yaml: flops_per_s: unknown dtype 'fp32'; expected one of float32"),
        ({"flops_per_s": {"float32": -1.0}}, "gpu.yaml: flops_per_s: the rate in float32 must be positive"),
        ({"flops_per_s": {"float32": "fast"}}, "gpu.yaml: flops_per_s.float32: "),
        ({"flops_per_s": {}}, "gpu.yaml: flops_per_s: .*at least 1"),
        ({"bytes_per_s": 0}, "gpu.yaml: bytes_per_s: .*greater than 0"),
        ({"bytes_per_s": float("inf")}, "gpu.yaml: bytes_per_s: "),
        ({"memory_bytes": 1.5}, "gpu.yaml: memory_bytes: "),
        ({"tflops": 67}, "gpu.yaml: unknown key 'tflops'; expected one of name, source, kind"),
    ],
)
def test_a_wrong_profile_names_the_key(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        load_profile(written(tmp_path, **changes))


@pytest.mark.parametrize(
    ("text", "message"), [("- 1", "must hold keys: name"), ("a: [", "is no YAML"), ("", "must hold")]
)
def test_what_is_no_profile_at_all_is_said(tmp_path, text, message):
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_profile(path)


def test_a_missing_profile_names_the_shipped_ones(tmp_path):
    with pytest.raises(InputError, match=r"unknown device profile 'h10'.*Did you mean 'h100'\?"):
        load_profile("h10")
    with pytest.raises(InputError, match=r"No such file or directory.*one of a100, h100"):
        load_profile(tmp_path / "none.yaml")
    (tmp_path / "large.yaml").write_bytes(b" " * (2**20 + 1))
    with pytest.raises(InputError, match="too large"):
        load_profile(tmp_path / "large.yaml")
    with pytest.raises(InputError, match="cannot write the device profile"):
        write_profile(DeviceProfile(**GOOD), tmp_path / "no" / "folder.yaml")  # type: ignore[arg-type]


def test_a_dtype_that_is_not_told_is_an_error(tmp_path):
    with pytest.raises(InputError, match="tells no rate in float16; it has float32, bfloat16"):
        load_profile(written(tmp_path)).peaks("float16")
