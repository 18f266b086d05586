"""Parameters of configs, against the `transformers` classes they stand for and against published figures."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from scalelab.core.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig, ModelConfig, VisionConfig
from scalelab.core.errors import ConfigError
from scalelab.core.presets import preset, preset_names
from scalelab.cost import count_params, params
from scalelab.cost.parameters import matrix_weights
from scalelab.models import Decoder

# Written out from the released configuration files, not from our presets: an oracle can disagree.


def _gpt2(n_layer: int, n_embd: int, n_head: int, n_positions: int = 1024) -> nn.Module:
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(
            vocab_size=50257, n_positions=n_positions, n_embd=n_embd, n_layer=n_layer, n_head=n_head
        )
    )


def _llama(layers: int, hidden: int, heads: int, kv: int, ff: int, vocab: int) -> nn.Module:
    return hf.LlamaForCausalLM(
        hf.LlamaConfig(
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=ff,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv,
            tie_word_embeddings=False,
        )
    )


def _neox(layers: int, hidden: int, heads: int, vocab: int = 50304) -> nn.Module:
    return hf.GPTNeoXForCausalLM(
        hf.GPTNeoXConfig(
            vocab_size=vocab,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * hidden,
            tie_word_embeddings=False,
        )
    )


def _smollm3() -> nn.Module:
    return hf.SmolLM3ForCausalLM(
        hf.SmolLM3Config(
            vocab_size=128256,
            hidden_size=2048,
            intermediate_size=11008,
            num_hidden_layers=36,
            num_attention_heads=16,
            num_key_value_heads=4,
            tie_word_embeddings=True,
        )
    )


def _bert(vocab: int, layers: int, hidden: int, heads: int) -> nn.Module:
    return hf.BertModel(
        hf.BertConfig(
            vocab_size=vocab,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * hidden,
            max_position_embeddings=512,
            type_vocab_size=2,
        ),
        add_pooling_layer=True,
    )


def _t5() -> nn.Module:
    return hf.T5ForConditionalGeneration(
        hf.T5Config(
            vocab_size=32128,
            d_model=512,
            d_kv=64,
            d_ff=2048,
            num_layers=6,
            num_decoder_layers=6,
            num_heads=8,
            relative_attention_num_buckets=32,
            feed_forward_proj="relu",
            tie_word_embeddings=True,
        )
    )


def _vit(layers: int, hidden: int, heads: int, patch: int) -> nn.Module:
    return hf.ViTForImageClassification(
        hf.ViTConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * hidden,
            image_size=224,
            patch_size=patch,
            num_channels=3,
            num_labels=1000,
        )
    )


CLASSES: dict[str, Any] = {
    "gpt2": lambda: _gpt2(12, 768, 12),
    "gpt2-medium": lambda: _gpt2(24, 1024, 16),
    "gpt2-large": lambda: _gpt2(36, 1280, 20),
    "gpt2-xl": lambda: _gpt2(48, 1600, 25),
    "gpt3-175b": lambda: _gpt2(96, 12288, 96, 2048),
    "llama-2-7b": lambda: _llama(32, 4096, 32, 32, 11008, 32000),
    "llama-2-13b": lambda: _llama(40, 5120, 40, 40, 13824, 32000),
    "llama-2-70b": lambda: _llama(80, 8192, 64, 8, 28672, 32000),
    "llama-3.1-8b": lambda: _llama(32, 4096, 32, 8, 14336, 128256),
    "llama-3.1-70b": lambda: _llama(80, 8192, 64, 8, 28672, 128256),
    "llama-3.1-405b": lambda: _llama(126, 16384, 128, 8, 53248, 128256),
    "pythia-14m": lambda: _neox(6, 128, 4),
    "pythia-31m": lambda: _neox(6, 256, 8),
    "pythia-70m": lambda: _neox(6, 512, 8),
    "pythia-160m": lambda: _neox(12, 768, 12),
    "pythia-410m": lambda: _neox(24, 1024, 16),
    "pythia-1b": lambda: _neox(16, 2048, 8),
    "pythia-1.4b": lambda: _neox(24, 2048, 16),
    "pythia-2.8b": lambda: _neox(32, 2560, 32),
    "pythia-6.9b": lambda: _neox(32, 4096, 32, 50432),
    "pythia-12b": lambda: _neox(36, 5120, 40, 50688),
    "smollm3-3b": _smollm3,
    "bert-base-uncased": lambda: _bert(30522, 12, 768, 12),
    "bert-base-cased": lambda: _bert(28996, 12, 768, 12),
    "bert-large-uncased": lambda: _bert(30522, 24, 1024, 16),
    "bert-large-cased": lambda: _bert(28996, 24, 1024, 16),
    "t5-small": _t5,
    "vit-b-16": lambda: _vit(12, 768, 12, 16),
    "vit-b-32": lambda: _vit(12, 768, 12, 32),
    "vit-l-16": lambda: _vit(24, 1024, 16, 16),
    "vit-l-32": lambda: _vit(24, 1024, 16, 32),
    "vit-h-14": lambda: _vit(32, 1280, 16, 14),
}

# Exact figures that others have published. Weights' own: `total_parameters` in the index of the safetensors
# files that their owners put on the Hugging Face Hub. (Llama 2's indices for 13B and 70B say 2,560 and 5,120
# more: they still hold 64 rotary frequencies a layer, which are constants.)
PUBLISHED_TOTAL = {
    # EleutherAI's model cards on the Hub, "total params"; Biderman et al. 2023, arXiv:2304.01373, table 1.
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    # Safetensors indices.
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_866_880 - 40 * 64,
    "llama-2-70b": 68_976_653_312 - 80 * 64,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "smollm3-3b": 3_075_098_624,
    # torchvision's documentation, num_params of ViT_B_16_Weights.IMAGENET1K_V1 and its siblings.
    "vit-b-16": 86_567_656,
    "vit-b-32": 88_224_232,
    "vit-l-16": 304_326_632,
    "vit-l-32": 306_535_400,
}
PYTHIA_NON_EMBEDDING = {  # the same model cards, "non-embedding params"
    "pythia-70m": 18_915_328,
    "pythia-160m": 85_056_000,
    "pythia-410m": 302_311_424,
    "pythia-1b": 805_736_448,
    "pythia-1.4b": 1_208_602_624,
    "pythia-2.8b": 2_517_652_480,
    "pythia-6.9b": 6_444_163_072,
    "pythia-12b": 11_327_027_200,
}
# Rounded figures, in millions, with half of the last digit printed as tolerance where the paper counts what
# we count, and more where it says "about".
PUBLISHED_MILLIONS = {
    "gpt2": (124, 0.5),  # README of the release: "124M", ... The paper's own 117M, 345M, 762M are wrong.
    "gpt2-medium": (355, 0.5),
    "gpt2-large": (774, 0.5),
    "gpt2-xl": (1558, 0.5),
    "bert-base-uncased": (110, 0.6),  # Devlin et al. 2018, section 3
    "bert-large-uncased": (340, 5),
    "t5-small": (60, 0.6),  # Raffel et al. 2019, section 3.7: "about 60 million"
    "vit-b-16": (86, 0.6),  # Dosovitskiy et al. 2020, table 1, without the head of 1,000 classes
    "vit-l-16": (307, 3),
    "vit-h-14": (632, 0.5),
    # Brown et al. 2020, appendix D, table D.1: 174,600 M. (Table 2.1 says "175.0B"; its shape gives 174.6.)
    "gpt3-175b": (174_600, 50),
}


def _on_meta(build: Any) -> nn.Module:
    with torch.device("meta"):
        return build()


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())  # a shared parameter is met once


def test_gpt2_has_124_439_808_parameters() -> None:
    assert count_params("gpt2") == 124_439_808


def test_every_preset_has_a_class_to_be_compared_with() -> None:
    assert set(CLASSES) == set(preset_names())


@pytest.mark.parametrize("name", CLASSES)
def test_preset_has_the_parameters_of_its_transformers_class(name: str) -> None:
    assert count_params(name) == _count(_on_meta(CLASSES[name]))


@pytest.mark.parametrize("name", PUBLISHED_TOTAL)
def test_preset_has_the_published_number_of_parameters(name: str) -> None:
    assert count_params(name) == PUBLISHED_TOTAL[name]


@pytest.mark.parametrize("name", PYTHIA_NON_EMBEDDING)
def test_non_embedding_count_is_what_pythia_publishes_under_that_name(name: str) -> None:
    assert params(name).non_embedding == PYTHIA_NON_EMBEDDING[name]


@pytest.mark.parametrize("name", PUBLISHED_MILLIONS)
def test_preset_agrees_with_the_rounded_published_figure(name: str) -> None:
    millions, tolerance = PUBLISHED_MILLIONS[name]
    assert count_params(name) / 1e6 == pytest.approx(millions, abs=tolerance)


def test_gpt3_rebuilt_from_its_table_has_174_604_259_328_parameters() -> None:
    # By hand, V D + T D + L (12 D² + 13 D) + 2 D with V 50,257, T 2,048, L 96, D 12,288.
    d = 12_288
    assert count_params("gpt3-175b") == 50_257 * d + 2_048 * d + 96 * (12 * d * d + 13 * d) + 2 * d


@pytest.mark.parametrize("name", preset_names())
def test_parts_add_up_to_the_total(name: str) -> None:
    found = params(name)
    assert sum(found.parts.values()) == found.total
    assert all(count > 0 for count in found.parts.values())
    assert found.non_embedding < found.total
    assert found.non_embedding <= found.matmul <= found.total


@pytest.mark.parametrize("name", [n for n in CLASSES if isinstance(preset(n), DecoderConfig)])
def test_decoders_three_counts_follow_from_the_class_by_leaving_out_its_tables(name: str) -> None:
    model = _on_meta(CLASSES[name])
    tables = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding))
    head = model.get_output_embeddings().weight
    tied = head is model.get_input_embeddings().weight
    found = params(name)
    assert found.matmul == _count(model) - tables + (head.numel() if tied else 0)
    assert found.non_embedding == found.matmul - head.numel()


def _random_decoder(draw: random.Random) -> DecoderConfig:
    heads = draw.choice([2, 4, 6])
    return DecoderConfig(
        n_layers=draw.randint(1, 3),
        d_model=draw.choice([24, 40, 64]),
        n_heads=heads,
        n_kv_heads=draw.choice([1, 2, heads]),
        d_head=draw.choice([8, 16]),
        d_ff=draw.choice([None, 72, 100]),
        vocab_size=draw.randint(50, 200),
        seq_len=draw.randint(8, 48),
        norm=draw.choice(["layernorm", "rmsnorm"]),
        positions=draw.choice(["learned", "sinusoidal", "rope", "none"]),
        feed_forward=draw.choice(["gelu", "gelu_tanh", "relu", "swiglu"]),
        attention_bias=draw.random() < 0.5,
        feed_forward_bias=draw.random() < 0.5,
        norm_bias=draw.random() < 0.5,
        tie_embeddings=draw.random() < 0.5,
        parallel_residual=draw.random() < 0.5,
    )


@pytest.mark.parametrize("seed", range(30))
def test_any_decoder_has_as_many_parameters_as_counted(seed: int) -> None:
    config = _random_decoder(random.Random(seed))
    model = Decoder(config, device="meta")
    assert count_params(config) == _count(model)
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    if config.tie_embeddings:
        matrices += model.token_embedding.weight.numel()
    assert matrix_weights(config) == matrices


@pytest.mark.parametrize("seed", range(5))
def test_random_shapes_of_other_kinds_have_the_parameters_of_their_classes(seed: int) -> None:
    draw = random.Random(seed)
    layers, heads, width = draw.randint(1, 3), draw.choice([2, 4]), draw.choice([16, 32])
    d_ff, vocab, patch, classes = draw.randint(20, 90), draw.randint(50, 99), draw.choice([4, 8]), 7
    encoder = hf.BertConfig(
        vocab_size=vocab, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=d_ff, max_position_embeddings=40, type_vocab_size=3,
    )  # fmt: skip
    both = hf.T5Config(
        vocab_size=vocab, d_model=width, d_kv=6, d_ff=d_ff, num_layers=layers, num_heads=heads,
        relative_attention_num_buckets=12, tie_word_embeddings=True,
    )  # fmt: skip
    vision = hf.ViTConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=d_ff,
        image_size=32, patch_size=patch, num_channels=1, num_labels=classes,
    )  # fmt: skip
    shape = {"n_layers": layers, "d_model": width, "n_heads": heads, "d_ff": d_ff}
    pairs: list[tuple[ModelConfig, Any]] = [
        (EncoderConfig(**shape, vocab_size=vocab, seq_len=40, n_segments=3), lambda: hf.BertModel(encoder)),
        (
            EncoderConfig(**shape, vocab_size=vocab, seq_len=40, n_segments=3, pooler=False),
            lambda: hf.BertModel(encoder, add_pooling_layer=False),
        ),
        (
            EncoderDecoderConfig(**shape, d_head=6, vocab_size=vocab, n_position_buckets=12),
            lambda: hf.T5ForConditionalGeneration(both),
        ),
        (
            VisionConfig(**shape, patch_size=patch, image_size=32, n_channels=1, n_classes=classes),
            lambda: hf.ViTForImageClassification(vision),
        ),
    ]
    for config, build in pairs:
        assert count_params(config) == _count(_on_meta(build)), config


def test_an_untied_encoder_decoder_has_its_table_once_more() -> None:
    shape = {"n_layers": 2, "d_model": 32, "n_heads": 4, "d_head": 8, "d_ff": 64, "vocab_size": 100}
    tied, untied = EncoderDecoderConfig(**shape), EncoderDecoderConfig(**shape, tie_embeddings=False)
    assert count_params(untied) - count_params(tied) == 100 * 32
    assert params(untied).matmul == params(tied).matmul
    assert params(untied).non_embedding == params(tied).non_embedding


@pytest.mark.parametrize("wrong", [None, 124e6, {"n_layers": 2}, DecoderConfig, ["gpt2"]])
def test_what_is_no_config_is_refused_by_name(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="expected a model config"):
        count_params(wrong)


def test_an_unknown_name_is_refused_with_the_nearest_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean gpt2-xl"):
        count_params("gpt2xl")
