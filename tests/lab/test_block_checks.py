"""Checks of the block lab: right passes, usual mistakes are named, references equal others' code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scalelab.core.config import DecoderConfig
from scalelab.core.presets import preset
from scalelab.cost import params
from scalelab.lab.checks import Exercise, exercises, judge
from scalelab.models import Decoder

EXERCISES = exercises("transformers/block")
SEEDS = (0, 1, 12345)


@pytest.fixture(params=list(EXERCISES))
def exercise(request: pytest.FixtureRequest) -> Exercise:
    return EXERCISES[request.param]


def test_there_are_five_exercises() -> None:
    assert list(EXERCISES) == ["layer_norm", "rms_norm", "swiglu", "block", "count_parameters"]


@pytest.mark.parametrize("answer", [None, 3, lambda: 1, lambda *a, **k: None, lambda *a, **k: "text"])
def test_answers_of_the_wrong_kind_get_a_precise_account(exercise: Exercise, answer: Any) -> None:
    verdict = judge(exercise, answer, exercise.cases(0))
    assert verdict.outcome == "broken"
    assert exercise.name in verdict.message


UNLISTED: dict[str, list[Any]] = {
    "layer_norm": [
        lambda x, gain, bias, eps: x * gain + bias,
        lambda x, gain, bias, eps: x - x.mean(-1, True),
    ],
    "rms_norm": [lambda x, gain, eps: x / x.abs().amax(-1, keepdim=True) * gain],
    "swiglu": [lambda x, g, u, d: torch.tanh(x @ g.T) @ d.T],
    "block": [lambda x, n1, a, n2, f: x + a(n1(f(n2(x)))), lambda x, n1, a, n2, f: x],
    "count_parameters": [lambda **k: 12 * k["n_layers"] * k["d_model"] ** 2, lambda **k: 0],
}


@pytest.mark.parametrize(("name", "number"), [(n, i) for n, a in UNLISTED.items() for i in range(len(a))])
def test_unlisted_mistakes_get_a_neutral_account(name: str, number: int) -> None:
    for seed in SEEDS:
        verdict = judge(EXERCISES[name], UNLISTED[name][number], EXERCISES[name].cases(seed))
        assert verdict.outcome == "unknown mistake"
        assert "should be" in verdict.message


def test_layer_norm_and_rms_norm_equal_torchs() -> None:
    torch.manual_seed(0)
    x, gain, bias = torch.randn(2, 5, 8), torch.rand(8), torch.randn(8)
    ours = EXERCISES["layer_norm"].reference(x, gain, bias, 1e-5)
    assert torch.allclose(ours, F.layer_norm(x, (8,), gain, bias, 1e-5), atol=1e-6)
    ours = EXERCISES["rms_norm"].reference(x, gain, 1e-6)
    assert torch.allclose(ours, F.rms_norm(x, (8,), gain, 1e-6), atol=1e-6)


def test_swiglu_equals_the_feed_forward_part_of_llama_in_transformers() -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    from transformers import LlamaConfig

    torch.manual_seed(0)
    theirs = llama.LlamaMLP(LlamaConfig(hidden_size=8, intermediate_size=20, num_attention_heads=2))
    x = torch.randn(2, 3, 8)
    weights = [layer.weight for layer in (theirs.gate_proj, theirs.up_proj, theirs.down_proj)]
    assert torch.allclose(EXERCISES["swiglu"].reference(x, *weights), theirs(x), atol=1e-6)


def test_block_equals_torchs_pre_norm_layer() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
    x = torch.randn(2, 5, 8)

    def attention(y: torch.Tensor) -> torch.Tensor:
        return layer.self_attn(y, y, y, need_weights=False)[0]  # type: ignore[no-any-return]

    def feed_forward(y: torch.Tensor) -> torch.Tensor:
        return layer.linear2(layer.linear1(y).relu())  # type: ignore[no-any-return]

    ours = EXERCISES["block"].reference(x, layer.norm1, attention, layer.norm2, feed_forward)
    assert torch.allclose(ours, layer(x), atol=1e-5)


def sizes_of(config: DecoderConfig) -> dict[str, Any]:
    """What the exercise's function is told of a config."""
    return {
        "n_layers": config.n_layers,
        "d_model": config.d_model,
        "n_heads": config.n_heads,
        "n_kv_heads": config.kv_heads,
        "d_ff": config.ff_width,
        "vocab_size": config.vocab_size,
        "n_positions": config.seq_len if config.positions == "learned" else 0,
        "is_gated": config.feed_forward == "swiglu",
        "has_biases": config.attention_bias,
        "is_tied": config.tie_embeddings,
    }


@pytest.mark.parametrize("name", ["gpt2", "gpt2-xl", "llama-3.1-8b"])
def test_the_count_by_hand_equals_the_packages_and_the_models_own(name: str) -> None:
    config = preset(name)
    assert isinstance(config, DecoderConfig)
    by_hand = EXERCISES["count_parameters"].reference(**sizes_of(config))
    assert by_hand == params(config).total
    assert by_hand == sum(p.numel() for _, p in Decoder(config, device="meta").named_parameters())


def test_the_count_by_hand_is_what_the_published_models_have() -> None:
    count = EXERCISES["count_parameters"].reference
    gpt2, llama = preset("gpt2"), preset("llama-3.1-8b")
    assert isinstance(gpt2, DecoderConfig)
    assert isinstance(llama, DecoderConfig)
    assert count(**sizes_of(gpt2)) == 124_439_808  # of the released weights, as `transformers` counts them
    assert count(**sizes_of(llama)) == 8_030_261_248
