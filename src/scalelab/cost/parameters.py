"""How many parameters a config has, exactly, and which of them multiply.

Three counts go by the name N, and they differ by a third in GPT-2: all parameters; those that multiply (the N
of C = 6 N D); and those outside the vocabulary and position tables (Kaplan's N).
Source of the third: Kaplan et al. 2020, arXiv:2001.08361, section 2.1.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scalelab.core.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig, ModelConfig, VisionConfig
from scalelab.core.errors import ConfigError
from scalelab.core.presets import preset

# Parts that are looked up, not multiplied.
TABLES = ("token table", "position table", "segment table", "class token", "relative position tables")
HEAD = "head"


@dataclass(frozen=True, kw_only=True, slots=True)
class Params:
    """Parameters of a model, by the three counts in use and part by part.

    Attributes:
        total: all parameters, a tied table once (`n_params`).
        matmul: without tables that are looked up, with the head even when it is the token table again
            (`n_params_matmul`, the N of 6 N D). Biases and norm gains stay in, as in the published
            "non-embedding" counts; in a model of width d they are about one part in d.
        non_embedding: without tables and head (`n_params_non_embedding`, Kaplan's N).
        parts: parameters of each part of the model, in the order data meets them; they add up to `total`.
            A tied head has no part of its own.
    """

    total: int
    matmul: int
    non_embedding: int
    parts: Mapping[str, int]


def params(config: ModelConfig | str) -> Params:
    """Count a config's parameters.

    Args:
        config: a model config, or the name of a preset.

    Raises:
        ConfigError: an unknown preset, or something that is no config.
    """
    config = as_config(config)
    if isinstance(config, DecoderConfig):
        return _sum(_decoder_parts(config), tied_head=_tied_head(config))
    if isinstance(config, EncoderConfig):
        return _sum(_encoder_parts(config))
    if isinstance(config, EncoderDecoderConfig):
        return _sum(_encoder_decoder_parts(config), tied_head=_tied_head(config))
    return _sum(_vision_parts(config))


def count_params(config: ModelConfig | str) -> int:
    """All parameters, a tied table once: `count_params("gpt2") == 124_439_808`.

    Args:
        config: a model config, or the name of a preset.
    """
    return params(config).total


def as_config(config: ModelConfig | str) -> ModelConfig:
    """The config itself, or the preset of that name.

    Raises:
        ConfigError: an unknown preset, or something that is no config.
    """
    if isinstance(config, str):
        return preset(config)
    if not isinstance(config, ModelConfig):
        raise ConfigError(f"expected a model config or a preset's name such as 'gpt2', got {config!r}")
    return config


def matrix_weights(config: DecoderConfig) -> int:
    """Weights of a decoder's matrices: what multiplies, without biases and norm gains, the head included."""
    c = config
    attention = c.d_model * (2 * c.n_heads + 2 * c.kv_heads) * c.head_width
    feed_forward = _n_inward(c) * c.d_model * c.ff_width + c.ff_width * c.d_model
    return c.n_layers * (attention + feed_forward) + c.d_model * c.vocab_size


def _n_inward(c: DecoderConfig) -> int:
    return 2 if c.feed_forward == "swiglu" else 1  # a gated unit has two matrices on the way in


def _sum(parts: dict[str, int], *, tied_head: int = 0) -> Params:
    """Add the parts up; `tied_head` is what a head multiplies by when it has no weights of its own."""
    parts = {name: count for name, count in parts.items() if count}
    total = sum(parts.values())
    tables = sum(parts.get(name, 0) for name in TABLES)
    matmul = total - tables + tied_head
    return Params(total=total, matmul=matmul, non_embedding=total - tables - parts.get(HEAD, 0), parts=parts)


def _tied_head(config: DecoderConfig | EncoderDecoderConfig) -> int:
    return config.vocab_size * config.d_model if config.tie_embeddings else 0


def _linear(d_in: int, d_out: int, *, bias: bool) -> int:
    return d_in * d_out + (d_out if bias else 0)


def _decoder_parts(c: DecoderConfig) -> dict[str, int]:
    d, f, n_layers = c.d_model, c.ff_width, c.n_layers
    queries, keys = c.n_heads * c.head_width, c.kv_heads * c.head_width
    norm = d * (2 if c.norm == "layernorm" and c.norm_bias else 1)
    return {
        "token table": c.vocab_size * d,
        "position table": c.seq_len * d if c.positions == "learned" else 0,
        "queries, keys, values": n_layers * _linear(d, queries + 2 * keys, bias=c.attention_bias),
        "attention output": n_layers * _linear(queries, d, bias=c.attention_bias),
        "feed-forward": n_layers
        * (_n_inward(c) * _linear(d, f, bias=c.feed_forward_bias) + _linear(f, d, bias=c.feed_forward_bias)),
        "norms": (2 * n_layers + 1) * norm,
        HEAD: 0 if c.tie_embeddings else c.vocab_size * d,
    }


def _encoder_parts(c: EncoderConfig) -> dict[str, int]:
    d, n_layers = c.d_model, c.n_layers
    return {
        "token table": c.vocab_size * d,
        "position table": c.seq_len * d,
        "segment table": c.n_segments * d,
        "queries, keys, values": n_layers * _linear(d, 3 * d, bias=True),
        "attention output": n_layers * _linear(d, d, bias=True),
        "feed-forward": n_layers * (_linear(d, c.d_ff, bias=True) + _linear(c.d_ff, d, bias=True)),
        "norms": (2 * n_layers + 1) * 2 * d,  # one more after the embeddings
        "pooler": _linear(d, d, bias=True) if c.pooler else 0,
    }


def _encoder_decoder_parts(c: EncoderDecoderConfig) -> dict[str, int]:
    d, n_layers, inner = c.d_model, c.n_layers, c.n_heads * c.d_head
    n_attentions = 3  # the encoder's own, the decoder's own, and the one across
    n_norms = 2 + 3  # one before each attention and feed-forward
    return {
        "token table": c.vocab_size * d,
        "relative position tables": 2 * c.n_position_buckets * c.n_heads,
        "queries, keys, values": n_layers * n_attentions * d * 3 * inner,
        "attention output": n_layers * n_attentions * inner * d,
        "feed-forward": 2 * n_layers * 2 * d * c.d_ff,
        "norms": (n_layers * n_norms + 2) * d,
        HEAD: 0 if c.tie_embeddings else c.vocab_size * d,
    }


def _vision_parts(c: VisionConfig) -> dict[str, int]:
    d, n_layers = c.d_model, c.n_layers
    return {
        "patch projection": _linear(c.n_channels * c.patch_size**2, d, bias=True),
        "class token": d,
        "position table": (c.n_patches + 1) * d,
        "queries, keys, values": n_layers * _linear(d, 3 * d, bias=True),
        "attention output": n_layers * _linear(d, d, bias=True),
        "feed-forward": n_layers * (_linear(d, c.d_ff, bias=True) + _linear(c.d_ff, d, bias=True)),
        "norms": (2 * n_layers + 1) * 2 * d,
        HEAD: _linear(d, c.n_classes, bias=True),
    }
