"""Breakdowns that nothing was measured for: planted parts, planted times."""

from __future__ import annotations

from collections.abc import Sequence

from synthetic import ENVIRONMENT, workload
from tippingpoint.analysis.breakdown import BACKWARD, FORWARD, Breakdown, Component
from tippingpoint.machine import Environment, Peaks
from tippingpoint.measurement import Memory
from tippingpoint.models.catalog import architecture_of
from tippingpoint.workload import Subject

MS = 1e-3
ROUNDS = 8


def component(
    group: str,
    name: str,
    seconds: float | Sequence[float],
    *,
    layer: int | None = None,
    direction: str = FORWARD,
    rounds: int = ROUNDS,
    flops: int = 0,
    bytes_accessed: int | None = 0,
    held_bytes: int = 0,
    parameters: int = 0,
) -> Component:
    """A part that took `seconds` in each round; a single number stands for equal rounds."""
    return Component(
        group=group,
        name=name,
        layer=layer,
        direction=direction,
        seconds=(float(seconds),) * rounds if isinstance(seconds, int | float) else tuple(seconds),
        flops=flops,
        bytes_accessed=bytes_accessed,
        held_bytes=held_bytes,
        parameters=parameters,
    )


def of(
    components: Sequence[Component],
    *,
    plain_s: Sequence[float],
    clocked_s: Sequence[float] | None = None,
    between_s: Sequence[float] | None = None,
    subject: str | Subject = "bert",
    length: float = 512,
    attention: str = "sdpa",
    gradients_bytes: int = 0,
    memory: Memory | None = None,
    peaks: Peaks | None = None,
    notes: tuple[str, ...] = (),
    parameters: int = 1000,
    environment: Environment = ENVIRONMENT,
    **fields: object,
) -> Breakdown:
    """A breakdown of these parts; by default nothing passes between operators, and watching costs nothing."""
    spec = workload(subject, length, **fields)
    row = architecture_of(spec.subject)
    return Breakdown(
        workload=spec,
        environment=environment,
        positions=row.positions(length),
        executed_positions=row.executed_positions(length),
        parameters=parameters,
        attention=attention,
        components=tuple(components),
        plain_s=tuple(plain_s),
        clocked_s=tuple(plain_s if clocked_s is None else clocked_s),
        between_s=tuple([0.0] * len(plain_s) if between_s is None else between_s),
        gradients_bytes=gradients_bytes,
        memory=memory,
        peaks=peaks,
        notes=notes,
    )


def layer(number: int, *, scale: float = 1.0, steps: bool = False) -> list[Component]:
    """A layer of 54 ms: 35 of attention, 20 of them between its projections; 18 of feed-forward; 1 of the rest.

    Args:
        number: Of the layer.
        scale: Of the 20 ms.
        steps: Whether they are three steps, and not one part.
    """
    inside = [("QK^T", 6.0), ("mask and softmax", 10.0), ("AV", 4.0)] if steps else [("fused attention", 20.0)]

    def part(group: str, name: str, time: float, **fields: int) -> Component:
        return component(group, name, time * MS, layer=number, **fields)  # type: ignore[arg-type]

    return [
        part("attention", "QKV projections", 10, flops=3000, bytes_accessed=300, parameters=30),
        *(
            part("attention", name, scale * time, flops=1000, bytes_accessed=100, held_bytes=64)
            for name, time in inside
        ),
        part("attention", "output projection", 5, flops=1000, bytes_accessed=100, parameters=10),
        part("feed-forward", "up", 8, flops=4000, bytes_accessed=400, parameters=40),
        part("feed-forward", "activation", 2, bytes_accessed=200, held_bytes=128),
        part("feed-forward", "down", 8, flops=4000, bytes_accessed=400, parameters=40),
        part("norms and residuals", "norms and residuals", 1, bytes_accessed=50, parameters=4),
    ]


def encoder(
    subject: str | Subject = "bert",
    length: float = 512,
    *,
    scale: float = 1.0,
    steps: bool = False,
    training: bool = False,
    **fields: object,
) -> Breakdown:
    """Two layers between an embedding (1 ms) and a head (2 ms), 5 ms between operators, 2 ms unexplained: 118 ms.

    Args:
        subject: What is broken down.
        length: Of the input.
        scale: Of what runs between the projections of attention: 40 ms of the whole.
        steps: Whether that is three steps.
        training: Adds 216 ms of a backward pass through the layers, 3 ms of a loss and 4 ms of an optimizer.
        fields: Of the workload, and of the record.
    """
    layers = [each for number in range(2) for each in layer(number, scale=scale, steps=steps)]
    parts = [
        component("input", "embedding", 1 * MS, bytes_accessed=20, held_bytes=32, parameters=500),
        *layers,
        component("head", "head", 2 * MS, flops=10, bytes_accessed=10, parameters=252),
    ]
    if training:
        parts.append(component("loss", "loss", 3 * MS, bytes_accessed=10))
        parts += [
            component(
                each.group,
                each.name,
                2 * each.seconds[0],
                layer=each.layer,
                direction=BACKWARD,
                flops=2 * each.flops,
                bytes_accessed=each.bytes_accessed,
            )
            for each in reversed(layers)
        ]
        parts.append(component("optimizer", "optimizer", 4 * MS, direction="optimizer", bytes_accessed=10))
    whole = sum(each.seconds[0] for each in parts) + 7 * MS
    if training:
        fields = {"phase": "training", **fields}
    return of(
        parts,
        plain_s=[whole] * ROUNDS,
        clocked_s=[1.1 * whole] * ROUNDS,
        between_s=[5 * MS] * ROUNDS,
        subject=subject,
        length=length,
        **fields,  # type: ignore[arg-type]
    )
