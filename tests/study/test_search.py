import math
from collections.abc import Callable, Iterable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthetic import ENVIRONMENT, MIB, Machine, failure, known_of
from tippingpoint.analysis.tipping_point import TippingPoint, tipping_point
from tippingpoint.measurement import Failure
from tippingpoint.models.catalog import architecture_of
from tippingpoint.store import Store
from tippingpoint.study.ledger import read_known
from tippingpoint.study.presets import PRESETS
from tippingpoint.study.run import resolve_study
from tippingpoint.study.search import SCREENING_LAYERS, Known, Step, can_screen, needed_s, next_step, pairs
from tippingpoint.workload import METRICS, PHASES, Study, Subject

Cost = Callable[[float], float]

BERT = Subject.parse("bert")
LOCAL = Subject.parse("bert@local:window=128")
NYSTROMFORMER = Subject.parse("nystromformer")


def make_study(
    *subjects: Subject,
    baselines: int = 1,
    lengths: tuple[float, float] = (128, 8192),
    phases: tuple[str, ...] = ("inference",),
    metrics: tuple[str, ...] = ("latency",),
    **options,
) -> Study:
    chosen = subjects or (BERT, LOCAL)
    study = Study(
        name="planted",
        modality=architecture_of(chosen[0]).modality,
        baselines=chosen[:baselines],
        variants=chosen[baselines:],
        lengths=lengths,
        phases=phases,
        metrics=metrics,
        **{"budget_s": 1e6, "threads": 2, "size": "tiny", **options},
    )
    return resolve_study(study)


def preset(name: str, **changes) -> Study:
    return resolve_study(PRESETS[name].replace(**{"threads": 2, "phases": PHASES, **changes}))


def crossing_at(positions: float, rate: float = 1e-5) -> dict[Subject, Cost]:
    """BERT's quadratic cost, and a window's linear one that is the lower one from some length on."""
    return {BERT: lambda n: rate * n * (1 + n / positions), LOCAL: lambda n: 2 * rate * n}


def costs_of(study: Study, *curves: Cost) -> dict[Subject, Cost]:
    return dict(zip(study.subjects, curves, strict=True))


def lengths_of(steps: Iterable[Step], purpose: str = "") -> list[float]:
    return [step.length for step in steps if step.purpose.startswith(purpose)]


def verdict(machine: Machine, variant: Subject | None = None, metric: str = "latency") -> TippingPoint:
    study = machine.study
    return tipping_point(
        machine.known.outcomes,
        study.baselines[0],
        variant or study.variants[0],
        metric=metric,
        phase=study.phases[0],
    )


def test_the_first_step_is_the_shortest_length_with_every_subject():
    study = preset("text")
    step = next_step(study, Known(), study.budget_s)
    assert step is not None
    assert (step.phase, step.length, step.subjects) == ("inference", 128, study.subjects)
    assert step.expected_s is None


@pytest.mark.parametrize("name", PRESETS)
def test_the_first_step_of_a_preset_can_be_measured(name):
    study = preset(name)
    step = next_step(study, Known(), study.budget_s)
    assert step is not None
    for subject in step.subjects:
        architecture_of(subject).check_length(step.length)


def test_the_grid_grows_from_short_to_long_and_doubles_while_that_is_cheap():
    machine = Machine(make_study(), crossing_at(1e9))
    machine.finish()
    assert lengths_of(machine.steps) == [128, 256, 512, 1024, 2048, 4096, 8192]
    assert {step.purpose for step in machine.steps} == {"growing"}


def test_the_grid_ends_at_the_longest_length_asked_for():
    machine = Machine(make_study(lengths=(128, 3000)), crossing_at(1e9))
    machine.finish()
    assert lengths_of(machine.steps) == [128, 256, 512, 1024, 2048, 3000]


def test_refining_goes_before_growing_beyond_what_has_certainly_tipped():
    machine = Machine(make_study(precision=0.02), crossing_at(300), noise=0.03)
    machine.finish()
    purposes = [step.purpose for step in machine.steps if step.purpose != "growing" or step.length > 1024]
    assert purposes[0] in ("checking", "refining")
    assert purposes[-1] == "growing"


