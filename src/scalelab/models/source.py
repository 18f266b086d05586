"""What a decoder reads of a source: each layer's keys and values, made once and kept for later tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from scalelab.models.attention import CrossAttention

    Answers = tuple[Float[Tensor, "B H S K"], Float[Tensor, "B H S K"]]


class Source:
    """An encoder's output, as one decoding reads it.

    Args:
        states: the encoder's last stream.
        padding: True where the source has a token; None: everywhere.
        keep: whether each layer's keys and values are kept for the next call: while generating, the source
            is the same for every token. While training they are made once anyway.
    """

    def __init__(
        self,
        states: Float[Tensor, "B S D"],
        padding: Bool[Tensor, "B S"] | None = None,
        *,
        keep: bool = False,
    ) -> None:
        self.states = states
        self.padding = padding
        self._kept: dict[CrossAttention, Answers] | None = {} if keep else None

    @property
    def mask(self) -> Bool[Tensor, "B 1 1 S"] | None:
        """True where the source has a token."""
        return None if self.padding is None else self.padding[:, None, None, :]

    def answers(self, layer: CrossAttention) -> Answers:
        """The layer's keys and values of this source."""
        if self._kept is None:
            return layer.project(self.states)
        if layer not in self._kept:
            self._kept[layer] = layer.project(self.states)
        return self._kept[layer]

    def rows(self, chosen: Int[Tensor, " N"]) -> Source:
        """The same source for other rows of a batch: beams that were kept, prompts that were repeated."""
        padding = None if self.padding is None else self.padding[chosen]
        other = Source(self.states[chosen], padding, keep=self._kept is not None)
        if self._kept is not None:
            other._kept = {layer: (k[chosen], v[chosen]) for layer, (k, v) in self._kept.items()}
        return other
