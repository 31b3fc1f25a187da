"""`tippingpoint list`: what can be measured."""

from __future__ import annotations

from typing import Annotated

import typer

from tippingpoint.cli.options import Json

EXAMPLE = "tippingpoint list --modality text"


def command(
    modality: Annotated[str | None, typer.Option(help="Only text, speech or vision.")] = None,
    json: Json = False,
) -> None:
    """List architectures, attention variants and study presets.

    Example: tippingpoint list --modality text
    """
    from tippingpoint.cli.output import show, show_json
    from tippingpoint.models.catalog import ARCHITECTURES, VARIANTS
    from tippingpoint.report.catalog import architectures_table, presets_table, variants_table
    from tippingpoint.study.presets import all_presets
    from tippingpoint.units import MODALITIES
    from tippingpoint.workload import check_choice

    if modality is not None:
        check_choice("modality", modality, MODALITIES)
    architectures = [row for row in ARCHITECTURES.values() if modality in (None, row.modality)]
    presets = [study for study in all_presets() if modality in (None, study.modality)]
    if json:
        show_json(
            {
                "architectures": [
                    {
                        "name": row.name,
                        "title": row.title,
                        "modality": row.modality,
                        "unit": row.unit,
                        "paper": row.paper,
                        "takes_variants": row.takes_variants,
                        "attention": row.efficient_attention or f"full {row.own_scores}".strip(),
                        "minimum_length": row.lengths.minimum,
                        "length_multiple_of": row.lengths.multiple_of,
                        "notes": row.notes,
                    }
                    for row in architectures
                ],
                "variants": [
                    {
                        "name": row.name,
                        "title": row.title,
                        "exact": row.exact,
                        "paper": row.paper,
                        "options": {
                            key: {
                                "meaning": option.meaning,
                                "default": {m: option.default_for(m) for m in MODALITIES},
                            }
                            for key, option in row.options.items()
                        },
                    }
                    for row in VARIANTS.values()
                ],
                "presets": presets,
            }
        )
        return
    show(architectures_table(architectures), "", variants_table(VARIANTS.values()), "", presets_table(presets))
