"""The shape of a decoder, and the choices of parts that all stacks share.

Imported through `scalelab.core.config`. Taught in book/transformers/block.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from scalelab.core.checks import (
    check_bool,
    check_choice,
    check_fraction,
    check_positive,
    check_positive_int,
    is_number,
)
from scalelab.core.errors import ConfigError

Norm = Literal["layernorm", "rmsnorm"]
NormPosition = Literal["pre", "post"]
Positions = Literal["learned", "sinusoidal", "rope", "alibi", "none"]
FeedForward = Literal["gelu", "gelu_tanh", "relu", "swiglu"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """Llama 3.1's stretching of rotary frequencies beyond the length it was pretrained at.

    Attributes:
        factor: by how much low frequencies are slowed.
        low_freq_factor, high_freq_factor: the band, in turns per original context, that is blended.
        original_seq_len: the pretraining context, tokens.

    Source: Llama 3 (arXiv:2407.21783); constants as in the released configuration files.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_seq_len: int

    def __post_init__(self) -> None:
        check_positive("factor", self.factor)
        check_positive("low_freq_factor", self.low_freq_factor)
        check_positive("high_freq_factor", self.high_freq_factor)
        check_positive_int("original_seq_len", self.original_seq_len)
        if not self.high_freq_factor > self.low_freq_factor:
            raise ConfigError(
                f"high_freq_factor={self.high_freq_factor!r} must exceed "
                f"low_freq_factor={self.low_freq_factor!r}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """A causal Transformer: GPT-2, Llama, GPT-NeoX and their kin, by which parts they plug in.

    Attributes:
        n_layers, d_model, n_heads, vocab_size: L, D, H, V.
        seq_len: the longest context, tokens; the size of the position table where there is one.
        n_kv_heads: key/value heads (grouped-query attention); `n_heads` when None.
        d_head: width of a head; `d_model / n_heads` when None.
        d_ff: width inside the feed-forward; when None 4·D, or for swiglu 8/3·D rounded up to a multiple of 8.
        norm, norm_eps: which normalisation.
        norm_position: "pre" norms what each sub-layer reads, and the stream once at the end; "post" norms
            the stream after each addition (Vaswani et al. 2017), and there is no norm at the end.
        positions: "learned" adds a table, "sinusoidal" adds fixed waves, "rope" turns queries and keys,
            "alibi" takes from each score in proportion to the distance, "none" leaves the causal mask alone.
        rope_theta, rope_fraction, rope_scaling: base, the share of each head that turns, stretching.
        rope_skip_every: every so many layers one has no positions at all (SmolLM3); None: never.
        feed_forward: "gelu" (exact), "gelu_tanh" (GPT-2's), "relu", or "swiglu" (gated, three matrices).
        attention_bias, feed_forward_bias: whether those linear maps have biases (the head never has).
        norm_bias: whether LayerNorm has one; RMSNorm never does.
        tie_embeddings: whether the head multiplies by the input table.
        parallel_residual: attention and feed-forward read the same input (GPT-NeoX).
        dropout: probability, on embeddings, attention weights and sub-layer outputs while training.

    A size that was None is filled in once, from the others. `dataclasses.replace` therefore keeps it: whoever
    changes `d_model`, `n_heads` or `feed_forward` there says None for the sizes that are to follow.

    Raises:
        ConfigError: a size that is not a positive whole number, heads that do not divide, an unknown part.
    """

    n_layers: int
    d_model: int
    n_heads: int
    vocab_size: int
    seq_len: int
    n_kv_heads: int | None = None
    d_head: int | None = None
    d_ff: int | None = None
    norm: Norm = "layernorm"
    norm_eps: float = 1e-5
    norm_position: NormPosition = "pre"
    positions: Positions = "learned"
    rope_theta: float = 10_000.0
    rope_fraction: float = 1.0
    rope_scaling: RopeScaling | None = None
    rope_skip_every: int | None = None
    feed_forward: FeedForward = "gelu_tanh"
    attention_bias: bool = True
    feed_forward_bias: bool = True
    norm_bias: bool = True
    tie_embeddings: bool = True
    parallel_residual: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("n_layers", "d_model", "n_heads", "vocab_size", "seq_len"):
            check_positive_int(name, getattr(self, name))
        check_choice("norm", self.norm, get_args(Norm))
        check_choice("norm_position", self.norm_position, get_args(NormPosition))
        check_choice("positions", self.positions, get_args(Positions))
        check_choice("feed_forward", self.feed_forward, get_args(FeedForward))
        for name in (
            "attention_bias",
            "feed_forward_bias",
            "norm_bias",
            "tie_embeddings",
            "parallel_residual",
        ):
            check_bool(name, getattr(self, name))
        self._fill_in_sizes()
        check_positive("norm_eps", self.norm_eps)
        check_fraction("dropout", self.dropout)
        if self.parallel_residual and self.norm_position == "post":
            raise ConfigError(
                "parallel_residual needs norm_position='pre': both branches read one normed stream"
            )
        self._check_rotation()

    def _fill_in_sizes(self) -> None:
        """Replace each None size by the size it stands for, so that readers never meet a None."""
        if self.n_kv_heads is None:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        check_positive_int("n_kv_heads", self.n_kv_heads)
        if self.n_heads % self.kv_heads:
            raise ConfigError(
                f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}: "
                "each key/value head must serve the same number of query heads"
            )
        if self.d_head is None:
            if self.d_model % self.n_heads:
                raise ConfigError(
                    f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}: "
                    f"choose another n_heads, or set d_head"
                )
            object.__setattr__(self, "d_head", self.d_model // self.n_heads)
        check_positive_int("d_head", self.d_head)
        if self.d_ff is None:
            d_ff = 4 * self.d_model
            if self.feed_forward == "swiglu":
                d_ff = 8 * math.ceil(8 * self.d_model / 3 / 8)
            object.__setattr__(self, "d_ff", d_ff)
        check_positive_int("d_ff", self.d_ff)

    def _check_rotation(self) -> None:
        check_positive("rope_theta", self.rope_theta)
        if not (is_number(self.rope_fraction) and 0 < self.rope_fraction <= 1):
            raise ConfigError(f"rope_fraction must lie in (0, 1], got {self.rope_fraction!r}")
        if self.rope_skip_every is not None:
            check_positive_int("rope_skip_every", self.rope_skip_every)
        if self.rope_scaling is not None and not isinstance(self.rope_scaling, RopeScaling):
            raise ConfigError(f"rope_scaling must be a RopeScaling or None, got {self.rope_scaling!r}")
        if self.positions == "rope" and (self.rotary_width < 2 or self.rotary_width % 2):
            raise ConfigError(
                f"rotary positions turn pairs of numbers: d_head={self.d_head} times "
                f"rope_fraction={self.rope_fraction} must be an even number of at least 2"
            )

    # mypy knows the fields as Optional; after __post_init__ they never are.
    @property
    def kv_heads(self) -> int:
        """Key/value heads, never None."""
        assert self.n_kv_heads is not None
        return self.n_kv_heads

    @property
    def head_width(self) -> int:
        """K, the width of a head, never None."""
        assert self.d_head is not None
        return self.d_head

    @property
    def ff_width(self) -> int:
        """F, the width inside the feed-forward, never None."""
        assert self.d_ff is not None
        return self.d_ff

    @property
    def rotary_width(self) -> int:
        """How many of a head's numbers are turned by rotary positions."""
        # Cut off, as `transformers` does, but not where only rounding is short of a whole number: 100 · 0.58.
        return int(self.head_width * self.rope_fraction + 1e-9)

    @property
    def scale_scores(self) -> bool:
        """A decoder's scores are always divided by √K."""
        return True

    def uses_rope(self, layer: int) -> bool:
        """Whether this layer (counted from 0) turns its queries and keys."""
        if self.positions != "rope":
            return False
        return self.rope_skip_every is None or (layer + 1) % self.rope_skip_every != 0
