"""Inputs of self-attention, full attention, and how far two computations of it may be apart."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Inputs = tuple[Tensor, Tensor, Tensor]

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# One and two positions, fewer than landmarks, ranks and pools, primes, multiples and one more.
LENGTHS = (1, 2, 3, 7, 12, 13, 48, 49, 97)
BATCH, HEADS, HEAD_DIM = 3, 2, 8


def inputs(
    length: int, *, dtype: torch.dtype = torch.float64, value_dim: int = HEAD_DIM, seed: int = 0, batch: int = BATCH
) -> Inputs:
    """Draw query, key and value."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(batch, HEADS, length, dim, generator=generator, dtype=torch.float64).to(dtype)
        for dim in (HEAD_DIM, HEAD_DIM, value_dim)
    )
    return query, key, value


def paddings(length: int) -> dict[str, Tensor]:
    """Padding of a batch of three by where it is; each has a whole sequence, and one of few real tokens."""
    position = torch.arange(length)
    few = min(3, length)
    holes = torch.rand(BATCH, length, generator=torch.Generator().manual_seed(length)) < 0.6
    holes[0] = True
    holes[1, length // 2] = True
    holes[2] = position % 4 == 0
    right = position < torch.tensor([length, max(1, length * 2 // 3), few])[:, None]
    return {"right": right, "left": right.flip(1), "holes": holes}


def full(tensors: Inputs, mask: Tensor | None = None) -> Tensor:
    """Return full attention."""
    return F.scaled_dot_product_attention(*tensors, attn_mask=None if mask is None else mask[:, None, None])


def gap(first: Tensor, second: Tensor, mask: Tensor | None = None) -> float:
    """Return the largest difference, at real tokens."""
    difference = (first.detach().double() - second.detach().double()).abs()
    if mask is not None:
        difference = difference.masked_fill(~mask[:, None, :, None], 0)
    return float(difference.max())


def gradients(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    tensors: Inputs,
    mask: Tensor | None,
    learned: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Return gradients of query, key, value and learned weights; each real output counts differently in the loss."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    output = attend(*leaves)
    if not output.requires_grad:  # an oracle that is handed no real token
        return [torch.zeros_like(leaf) for leaf in (*leaves, *learned)]
    if mask is not None:
        output = output.masked_fill(~mask[:, None, :, None], 0)
    return list(torch.autograd.grad((output * loss_weights(output)).sum(), [*leaves, *learned]))


def loss_weights(output: Tensor) -> Tensor:
    """Return what each number of an output counts in the loss."""
    return torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view_as(output)


class LargestTensor(TorchDispatchMode):
    """Notes the most numbers that any operator gave back."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.itemsize)
        return result


def largest_score(query: Tensor, key: Tensor, scale: float | None = None) -> float:
    """What the terms of a score add up to at most, whatever their signs."""
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    return float((query.double().abs() @ key.double().abs().mT).max() * factor)


def average_error(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, stages: int = 1) -> float:
    """How far two computations of an average of values, weighted by exponentials of scores, may be apart.

    Args:
        query: [batch, heads, length, head_dim].
        key: [batch, heads, length, head_dim].
        value: [batch, heads, length, value_dim].
        scale: Of the scores.
        stages: Averages that are taken one after the other.
    """
    return weighting_error(
        query.dtype,
        terms=query.shape[2],
        products=query.shape[3],
        score=largest_score(query, key, scale),
        largest=float(value.double().abs().max()),
        stages=stages,
    )


def weighting_error(
    dtype: torch.dtype, *, terms: int, products: int, score: float, largest: float, stages: int
) -> float:
    """How far two computations of averages may be apart.

    In float32 or better a score of d products is off by at most d + 2 half-units of the largest sum of their sizes, a
    weight by twice that and by the roundings of its N terms, the average by N more; two computations may err in
    opposite directions. In half precision products are added up in float32: scores, weights and averages are rounded
    once each, by half a unit, and so is the other computation's output, which is float32 until then.
    """
    epsilon = torch.finfo(dtype).eps
    if dtype in (torch.float32, torch.float64):
        return stages * epsilon * largest * (2 * (products + 2) * score + 2 * (terms + 3))
    return epsilon * largest * (0.5 + stages * (1 + score))
