"""The shapes of encoders and of encoder–decoders.

Imported through `scalelab.core.config`. Taught in book/transformers/architectures.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from scalelab.core.checks import (
    check_bool,
    check_choice,
    check_count,
    check_fraction,
    check_heads_divide,
    check_positive,
    check_positive_int,
)
from scalelab.core.config_decoder import FeedForward, Norm, NormPosition, RopeScaling
from scalelab.core.errors import ConfigError

EncoderPositions = Literal["learned", "sinusoidal", "rope", "none"]
StackPositions = Literal["relative", "sinusoidal", "rope", "none"]


class _PlainStack:
    """Answers to what every stack of blocks is asked (models/parts.py) that these two kinds give alike."""

    __slots__ = ()
    n_heads: int
    d_ff: int

    @property
    def kv_heads(self) -> int:
        """Each query head has keys and values of its own."""
        return self.n_heads

    @property
    def ff_width(self) -> int:
        """F, the width inside the feed-forward."""
        return self.d_ff

    @property
    def norm_bias(self) -> bool:
        """LayerNorm, where it is chosen, has one."""
        return True

    @property
    def parallel_residual(self) -> bool:
        """Sub-layers follow one another."""
        return False

    @property
    def rope_scaling(self) -> RopeScaling | None:
        """Never stretched."""
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig(_PlainStack):
    """BERT's shape: bidirectional, with segment embeddings and a pooler; its defaults are BERT's.

    Attributes:
        n_layers, d_model, n_heads, d_ff, vocab_size: L, D, H, F, V.
        seq_len: the longest input, tokens. n_segments: rows of the segment table.
        pooler: whether the first position passes one more dense layer.
        mlm_head: whether there is a head that says which token was hidden: a dense layer with a norm, then
            the input table with a bias for each token. Without an nsp_head nothing trains the pooler then,
            and no class of `transformers` has both: set pooler=False.
        nsp_head: whether the pooled vector is classified as "follows" or "does not" (needs the pooler).
        norm, norm_eps: which normalisation.
        norm_position: "post" norms the embeddings and after each addition, as BERT; "pre" norms what each
            sub-layer reads, and the stream once at the end.
        positions: "learned", "sinusoidal", "rope" or "none". rope_theta: base of the rotary angles.
        feed_forward: "gelu" (exact), "gelu_tanh" or "relu", or "swiglu".
        attention_bias, feed_forward_bias: whether those linear maps have biases.
        dropout: probability, on embeddings, attention weights and sub-layer outputs while training.

    Source: Devlin et al. 2018, arXiv:1810.04805, section 3.
    """

    n_layers: int
    d_model: int
    n_heads: int
    d_ff: int
    vocab_size: int
    seq_len: int = 512
    n_segments: int = 2
    pooler: bool = True
    mlm_head: bool = False
    nsp_head: bool = False
    norm: Norm = "layernorm"
    norm_eps: float = 1e-12
    norm_position: NormPosition = "post"
    positions: EncoderPositions = "learned"
    rope_theta: float = 10_000.0
    feed_forward: FeedForward = "gelu"
    attention_bias: bool = True
    feed_forward_bias: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("n_layers", "d_model", "n_heads", "d_ff", "vocab_size", "seq_len", "n_segments"):
            check_positive_int(name, getattr(self, name))
        for name in ("pooler", "mlm_head", "nsp_head", "attention_bias", "feed_forward_bias"):
            check_bool(name, getattr(self, name))
        check_choice("norm", self.norm, get_args(Norm))
        check_choice("norm_position", self.norm_position, get_args(NormPosition))
        check_choice("positions", self.positions, get_args(EncoderPositions))
        check_choice("feed_forward", self.feed_forward, get_args(FeedForward))
        check_positive("norm_eps", self.norm_eps)
        check_positive("rope_theta", self.rope_theta)
        check_fraction("dropout", self.dropout)
        check_heads_divide(self.d_model, self.n_heads)
        if self.nsp_head and not self.pooler:
            raise ConfigError("nsp_head=True classifies the pooled vector: it needs pooler=True")
        _check_pairs(self.positions, self.head_width)

    @property
    def head_width(self) -> int:
        """K, the width of a head."""
        return self.d_model // self.n_heads

    @property
    def scale_scores(self) -> bool:
        """Scores are divided by √K."""
        return True

    @property
    def rotary_width(self) -> int:
        """How many of a head's numbers are turned by rotary positions: all."""
        return self.head_width


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderDecoderConfig(_PlainStack):
    """T5's shape, by default: two stacks without biases, relative positions shared by a stack's layers.

    Attributes:
        n_layers: layers of each stack. d_model, n_heads, d_head, d_ff, vocab_size: D, H, K, F, V.
        n_position_buckets: rows of the relative position table, one a stack.
        max_distance: tokens from which on all distances share the last bucket.
        tie_embeddings: whether the head multiplies by the input table, which both stacks share.
        scale_head: whether the stream is multiplied by 1/√D before the head (T5 does when tied).
        scale_scores: whether scores are divided by √K (T5 does not, and draws smaller queries instead).
        norm, norm_eps, norm_position: normalisation; "pre" also norms each stack's end, "post" does not.
        positions: "relative" (T5's buckets), "sinusoidal", "rope" or "none", in both stacks.
        rope_theta: base of the rotary angles.
        feed_forward: "relu" (T5), "gelu", "gelu_tanh" or "swiglu".
        attention_bias, feed_forward_bias: whether those linear maps have biases.
        pad_id: the id that fills short sources up, and that the decoder's input starts with.
        dropout: probability, on embeddings, attention weights and sub-layer outputs while training.

    Source: Raffel et al. 2019, arXiv:1910.10683, section 2.1; Vaswani et al. 2017, arXiv:1706.03762.
    """

    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    d_ff: int
    vocab_size: int
    n_position_buckets: int = 32
    max_distance: int = 128
    tie_embeddings: bool = True
    scale_head: bool = True
    scale_scores: bool = False
    norm: Norm = "rmsnorm"
    norm_eps: float = 1e-6
    norm_position: NormPosition = "pre"
    positions: StackPositions = "relative"
    rope_theta: float = 10_000.0
    feed_forward: FeedForward = "relu"
    attention_bias: bool = False
    feed_forward_bias: bool = False
    pad_id: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in (
            "n_layers", "d_model", "n_heads", "d_head", "d_ff", "vocab_size",
            "n_position_buckets", "max_distance",
        ):  # fmt: skip
            check_positive_int(name, getattr(self, name))
        for name in ("tie_embeddings", "scale_head", "scale_scores", "attention_bias", "feed_forward_bias"):
            check_bool(name, getattr(self, name))
        check_choice("norm", self.norm, get_args(Norm))
        check_choice("norm_position", self.norm_position, get_args(NormPosition))
        check_choice("positions", self.positions, get_args(StackPositions))
        check_choice("feed_forward", self.feed_forward, get_args(FeedForward))
        check_positive("norm_eps", self.norm_eps)
        check_positive("rope_theta", self.rope_theta)
        check_fraction("dropout", self.dropout)
        check_count("pad_id", self.pad_id)
        if self.pad_id >= self.vocab_size:
            raise ConfigError(f"pad_id={self.pad_id} is outside the vocabulary of {self.vocab_size} tokens")
        if self.positions == "relative" and not 4 <= self.n_position_buckets < 2 * self.max_distance:
            raise ConfigError(
                f"n_position_buckets={self.n_position_buckets} must be at least 4 and below twice "
                f"max_distance={self.max_distance}: half of a direction's buckets are single distances"
            )
        _check_pairs(self.positions, self.d_head)

    @property
    def head_width(self) -> int:
        """K, the width of a head."""
        return self.d_head

    @property
    def rotary_width(self) -> int:
        """How many of a head's numbers are turned by rotary positions: all."""
        return self.d_head


def _check_pairs(positions: str, head_width: int) -> None:
    if positions == "rope" and head_width % 2:
        raise ConfigError(f"rotary positions turn pairs of numbers: a head of width {head_width} is odd")