@pytest.mark.parametrize("truth", [100, 300, 3000, 1e9])
def test_the_longest_length_asked_for_is_measured_if_the_budget_lasts(truth):
    # Documents of that length are there, or the user would not have asked.
    machine = Machine(make_study(), crossing_at(truth), noise=0.001)
    machine.finish()
    assert max(lengths_of(machine.steps)) == 8192


def width(found: TippingPoint) -> float:
    """How far the ends of an interval are apart, as a factor."""
    assert found.interval is not None
    return found.interval[1] / found.interval[0]


def test_an_interval_is_narrowed_to_the_precision():
    for precision in (0.3, 0.1, 0.03):
        machine = Machine(make_study(precision=precision), crossing_at(1500), noise=0.01)
        machine.finish()
        found = verdict(machine)
        assert width(found) <= (1 + precision) ** 2
        assert found.length == pytest.approx(1500, rel=precision)


def test_a_finer_precision_measures_more_and_nothing_again():
    def lengths(precision: float) -> list[float]:
        machine = Machine(make_study(precision=precision), crossing_at(1500), noise=0.02)
        machine.finish()
        return lengths_of(machine.steps)

    coarse, fine = lengths(0.2), lengths(0.03)
    assert len(fine) > len(coarse)
    assert fine[: len(coarse)] == coarse or set(coarse) <= set(fine)
    assert len(fine) == len(set(fine))


def test_most_sessions_are_near_the_tipping_point():
    machine = Machine(make_study(precision=0.02), crossing_at(1500), noise=0.02)
    machine.finish()
    chosen = [step.length for step in machine.steps if step.purpose in ("checking", "refining")]
    assert len(chosen) > 3
    assert sum(750 < length < 3000 for length in chosen) > len(chosen) / 2


def test_every_pair_is_refined_though_its_subjects_were_measured_with_others_at_the_same_length():
    study = preset("text", phases=("inference",), metrics=("latency",), budget_s=1e7)
    # The four crossings lie in one octave, so that their brackets have one middle.
    rate = 2e-4
    curves = costs_of(
        study,
        lambda n: rate * n * (1 + n / 1200),
        lambda n: rate * n * (1 + n / 1000),
        lambda n: rate * n * 2.1,
        lambda n: rate * n * 2.5,
    )
    machine = Machine(study, curves, noise=0.001)
    machine.finish()
    for baseline, variant in pairs(study):
        found = tipping_point(machine.known.outcomes, baseline, variant, metric="latency", phase="inference")
        assert width(found) <= (1 + study.precision) ** 2, (baseline, variant)


def test_refining_measures_only_the_pair():
    study = make_study(BERT, LOCAL, NYSTROMFORMER, precision=0.02)
    curves = costs_of(study, lambda n: 1e-5 * n * (1 + n / 1500), lambda n: 2e-5 * n, lambda n: 1e-3 * n)
    machine = Machine(study, curves, noise=0.03)
    machine.finish()
    refined = [step for step in machine.steps if step.purpose in ("checking", "refining")]
    assert refined
    assert all(step.subjects == (BERT, LOCAL) for step in refined)


def test_training_follows_inference_and_gets_a_share_of_the_budget():
    study = make_study(phases=PHASES, budget_s=120)
    machine = Machine(study, crossing_at(1500, rate=1e-3))
    machine.finish()
    phases = [step.phase for step in machine.steps]
    assert phases.index("training") > 0
    spent: dict[str, float] = dict.fromkeys(PHASES, 0.0)
    for step, (_, seconds) in zip(machine.steps, machine.sessions, strict=True):
        spent[step.phase] += seconds
    assert spent["training"] > 0.2 * study.budget_s


@pytest.mark.parametrize("metrics", [("latency",), METRICS])
@pytest.mark.parametrize("name", PRESETS)
def test_every_phase_has_an_answer_however_small_the_budget(name, metrics):
    study = preset(name, budget_s=0.001, metrics=metrics)
    machine = Machine(study, dict.fromkeys(study.subjects, lambda n: 1e-3 * n))
    machine.finish()
    # Looks with shallow models answer nothing by themselves.
    assert [step.phase for step in machine.steps if step.purpose != "screening"] == ["inference", "training"]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("budget_s", [60.0, 300.0, 1800.0])
