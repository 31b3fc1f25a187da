import itertools
import math
import os
import resource
import signal
from collections.abc import Callable

import pytest

from processes import needs_proc, workers_of
from tippingpoint.analysis.comparison import comparison_points
from tippingpoint.errors import InputError, UnsupportedError
from tippingpoint.measurement import BEST_BATCH, Failure, Measurement, Outcome, is_look, paired_log_ratios
from tippingpoint.profiling import process, session
from tippingpoint.profiling.device import available_memory, now
from tippingpoint.profiling.process import Zygote
from tippingpoint.profiling.session import Effort, measure_together, profile, screen
from tippingpoint.workload import Workload

QUICK = Effort(target=0.5, budget_s=0.1)


def tiny(subject: str, length: float = 64, **fields) -> Workload:
    return Workload(subject, length, **{"size": "tiny", "threads": 1, **fields})


def quickly(workload: Workload) -> Measurement | Failure:
    return profile(workload, target=0.5, budget_s=0.1)


def measured(outcome: Outcome) -> Measurement:
    assert isinstance(outcome, Measurement), outcome
    return outcome


def failed(outcome: Outcome) -> Failure:
    assert isinstance(outcome, Failure), outcome
    return outcome


def workers() -> list[int]:
    return workers_of(Zygote.get().process.pid)


@pytest.mark.parametrize(
    ("subject", "length", "positions", "executed"),
    [
        ("bert", 48, 48, 48),
        ("bert@eager", 48, 48, 48),
        ("bert@local:window=8", 48, 48, 48),
        ("longformer", 48, 48, 512),
        ("nystromformer", 80, 80, 128),
        ("hubert", 0.5, 24, 24),
        ("hubert@local:window=5", 0.5, 24, 24),
        ("vit", 64, 17, 17),
        ("swinv2", 64, 256, 256),
    ],
)
def test_every_subject_is_measured_with_its_positions_parameters_flops_and_memory(
    subject, length, positions, executed
):
    found = measured(quickly(tiny(subject, length)))
    assert (found.positions, found.executed_positions) == (positions, executed)
    assert found.parameters > 10_000
    assert found.flops is not None
    assert found.flops.total > 1_000_000
    assert found.memory is not None
    assert 0 < found.memory.weights_bytes <= found.memory.peak_bytes
    assert len(found.samples) >= 4
    assert found.latency_s > 0
    assert found.first_call_s > 0
    assert str(found.workload.subject).startswith(subject)
    assert found.environment.threads == 1


@pytest.mark.parametrize(
    ("subject", "attention"),
    [
        ("bert", "sdpa ("),
        ("bert@eager", "eager"),
        ("bert@local:window=8", "local:window=8, "),
        ("longformer", "a sliding window of 512"),
    ],
)
def test_the_attention_that_really_ran_is_recorded(subject, attention):
    assert measured(quickly(tiny(subject))).attention.startswith(attention)


def test_training_costs_more_than_inference():
    inference, training = (measured(quickly(tiny("bert", 256, phase=phase))) for phase in ("inference", "training"))
    assert inference.flops is not None
    assert training.flops is not None
    assert inference.memory is not None
    assert training.memory is not None
    # The backward pass takes twice the forward pass, but for the gradient of the input.
    assert 2.5 < training.flops.total / inference.flops.total < 3.1
    assert training.latency_s > inference.latency_s
    # weights, gradients and the two moments of AdamW
    assert training.memory.peak_bytes > inference.memory.peak_bytes + 2 * 4 * training.parameters


def test_the_score_matrix_of_eager_attention_takes_memory():
    fused, eager = (measured(quickly(tiny(subject, 512))) for subject in ("bert", "bert@eager"))
    assert fused.memory is not None
    assert eager.memory is not None
    score_matrix = 2 * 512 * 512 * 4
    assert eager.memory.peak_bytes > fused.memory.peak_bytes + score_matrix


def test_half_the_precision_takes_half_the_memory():
    single, half = (
        measured(quickly(tiny("bert", 256, size="small", dtype=dtype))) for dtype in ("float32", "bfloat16")
    )
    assert single.memory is not None
    assert half.memory is not None
    assert 0.4 < half.memory.peak_bytes / single.memory.peak_bytes < 0.6


