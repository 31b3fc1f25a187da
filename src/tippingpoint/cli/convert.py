"""`tippingpoint convert`: a checkpoint with another self-attention in place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tippingpoint.cli.options import Json


def command(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="Folder that save_pretrained wrote, or a hub id OWNER/NAME.")
    ],
    attention: Annotated[
        list[str],
        typer.Option(
            metavar="VARIANT",
            help="What to put in place, such as local:window=50, or local:window=50,layers=0-5; may be repeated.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder to write to, empty or not there yet.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the checkpoint that is there.")] = False,
    json: Json = False,
) -> None:
    """Put an attention variant into a checkpoint and write it to a folder.

    Weights stay as they are, and tokenizer files are copied. `tippingpoint.load` opens the folder with the variant in
    place. Weights are read from safetensors alone; no code of the checkpoint runs.

    Example: tippingpoint convert my_hubert --attention local:window=50 --output my_l_hubert --force
    """
    from tippingpoint.cli.output import progress, show, show_json
    from tippingpoint.models.checkpoints import convert

    progress(f"reading {checkpoint}")
    conversion = convert(checkpoint, attention, output, force=force)
    if json:
        show_json({"conversion": conversion, "next_command": conversion.next_command})
    else:
        show(str(conversion))
