"""Tables of what can be measured."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from tippingpoint.models.architecture import Architecture, AttentionVariant
from tippingpoint.report.tables import plain_table
from tippingpoint.units import format_length
from tippingpoint.workload import Study


def architectures_table(rows: Iterable[Architecture]) -> Table:
    """Return architectures with their attention and legal lengths."""
    table = plain_table("Architectures", "name", "modality", "attention", "lengths", "paper", left=5)
    for row in rows:
        lengths = row.unit
        if row.lengths.minimum > 1 or row.unit == "seconds":
            lengths += f" from {format_length(row.lengths.minimum, row.unit)}"
        if row.lengths.multiple_of > 1:
            lengths += f", multiples of {row.lengths.multiple_of}"
        full = f"full, {row.own_scores}" if row.own_scores else "full; takes a variant"
        table.add_row(row.name, row.modality, row.efficient_attention or full, lengths, row.paper)
    return table


def variants_table(rows: Iterable[AttentionVariant]) -> Table:
    """Return attention variants with their options."""
    table = plain_table("Variants (written ARCHITECTURE@VARIANT)", "name", "what", "options", "paper", left=4)
    for row in rows:
        options = ", ".join(f"{key}= ({option.meaning})" for key, option in row.options.items())
        table.add_row(row.name, row.title, options or "none", row.paper)
    return table


def presets_table(studies: Iterable[Study]) -> Table:
    """Return the study presets."""
    table = plain_table("Study presets", "name", "modality", "baselines", "variants", "lengths", left=5)
    for study in studies:
        low, high = study.lengths
        table.add_row(
            study.name,
            study.modality,
            ", ".join(map(str, study.baselines)),
            ", ".join(map(str, study.variants)),
            f"{low:g} to {high:g}",
        )
    return table
