"""`tippingpoint reuse`: which layers of a checkpoint may share an attention map, and a checkpoint that does."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tippingpoint.cli.options import Json

if TYPE_CHECKING:
    from tippingpoint.data.model_inputs import ModelInputs
    from tippingpoint.models.reuse_plan import ReusePlan

# After so many inputs a line says how far it is.
_EVERY = 8

Checkpoint = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="Folder that save_pretrained wrote, or a hub id OWNER/NAME.")
]

group = typer.Typer(
    name="reuse",
    help="Let layers of a checkpoint share attention maps: plan which from your own data, then apply the plan.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@group.command("plan")
def plan(
    checkpoint: Checkpoint,
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...",
            help="Your own texts, recordings or images, as the model takes them: files, folders or quoted patterns.",
        ),
    ],
    num_maps: Annotated[
        int | None, typer.Option(help="Maps to compute; by default one for every two layers.")
    ] = None,
    match_heads: Annotated[
        bool,
        typer.Option(
            "--match-heads/--no-match-heads",
            help="Whether a layer may be given the map's heads in another order, the one that fits best.",
        ),
    ] = True,
    column: Annotated[
        str | None, typer.Option(help="Text column of .jsonl, .csv and .parquet files ('text' by default).")
    ] = None,
    max_inputs: Annotated[int, typer.Option(help="Read at most so many, files in random order.")] = 32,
    max_length: Annotated[
        float | None,
        typer.Option(help="Cut longer texts (tokens) or recordings (seconds); to the model's limit by default."),
    ] = None,
    trial_inputs: Annotated[
        int, typer.Option(help="Try groups on so many of the inputs; 0 plans by the overlap of maps alone.")
    ] = 16,
    output: Annotated[
        Path | None, typer.Option(metavar="PLAN.json", help="File for the plan, to be applied later.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="File for a figure: .svg, .png, .pdf, .html (works offline) or .json.")
    ] = None,
    json: Json = False,
) -> None:
    """Say which layers of a model may share one attention map, from your own data.

    Compares the attention maps of every two layers, head by head, and divides the layers into contiguous groups so
    that the maps that layers would be given are as like their own as can be, where that matters to what the model
    gives out: groups are tried on some of the inputs. Similarity is the overlap of two rows of probabilities: 1 is
    the same map, 0 nothing in common. Train the model on after sharing, and evaluate it.

    Example: tippingpoint reuse plan my_bert README.md docs --num-maps 4 --output plan.json --figure plan.svg
    """
    from tippingpoint.cli.output import progress, show, show_json
    from tippingpoint.data.model_inputs import read_model_inputs
    from tippingpoint.models.checkpoint_files import find_folder
    from tippingpoint.models.checkpoints import load
    from tippingpoint.models.map_similarity import plan_reuse
    from tippingpoint.models.sharing import may_share
    from tippingpoint.report import reuse as report
    from tippingpoint.report.figures import check_path, save

    if figure is not None:
        check_path(figure)
    if output is not None:
        _check_output(output)
    folder = find_folder(checkpoint)
    progress(f"reading {checkpoint}")
    model = load(folder)
    encoder: Any = model.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else model
    inputs = read_model_inputs(
        data,
        folder,
        model.config.to_dict(),
        encoder.main_input_name,
        column=column,
        max_inputs=max_inputs,
        max_length=max_length,
    )
    made = plan_reuse(
        encoder,
        _told(inputs, encoder),
        max(1, -(-len(may_share(encoder)) // 2)) if num_maps is None else num_maps,
        match_heads=match_heads,
        trial_inputs=trial_inputs,
    )
    for line in inputs.warnings:
        progress(f"warning: {line}")
    if output is not None:
        _write(output, made)
    if figure is not None:
        save(report.plan_chart(made), figure)
    following = _next(made, checkpoint, output)
    if json:
        record = {"plan": report.plan_record(made), "read": str(inputs), "skipped": inputs.skipped}
        show_json({**record, "next_command": following})
        return
    trials = [report.trials_table(made), report.TRIALS_NOTE, report.weights_line(made), ""] if made.tried else []
    show(
        f"{report.basis_line(made)} ({inputs})",
        "",
        report.choices_table(made),
        report.CHOICES_NOTE,
        "",
        *trials,
        report.similarity_table(made),
        report.SIMILARITY_NOTE,
        "",
        report.diagonality_table(made),
        report.DIAGONALITY_NOTE,
        "",
        str(made),
    )
    for file in (output, figure):
        if file is not None:
            show(f"written: {file}")
    show(f"next: {following}")


@group.command("apply")
def apply(
    checkpoint: Checkpoint,
    plan: Annotated[Path, typer.Argument(metavar="PLAN.json", help="What `reuse plan` wrote.")],
    output: Annotated[Path, typer.Option(help="Folder to write to, empty or not there yet.")],
    num_maps: Annotated[
        int | None, typer.Option(help="Another number of maps than the plan's; its groups are chosen anew.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the checkpoint that is there.")] = False,
    json: Json = False,
) -> None:
    """Let layers of a checkpoint share attention maps as a plan says, and write it to a folder.

    Queries and keys of layers that are given a map are left out, other weights stay as they are, and tokenizer files
    are copied. `tippingpoint.load` opens the folder with the maps shared.

    Example: tippingpoint reuse apply my_bert plan.json --output my_bert_reuse --force
    """
    from tippingpoint.cli.output import progress, show, show_json
    from tippingpoint.models.checkpoint_files import check_output, find_folder
    from tippingpoint.models.checkpoints import load, save
    from tippingpoint.models.sharing import reuse_attention

    chosen = _read(plan)
    chosen = chosen if num_maps is None else chosen.with_num_maps(num_maps)
    folder = find_folder(checkpoint)
    check_output(output, source=folder, force=force)
    progress(f"reading {checkpoint}")
    model = load(folder)
    before = model.num_parameters()
    reuse_attention(model, chosen)
    save(model, output, source=folder, force=force)
    after = model.num_parameters()
    code = f"import tippingpoint; print(tippingpoint.load({str(output)!r}))"
    following = f"python -c {shlex.quote(code)}"
    if json:
        groups = {"groups": chosen.groups, "head_matches": chosen.head_matches, "choice": chosen.choice}
        counts = {"parameters_before": before, "parameters_after": after}
        show_json({**groups, **counts, "output": str(output), "next_command": following})
        return
    show(
        str(chosen),
        f"parameters: {before:,} before, {after:,} after",
        "note: the layers that are given a map were trained with their own: train the model before it is used",
        f"written to {output}",
        f"next: {following}",
    )


def _told(inputs: ModelInputs, encoder: Any) -> Iterator[Any]:
    """Yield what the encoder takes of its inputs, and say on stderr how far it is."""
    from tippingpoint.cli.output import progress

    # A tokenizer for many models may make more than this one takes.
    taken = inspect.signature(encoder.forward).parameters

    for note in inputs.notes:
        progress(f"note: {note}")
    progress(f"comparing attention maps on at most {inputs.most:,} inputs")
    for arguments in inputs:
        yield {name: value for name, value in arguments.items() if name in taken}
        if inputs.used % _EVERY == 0:
            progress(f"{inputs.used:,} inputs done")


def _next(plan: ReusePlan, checkpoint: str, output: Path | None) -> str:
    """Return what to type to have the plan's maps shared."""
    from tippingpoint.models.reuse_plan import format_groups

    source = shlex.quote(checkpoint)
    groups = format_groups(plan.groups)
    if output is not None:
        return f"tippingpoint reuse apply {source} {shlex.quote(str(output))} --output DIR"
    if plan.match_heads or "," in groups:
        return "the same command with --output plan.json, to apply the plan"
    return f"tippingpoint convert {source} --attention reuse:group={groups} --output DIR"


def _check_output(path: Path) -> None:
    """See to it that a plan can be written, before minutes of comparing.

    Raises:
        InputError: If it is a folder, or is to be in one that does not exist.
    """
    from tippingpoint.errors import InputError
    from tippingpoint.report.figures import check_folder

    if path.is_dir():
        raise InputError(f"the output {str(path)!r} is a folder; give a file, such as {str(path / 'plan.json')!r}")
    check_folder(path)


def _write(path: Path, plan: ReusePlan) -> None:
    from tippingpoint.errors import AnswerError

    try:
        path.write_text(plan.to_json(), encoding="utf-8")
    except OSError as error:
        raise AnswerError(f"{str(path)!r} cannot be written: {error.strerror}") from error


def _read(path: Path) -> ReusePlan:
    from tippingpoint.errors import DataError, InputError
    from tippingpoint.models.reuse_plan import ReusePlan

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"the plan {str(path)!r} cannot be read: {reason}; write one with reuse plan") from error
    try:
        return ReusePlan.from_json(text)
    except DataError as error:
        raise DataError(f"{str(path)!r}: {error}") from error
