import pytest

from tippingpoint.errors import InputError
from tippingpoint.models.build import make_config
from tippingpoint.models.catalog import algorithmic_flops, architecture_of, is_vanilla
from tippingpoint.models.flops import attend, linear
from tippingpoint.study.ledger import study_key
from tippingpoint.study.presets import (
    COMPARISONS,
    MATCHED_POSITIONS,
    MATCHED_SHARE,
    PRESETS,
    all_presets,
    preset,
)
from tippingpoint.study.run import resolve_study
from tippingpoint.units import MODALITIES, format_length
from tippingpoint.workload import PHASES, Study, Subject, Workload

STUDIES = {
    f"{name} {study.baselines[0]}": study
    for name, kinds in COMPARISONS.items()
    for studies in kinds.values()
    for study in studies
}


def doubled(study: Study) -> list[float]:
    """The lengths that a search comes by."""
    low, high = study.lengths
    return [low * 2**times for times in range(20) if low * 2**times <= high]


def share_of_self_attention(subject: Subject, length: float) -> float:
    """FLOPs of self-attention, its projections included, over those of full attention in the same model."""

    def flops(of: Subject) -> int:
        workload = Workload(of, length)
        found = algorithmic_flops(workload, make_config(workload).to_dict())
        assert found is not None
        return found

    row = architecture_of(subject)
    shape, positions = row.shape(make_config(Workload(subject.plain, length)).to_dict()), row.positions(length)
    layer = 4 * linear(positions, shape.width, shape.width) + attend(positions**2, shape.width)
    return 1 + (flops(subject) - flops(subject.plain)) / (shape.layers * layer)


@pytest.mark.parametrize("modality", MODALITIES)
def test_variants_of_the_compression_study_are_matched_where_it_says(modality):
    (study,) = COMPARISONS["compression"][modality]
    row = architecture_of(study.baselines[0])
    at = min(doubled(study), key=lambda length: abs(row.positions(length) - MATCHED_POSITIONS))
    assert row.positions(at) == pytest.approx(MATCHED_POSITIONS, rel=0.05)
    assert f"{format_length(at, row.unit)}" in study.about
    for subject in study.variants:
        assert share_of_self_attention(subject, at) == pytest.approx(MATCHED_SHARE, rel=0.05), subject
    for subject in study.baselines:
        assert share_of_self_attention(subject, at) == 1


def test_full_attention_asks_for_as_much_between_its_projections_as_in_them_at_the_matched_length():
    width = 768
    assert attend(MATCHED_POSITIONS**2, width) == 4 * linear(MATCHED_POSITIONS, width, width)


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_compression_study_has_every_way_to_make_attention_cheaper(modality):
    (study,) = COMPARISONS["compression"][modality]
    names = {variant.name for subject in study.variants for variant in subject.variants}
    assert names == {"reuse", "heads", "local", "nystrom", "linear", "linformer", "pooled"}


@pytest.mark.parametrize("name", [name for name in STUDIES if name.startswith("reuse")])
def test_the_reuse_study_has_the_sizes_of_groups_and_the_shares_it_says(name):
    study = STUDIES[name]
    assert [str(subject).partition("@")[2] for subject in study.variants] == [
        f"reuse:group={size}" for size in (2, 3, 4, 6)
    ]
    if study.baselines[0].architecture == "wav2vec2-conformer":
        return  # its scores hold relative positions, which cost more
    for subject, share in zip(study.variants, (3 / 4, 2 / 3, 5 / 8, 7 / 12), strict=True):
        assert share_of_self_attention(subject, study.lengths[0]) == pytest.approx(share)


@pytest.mark.parametrize("name", STUDIES)
def test_every_comparison_is_legal_and_held_against_fused_and_eager_attention(name):
    study = resolve_study(STUDIES[name])
    assert study.metrics == ("latency", "peak_memory")
    assert study.phases == PHASES
    first, second = study.baselines
    assert [str(first), str(second)] == [first.architecture, f"{first.architecture}@eager"]
    assert all(is_vanilla(subject) for subject in study.baselines)
    assert {subject.architecture for subject in study.subjects} == {first.architecture}
    for subject in study.subjects:
        for length in doubled(study):
            architecture_of(subject).check_length(length)


def test_a_name_stands_for_its_studies_in_a_modality_text_by_default():
    assert preset("speech") == (PRESETS["speech"],)
    assert preset("compression") == preset("compression", "text")
    assert [study.baselines[0].architecture for study in preset("reuse", "speech")] == [
        "hubert",
        "wav2vec2-conformer",
    ]
    assert preset("nothing") == ()
    with pytest.raises(InputError, match="unknown modality 'smell'"):
        preset("reuse", "smell")


def test_studies_of_one_name_are_counted_apart():
    assert len({study_key(study) for study in all_presets()}) == len(all_presets())
    for studies in COMPARISONS["reuse"].values():
        assert sum(study.budget_s for study in studies) == 1800
