"""How many parameters a config has, exactly, and which of them multiply.

Three counts go by the name N, and they differ by a third in GPT-2: all parameters; those that multiply (the N
of C = 6 N D); and those outside the vocabulary and position tables (Kaplan's N). Heads belong to the second
and not to the third: a decoder's head, an encoder's head for hidden tokens (a dense layer with a norm, the
input table once more, a bias for each token) and its head for following sentences alike. BERT's pooler is in
both. Pooler and sentence head multiply once a sequence and not once a token, so 6 N D counts them too often.
Source of the third: Kaplan et al. 2020, arXiv:2001.08361, section 2.1.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scalelab.core.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig, ModelConfig, VisionConfig
from scalelab.core.errors import ConfigError
from scalelab.core.presets import preset

TextConfig = DecoderConfig | EncoderConfig | EncoderDecoderConfig

# Parts that are looked up, not multiplied.
TABLES = ("token table", "position table", "segment table", "class token", "relative position tables")
HEAD = "head"
SENTENCE_HEAD = "sentence head"


@dataclass(frozen=True, kw_only=True, slots=True)
class Params:
    """Parameters of a model, by the three counts in use and part by part.

    Attributes:
        total: all parameters, a tied table once (`n_params`).
        matmul: without tables that are looked up, with the heads even where one is the token table again
            (`n_params_matmul`, the N of 6 N D). Biases and norm gains stay in, as in the published
            "non-embedding" counts; in a model of width d they are about one part in d.
        non_embedding: without tables and heads (`n_params_non_embedding`, Kaplan's N).
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
        return _sum(_encoder_parts(config), tied_head=_tied_head(config))
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


def matrix_weights(config: TextConfig) -> int:
    """Weights of a model's matrices: what multiplies, without biases and norm gains, the heads included."""
    c = config
    inner, d = c.n_heads * c.head_width, c.d_model
    attention = d * (2 * inner + 2 * c.kv_heads * c.head_width)
    feed_forward = (n_inward(c) + 1) * d * c.ff_width
    block = attention + feed_forward
    if isinstance(c, EncoderConfig):
        masked_head = d * d + d * c.vocab_size if c.mlm_head else 0
        return c.n_layers * block + masked_head + (d * d if c.pooler else 0) + (2 * d if c.nsp_head else 0)
    if isinstance(c, EncoderDecoderConfig):
        return c.n_layers * (2 * block + attention) + d * c.vocab_size
    return c.n_layers * block + d * c.vocab_size


def n_inward(c: TextConfig) -> int:
    """Matrices of a feed-forward part on the way in: a gated unit has two."""
    return 2 if c.feed_forward == "swiglu" else 1


def n_norms(c: TextConfig) -> int:
    """Norms of a model, each of width D, but for the one in an encoder's head for hidden tokens.

    Pre-norm stacks have one more at their end; post-norm ones do not, but an encoder's has one in front.
    """
    is_pre = c.norm_position == "pre"
    if isinstance(c, EncoderConfig):
        return 2 * c.n_layers + 1
    if isinstance(c, EncoderDecoderConfig):  # one for each attention and feed-forward
        return (2 + 3) * c.n_layers + (2 if is_pre else 0)
    return 2 * c.n_layers + (1 if is_pre else 0)


def _sum(parts: dict[str, int], *, tied_head: int = 0) -> Params:
    """Add the parts up; `tied_head` is what a head multiplies by when it has no weights of its own."""
    parts = {name: count for name, count in parts.items() if count}
    total = sum(parts.values())
    tables = sum(parts.get(name, 0) for name in TABLES)
    heads = parts.get(HEAD, 0) + parts.get(SENTENCE_HEAD, 0)
    matmul = total - tables + tied_head
    return Params(total=total, matmul=matmul, non_embedding=total - tables - heads, parts=parts)


def _tied_head(c: TextConfig) -> int:
    has_one = c.mlm_head if isinstance(c, EncoderConfig) else c.tie_embeddings
    return c.vocab_size * c.d_model if has_one else 0


def _linear(d_in: int, d_out: int, *, bias: bool) -> int:
    return d_in * d_out + (d_out if bias else 0)


def _norm(c: TextConfig) -> int:
    return c.d_model * (2 if c.norm == "layernorm" and c.norm_bias else 1)


def _attention_parts(c: TextConfig) -> dict[str, int]:
    """Of all layers of one stack; grouped-query attention has fewer keys and values than queries."""
    queries, keys = c.n_heads * c.head_width, c.kv_heads * c.head_width
    return {
        "queries, keys, values": c.n_layers * _linear(c.d_model, queries + 2 * keys, bias=c.attention_bias),
        "attention output": c.n_layers * _linear(queries, c.d_model, bias=c.attention_bias),
    }


def _feed_forward(c: TextConfig) -> int:
    """Of all layers of one stack."""
    inward = n_inward(c) * _linear(c.d_model, c.ff_width, bias=c.feed_forward_bias)
    return c.n_layers * (inward + _linear(c.ff_width, c.d_model, bias=c.feed_forward_bias))


def _decoder_parts(c: DecoderConfig) -> dict[str, int]:
    return {
        "token table": c.vocab_size * c.d_model,
        "position table": c.seq_len * c.d_model if c.positions == "learned" else 0,
        **_attention_parts(c),
        "feed-forward": _feed_forward(c),
        "norms": n_norms(c) * _norm(c),
        HEAD: 0 if c.tie_embeddings else c.vocab_size * c.d_model,
    }


def _encoder_parts(c: EncoderConfig) -> dict[str, int]:
    d = c.d_model
    masked_head = _linear(d, d, bias=True) + _norm(c) + c.vocab_size  # it multiplies by the token table
    return {
        "token table": c.vocab_size * d,
        "position table": c.seq_len * d if c.positions == "learned" else 0,
        "segment table": c.n_segments * d,
        **_attention_parts(c),
        "feed-forward": _feed_forward(c),
        "norms": n_norms(c) * _norm(c),
        HEAD: masked_head if c.mlm_head else 0,
        "pooler": _linear(d, d, bias=True) if c.pooler else 0,
        SENTENCE_HEAD: _linear(d, 2, bias=True) if c.nsp_head else 0,
    }


def _encoder_decoder_parts(c: EncoderDecoderConfig) -> dict[str, int]:
    attention, feed_forward = _attention_parts(c), _feed_forward(c)  # alike on both sides, and across
    is_relative = c.positions == "relative"
    return {
        "token table": c.vocab_size * c.d_model,
        "relative position tables": 2 * c.n_position_buckets * c.n_heads if is_relative else 0,
        **{f"encoder: {name}": count for name, count in attention.items()},
        "encoder: feed-forward": feed_forward,
        **{f"decoder: {name}": count for name, count in attention.items()},
        **{f"across: {name}": count for name, count in attention.items()},
        "decoder: feed-forward": feed_forward,
        "norms": n_norms(c) * _norm(c),
        HEAD: 0 if c.tie_embeddings else c.vocab_size * c.d_model,
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
