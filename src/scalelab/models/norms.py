"""Normalisation sets the size of each token's vector, so that depth neither swells nor starves it.

LayerNorm subtracts the mean and divides by the standard deviation; RMSNorm only divides by the root
mean square, which is cheaper and works as well.
Source: Ba et al. 2016, arXiv:1607.06450; Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4.
Taught in book/transformers/block.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from scalelab.models.parts import Parts

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight, over the last dimension.

    Args:
        width: D, the size of the last dimension.
        eps: added under the root, so that a zero vector stays zero.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        # Squares of bf16 numbers lose what the mean needs: the statistic is taken in fp32, as Llama does.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (wide * scale).to(x.dtype)


def make_norm(parts: Parts) -> nn.Module:
    """The normalisation that the config names, over D."""
    if parts.norm == "rmsnorm":
        return RMSNorm(parts.d_model, parts.norm_eps)
    return nn.LayerNorm(parts.d_model, parts.norm_eps, bias=parts.norm_bias)