def test_nothing_is_begun_that_is_expected_to_break_the_budget(name, budget_s):
    study = preset(name, budget_s=budget_s)
    rates = (2e-4, 3e-4, 5e-4, 3e-4)
    machine = Machine(
        study, {subject: (lambda n, r=r: r * n) for subject, r in zip(study.subjects, rates, strict=False)}
    )
    seen: set[str] = set()
    later = 0.0
    while (step := next_step(study, machine.known, study.budget_s - machine.spent_s)) is not None:
        # The first session of a phase is run whatever it costs: nobody knows the machine yet.
        if step.phase in seen:
            assert step.expected_s is not None
            assert step.expected_s <= budget_s - machine.spent_s
        _, seconds = machine.run(step)
        later += seconds if step.phase in seen else 0.0
        seen.add(step.phase)
    # Costs that grow no faster than expected break the budget by less than one session.
    assert later <= 1.25 * budget_s


def test_a_larger_budget_goes_on_with_what_is_known():
    curves = crossing_at(1500, rate=1e-3)
    machine = Machine(make_study(budget_s=60), curves)
    machine.finish()
    before = list(machine.steps)
    machine.study = machine.study.replace(budget_s=600)
    machine.finish()
    assert machine.steps[: len(before)] == before
    assert len(machine.steps) > len(before)
    assert len(set(_keys(machine.steps))) == len(machine.steps)


@pytest.mark.parametrize("name", PRESETS)
def test_every_length_is_legal_for_every_subject(name):
    study = preset(name, budget_s=1e6, metrics=("latency",))
    quadratic, *linear = study.subjects
    costs: dict[Subject, Cost] = {quadratic: lambda n: 1e-5 * n * (1 + n / 900)}
    costs |= dict.fromkeys(linear, lambda n: 2e-5 * n)
    if name == "vision":
        # a side of 32 pixels more has more positions than 10 %, and Swin V2's are 16 times ViT's
        costs[linear[0]] = lambda n: 2e-5 * n / 16
    machine = Machine(study, costs)
    machine.finish()
    assert any(step.purpose in ("checking", "refining") for step in machine.steps)
    for step in machine.steps:
        for subject in study.subjects:
            architecture_of(subject).check_length(step.length)
        if name == "vision":
            assert step.length % 32 == 0


def test_what_ran_out_of_memory_is_not_tried_at_a_longer_length():
    study = make_study(BERT, LOCAL, NYSTROMFORMER)
    curves = costs_of(study, lambda n: 1e-5 * n, lambda n: 2e-5 * n, lambda n: 3e-5 * n)
    needs = {NYSTROMFORMER: lambda n: 2e5 * n}
    machine = Machine(study, curves, needs=needs, room=2e5 * 1000)
    machine.finish()
    tried = [step.length for step in machine.steps if NYSTROMFORMER in step.subjects]
    assert max(tried) == 1024
    assert max(lengths_of(machine.steps)) == 8192


def test_growing_ends_when_the_baseline_has_run_out_of_memory():
    machine = Machine(make_study(), crossing_at(1e9), needs={BERT: lambda n: 1e5 * n}, room=1e5 * 1000)
    machine.finish()
    assert max(lengths_of(machine.steps)) == 1024
    # The length from which only the variant fits is a tipping point, found to the precision.
    found = verdict(machine)
    assert found.verdict == "crosses"
    assert found.interval is not None
    assert 512 <= found.interval[0] <= 1000 <= found.interval[1] <= 1024
    assert width(found) <= 1.1**2


def test_growing_ends_when_no_variant_is_left():
    machine = Machine(make_study(), crossing_at(1e9), needs={LOCAL: lambda n: 1e5 * n}, room=1e5 * 1000)
    machine.finish()
    assert max(lengths_of(machine.steps)) == 1024


def test_a_study_of_which_everything_fails_ends():
    study = preset("text")
    machine = Machine(study, dict.fromkeys(study.subjects, lambda n: 1.0), room=0.0)
    machine.finish()
    # One look with shallow models and one session in each phase.
    assert [step.phase for step in machine.steps] == ["inference", "inference", "training", "training"]
    assert all(isinstance(outcome, Failure) for outcome in machine.known.outcomes)


