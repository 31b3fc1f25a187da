"""Linear attention: kernel features of queries and keys (arXiv:2009.14794, arXiv:2006.16236).

    weights of a query ~ phi(q) phi(k)^T, so that phi(K)^T V is added up once for all queries

Two feature maps:

`favor`, positive orthogonal random features (Performer): phi_f(x) = exp(w_f x - |x|^2 / 2), whose products have
exp(q k) as their mean. Between softmaxes it reads: each feature attends to the keys, each query to the features,

    A_f = sum_j softmax_j(w_f k_j - |k_j|^2 / 2) v_j        z_f: the sum that this softmax divides by
    o_i = sum_f softmax_f(w_f q_i + log z_f) A_f

which is the paper's estimator to the letter (what depends on i alone cancels), and cannot overflow, underflow or
divide by zero. The paper's code subtracts maxima and adds 1e-4 to every feature for that.

`elu`, phi(x) = elu(x) + 1, one feature for each dimension.

Per head and with r features: 8 n r d multiplications and additions for `favor`, and 4 n d^2 for `elu`, which has
r = d and nothing to project. Memory grows with n r.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tippingpoint.attention.validation import attendable, check_attention_inputs
from tippingpoint.errors import InputError, unknown
from tippingpoint.stages import stage

FEATURE_MAPS = ("favor", "elu")

# Of the random features: the same on every machine and in every process.
_SEED = 0

# What the features of some heads may take before the others are begun. On a CPU, features that stay in its cache
# halved the time; anything from 2 to 8 MB was about as good.
_CACHE_BYTES = 4 * 2**20

_features: dict[tuple[int, int, int, torch.dtype, torch.device], Tensor] = {}


def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    feature_map: str = "favor",
    num_features: int = 256,
    padding_mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attend with weights that factor into features of the query and of the key; not causal.

    Tensors are [batch, heads, length, head_dim]; time and memory are O(length * num_features).

    Args:
        query: [batch, heads, length, head_dim].
        key: [batch, heads, length, head_dim].
        value: [batch, heads, length, value_dim].
        feature_map: "favor" approximates full attention; "elu" is another attention, of cost O(length *
            head_dim).
        num_features: Of "favor"; its error falls as 1/sqrt(num_features). Not used by "elu".
        padding_mask: bool [batch, length], True for real tokens. Rows of padding positions are finite but mean
            nothing.
        scale: Of the scores that "favor" approximates; 1/sqrt(head_dim) by default. "elu" has no scores.
        dropout: Probability of dropping a feature of a query; as in training.

    Returns:
        Attended values, [batch, heads, length, value_dim], in the query's dtype.

    Raises:
        InputError: If feature_map is unknown, num_features < 1, scale is not positive, or shapes disagree.

    References: Performer, arXiv:2009.14794, section 2 and appendix B; features are drawn once from a fixed seed
    and shared by heads and layers. Linear Transformer, arXiv:2006.16236, equations 5 and 7.
    """
    check_attention_inputs(query, key, value, padding_mask)
    if feature_map not in FEATURE_MAPS:
        raise unknown("feature map", feature_map, FEATURE_MAPS)
    if num_features < 1:
        raise InputError(f"num_features must be at least 1, got {num_features}; 256 is usual")
    if scale is not None and not scale > 0:
        raise InputError(f"scale must be positive: features are of sqrt(scale) * query and key, got {scale}")
    real = None if padding_mask is None else attendable(padding_mask)
    if feature_map == "elu":
        # Automatic mixed precision would add up the sequence in half precision.
        with torch.autocast(query.device.type, enabled=False):
            return _elu(query, key, value, real, dropout)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    features = random_features(num_features, query.shape[-1], query.dtype, query.device)
    return _favor(query, key, value, features, real, factor, dropout)


