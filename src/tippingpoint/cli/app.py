"""The verbs."""

from __future__ import annotations

from typing import Annotated

import typer

from tippingpoint import __version__
from tippingpoint.cli import (
    breakdown,
    catalog,
    compare,
    convert,
    doctor,
    export,
    find,
    lengths,
    merge,
    predict,
    profile,
    recommend,
    replay,
    report,
    reuse,
    show,
    study,
    vacuum,
)

app = typer.Typer(
    name="tippingpoint",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Log everything and show tracebacks; may stand anywhere.")
    ] = False,
) -> None:
    """At what input length does an efficient Transformer become worth it, on your machine, for your data?"""


for _module, _name in (
    (catalog, "list"),
    (doctor, "doctor"),
    (lengths, "lengths"),
    (profile, "profile"),
    (breakdown, "breakdown"),
    (find, "find"),
    (study, "study"),
    (recommend, "recommend"),
    (replay, "replay"),
    (predict, "predict"),
    (show, "show"),
    (compare, "compare"),
    (report, "report"),
    (export, "export"),
    (merge, "merge"),
    (vacuum, "vacuum"),
    (convert, "convert"),
):
    app.command(_name)(_module.command)

app.add_typer(reuse.group)
