"""Attention: each token asks all tokens before it, and takes a weighted mean of what they answer.

Heads ask side by side. In grouped-query attention several query heads share one key/value head, which
shrinks what must be kept while generating.
Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2; Ainslie et al. 2023, arXiv:2305.13245.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
        if rotation is None:
            q, k, v = heads.split([n_q, n_kv, n_kv], dim=2)
        else:
            turned, v = heads.split([n_q + n_kv, n_kv], dim=2)
            q, k = rotate(turned, *rotation).split([n_q, n_kv], dim=2)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # each [B, H or KV, T, K]
        mixed = F.scaled_dot_product_attention(
            q,
            k,
            v,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=True,
            enable_gqa=n_q != n_kv,
        )
        mixed = mixed.transpose(1, 2).reshape(batch, time, n_q * self.d_head)  # [B, T, H·K]
        return self.out(mixed)  # type: ignore[no-any-return]