def orthogonal_features(num_features: int, head_dim: int, *, seed: int = _SEED) -> Tensor:
    """Draw Gaussian vectors that are orthogonal in blocks of `head_dim`, float64 [num_features, head_dim].

    Each is distributed as independent normal numbers are; being orthogonal, they estimate better together
    (arXiv:2009.14794, theorem 2).
    """
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
    blocks = []
    for _ in range(-(-num_features // head_dim)):
        basis, triangle = torch.linalg.qr(torch.randn(head_dim, head_dim, **options))
        # The signs that the factorisation chose are taken back: only so is the basis uniform.
        basis = basis * triangle.diagonal().sign()
        lengths = torch.randn(head_dim, head_dim, **options).norm(dim=1, keepdim=True)
        blocks.append(basis.T * lengths)
    return torch.cat(blocks)[:num_features]


@torch.compiler.assume_constant_result
def random_features(num_features: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the features that `favor` uses, [num_features, head_dim]; drawn at the first call."""
    choice = (_SEED, num_features, head_dim, dtype, device)
    if choice not in _features:
        # Drawn under inference mode, they could never take part in training.
        with torch.inference_mode(False):
            _features[choice] = orthogonal_features(num_features, head_dim, seed=_SEED).to(device, dtype)
    return _features[choice]


def _favor(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    features: Tensor,
    real: Tensor | None,
    scale: float,
    dropout: float,
) -> Tensor:
    batch, heads, length, _ = key.shape
    every = features.expand(batch, heads, -1, -1)
    # Exponentials and what they are of: in float32 or better.
    precise = torch.promote_types(key.dtype, torch.float32)
    with stage("features of keys"):
        norms = key.to(precise).square().sum(dim=-1).mul(-scale / 2)[:, :, None]
        if real is not None:
            norms = norms.masked_fill(~real[:, None, None], float("-inf"))

    seen, log_sums = [], []
    for part in _parts(key, len(features) * length):
        with stage("features of keys"):
            exponents = torch.add(norms[part], torch.matmul(every[part], key[part].mT), alpha=scale**0.5)
            weights = exponents.softmax(dim=-1)
        with stage("sums of values"):
            seen.append(torch.matmul(weights.to(value.dtype), value[part]))
        with stage("features of keys"):
            # The largest weight is exp(largest exponent) / sum, and never rounds to zero.
            log_sums.append(exponents.amax(dim=-1) - weights.amax(dim=-1).log())
    with stage("features of keys"):
        log_sum = _joined(log_sums, batch)[:, :, None]
        # Any constant may be taken off; taking off the largest keeps what matters precise in half precision.
        bias = (log_sum - log_sum.amax(dim=-1, keepdim=True).detach()).to(query.dtype)
    return F.scaled_dot_product_attention(
        query, every, _joined(seen, batch), attn_mask=bias, scale=scale**0.5, dropout_p=dropout
    )


def _elu(query: Tensor, key: Tensor, value: Tensor, real: Tensor | None, dropout: float) -> Tensor:
    batch, heads, length, head_dim = key.shape
    # Sums over the sequence: float16 could not hold them.
    precise = torch.promote_types(query.dtype, torch.float32)
    rows = length
    if key.device.type == "cpu" and not torch.compiler.is_compiling():
        rows = max(1, _CACHE_BYTES // (batch * heads * head_dim * precise.itemsize))

    summary = value.new_zeros(batch, heads, head_dim, value.shape[-1], dtype=precise)
    total = key.new_zeros(batch, heads, 1, head_dim, dtype=precise)
    for first in range(0, length, rows):
        part = slice(first, first + rows)
        with stage("features of keys"):
            keys = _positive(key[:, :, part].to(precise))
            if real is not None:
                keys = keys.masked_fill(~real[:, None, part, None], 0)
        with stage("sums of values"):
            summary = summary + keys.mT @ value[:, :, part].to(precise)
            total = total + keys.sum(dim=-2, keepdim=True)

    outputs = []
    for part in query.split(rows, dim=2):
        with stage("features of queries"):
            queries = _positive(part.to(precise))
        with stage("products with queries"):
            weight = (queries * total).sum(dim=-1, keepdim=True).clamp(min=torch.finfo(precise).tiny)
            if dropout:
                queries = F.dropout(queries, dropout)
            outputs.append((queries @ summary / weight).to(query.dtype))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def _positive(tensor: Tensor) -> Tensor:
    """Return elu(x) + 1, without rounding exp(x) away beside the 1: the larger one of x + 1 and exp(min(x, 0))."""
    # What is changed in place here, no gradient needs otherwise.
    return torch.maximum(tensor.clamp_max(0).exp_(), tensor + 1)


def _parts(tensor: Tensor, numbers: int) -> Iterator[tuple[slice, slice]]:
    """Cut [batch, heads, ...] into parts whose features, `numbers` to a head, stay in a CPU's cache."""
    batch, heads = tensor.shape[:2]
    if tensor.device.type != "cpu" or torch.compiler.is_compiling():
        yield slice(batch), slice(heads)
        return
    group = max(1, _CACHE_BYTES // (numbers * max(4, tensor.element_size())))
    for sample in range(batch):
        for head in range(0, heads, group):
            yield slice(sample, sample + 1), slice(head, head + group)


def _joined(parts: list[Tensor], batch: int) -> Tensor:
    """Put together [batch, heads, ...] what was made of the parts."""
    if len(parts) == 1:
        return parts[0]
    per_sample = len(parts) // batch
    samples = [torch.cat(parts[first : first + per_sample], dim=1) for first in range(0, len(parts), per_sample)]
    return samples[0] if batch == 1 else torch.cat(samples)
