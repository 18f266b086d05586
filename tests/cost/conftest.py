"""Random shapes of each kind of model that reads tokens."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from scalelab.core.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig

TextConfig = DecoderConfig | EncoderConfig | EncoderDecoderConfig
MakeConfig = Callable[[str, random.Random], TextConfig]


@pytest.fixture
def random_config() -> MakeConfig:
    """`random_config(kind, draw)`: a decoder, encoder or encoder-decoder with its parts drawn."""
    return _random_config


def _random_config(kind: str, draw: random.Random) -> TextConfig:
    heads, d_head = draw.choice([2, 4, 6]), draw.choice([4, 8])
    parts: dict[str, Any] = {
        "n_layers": draw.randint(1, 3),
        "n_heads": heads,
        "d_ff": draw.choice([52, 72, 100]),
        "vocab_size": draw.randint(110, 200),
        "norm": draw.choice(["layernorm", "rmsnorm"]),
        "norm_position": draw.choice(["pre", "post"]),
        "feed_forward": draw.choice(["gelu", "gelu_tanh", "relu", "swiglu"]),
        "attention_bias": draw.random() < 0.5,
        "feed_forward_bias": draw.random() < 0.5,
    }
    if kind == "encoder":
        pooler = draw.random() < 0.7
        return EncoderConfig(
            **parts,
            d_model=heads * d_head,
            seq_len=48,
            n_segments=draw.randint(1, 3),
            positions=draw.choice(["learned", "sinusoidal", "rope", "none"]),
            pooler=pooler,
            nsp_head=pooler and draw.random() < 0.6,
            mlm_head=draw.random() < 0.7,
        )
    width = draw.choice([24, 40, 64])
    tied = draw.random() < 0.5
    if kind == "encoder-decoder":
        return EncoderDecoderConfig(
            **parts,
            d_model=width,
            d_head=d_head,
            n_position_buckets=draw.choice([8, 12, 32]),
            positions=draw.choice(["relative", "relative", "sinusoidal", "rope", "none"]),
            scale_head=draw.random() < 0.5,
            scale_scores=draw.random() < 0.5,
            tie_embeddings=tied,
        )
    return DecoderConfig(
        **parts,
        d_model=width,
        d_head=d_head,
        n_kv_heads=draw.choice([1, 2, heads]),
        seq_len=48,
        positions=draw.choice(["learned", "sinusoidal", "rope", "alibi", "alibi", "none"]),
        rope_fraction=draw.choice([0.5, 1.0]),
        rope_skip_every=draw.choice([None, 2, 3]),
        norm_bias=draw.random() < 0.5,
        tie_embeddings=tied,
        parallel_residual=parts["norm_position"] == "pre" and draw.random() < 0.5,
    )