def test_a_session_gives_one_outcome_for_each_workload_in_order():
    subjects = ["bert@eager", "bert", "nystromformer"]
    found = [measured(o) for o in measure_together([tiny(s, 80) for s in subjects], baselines=2, effort=QUICK)]
    assert [str(one.workload.subject) for one in found] == subjects
    assert len({one.session for one in found}) == 1


def test_rounds_of_a_session_are_paired_and_interleaved():
    first, second = (measured(o) for o in measure_together([tiny("bert"), tiny("bert@eager")], effort=QUICK))
    assert [sample.round for sample in first.samples] == [sample.round for sample in second.samples]
    assert len(paired_log_ratios(first, second)[0]) == len(first.samples)
    for ours, theirs in zip(first.samples, second.samples, strict=True):
        assert {ours.order, theirs.order} == {0, 1}
    # every second round runs in the mirrored order
    assert all(a.order != b.order for a, b in zip(first.samples[::2], first.samples[1::2], strict=True))
    moments = sorted((s.started_s, s.round) for s in (*first.samples, *second.samples))
    assert [number for _, number in moments] == sorted(number for _, number in moments)


def test_two_sessions_are_told_apart():
    one, other = (measured(quickly(tiny("bert"))) for _ in range(2))
    assert one.session != other.session
    with pytest.raises(ValueError, match="different sessions"):
        paired_log_ratios(one, other)


def test_the_search_for_the_best_batch_leaves_its_curve_and_measures_there():
    found = measure_together([tiny("bert", 32), tiny("bert@eager", 32)], effort=QUICK, largest_batches=[4, 4])
    first = [measured(outcome) for outcome in found[:2]]
    late = [measured(outcome) for outcome in found[2:]]
    for one in first:
        assert one.workload.batch_size == 1
        assert one.batch_curve[0] == (1, pytest.approx(one.sequences_per_s))
        assert [size for size, _ in one.batch_curve] == [1, 2, 4][: len(one.batch_curve)]
        assert len(one.batch_curve) >= 2
    # On any machine two sequences of 32 tokens take less than twice the time of one.
    assert len(late) == 2
    for one in late:
        assert one.session == first[0].session + BEST_BATCH
        assert one.workload.batch_size in (1, 2, 4)
        assert one.memory is None
        assert one.flops is None
    points = comparison_points(
        found, first[0].workload.subject, first[1].workload.subject, metric="throughput", phase="inference"
    )
    assert len(points) == 1


def test_without_a_search_there_is_no_curve():
    (found,) = measure_together([tiny("bert", 32)], effort=QUICK)
    assert measured(found).batch_curve == ()


def test_progress_is_told_line_by_line():
    lines: list[str] = []
    measure_together([tiny("bert"), tiny("bert@eager")], effort=QUICK, progress=lines.append)
    assert [line.split(":")[0] for line in lines[:2]] == ["bert", "bert@eager"]
    assert lines[2] == "latency of bert, bert@eager"
    assert all("\n" not in line for line in lines)


def during(phase: str, action: Callable[[list[int]], object]) -> Callable[[str], None]:
    """A listener to progress that acts on the living workers when a phase begins."""

    def listen(line: str) -> None:
        if line.startswith(phase):
            action(workers())

    return listen


@needs_proc
@pytest.mark.parametrize(("number", "kind"), [(signal.SIGKILL, "killed"), (signal.SIGSEGV, "crashed")])
def test_a_subject_whose_process_dies_is_a_row_and_the_other_one_is_measured(number, kind):
    found = measure_together(
        [tiny("bert"), tiny("bert@eager")],
        effort=QUICK,
        progress=during("latency of", lambda pids: os.kill(pids[0], number)),
    )
    lost = failed(found[0])
    assert (lost.kind, lost.refused) == (kind, False)
    assert number.name in lost.message
    assert lost.positions == 64
    assert str(measured(found[1]).workload.subject) == "bert@eager"
    assert workers() == []


