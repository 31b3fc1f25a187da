"""`tippingpoint vacuum`: a store looked over, and made as small as what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tippingpoint.cli.options import Json


def command(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="File of results.")],
    json: Json = False,
) -> None:
    """Check that a store is whole, and free the space that nothing in it needs; no result is thrown away.

    Every page and every session is read. A file of an earlier version is brought up to date. Of a damaged file, what
    can be read is saved by merge --salvage.

    Example: tippingpoint vacuum before.sqlite
    """
    from dataclasses import asdict

    from tippingpoint.cli.output import show, show_json
    from tippingpoint.store import vacuum_store
    from tippingpoint.units import format_bytes, format_items

    done = vacuum_store(store)
    if json:
        show_json({**asdict(done), "path": str(store)})
        return
    removed = f", {format_items(done.environments, 'unused environment')} removed" if done.environments else ""
    show(
        f"{store}: whole, {format_items(done.sessions, 'session')}; {format_bytes(done.bytes_before)} before, "
        f"{format_bytes(done.bytes_after)} now{removed}"
    )
