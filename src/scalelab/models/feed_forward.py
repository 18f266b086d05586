"""The feed-forward part: each token by itself, widened to F, bent, and brought back to D.

Two thirds of a block's weights sit here. SwiGLU multiplies two widened copies, one of them through a
smooth gate; with three matrices instead of two its F is usually cut to 8/3 D.
Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.3; Hendrycks & Gimpel 2016, arXiv:1606.08415
(GELU); Shazeer 2020, arXiv:2002.05202, eq. 6 (SwiGLU). Taught in book/transformers/block.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import nn

from scalelab.models.parts import Parts

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class FeedForward(nn.Module):
    """W_down · act(W_up · x), with biases where the config says so."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.activation = parts.feed_forward
        self.up = nn.Linear(parts.d_model, parts.ff_width, bias=parts.feed_forward_bias)
        self.down = nn.Linear(parts.ff_width, parts.d_model, bias=parts.feed_forward_bias)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.down(bend(self.up(x), self.activation))  # type: ignore[no-any-return]


class SwiGLU(nn.Module):
    """W_down · (silu(W_gate · x) ⊙ W_up · x), where silu(z) = z · sigmoid(z)."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.gate = nn.Linear(parts.d_model, parts.ff_width, bias=parts.feed_forward_bias)
        self.up = nn.Linear(parts.d_model, parts.ff_width, bias=parts.feed_forward_bias)
        self.down = nn.Linear(parts.ff_width, parts.d_model, bias=parts.feed_forward_bias)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


def make_feed_forward(parts: Parts) -> nn.Module:
    """The feed-forward part that the config names."""
    return SwiGLU(parts) if parts.feed_forward == "swiglu" else FeedForward(parts)


def bend(x: Float[Tensor, "*batch F"], activation: str) -> Float[Tensor, "*batch F"]:
    """max(0, x) for "relu", x·Φ(x) for "gelu", its approximation by a tanh for "gelu_tanh"."""
    if activation == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")
