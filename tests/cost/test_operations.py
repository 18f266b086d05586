"""FLOPs of decoders, against torch's FlopCounterMode on the meta device and published figures."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from scalelab.core.config import DecoderConfig
from scalelab.core.errors import ConfigError
from scalelab.core.presets import preset
from scalelab.cost import count_params, flops, flops_6nd, mfu, params
from scalelab.cost.parameters import matrix_weights
from scalelab.models import Decoder

IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def _counted(model: nn.Module, batch_size: int, seq_len: int, **inputs: Any) -> tuple[int, int]:
    """FLOPs that torch counts: forward, and forward with backward.

    On the meta device attention runs as plain matrix products, whose backward pass is twice their forward.
    """
    tokens = torch.zeros(batch_size, seq_len, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        out = model(tokens, **inputs)
        forward = counter.get_total_flops()
        logits = out.logits if hasattr(out, "logits") else out
        logits.sum().backward()
    return forward, counter.get_total_flops()


def _ours(config: DecoderConfig | str, batch_size: int, seq_len: int) -> tuple[int, int]:
    shape = {"batch_size": batch_size, "seq_len": seq_len}
    return flops(config, **shape, training=False).total, flops(config, **shape, training=True).total


def _counted_by_transformers(
    model_class: Any, model_config: Any, batch_size: int, seq_len: int
) -> tuple[int, int]:
    with torch.device("meta"):
        model = model_class(model_config).eval()
        # Given a mask, the model need not look into the tokens, which on the meta device have no values.
        mask = torch.zeros(batch_size, 1, seq_len, seq_len)
    return _counted(model, batch_size, seq_len, attention_mask=mask, use_cache=False)


@pytest.mark.parametrize("seed", range(4))
def test_flops_agree_with_torch_on_random_gpt2_models(seed: int) -> None:
    draw = random.Random(seed)
    layers, heads, vocab = draw.randint(1, 3), draw.choice([2, 4]), draw.randint(50, 150)
    width, d_ff, batch, time = heads * draw.choice([8, 12]), draw.randint(30, 90), draw.randint(1, 4), 24
    model = hf.GPT2Config(
        n_layer=layers, n_embd=width, n_head=heads, n_inner=d_ff, vocab_size=vocab, n_positions=32, **IDS
    )
    config = DecoderConfig(
        n_layers=layers, d_model=width, n_heads=heads, d_ff=d_ff, vocab_size=vocab, seq_len=32
    )
    assert _ours(config, batch, time) == _counted_by_transformers(hf.GPT2LMHeadModel, model, batch, time)


@pytest.mark.parametrize("seed", range(4))
def test_flops_agree_with_torch_on_random_llama_models_with_grouped_queries(seed: int) -> None:
    draw = random.Random(seed)
    layers, heads, vocab = draw.randint(1, 3), draw.choice([4, 8]), draw.randint(50, 150)
    groups, d_head, width = draw.choice([1, 2, 4]), draw.choice([8, 16]), draw.choice([32, 48])
    d_ff, batch, time = draw.randint(30, 90), draw.randint(1, 4), draw.randint(3, 40)
    model = hf.LlamaConfig(
        num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, num_key_value_heads=groups,
        head_dim=d_head, intermediate_size=d_ff, vocab_size=vocab, max_position_embeddings=64, **IDS,
    )  # fmt: skip
    config = DecoderConfig(
        n_layers=layers, d_model=width, n_heads=heads, n_kv_heads=groups, d_head=d_head, d_ff=d_ff,
        vocab_size=vocab, seq_len=64, norm="rmsnorm", positions="rope", feed_forward="swiglu",
        attention_bias=False, feed_forward_bias=False, tie_embeddings=False,
    )  # fmt: skip
    assert _ours(config, batch, time) == _counted_by_transformers(hf.LlamaForCausalLM, model, batch, time)


@pytest.mark.parametrize(
    ("name", "model_class", "model_config"),
    [
        ("gpt2", hf.GPT2LMHeadModel, hf.GPT2Config()),
        (
            "pythia-70m",
            hf.GPTNeoXForCausalLM,
            hf.GPTNeoXConfig(
                vocab_size=50304, hidden_size=512, num_hidden_layers=6, num_attention_heads=8,
                intermediate_size=2048, **IDS,
            ),
        ),
        (
            "llama-3.1-8b",
            hf.LlamaForCausalLM,
            hf.LlamaConfig(
                vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=131072, **IDS,
            ),
        ),
    ],
)  # fmt: skip
def test_flops_of_a_preset_agree_with_torch_at_full_size(
    name: str, model_class: Any, model_config: Any
) -> None:
    time = 1024
    assert _ours(name, 2, time) == _counted_by_transformers(model_class, model_config, 2, time)


@pytest.mark.parametrize("seed", range(20))
def test_flops_agree_with_torch_on_our_own_decoder_whatever_its_parts(seed: int) -> None:
    draw = random.Random(seed)
    heads = draw.choice([2, 4, 6])
    config = DecoderConfig(
        n_layers=draw.randint(1, 3),
        d_model=draw.choice([24, 40, 64]),
        n_heads=heads,
        n_kv_heads=draw.choice([1, 2, heads]),
        d_head=draw.choice([8, 16]),
        vocab_size=draw.randint(50, 200),
        seq_len=48,
        norm=draw.choice(["layernorm", "rmsnorm"]),
        positions=draw.choice(["learned", "sinusoidal", "rope", "none"]),
        rope_fraction=draw.choice([0.25, 1.0]),
        feed_forward=draw.choice(["gelu", "gelu_tanh", "relu", "swiglu"]),
        attention_bias=draw.random() < 0.5,
        tie_embeddings=draw.random() < 0.5,
        parallel_residual=draw.random() < 0.5,
    )
    batch, time = draw.randint(1, 4), draw.randint(2, 48)
    assert _ours(config, batch, time) == _counted(Decoder(config, device="meta"), batch, time)


@pytest.mark.parametrize("name", ["gpt2", "llama-3.1-405b", "pythia-1.4b", "smollm3-3b"])
def test_exact_flops_are_six_a_weight_and_token_plus_attentions_own(name: str) -> None:
    config, batch, time = preset(name), 3, 512
    assert isinstance(config, DecoderConfig)
    # Scores and weighted values, two FLOPs each, forward and twice that backward: 12 L H K T a token.
    attention = 12 * config.n_layers * config.n_heads * config.head_width * time
    found = flops(config, batch_size=batch, seq_len=time, training=True)
    assert found.total == batch * time * (6 * matrix_weights(config) + attention)
    assert sum(found.parts.values()) == found.total


@pytest.mark.parametrize("name", ["gpt2", "llama-2-7b", "llama-3.1-405b"])
def test_6nd_is_the_exact_count_without_attentions_products_to_a_tenth_of_a_per_cent(name: str) -> None:
    found = flops(name, batch_size=1, seq_len=1024, training=True)
    products = found.parts["attention scores"] + found.parts["attention-weighted values"]
    rule = flops_6nd(params(name).matmul, 1024)
    assert rule == pytest.approx(found.total - products, rel=1e-3)
    assert rule < found.total


def test_6nd_is_the_published_training_compute_of_gpt3() -> None:
    # Brown et al. 2020, arXiv:2005.14165, appendix D: 174,600 M parameters, 300 B tokens, 3.14E+23 FLOPs.
    assert flops_6nd(count_params("gpt3-175b"), 300e9) == pytest.approx(3.14e23, abs=0.005e23)


PALM_540B = DecoderConfig(  # Chowdhery et al. 2022, arXiv:2204.02311, section 2 and table 1
    n_layers=118, d_model=18_432, n_heads=48, n_kv_heads=1, d_head=256, d_ff=4 * 18_432, vocab_size=256_000,
    seq_len=2_048, positions="rope", feed_forward="swiglu", attention_bias=False, feed_forward_bias=False,
    norm_bias=False, parallel_residual=True,
)  # fmt: skip


def test_palm_rebuilt_from_its_paper_has_540_35_billion_parameters() -> None:
    assert count_params(PALM_540B) / 1e9 == pytest.approx(540.35, abs=0.01)


def test_mfu_of_palm_is_the_46_2_per_cent_that_its_paper_reports() -> None:
    # Appendix B: 238.3 thousand tokens per second on 6,144 TPU v4 chips of 275 TFLOP/s.
    assert mfu(238.3e3, PALM_540B, 2_048, 6_144 * 275e12) == pytest.approx(0.462, abs=0.0005)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"batch_size": 2.0}, "batch_size must be a whole number"),
        ({"seq_len": -1}, "seq_len must be a whole number"),
        ({"seq_len": True}, "seq_len must be a whole number"),
        ({"seq_len": 1025}, "seq_len=1025 exceeds the model's context of 1024"),
        ({"training": 1}, "training must be true or false"),
    ],
)
def test_impossible_batches_are_refused_by_name(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        flops("gpt2", **{"batch_size": 1, "seq_len": 16, "training": True, **change})


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), "many", None])
def test_impossible_rates_and_budgets_are_refused(bad: Any) -> None:
    with pytest.raises(ConfigError):
        mfu(bad, "gpt2", 16, 1e12)
    with pytest.raises(ConfigError):
        mfu(1e3, "gpt2", 16, bad)
    with pytest.raises(ConfigError):
        flops_6nd(bad, 1e9)
    with pytest.raises(ConfigError):
        flops_6nd(1e9, bad)
