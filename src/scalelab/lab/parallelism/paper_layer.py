"""The layer of sbh (10 + 24/t + 5as/(ht)): GPT's, with dropout and plain attention, cut over ranks, in bf16.

It is made to be counted: what autograd keeps of it for backward is what the paper lists, and the norms'
statistics, two numbers a token, which the paper leaves out.
Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4.2. Taught in
book/parallelism/tensor-parallel.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from scalelab.lab.parallelism.gpt_layer import Core, Dropout
from scalelab.parallel.scratch.bytes_held import kept_for_backward
from scalelab.parallel.scratch.group import Group
from scalelab.parallel.scratch.sequence_parallel import SequenceBorders, own_tokens
from scalelab.parallel.scratch.tensor_parallel import Borders, TensorBorders, column_parallel, row_parallel

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class PaperLayer(nn.Module):
    """`GPTLayer`, of which a rank has its heads and its share of F.

    Args:
        d_model, n_heads: h and a, of the whole layer. tp: t, which divides both.
    """

    def __init__(self, d_model: int, n_heads: int, tp: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.n_heads = n_heads // tp
        own, wide = d_model // tp, 4 * d_model // tp
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.qkv, self.out = nn.Linear(d_model, 3 * own), nn.Linear(own, d_model)
        self.up, self.down = nn.Linear(d_model, wide), nn.Linear(wide, d_model)
        self.core, self.dropout = Core(dropout), Dropout(dropout)
        self.to(torch.bfloat16)

    def forward(self, x: Float[Tensor, "B t D"], borders: Borders) -> Float[Tensor, "B t D"]:
        (fused,) = column_parallel(self.norm1(x), borders, self.qkv)  # [B, T, 3·H·K] of this rank's heads
        q, k, v = fused.view(*fused.shape[:2], 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)  # [B, H, T, K]
        x = x + self.dropout(row_parallel(self.core(q, k, v), self.out, borders))
        (wide,) = column_parallel(self.norm2(x), borders, self.up)
        return x + self.dropout(row_parallel(F.gelu(wide), self.down, borders))  # type: ignore[no-any-return]


def kept_bytes(
    group: Group,
    *,
    batch_size: int,
    seq_len: int,
    d_model: int,
    n_heads: int,
    sequence_parallel: bool = False,
) -> tuple[int, int]:
    """What this rank keeps of one layer for backward, counted; every rank of the group calls this.

    Returns:
        Bytes, and how many of these are the norms' statistics.
    """
    layer = PaperLayer(d_model, n_heads, group.size)
    x = torch.zeros((batch_size, seq_len, d_model), dtype=torch.bfloat16)
    borders: Borders = TensorBorders(group)
    if sequence_parallel:
        x, borders = own_tokens(x, group).contiguous(), SequenceBorders(group, seq_len)
    x.requires_grad_()
    with kept_for_backward(layer.parameters()) as kept:
        layer(x, borders)
    statistics = [tensor for tensor in kept.tensors if tensor.shape == (*x.shape[:2], 1)]
    return kept.n_bytes, sum(tensor.numel() * tensor.element_size() for tensor in statistics)
