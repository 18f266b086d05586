"""Shapes of models: what they fill in, refuse, and give back; against `transformers`' own configs."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from typing import Any

import pytest
import torch
import transformers as hf

from scalelab.core.checks import check_count, check_fraction, check_positive, check_seed, is_number
from scalelab.core.config import (
    KINDS,
    DecoderConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    ModelConfig,
    RopeScaling,
    VisionConfig,
    build,
    config_from_dict,
    config_to_dict,
)
from scalelab.core.errors import ConfigError
from scalelab.core.presets import preset, preset_names

SHAPE: dict[str, Any] = {"n_layers": 2, "d_model": 48, "n_heads": 4, "vocab_size": 100, "seq_len": 32}


def test_sizes_left_out_are_filled_in() -> None:
    config = DecoderConfig(**SHAPE)
    assert (config.n_kv_heads, config.d_head, config.d_ff) == (4, 12, 192)
    assert (config.kv_heads, config.head_width, config.ff_width) == (4, 12, 192)


def test_swiglu_left_to_itself_has_about_the_parameters_of_the_plain_feed_forward() -> None:
    # Shazeer 2020, arXiv:2002.05202, section 3: three matrices of 2/3 the width instead of two.
    for d_model in (48, 256, 4096):
        gated = DecoderConfig(**{**SHAPE, "d_model": d_model}, feed_forward="swiglu")
        assert gated.ff_width % 8 == 0
        assert 0 <= 3 * gated.ff_width - 8 * d_model < 3 * 8


def test_defaults_are_gpt2s() -> None:
    config, theirs = DecoderConfig(**SHAPE), hf.GPT2Config()
    assert config.norm == "layernorm"
    assert config.norm_eps == theirs.layer_norm_epsilon
    assert theirs.activation_function == "gelu_new"  # the tanh form
    assert config.feed_forward == "gelu_tanh"
    assert config.tie_embeddings == theirs.tie_word_embeddings


def test_layers_without_positions_are_smollm3s() -> None:
    theirs = hf.SmolLM3Config()
    config = preset("smollm3-3b")
    assert isinstance(config, DecoderConfig)
    assert [int(config.uses_rope(layer)) for layer in range(config.n_layers)] == theirs.no_rope_layers


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "none"])
def test_no_layer_turns_anything_under_other_positions(positions: Any) -> None:
    config = DecoderConfig(**SHAPE, positions=positions)
    assert not any(config.uses_rope(layer) for layer in range(config.n_layers))


def test_the_part_of_a_head_that_turns_is_gpt_neox_s() -> None:
    for name in ("pythia-70m", "pythia-1b", "pythia-2.8b"):
        config = preset(name)
        assert isinstance(config, DecoderConfig)
        theirs = hf.GPTNeoXConfig(
            hidden_size=config.d_model, num_attention_heads=config.n_heads, num_hidden_layers=1,
            intermediate_size=8, vocab_size=16,
        )  # fmt: skip
        with torch.device("meta"):
            rotary = hf.GPTNeoXModel(theirs).rotary_emb
        assert config.rotary_width == 2 * rotary.inv_freq.numel()


@pytest.mark.parametrize("name", ["vit-b-16", "vit-b-32", "vit-h-14"])
def test_patches_are_vits(name: str) -> None:
    config = preset(name)
    assert isinstance(config, VisionConfig)
    theirs = hf.ViTConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8,
                          image_size=config.image_size, patch_size=config.patch_size)  # fmt: skip
    with torch.device("meta"):
        assert config.n_patches == hf.ViTModel(theirs).embeddings.patch_embeddings.num_patches


@pytest.mark.parametrize("name", preset_names())
def test_a_config_comes_back_equal_through_json(name: str) -> None:
    config = preset(name)
    values = json.loads(json.dumps(config_to_dict(config)))
    assert next(iter(values)) == "kind"
    assert config_from_dict(values) == config


def test_a_mapping_without_kind_is_a_decoder() -> None:
    assert config_from_dict(SHAPE) == DecoderConfig(**SHAPE)


def _one_of_each() -> list[ModelConfig]:
    shape = {"n_layers": 2, "d_model": 48, "n_heads": 4, "d_ff": 60}
    return [
        DecoderConfig(**SHAPE),
        EncoderConfig(**shape, vocab_size=99),
        EncoderDecoderConfig(**shape, d_head=12, vocab_size=99),
        VisionConfig(**shape, patch_size=16),
    ]


def test_every_kind_has_a_name_and_any_change_changes_the_stored_form() -> None:
    configs = _one_of_each()
    assert {type(config) for config in configs} == set(KINDS.values())
    changed = [dataclasses.replace(config, n_layers=3) for config in configs]
    stored = {json.dumps(config_to_dict(config), sort_keys=True) for config in [*configs, *changed]}
    assert len(stored) == 2 * len(configs)


def test_a_shape_cannot_be_changed_in_place() -> None:
    for config in _one_of_each():
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.n_layers = 3  # type: ignore[misc]


def test_replacing_a_size_keeps_those_that_were_filled_in() -> None:
    # A head's width was fixed when the config was made; to widen it too is the caller's choice.
    wider = dataclasses.replace(DecoderConfig(**SHAPE), d_model=96)
    assert wider.head_width == 12


@pytest.mark.parametrize("value", [True, False, math.nan, math.inf, -math.inf, "1", None, [1], 1j, 10**400])
def test_what_is_no_finite_number_is_none(value: object) -> None:
    assert not is_number(value)
    with pytest.raises(ConfigError):
        check_positive("x", value)
    with pytest.raises(ConfigError):
        check_fraction("x", value)


@pytest.mark.parametrize("value", [-1, 1.0, True, "3", None])
def test_what_is_no_count_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="x must be a whole number of at least 0"):
        check_count("x", value)
    check_count("x", 0)


@pytest.mark.parametrize("kind", ["mamba", 3, None, [], {}, ["decoder"]])
def test_an_unknown_kind_is_refused_whatever_its_type(kind: object) -> None:
    with pytest.raises(ConfigError, match="unknown kind of model"):
        config_from_dict({**SHAPE, "kind": kind})


def test_unknown_and_missing_settings_are_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'n_layer'; known: n_layers"):
        build(DecoderConfig, {**SHAPE, "n_layer": 2})
    without = {name: value for name, value in SHAPE.items() if name != "d_model"}
    with pytest.raises(ConfigError, match="missing setting 'd_model'"):
        build(DecoderConfig, without)


@pytest.mark.parametrize("wrong", ["4", None, 0.5, -1, math.nan, True])
def test_a_band_of_rotary_scaling_that_cannot_be_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="high_freq_factor"):
        RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=wrong, original_seq_len=64)


NONSENSE = [0, -1, 1.5, True, "8", None, math.nan, math.inf, [], {}, 10**400, b"x", object(), {"a": 1}]


@pytest.mark.parametrize("seed", range(300))
def test_a_config_with_nonsense_in_it_is_refused_by_our_error_or_is_a_config(seed: int) -> None:
    draw = random.Random(seed)
    config = draw.choice(_one_of_each())
    values = config_to_dict(config)
    for name in draw.sample(sorted(values), draw.randint(1, 3)):
        values[name] = draw.choice(NONSENSE)
    try:
        made = config_from_dict(values)
    except ConfigError:
        return
    assert config_from_dict(config_to_dict(made)) == made


def test_a_share_that_rounding_leaves_just_below_a_whole_number_turns_that_number() -> None:
    # 100 · 0.58 is 57.99… in floating point; 64 · 0.29 is truly 18.56, and cut off as GPT-NeoX cuts it off.
    for width, share, turned in ((100, 0.58, 58), (64, 0.29, 18), (80, 0.25, 20)):
        config = DecoderConfig(**{**SHAPE, "d_head": width}, positions="rope", rope_fraction=share)
        assert config.rotary_width == turned


@pytest.mark.parametrize("wrong", [{"rope_scaling": "x"}, {"rope_fraction": 0}, {"rope_theta": "10k"}])
def test_rotary_settings_are_checked_whatever_the_positions(wrong: dict[str, Any]) -> None:
    for positions in ("rope", "learned"):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            config_from_dict({**SHAPE, "positions": positions, **wrong})


@pytest.mark.parametrize("thing", ["gpt2", None, SHAPE])
def test_what_is_no_config_is_not_stored_as_one(thing: Any) -> None:
    with pytest.raises(ConfigError, match=r"one of DecoderConfig.*preset"):
        config_to_dict(thing)


def test_heads_that_do_not_divide_are_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match="n_heads=5: choose another n_heads"):
        EncoderConfig(n_layers=1, d_model=16, n_heads=5, d_ff=8, vocab_size=9)


@pytest.mark.parametrize("value", [-1, 2**64, 1.0, True, "3", None])
def test_a_seed_is_what_generators_take(value: Any) -> None:
    with pytest.raises(ConfigError, match="seed must be a whole number of at least 0 and below 2"):
        check_seed(value)
    for fine in (0, 2**64 - 1):
        check_seed(fine)
        torch.Generator().manual_seed(fine)
