"""Attention: each token asks all tokens before it, and takes a weighted mean of what they answer.

Heads ask side by side. In grouped-query attention several query heads share one key/value head, which
shrinks what must be kept while generating.
Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2; Ainslie et al. 2023, arXiv:2305.13245.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from scalelab.core.config import DecoderConfig
from scalelab.models.positions import rotate

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    Rotation = tuple[Float[Tensor, "T R/2"], Float[Tensor, "T R/2"]]


class Attention(nn.Module):
    """softmax(Q Kᵀ / √K + causal mask) V, per head, then one map back to D.

    One matrix holds the weights of all queries, keys and values: one large product is faster than
    three small ones, forward and backward.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.n_kv_heads = config.kv_heads
        self.d_head = config.head_width
        self.dropout = config.dropout
        bias = config.attention_bias
        self.qkv = nn.Linear(config.d_model, (self.n_heads + 2 * self.n_kv_heads) * self.d_head, bias=bias)
        self.out = nn.Linear(self.n_heads * self.d_head, config.d_model, bias=bias)

    def forward(self, x: Float[Tensor, "B T D"], rotation: Rotation | None) -> Float[Tensor, "B T D"]:
        """Mix each token with those before it.

        Args:
            x: normed residual stream.
            rotation: cosines and sines of the positions; None where this layer does not turn.
        """
        batch, time, _ = x.shape
        n_q, n_kv = self.n_heads, self.n_kv_heads
        heads = self.qkv(x).view(batch, time, n_q + 2 * n_kv, self.d_head)  # [B, T, H + 2·KV, K]
        q, k, v = torch.split(heads, [n_q, n_kv, n_kv], dim=2)
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        mixed = attend(
            q.transpose(1, 2),  # [B, H, T, K]
            k.transpose(1, 2),  # [B, KV, T, K]
            v.transpose(1, 2),
            dropout=self.dropout if self.training else 0.0,
        )  # [B, H, T, K]
        mixed = mixed.transpose(1, 2).reshape(batch, time, n_q * self.d_head)  # [B, T, H·K]
        return self.out(mixed)  # type: ignore[no-any-return]


def attend(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B KV T K"],
    v: Float[Tensor, "B KV T K"],
    dropout: float = 0.0,
) -> Float[Tensor, "B H T K"]:
    """softmax(q kᵀ / √K + causal mask) v by torch's fused kernel, which never stores the T × T weights.

    Differs: training in bf16 on a CPU writes the products out, because forward and backward through the
    fused kernel take longer there (seen with torch 2.13 at T 128 and 256). Scores are then rounded to bf16
    before the softmax. From T = 1,024 on the stored weights would cost too much memory, and the
    fused kernel is used again.
    """
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.requires_grad and q.shape[2] < 1024:
        return _attend_by_products(q, k, v, dropout)
    is_grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, enable_gqa=is_grouped)


def _attend_by_products(
    q: Float[Tensor, "B H T K"], k: Float[Tensor, "B KV T K"], v: Float[Tensor, "B KV T K"], dropout: float
) -> Float[Tensor, "B H T K"]:
    batch, n_heads, time, width = q.shape
    shared_by = n_heads // k.shape[1]
    if shared_by > 1:
        k, v = (part.repeat_interleave(shared_by, dim=1) for part in (k, v))  # [B, H, T, K]
    q, k, v = (part.reshape(batch * n_heads, time, width) for part in (q, k, v))  # [B·H, T, K]
    hidden = torch.full((time, time), -torch.inf, dtype=q.dtype, device=q.device).triu(1)  # later tokens
    scores = torch.baddbmm(hidden, q, k.transpose(1, 2), alpha=width**-0.5)  # [B·H, T, T]
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return torch.bmm(weights, v).view(batch, n_heads, time, width)