@needs_proc
def test_a_subject_that_hangs_is_a_row_and_the_other_one_is_measured():
    found = measure_together(
        [tiny("bert"), tiny("bert@eager")],
        effort=Effort(target=0.5, budget_s=0.1, timeout_s=3.0),
        progress=during("latency of", lambda pids: os.kill(pids[1], signal.SIGSTOP)),
    )
    measured(found[0])
    lost = failed(found[1])
    assert lost.kind == "timeout"
    assert "took longer than 3 s" in lost.message
    assert workers() == []


@needs_proc
def test_a_session_goes_on_without_the_process_that_workers_are_forked_from():
    found = measure_together(
        [tiny("bert"), tiny("bert@eager")],
        effort=QUICK,
        progress=during("latency of", lambda pids: os.kill(Zygote.get().process.pid, signal.SIGKILL)),
    )
    assert [str(measured(outcome).workload.subject) for outcome in found] == ["bert", "bert@eager"]
    measured(quickly(tiny("bert")))


@needs_proc
def test_every_subject_of_a_session_may_fail():
    found = measure_together(
        [tiny("bert"), tiny("bert@eager")],
        effort=QUICK,
        progress=during("latency of", lambda pids: [os.kill(pid, signal.SIGKILL) for pid in pids]),
    )
    assert [failed(outcome).kind for outcome in found] == ["killed", "killed"]


@needs_proc
def test_a_subject_that_dies_in_the_search_for_its_best_batch_keeps_what_was_measured_before():
    found = measure_together(
        [tiny("bert", 32), tiny("bert@eager", 32)],
        effort=QUICK,
        largest_batches=[4, 4],
        progress=during("bert: best batch", lambda pids: os.kill(pids[0], signal.SIGKILL)),
    )
    assert [measured(outcome).workload.batch_size for outcome in found[:2]] == [1, 1]
    (lost,) = [outcome for outcome in found if isinstance(outcome, Failure)]
    assert lost.kind == "killed"
    assert lost.session.endswith(BEST_BATCH)


def too_long_for_fused_attention() -> int:
    """A length whose sixty-fourth part has a bound of twice the memory there is; two million tokens at least."""
    bound_at_one = 100.0  # bytes for each squared position of the Base model, roughly
    return max(2_000_000, int(64 * math.sqrt(2 * available_memory() / bound_at_one)))


def too_long_for_a_score_matrix() -> int:
    """A length whose scores take more memory than there is, twice over; 60,000 tokens at least."""
    bytes_at_one = 2 * 2 * 4  # scores and softmax of the tiny model's two heads in float32
    return max(60_000, int(math.sqrt(2 * available_memory() / bytes_at_one)))


def test_fused_attention_over_two_million_tokens_is_refused_before_it_is_tried():
    workload = Workload("bert", too_long_for_fused_attention(), threads=1)
    begin = now()
    lost = failed(profile(workload, budget_s=0.1))
    assert now() - begin < 20
    assert (lost.kind, lost.refused) == ("out_of_memory", True)
    assert lost.message.startswith("refused before trying: about ")
    assert lost.workload.length == lost.positions == workload.length


def test_a_score_matrix_of_60000_tokens_is_refused_before_it_is_tried():
    length = too_long_for_a_score_matrix()
    begin = now()
    lost = failed(quickly(tiny("bert@eager", length)))
    assert now() - begin < 20
    assert (lost.kind, lost.refused) == ("out_of_memory", True)
    assert "would be needed (for weights and attention scores alone)" in lost.message
    assert lost.positions == length


def test_scores_are_foreseen_though_shorter_inputs_seem_to_need_little():
    # The C library keeps small blocks that were freed and gives large ones back, so that memory can seem to grow
    # in proportion to the length between two short inputs.
    little = [(1500, 80_000_000), (3000, 160_000_000)]
    (lost,) = measure_together([tiny("bert@eager", too_long_for_a_score_matrix())], effort=QUICK, known=[little])
    assert failed(lost).refused


def test_what_a_bound_refuses_is_tried_where_shorter_inputs_refute_it():
    # A window of 4 over this many tokens fits where the scores of full attention would not.
    length = int(1.1 * math.sqrt(available_memory() / (4 * 6 * 2)))
    found = measured(quickly(tiny("bert@local:window=4", length)))
    assert found.memory is not None
    assert found.memory.peak_bytes < available_memory()


