"""A block: attention, then feed-forward, each of which adds what it found to the residual stream.

Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.1 (post-norm); Xiong et al. 2020, arXiv:2002.04745
(pre-norm); Wang & Komatsuzaki 2021 (parallel branches, GPT-J). Taught in book/transformers/block.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from scalelab.models.attention import Attention, CrossAttention, KeptKeys, Sight
from scalelab.models.building import make_dropout
from scalelab.models.feed_forward import make_feed_forward
from scalelab.models.norms import make_norm
from scalelab.models.parts import Parts

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from scalelab.models.source import Source


class Block(nn.Module):
    """Attention, then feed-forward; each reads a normed copy of the stream and adds to it.

    With `norm_position="post"` each reads the stream itself, and the sum is normed. A decoder's block that
    reads an encoder's output (`cross=True`) has cross-attention between the two.
    """

    def __init__(self, parts: Parts, *, cross: bool = False) -> None:
        super().__init__()
        self.parallel = parts.parallel_residual
        self.post_norm = parts.norm_position == "post"
        self.attention_norm = make_norm(parts)
        self.attention = Attention(parts)
        if cross:
            self.cross_norm = make_norm(parts)
            self.cross_attention = CrossAttention(parts)
        self.feed_forward_norm = make_norm(parts)
        self.feed_forward = make_feed_forward(parts)
        self.dropout = make_dropout(parts.dropout)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        sight: Sight,
        kept: KeptKeys | None = None,
        source: Source | None = None,
    ) -> Float[Tensor, "B T D"]:
        """One step of the stream.

        Args:
            sight: what each token may see. kept: keys and values of earlier tokens.
            source: what cross-attention reads; needed exactly where the block has one.
        """
        if self.parallel:  # both read the same x, so a machine may do them at once
            attended = self.attention(self.attention_norm(x), sight, kept)
            return x + self.dropout(attended) + self.dropout(self.feed_forward(self.feed_forward_norm(x)))  # type: ignore[no-any-return]
        x = self._add(x, self.attention_norm, lambda y: self.attention(y, sight, kept))
        if source is not None:
            answers, mask = source.answers(self.cross_attention), source.mask
            x = self._add(x, self.cross_norm, lambda y: self.cross_attention(y, answers, mask))
        return self._add(x, self.feed_forward_norm, self.feed_forward)

    def _add(
        self,
        x: Float[Tensor, "B T D"],
        norm: nn.Module,
        sublayer: Callable[[Float[Tensor, "B T D"]], Float[Tensor, "B T D"]],
    ) -> Float[Tensor, "B T D"]:
        """x + f(norm(x)), or norm(x + f(x))."""
        if self.post_norm:
            return norm(x + self.dropout(sublayer(x)))  # type: ignore[no-any-return]
        return x + self.dropout(sublayer(norm(x)))  # type: ignore[no-any-return]


def final_norm(parts: Parts) -> nn.Module:
    """The norm at the end of a stack: pre-norm blocks need one, post-norm blocks end with their own."""
    return nn.Identity() if parts.norm_position == "post" else make_norm(parts)
