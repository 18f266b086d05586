"""What a block asks of the config it is built from; decoders, encoders and encoder–decoders all answer."""

from __future__ import annotations

from typing import Protocol

from scalelab.core.config import FeedForward, Norm, NormPosition, RopeScaling


class Rotary(Protocol):
    """What rotary positions ask."""

    @property
    def rotary_width(self) -> int:
        """R: how many of a head's numbers are turned."""

    @property
    def rope_theta(self) -> float:
        """Base of the angles."""

    @property
    def rope_scaling(self) -> RopeScaling | None:
        """Stretching beyond the pretraining length."""


class Parts(Protocol):
    """What attention, feed-forward, norms and blocks ask."""

    @property
    def d_model(self) -> int:
        """D."""

    @property
    def n_heads(self) -> int:
        """H, query heads."""

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""

    @property
    def head_width(self) -> int:
        """K."""

    @property
    def ff_width(self) -> int:
        """F."""

    @property
    def norm(self) -> Norm:
        """Which normalisation."""

    @property
    def norm_eps(self) -> float:
        """Added under its root."""

    @property
    def norm_bias(self) -> bool:
        """Whether LayerNorm has a bias."""

    @property
    def norm_position(self) -> NormPosition:
        """Before each sub-layer, or after each addition."""

    @property
    def feed_forward(self) -> FeedForward:
        """Which feed-forward part."""

    @property
    def attention_bias(self) -> bool:
        """Whether attention's maps have biases."""

    @property
    def feed_forward_bias(self) -> bool:
        """Whether the feed-forward's maps have biases."""

    @property
    def parallel_residual(self) -> bool:
        """Whether attention and feed-forward read the same stream."""

    @property
    def scale_scores(self) -> bool:
        """Whether scores are divided by √K."""

    @property
    def dropout(self) -> float:
        """Probability, while training."""
