"""Published models by name: found as people type them, and of the published shape."""

from __future__ import annotations

from typing import Any

import pytest

from scalelab.core.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig, VisionConfig
from scalelab.core.errors import ConfigError
from scalelab.core.presets import preset, preset_names

# What the released configuration files say beyond what the number of parameters already settles.
DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_heads": 12, "seq_len": 1024, "positions": "learned", "feed_forward": "gelu_tanh"},
    "gpt2-xl": {"n_heads": 25, "d_head": 64, "norm_eps": 1e-5, "tie_embeddings": True},
    "gpt3-175b": {"n_heads": 96, "d_head": 128, "seq_len": 2048, "d_ff": 4 * 12288},
    "llama-2-7b": {"n_heads": 32, "n_kv_heads": 32, "rope_theta": 10_000.0, "seq_len": 4096},
    "llama-2-70b": {"n_heads": 64, "n_kv_heads": 8, "norm_eps": 1e-5, "norm": "rmsnorm"},
    "llama-3.1-8b": {"n_heads": 32, "n_kv_heads": 8, "rope_theta": 500_000.0, "seq_len": 131_072},
    "llama-3.1-405b": {"n_layers": 126, "n_heads": 128, "d_head": 128, "tie_embeddings": False},
    "pythia-1b": {"n_heads": 8, "d_head": 256, "rope_fraction": 0.25, "parallel_residual": True},
    "pythia-12b": {"n_heads": 40, "d_head": 128, "feed_forward": "gelu", "seq_len": 2048},
    "smollm3-3b": {"n_heads": 16, "n_kv_heads": 4, "rope_skip_every": 4, "norm_eps": 1e-6},
}


@pytest.mark.parametrize("name", DECODERS)
def test_a_preset_has_its_published_shape(name: str) -> None:
    config = preset(name)
    assert isinstance(config, DecoderConfig)
    assert {field: getattr(config, field) for field in DECODERS[name]} == DECODERS[name]


def test_llama_3_1_stretches_its_rotation_as_released() -> None:
    config = preset("llama-3.1-8b")
    assert isinstance(config, DecoderConfig)
    scaling = config.rope_scaling
    assert scaling is not None
    found = (scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_seq_len)
    assert found == (8.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        ("gpt", DecoderConfig), ("llama", DecoderConfig), ("pythia", DecoderConfig),
        ("smollm", DecoderConfig), ("bert", EncoderConfig), ("t5", EncoderDecoderConfig),
        ("vit", VisionConfig),
    ],
)  # fmt: skip
def test_each_family_is_of_its_kind(start: str, kind: type) -> None:
    family = [name for name in preset_names() if name.startswith(start)]
    assert family
    assert all(type(preset(name)) is kind for name in family)


@pytest.mark.parametrize("typed", ["GPT2", " gpt2 ", "Llama-3.1-8B", "BERT-base-uncased"])
def test_a_name_is_found_however_its_letters_are_cased(typed: str) -> None:
    assert preset(typed) == preset(typed.strip().lower())


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("gpt-2", "gpt2"),
        ("gtp2", "gpt2"),
        ("llama2-7b", "llama-2-7b"),
        ("llama-3-8b", "llama-3.1-8b"),
        ("pythia-1.0b", "pythia-1b"),
        ("bert-base", "bert-base-cased"),
        ("vit_b_16", "vit-b-16"),
    ],
)
def test_a_misspelt_name_brings_the_one_that_was_meant(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        preset(typed)
    assert repr(typed) in str(caught.value)
    assert meant in str(caught.value).replace("?", " ").split()


def test_a_name_like_no_other_brings_the_whole_list() -> None:
    with pytest.raises(ConfigError) as caught:
        preset("zzzzzz")
    assert all(name in str(caught.value) for name in preset_names())


@pytest.mark.parametrize("wrong", [None, 2, ["gpt2"], b"gpt2"])
def test_what_is_no_text_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="must be a text such as 'gpt2'"):
        preset(wrong)