def test_what_does_not_fit_is_a_row_beside_what_does():
    found = measure_together([tiny("bert", 64), tiny("bert@eager", too_long_for_a_score_matrix())], effort=QUICK)
    measured(found[0])
    assert failed(found[1]).refused


def test_a_prediction_from_shorter_lengths_refuses_without_a_probe():
    everything = 10 * available_memory()
    lines: list[str] = []
    found = measure_together([tiny("bert", 64)], effort=QUICK, known=[((32, everything),)], progress=lines.append)
    assert failed(found[0]).refused
    assert "extrapolated from shorter inputs" in failed(found[0]).message


def test_subjects_that_do_not_fit_together_are_measured_in_pairs_with_the_baseline(monkeypatch):
    subjects = [tiny("bert", 128), tiny("bert@eager", 128), tiny("longformer", 128)]
    peaks = [one.memory.peak_bytes for one in map(measured, map(quickly, subjects)) if one.memory]
    # Room for the largest and the baseline, and not for all three.
    room = sum(peaks) - min(peaks[1:]) / 2
    monkeypatch.setattr(session, "available_memory", lambda: room / session.SAFE_SHARE)
    found = measure_together(subjects, effort=QUICK)
    baseline, *others = (measured(outcome).workload.subject for outcome in found[:3])
    assert len({outcome.session for outcome in found}) == 2
    for metric in ("latency", "peak_memory"):
        for other in others:
            points = comparison_points(found, baseline, other, metric=metric, phase="inference")
            assert [point.length for point in points] == [128], (metric, str(other))


def test_subjects_that_do_not_even_fit_in_pairs_are_measured_alone(monkeypatch):
    monkeypatch.setattr(session, "available_memory", lambda: 1)
    found = [measured(o) for o in measure_together([tiny("bert"), tiny("bert@eager")], effort=QUICK)]
    assert len({one.session for one in found}) == 2


def test_a_device_that_is_not_there_is_one_clear_error():
    torch = pytest.importorskip("torch")
    name = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(InputError, match=f"device '{name}' was asked for, and"):
        profile(tiny("bert", device=name))


