"""Shapes of models as frozen data: what a model is, without a single weight.

Every other part of the package reads these: `models` builds from them, `cost` counts them, records
and checkpoints store them. No torch here, so planning a 405B model costs nothing.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from scalelab.core.checks import (
    check_bool,
    check_choice,
    check_fraction,
    check_heads_divide,
    check_positive,
    check_positive_int,
    is_number,
)
from scalelab.core.errors import ConfigError

Norm = Literal["layernorm", "rmsnorm"]
Positions = Literal["learned", "sinusoidal", "rope", "none"]
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
        norm, norm_eps: normalisation, applied before each sub-layer and once at the end.
        positions: "learned" adds a table, "sinusoidal" adds fixed waves, "rope" turns queries and keys.
        rope_theta, rope_fraction, rope_scaling: base, the share of each head that turns, stretching.
        rope_skip_every: every so many layers one has no positions at all (SmolLM3); None: never.
        feed_forward: "gelu" (exact), "gelu_tanh" (GPT-2's), "relu", or "swiglu" (gated, three matrices).
        attention_bias, feed_forward_bias: whether those linear maps have biases (the head never has).
        norm_bias: whether LayerNorm has one; RMSNorm never does.
        tie_embeddings: whether the head multiplies by the input table.
        parallel_residual: attention and feed-forward read the same input (GPT-NeoX).
        dropout: probability, on embeddings, attention weights and sub-layer outputs while training.

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
        if self.positions != "rope":
            return
        check_positive("rope_theta", self.rope_theta)
        if not (is_number(self.rope_fraction) and 0 < self.rope_fraction <= 1):
            raise ConfigError(f"rope_fraction must lie in (0, 1], got {self.rope_fraction!r}")
        if self.rope_skip_every is not None:
            check_positive_int("rope_skip_every", self.rope_skip_every)
        if self.rope_scaling is not None and not isinstance(self.rope_scaling, RopeScaling):
            raise ConfigError(f"rope_scaling must be a RopeScaling or None, got {self.rope_scaling!r}")
        if self.rotary_width < 2 or self.rotary_width % 2:
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
        return int(self.head_width * self.rope_fraction)

    def uses_rope(self, layer: int) -> bool:
        """Whether this layer (counted from 0) turns its queries and keys."""
        if self.positions != "rope":
            return False
        return self.rope_skip_every is None or (layer + 1) % self.rope_skip_every != 0


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """BERT's shape: bidirectional, post-norm, with segment embeddings and a pooler.

    Attributes:
        n_layers, d_model, n_heads, d_ff, vocab_size: L, D, H, F, V.
        seq_len: the longest input, tokens. n_segments: rows of the segment table.
        pooler: whether the first position passes one more dense layer.

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

    def __post_init__(self) -> None:
        for name in ("n_layers", "d_model", "n_heads", "d_ff", "vocab_size", "seq_len", "n_segments"):
            check_positive_int(name, getattr(self, name))
        check_bool("pooler", self.pooler)
        check_heads_divide(self.d_model, self.n_heads)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderDecoderConfig:
    """T5's shape: two stacks without biases, relative position buckets shared by a stack's layers.

    Attributes:
        n_layers: layers of each stack. d_model, n_heads, d_head, d_ff, vocab_size: D, H, K, F, V.
        n_position_buckets: rows of the relative position table, one a stack.
        tie_embeddings: whether the head multiplies by the input table.

    Source: Raffel et al. 2019, arXiv:1910.10683, section 2.1.
    """

    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    d_ff: int
    vocab_size: int
    n_position_buckets: int = 32
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        for name in ("n_layers", "d_model", "n_heads", "d_head", "d_ff", "vocab_size", "n_position_buckets"):
            check_positive_int(name, getattr(self, name))
        check_bool("tie_embeddings", self.tie_embeddings)


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig:
    """ViT's shape: an encoder over image patches with a class token and a classifying head.

    Attributes:
        n_layers, d_model, n_heads, d_ff: L, D, H, F.
        patch_size, image_size: pixels a side. n_channels: colour channels. n_classes: outputs.

    Source: Dosovitskiy et al. 2020, arXiv:2010.11929, table 1.
    """

    n_layers: int
    d_model: int
    n_heads: int
    d_ff: int
    patch_size: int
    image_size: int = 224
    n_channels: int = 3
    n_classes: int = 1000

    def __post_init__(self) -> None:
        for name in (
            "n_layers", "d_model", "n_heads", "d_ff", "patch_size", "image_size", "n_channels", "n_classes",
        ):  # fmt: skip
            check_positive_int(name, getattr(self, name))
        check_heads_divide(self.d_model, self.n_heads)
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}"
            )

    @property
    def n_patches(self) -> int:
        """Patches an image is cut into, without the class token."""
        return (self.image_size // self.patch_size) ** 2


ModelConfig = DecoderConfig | EncoderConfig | EncoderDecoderConfig | VisionConfig
KINDS: Mapping[str, type] = {
    "decoder": DecoderConfig,
    "encoder": EncoderConfig,
    "encoder-decoder": EncoderDecoderConfig,
    "vision": VisionConfig,
}
C = TypeVar("C")


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """A plain dict with `kind` first, fit for JSON; `config_from_dict` reads it back."""
    kind = next(name for name, cls in KINDS.items() if type(config) is cls)
    return {"kind": kind, **dataclasses.asdict(config)}


def config_from_dict(values: Mapping[str, Any]) -> ModelConfig:
    """The config that `config_to_dict` wrote.

    Raises:
        ConfigError: unknown kind, unknown or missing field, or a value the config refuses.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"a model config must be a mapping of names to values, got {values!r}")
    fields = dict(values)
    kind = fields.pop("kind", "decoder")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(f"unknown kind of model {kind!r}; known: {', '.join(KINDS)}")
    scaling = fields.get("rope_scaling")
    if isinstance(scaling, Mapping):
        fields["rope_scaling"] = build(RopeScaling, scaling)
    config: ModelConfig = build(KINDS[kind], fields)
    return config


def build(cls: Callable[..., C], values: Mapping[str, Any]) -> C:
    """Make a config dataclass from a mapping, naming unknown and missing fields.

    Raises:
        ConfigError: a field the class does not have, or one it needs and did not get.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = [name for name in values if name not in fields]
    if unknown:
        raise ConfigError(f"unknown setting {unknown[0]!r}; known: {', '.join(fields)}")
    missing = [
        name
        for name, f in fields.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"missing setting {missing[0]!r} (needed: {', '.join(missing)})")
    return cls(**values)
