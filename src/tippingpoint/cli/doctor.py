"""`tippingpoint doctor`: the machine, and what could disturb a measurement on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tippingpoint.cli.options import Device, Json, Threads


def command(
    device: Device = "cpu",
    threads: Threads = None,
    device_profile: Annotated[
        Path | None,
        typer.Option(help="Also write this machine's peaks to a YAML file that `predict --device-profile` reads."),
    ] = None,
    json: Json = False,
) -> None:
    """Show machine and versions, find what could disturb a measurement, and say what to do about it.

    Example: tippingpoint doctor
    """
    from tippingpoint.cli.output import progress, show, show_json
    from tippingpoint.device_profiles import write_profile
    from tippingpoint.profiling.doctor import examine, measured_profile

    report = examine(device, threads, progress=progress)
    if device_profile:
        write_profile(measured_profile(report), device_profile)
    if json:
        show_json(report)
        return
    for name, value in report.facts:
        show(f"{name:<18} {value}")
    show("")
    for finding in report.findings:
        show(f"{finding.level}: {finding.what}")
        if finding.advice:
            show(f"    {finding.advice}")