@pytest.mark.parametrize("kind", ["crashed", "timeout", "unsupported"])
def test_what_failed_for_another_reason_is_not_tried_again(kind):
    study = make_study(BERT, LOCAL, NYSTROMFORMER)
    machine = Machine(study, costs_of(study, *[lambda n: 1e-5 * n] * 3))
    step = next_step(study, machine.known, study.budget_s)
    assert step is not None
    outcomes, seconds = machine.run(step)
    lost = [o if o.workload.subject != LOCAL else failure(LOCAL, 128, kind=kind, size="tiny") for o in outcomes]
    machine.sessions[-1] = (lost, seconds)
    machine.finish()
    assert all(LOCAL not in step.subjects for step in machine.steps[1:])


def _keys(steps: Iterable[Step]) -> list[tuple[object, ...]]:
    return [(step.phase, step.length, step.subjects) for step in steps]


@pytest.mark.parametrize("name", PRESETS)
def test_going_on_from_the_store_takes_the_same_next_step_as_going_on_without_it(name):
    study = preset(name, budget_s=300.0)
    curves = [lambda n: 1e-4 * n * (1 + n / 1000), lambda n: 1e-4 * n * (1 + n / 500), *[lambda n: 2e-4 * n] * 2]
    if name == "vision":
        curves = [lambda n: 1e-4 * n * (1 + n / 1000), lambda n: 2e-4 * n / 16]
    elif name == "speech":
        curves = curves[1:3]
    machine = Machine(study, costs_of(study, *curves))
    machine.finish()
    with Store(":memory:") as store:
        spent = 0.0
        for number in range(len(machine.steps) + 1):
            expected = machine.steps[number] if number < len(machine.steps) else None
            kept = read_known(study, store, ENVIRONMENT)
            assert kept == known_of(machine.sessions[:number])
            assert next_step(study, kept, study.budget_s - spent) == expected
            if number < len(machine.steps):
                outcomes, seconds = machine.sessions[number]
                store.add(outcomes, study="planted", seconds=seconds)
                spent += seconds
    assert len(machine.steps) > 3


def test_the_next_step_is_a_pure_function():
    machine = Machine(make_study(), crossing_at(1500))
    machine.finish()
    for number in range(len(machine.sessions)):
        known = known_of(machine.sessions[:number])
        assert next_step(machine.study, known, 1000.0) == next_step(machine.study, known, 1000.0)


curves = st.builds(
    lambda fixed, rate, bend: lambda n: fixed + rate * n * (1 + n / bend),
    st.floats(0, 0.1),
    st.floats(1e-7, 1e-3),
    st.floats(50, 1e6),
)
studies = st.builds(
    lambda name, metrics, phases, precision, size: preset(
        name, metrics=tuple(metrics), phases=tuple(phases), precision=precision, size=size
    ),
    st.sampled_from(sorted(PRESETS)),
    st.lists(st.sampled_from(METRICS), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from(PHASES), min_size=1, max_size=2, unique=True),
    st.floats(0.02, 0.8),
    st.just("tiny"),
)


@settings(max_examples=15)
@given(
    study=studies,
    planted=st.lists(curves, min_size=4, max_size=4),
    slopes=st.lists(st.floats(1e3, 1e6), min_size=4, max_size=4),
    room=st.just(math.inf) | st.floats(1e6, 1e10),
    budget_s=st.floats(0.1, 3e4),
    noise=st.sampled_from([0.0, 0.02, 0.2]),
    seed=st.integers(0, 100),
)
def test_any_study_ends_and_never_measures_the_same_twice(study, planted, slopes, room, budget_s, noise, seed):
    study = study.replace(budget_s=budget_s)
    needs: Mapping[Subject, Cost] = {
        subject: (lambda n, slope=slope: slope * n + MIB)
        for subject, slope in zip(study.subjects, slopes, strict=False)
    }
    machine = Machine(
        study,
        dict(zip(study.subjects, planted, strict=False)),
        needs=needs,
        room=room,
        noise=noise,
        seed=seed,
    )
    machine.finish(most_steps=150)
    keys = _keys(machine.steps)
    assert len(set(keys)) == len(keys)
    out_at: dict[tuple[Subject, str], float] = {}
    for step, (outcomes, _) in zip(machine.steps, machine.sessions, strict=True):
        low, high = study.lengths
        assert step.length <= max(high, max(architecture_of(s).nearest_legal(low) for s in study.subjects))
        for subject in step.subjects:
            architecture_of(subject).check_length(step.length)
            assert step.length < out_at.get((subject, step.phase), math.inf)
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                out_at[outcome.workload.subject, step.phase] = step.length
    assert {step.phase for step in machine.steps} == set(study.phases)