@pytest.mark.parametrize(
    ("subject", "length", "expected"),
    [
        ("nystromformer", 64, "nystromformer takes no input shorter than 65 tokens"),
        ("vit", 100, "vit takes multiples of 16 pixels .* the nearest is 96"),
        ("swinv2", 16, "swinv2 takes no input shorter than 32 px"),
        ("hubert", 0.01, "hubert takes no input shorter than 0.025"),
        ("bert", 10.5, "bert takes whole tokens"),
        ("longfomer", 64, "unknown architecture 'longfomer'.*Did you mean 'longformer'"),
        ("bert@lokal", 64, "unknown variant 'lokal'"),
    ],
)
def test_what_is_not_legal_is_refused_before_any_process_is_started(monkeypatch, subject, length, expected):
    def start(*arguments: object, **options: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(process.Zygote, "get", start)
    with pytest.raises(InputError, match=expected):
        profile(tiny(subject, length))


def test_a_variant_in_an_architecture_with_an_attention_of_its_own_is_unsupported():
    with pytest.raises(UnsupportedError, match="longformer has an attention of its own"):
        profile(tiny("longformer@local"))


def test_the_same_subject_twice_in_a_session_is_refused():
    with pytest.raises(InputError, match="bert stands twice"):
        measure_together([tiny("bert"), tiny("bert")], effort=QUICK)


def test_threads_are_all_usable_cores_unless_said_otherwise():
    found = measured(quickly(tiny("bert", threads=None)))
    assert found.workload.threads == len(os.sched_getaffinity(0)) == found.environment.threads


def test_options_are_written_out_in_what_was_measured():
    found = measured(quickly(tiny("bert@local")))
    assert str(found.workload.subject) == "bert@local:window=128"


def test_the_parent_sleeps_while_its_workers_compute():
    # Blocks of 50 ms and more, as they are where a length matters.
    workloads = [tiny("bert", 2048), tiny("bert@eager", 2048)]
    before, begin = resource.getrusage(resource.RUSAGE_SELF), now()
    measure_together(workloads, effort=Effort(target=1e-6, budget_s=1.5))
    after, wall = resource.getrusage(resource.RUSAGE_SELF), now() - begin
    ours = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    assert ours < 0.1 * wall


@pytest.mark.gpu
def test_a_subject_is_measured_on_a_gpu():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    fused, eager = (
        measured(quickly(Workload(subject, 1024, device="cuda", dtype="bfloat16", threads=1, size="small")))
        for subject in ("bert", "bert@eager")
    )
    assert fused.environment.driver.startswith("CUDA")
    assert fused.samples[0].device_seconds is not None
    assert fused.memory is not None
    assert eager.memory is not None
    assert eager.memory.peak_bytes > fused.memory.peak_bytes + 8 * 1024 * 1024 * 2
    assert "attention" in fused.attention


def test_repeats_are_fresh_processes_whose_rounds_pair_within_themselves():
    pids: list[list[int]] = []
    effort = Effort(target=0.5, budget_s=0.2, repeats=3)
    found = measure_together(
        [tiny("bert"), tiny("bert@eager")],
        effort=effort,
        progress=during("latency of", lambda workers: pids.append(workers)),
    )
    first, second = map(measured, found)
    assert len({pid for alive in pids for pid in alive}) == 6
    assert set(first.processes) == set(second.processes) == {0, 1, 2}
    assert len(first.warm_ups_s) == 3
    ratios, processes = paired_log_ratios(first, second)
    assert len(ratios) == len(first.counted)
    assert processes == first.processes
    # No two processes share a round, and time runs on from one to the next.
    assert len({sample.round for sample in first.samples}) == len(first.samples)
    assert [sample.started_s for sample in first.samples] == sorted(sample.started_s for sample in first.samples)
    # The clock of a session begins with its first block.
    assert min(sample.started_s for sample in (*first.samples, *second.samples)) < 0.05


def test_the_best_batch_is_timed_in_as_many_processes():
    effort = Effort(target=0.5, budget_s=0.2, repeats=2)
    found = measure_together([tiny("bert", 32)], effort=effort, largest_batches=[4])
    late = [measured(outcome) for outcome in found if outcome.session.endswith(BEST_BATCH)]
    assert [set(one.processes) for one in late] == [{0, 1}]


@needs_proc
def test_a_subject_that_dies_in_its_second_process_is_a_row_and_the_other_one_goes_on():
    killed: list[str] = []

    def listen(line: str) -> None:
        if line.startswith("latency of") and "process 2" in line:
            killed.append(line)
            os.kill(workers()[0], signal.SIGKILL)

    effort = Effort(target=0.5, budget_s=0.2, repeats=3)
    found = measure_together([tiny("bert"), tiny("bert@eager")], effort=effort, progress=listen)
    assert len(killed) == 1
    assert failed(found[0]).kind == "killed"
    assert set(measured(found[1]).processes) == {0, 1, 2}


def test_a_worker_stays_on_its_cores():
    core = min(os.sched_getaffinity(0))
    found = measured(quickly(tiny("bert", affinity=[core], threads=None)))
    assert found.workload.threads == found.environment.threads == found.environment.cores == 1
    free = measured(quickly(tiny("bert")))
    if len(os.sched_getaffinity(0)) > 1:
        assert found.environment.affinity == (core,)
        assert found.environment.fingerprint != free.environment.fingerprint


def test_a_core_that_is_not_there_is_one_clear_error():
    with pytest.raises(InputError, match=r"affinity names cores 4095, and this process may use"):
        profile(tiny("bert", affinity=[4095]))


def test_what_the_machine_did_is_noted_for_every_block():
    found = measured(quickly(tiny("bert")))
    for sample in found.samples:
        assert sample.conditions is not None
        assert sample.conditions.load is None or sample.conditions.load >= 0
    assert found.peaks is not None
    assert found.peaks.flops_per_s > 1e8
    assert found.peaks.bytes_per_s > 1e8
    assert found.share_of_peak is not None
    assert found.share_of_bandwidth is not None


def test_the_parts_of_memory_are_named():
    inference, training = (measured(quickly(tiny("bert", 128, phase=phase))) for phase in ("inference", "training"))
    for one in (inference, training):
        assert one.memory is not None
        assert one.memory.weights_bytes >= 4 * one.parameters
        assert one.memory.inputs_bytes == 128 * 8
        assert one.memory.activations_bytes > 0


def test_memory_of_neighbouring_lengths_grows_evenly():
    """glibc would keep some freed blocks of these sizes and give others back."""
    sizes = []
    for length in (600, 640, 680, 720, 760, 800):
        with process.WorkerProcess("cpu", 1) as worker:
            worker.ask("build", Workload("bert@eager", length, threads=1, size="small"))
            sizes.append(worker.ask("measure_memory").activations_bytes)
    steps = [later / earlier for earlier, later in itertools.pairwise(sizes)]
    # Between proportional to the length and to its square.
    assert all(1.03 < step < 1.15 for step in steps), sizes


def test_without_a_counter_there_is_no_energy_and_a_reason(monkeypatch):
    found = measured(profile(tiny("bert"), target=0.5, budget_s=0.1, energy=True))
    assert found.energy is not None
    if found.energy.joules_per_call is None:
        assert found.energy.source.startswith("no counter: ")
    else:
        assert found.energy.joules_per_call > 0
    assert measured(quickly(tiny("bert"))).energy is None


def test_a_compiled_subject_is_compiled_once_and_its_time_kept_apart():
    pytest.importorskip("torch._inductor")
    found = profile(tiny("bert", 48, compiled=True), target=0.5, budget_s=0.1)
    if isinstance(found, Failure):
        assert found.kind == "unsupported"
        assert found.message.startswith("torch.compile cannot take it")
        pytest.skip("no compiler here")
    assert found.compile_s is not None
    assert found.compile_s > 100 * found.latency_s
    assert "; compiled, kernels: " in found.attention
    eager = measured(quickly(tiny("bert", 48)))
    assert eager.compile_s is None
    assert found.flops == eager.flops
    assert found.parameters == eager.parameters
    assert found.memory is not None
    assert found.memory.peak_bytes < 4 * measured(eager).memory.peak_bytes  # type: ignore[union-attr]


def test_what_the_compiler_refuses_is_unsupported_and_says_so(monkeypatch):
    from tippingpoint.profiling.worker import classify

    dynamo = pytest.importorskip("torch._dynamo.exc")
    problem = classify(dynamo.Unsupported("graph break"))
    assert (problem.kind, problem.refused) == ("unsupported", None)
    assert "torch.compile cannot take it" in problem.message


def test_a_look_times_shallow_models_side_by_side_and_nothing_else():
    workloads = [
        Workload(subject, 32, size="small", threads=1, layers=layers)
        for subject in ("bert", "bert@local:window=8")
        for layers in (1, 2)
    ]
    found = screen(workloads, effort=Effort(budget_s=0.1))
    assert [outcome.workload.layers for outcome in found] == [1, 2, 1, 2]
    for outcome in found:
        assert isinstance(outcome, Measurement)
        assert len(outcome.samples) == 2
        assert (outcome.memory, outcome.flops) == (None, None)
        assert outcome.notes == ("a rough look, for deciding what to measure",)
        assert is_look(outcome)
    assert len({outcome.session for outcome in found}) == 1
    parameters = [outcome.parameters for outcome in found if isinstance(outcome, Measurement)]
    assert parameters[0] < parameters[1]


def test_what_is_not_legal_is_not_looked_at():
    with pytest.raises(InputError, match="must be a multiple of its heads'"):
        screen([Workload("bert", 32, size="tiny", threads=1, width=100)])


def test_what_cannot_fit_is_a_failure_of_the_look_and_the_others_are_timed():
    workloads = [
        Workload("bert@eager", 500_000, size="tiny", threads=1, layers=1),
        Workload("bert", 32, size="tiny", threads=1, layers=1),
    ]
    lost, found = screen(workloads, effort=Effort(budget_s=0.1))
    assert isinstance(lost, Failure)
    assert (lost.kind, lost.refused) == ("out_of_memory", True)
    assert isinstance(found, Measurement)
