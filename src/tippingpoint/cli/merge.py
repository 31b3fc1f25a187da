"""`tippingpoint merge`: several stores as one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tippingpoint.cli.options import Json


def command(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE", help="Files of results; one is enough.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new file; one that exists is never replaced.")],
    salvage: Annotated[
        bool, typer.Option("--salvage", help="Of a damaged file, take every session that can still be read whole.")
    ] = False,
    json: Json = False,
) -> None:
    """Put everything that some stores hold into a new one, which studies go on with; they stay as they are.

    Sessions are ordered by their time. What two of the files hold, because one is a copy of the other, is kept once.
    Files of earlier versions are brought up to date on the way.

    Example: tippingpoint merge before.sqlite after.sqlite -o both.sqlite
    """
    from dataclasses import asdict

    from tippingpoint.cli.output import progress, show, show_json
    from tippingpoint.store import merge_stores
    from tippingpoint.units import format_items

    merged = merge_stores(stores, output, salvage=salvage)
    if merged.lost:
        progress(f"warning: at least {merged.lost} sessions and breakdowns could not be read and are not in {output}")
    if json:
        show_json({**asdict(merged), "path": str(output)})
        return
    parts = [
        f"{format_items(merged.sessions, 'session')} with {format_items(merged.outcomes, 'outcome')}",
        format_items(merged.breakdowns, "breakdown"),
        format_items(merged.environments, "environment"),
    ]
    show(f"{output}: {', '.join(parts)}")
    if merged.duplicates:
        show(f"in several files, and kept once: {format_items(merged.duplicates, 'session')}")
