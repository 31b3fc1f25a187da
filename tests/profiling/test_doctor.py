import os
from dataclasses import replace

import pytest

from processes import needs_proc
from synthetic import ENVIRONMENT
from tippingpoint.device_profiles import load_profile, write_profile
from tippingpoint.machine import Peaks
from tippingpoint.profiling import doctor
from tippingpoint.profiling.doctor import Examination, examine
from tippingpoint.profiling.sensors import Gpu
from tippingpoint.report.records import plain


@pytest.fixture(scope="module")
def examination() -> Examination:
    return examine(threads=1)


@needs_proc
def test_the_machine_is_told_with_what_it_can_at_best(examination):
    facts = dict(examination.facts)
    assert facts.keys() >= {
        *("CPU", "caches", "governor", "virtualization", "memory", "device", "threads", "best in float32"),
        *("energy", "PyTorch", "built with", "tippingpoint", "fingerprint"),
    }
    assert all(facts.values())
    assert facts["best in float32"].endswith("/s of memory")
    assert facts["tippingpoint"] == examination.environment.tippingpoint
    assert facts["built with"] == examination.environment.build
    assert facts["energy"].startswith(("none: ", "zeus: "))


@needs_proc
def test_the_record_for_json_has_both_peaks(examination):
    record = plain(examination)
    assert record["peaks"]["float32"]["flops_per_s"] > 0
    assert record["peaks"]["float32"]["bytes_per_s"] > 0
    assert record["environment"]["caches"] == examination.environment.caches


@needs_proc
def test_measured_peaks_become_a_profile_that_predictions_can_read(examination, tmp_path):
    profile = doctor.measured_profile(examination)
    write_profile(profile, tmp_path / "here.yaml")
    assert load_profile(tmp_path / "here.yaml") == profile
    assert profile.kind == "measured"
    assert profile.source.startswith("tippingpoint ")
    assert profile.peaks("float32").flops_per_s == examination.peaks["float32"].flops_per_s
    assert profile.memory_bytes == examination.environment.memory_bytes
    assert profile.name.endswith("1 threads")


@needs_proc
def test_a_gpu_is_profiled_by_its_own_name_and_memory(examination):
    gpu = replace(ENVIRONMENT, device_name="Imaginary GPU", device_memory_bytes=2**33)
    profile = doctor.measured_profile(replace(examination, environment=gpu))
    assert (profile.name, profile.memory_bytes) == ("Imaginary GPU", 2**33)


class ScriptedWorker:
    def __init__(self, **flops_per_s: float) -> None:
        self.flops_per_s = flops_per_s

    def ask(self, method: str, dtype: str) -> Peaks:
        assert method == "peaks"
        return Peaks(flops_per_s=self.flops_per_s[dtype], bytes_per_s=1e10)


@pytest.mark.parametrize(
    ("bfloat16", "told"), [(2e11, ["float32", "bfloat16"]), (5e10, ["float32", "bfloat16"]), (1e9, ["float32"])]
)
def test_bfloat16_is_told_unless_it_is_emulated(bfloat16, told):
    worker = ScriptedWorker(float32=1e11, bfloat16=bfloat16)
    assert list(doctor._peaks(worker)) == told  # type: ignore[arg-type]


def test_more_threads_than_physical_cores_are_a_warning():
    assert doctor._threads(4, 4) is None
    found = doctor._threads(8, 4)
    assert found is not None
    assert found.level == "warning"
    assert found.what == "8 threads are to compute on 4 physical cores"
    assert found.advice.endswith("use --threads 4")


def test_a_process_held_to_some_cores_is_a_warning():
    assert doctor._affinity(ENVIRONMENT) is None
    found = doctor._affinity(replace(ENVIRONMENT, affinity=(2, 3)))
    assert found is not None
    assert found.level == "warning"
    assert found.what == "processes may run on some of the cores only: 2, 3"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs processes that can be pinned")
def test_threads_are_counted_against_the_cores_of_the_machine(monkeypatch):
    """The doctor's own process decides: workers have its cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert doctor._threads(2, doctor.physical_cores()) is not None
    assert doctor._threads(1, doctor.physical_cores()) is None


@pytest.mark.parametrize(
    ("governor", "level"), [("", None), ("performance", "ok"), ("powersave", "warning"), ("schedutil", "warning")]
)
def test_a_governor_that_changes_clocks_is_a_warning(governor, level):
    found = doctor._governor(replace(ENVIRONMENT, governor=governor))
    assert (found and found.level) == level


class SilentGpu(Gpu):
    def __init__(self, clock_hz: float | None) -> None:
        super().__init__(None, None)
        self.told = clock_hz

    def clock_hz(self) -> float | None:
        return self.told


@pytest.mark.parametrize(
    ("sensors", "reason"),
    [("nvidia-ml-py is not installed", "nvidia-ml-py is not installed"), (SilentGpu(None), "this GPU does not tell")],
)
def test_a_gpu_whose_clock_cannot_be_read_is_a_warning_that_says_what_to_install(monkeypatch, sensors, reason):
    monkeypatch.setattr(doctor, "open_gpu", lambda device, uuid: sensors)
    found = doctor._sensors("cuda", "GPU-aa")
    assert found is not None
    assert found.level == "warning"
    assert found.what == f"the GPU's clock cannot be read: {reason}"
    assert "nvidia-ml-py" in found.advice


def test_a_gpu_whose_clock_can_be_read_is_fine_and_a_cpu_needs_none(monkeypatch):
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(doctor, "open_gpu", lambda *arguments: asked.append(arguments) or SilentGpu(1e9))
    found = doctor._sensors("cuda:1", "GPU-aa")
    assert found is not None
    assert found.level == "ok"
    assert doctor._sensors("cpu", "") is None
    assert asked == [("cuda:1", "GPU-aa")]
