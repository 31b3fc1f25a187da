"""The mathematics of each attention variant on query, key and value; torch only."""

from tippingpoint.attention.heads import kept_heads_attention
from tippingpoint.attention.linear import linear_attention
from tippingpoint.attention.linformer import LinformerAttention, linformer_attention
from tippingpoint.attention.local import local_attention
from tippingpoint.attention.nystrom import nystrom_attention
from tippingpoint.attention.pooled import pooled_attention

__all__ = [
    "LinformerAttention",
    "kept_heads_attention",
    "linear_attention",
    "linformer_attention",
    "local_attention",
    "nystrom_attention",
    "pooled_attention",
]
