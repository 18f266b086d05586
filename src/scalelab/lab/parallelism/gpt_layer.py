"""A layer as the formula sbh (34 + 5as/h) has it: GPT-2's, with dropout, and attention written out.

Nothing is fused, so that each of the tensors that the formula counts is really kept. Dropout is torch's own
operation that keeps a mask of one byte an entry; `nn.Dropout` on a CPU keeps numbers of the input's type.
Source: Korthikanti et al. 2022, arXiv:2205.05198, figure 3 and section 4.1. Taught in
book/parallelism/sharding.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Dropout(nn.Module):
    """Dropout that keeps its mask for backward, and nothing else."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        kept: Tensor = torch.native_dropout(x, self.probability, self.training)[0]
        return kept


class Core(nn.Module):
    """Attention's scores, softmax, dropout and mixture: what keeps much and costs little."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)

    def forward(
        self, q: Float[Tensor, "B H T K"], k: Float[Tensor, "B H T K"], v: Float[Tensor, "B H T K"]
    ) -> Float[Tensor, "B T H*K"]:
        later = torch.full(q.shape[2:3] * 2, -math.inf, dtype=q.dtype, device=q.device).triu(1)  # [T, T]
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]) + later  # [B, H, T, T]
        mixed = self.dropout(scores.softmax(dim=-1)) @ v  # [B, H, T, K]
        heads: Tensor = mixed.transpose(1, 2).flatten(2)  # [B, T, H·K]
        return heads


class GPTLayer(nn.Module):
    """Attention and feed-forward, each between a norm and dropout.

    Args:
        d_model, n_heads: h and a. dropout: the probability that a number is dropped.
    """

    def __init__(self, d_model: int, n_heads: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.core = Core(dropout)
        self.out = nn.Linear(d_model, d_model)
        self.up, self.down = nn.Linear(d_model, 4 * d_model), nn.Linear(4 * d_model, d_model)
        self.dropout1, self.dropout2 = Dropout(dropout), Dropout(dropout)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, self.n_heads, -1))  # [B, T, 3, H, K]
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each [B, H, T, K]
        x = x + self.dropout1(self.out(self.core(q, k, v)))
        x = x + self.dropout2(self.down(F.gelu(self.up(self.norm2(x)))))
        return x