@pytest.mark.parametrize("truth", [200, 700, 1500, 5000])
@pytest.mark.parametrize("seed", range(3))
def test_the_search_finds_the_planted_tipping_point_within_its_precision(truth, seed):
    machine = Machine(make_study(), crossing_at(truth), noise=0.01, seed=seed)
    machine.finish()
    found = verdict(machine)
    assert found.verdict == "crosses"
    assert found.length == pytest.approx(truth, rel=0.1)
    # A grid as fine as the precision would have taken 44 sessions.
    assert len(machine.steps) <= 14


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        ((lambda n: 2e-5 * n, lambda n: 1e-5 * n), "always"),
        ((lambda n: 1e-5 * n, lambda n: 2e-5 * n), "never"),
        ((lambda n: 1e-5 * n, lambda n: 0.5e-5 * n * (1 + n / 700)), "never"),
        ((lambda n: 1e-5 * n * (1 + n / 1000), lambda n: 2e-5 * n), "crosses"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_the_search_finds_the_planted_verdict(planted, expected, seed):
    study = make_study()
    machine = Machine(study, costs_of(study, *planted), noise=0.02, seed=seed)
    machine.finish()
    assert verdict(machine).verdict == expected


def test_the_search_looks_on_both_sides_of_the_edge_of_a_staircase():
    # Longformer pays for multiples of 512 tokens, and every length of the grid from 512 on is one.
    longformer = Subject.parse("longformer")
    study = make_study(BERT, longformer)
    costs: dict[Subject, Cost] = {BERT: lambda n: 1e-5 * n * (1 + n / 1000), longformer: lambda n: 1.4e-5 * n}
    executed = architecture_of(longformer).executed_positions
    truth = max(n for n in range(128, 8193) if costs[BERT](n) <= costs[longformer](executed(n)))
    assert 1024 < truth < 1100
    machine = Machine(study, costs, noise=0.002)
    machine.finish()
    found = verdict(machine)
    assert found.interval is not None
    low, high = found.interval
    assert low <= truth <= high
    # Gaps between lengths are as narrow as the precision; which of those in one step holds the edge may stay open.
    assert high - low <= 512


def test_a_tie_ends_however_large_the_budget():
    study = make_study()
    machine = Machine(study, costs_of(study, lambda n: 1e-5 * n, lambda n: 1e-5 * n), noise=0.02)
    machine.finish()
    assert len(machine.steps) < 40


def test_throughput_and_memory_tip_where_they_were_planted():
    study = make_study(metrics=METRICS)
    needs: dict[Subject, Cost] = {BERT: lambda n: 3e3 * n * (1 + n / 600), LOCAL: lambda n: 6e3 * n}
    machine = Machine(study, crossing_at(2500), needs=needs, noise=0.005)
    machine.finish()
    assert verdict(machine, metric="throughput").length == pytest.approx(2500, rel=0.1)
    assert verdict(machine, metric="latency").length == pytest.approx(2500, rel=0.1)
    assert verdict(machine, metric="peak_memory").length == pytest.approx(600, rel=0.1)


# Shallow models


def deep_study(*subjects: Subject, **options) -> Study:
    """A study of Base models, which shallow ones can tell of."""
    return make_study(*subjects, **{"size": "base", "budget_s": 600, "precision": 0.05, **options})


def test_shallow_models_look_first_and_far_and_the_models_themselves_are_measured_near_the_tipping_point():
    machine = Machine(deep_study(), crossing_at(1500, rate=1e-4), noise=0.02)
    machine.finish()
    looks = lengths_of(machine.steps, "screening")
    assert looks == [128 * 2**number for number in range(len(looks))]
    assert looks[-1] >= 4096
    assert [step.purpose for step in machine.steps[: len(looks)]] == ["screening"] * len(looks)
    measured = [step.length for step in machine.steps if step.purpose != "screening"]
    assert all(400 < length < 4000 for length in measured)
    assert verdict(machine).length == pytest.approx(1500, rel=0.1)


def test_what_shallow_models_tell_enters_no_tipping_point():
    machine = Machine(deep_study(), crossing_at(1500, rate=1e-4), noise=0.02)
    machine.finish()
    assert machine.known.screened
    assert {outcome.workload.layers for outcome in machine.known.screened} == set(SCREENING_LAYERS)
    measured = {step.length for step in machine.steps if step.purpose != "screening"}
    assert {point.length for point in verdict(machine).points} == measured
    # Whatever they said, the answer is the same.
    assert (
        verdict(machine).length
        == tipping_point(machine.known.outcomes, BERT, LOCAL, metric="latency", phase="inference").length
    )


def test_shallow_models_that_mislead_cost_time_and_not_the_answer():
    class Misled(Machine):
        def cost(self, subject: Subject, length: float, phase: str, layers: int | None = None) -> float:
            honest = super().cost(subject, length, phase, layers)
            return honest * (1.25 if layers and subject == LOCAL else 1.0)

    machine = Misled(deep_study(budget_s=1200), crossing_at(1500, rate=1e-4), noise=0.02)
    machine.finish()
    found = verdict(machine)
    assert found.verdict == "crosses"
    assert found.interval is not None
    assert found.interval[0] < 1500 < found.interval[1]


@pytest.mark.parametrize(
    "options", [{"size": "tiny"}, {"screening": False}, {"whole_range": True}, {"compiled": True}], ids=str
)
def test_models_are_measured_themselves_where_shallow_ones_tell_nothing(options):
    study = deep_study(**options)
    assert not can_screen(study)
    machine = Machine(study, crossing_at(1500, rate=1e-4), noise=0.02)
    machine.finish()
    assert not lengths_of(machine.steps, "screening")
    assert machine.steps[0].length == 128


def test_models_that_are_no_plain_stack_are_not_looked_at():
    assert not can_screen(preset("vision", size="base"))
    assert can_screen(preset("speech", size="base"))


def test_a_dip_that_the_ladder_sees_is_noticed():
    def slow_around_1200(n: float) -> float:
        return 0.9e-4 * n * math.exp(0.6 * math.exp(-0.5 * (math.log(n / 1200) / 0.3) ** 2))

    machine = Machine(
        deep_study(), {BERT: lambda n: 1e-4 * n * (1 + n / 12_000), LOCAL: slow_around_1200}, noise=0.02
    )
    machine.finish()
    assert any(
        128 < length < 8192 and math.log2(length / 128) % 1 for length in lengths_of(machine.steps, "screening")
    )
    found = verdict(machine)
    truth = max(n for n in range(128, 8193) if 1e-4 * n * (1 + n / 12_000) <= slow_around_1200(n))
    assert found.verdict in ("crosses", "several crossings")
    assert found.length == pytest.approx(truth, rel=0.1)


def test_memory_alone_takes_brief_sessions():
    study = deep_study(metrics=("peak_memory",))
    needs = {BERT: lambda n: 1e5 * n * (1 + n / 1500), LOCAL: lambda n: 2e5 * n}
    machine = Machine(study, crossing_at(1e9), needs=needs)
    machine.finish()
    assert all(step.brief for step in machine.steps)
    found = verdict(machine, metric="peak_memory")
    assert found.length == pytest.approx(1500, rel=0.1)


# What is missing


def test_what_would_decide_is_said_where_the_budget_ended_first():
    study = deep_study(budget_s=40)
    machine = Machine(study, crossing_at(1500, rate=1e-3), noise=0.02)
    machine.finish()
    missing = needed_s(study, machine.known, "inference", (BERT, LOCAL), "latency")
    assert missing is not None
    assert missing > 0


def test_nothing_is_missing_where_the_precision_is_reached():
    study = deep_study(budget_s=1e5)
    machine = Machine(study, crossing_at(1500, rate=1e-5), noise=0.005)
    machine.finish()
    assert needed_s(study, machine.known, "inference", (BERT, LOCAL), "latency") is None
