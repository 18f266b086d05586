"""Norms, positions and feed-forwards against torch, transformers, and the papers' formulas."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from scalelab.core.config import DecoderConfig, RopeScaling
from scalelab.models.feed_forward import make_feed_forward
from scalelab.models.norms import RMSNorm, make_norm
from scalelab.models.positions import rope_frequencies, rope_tables, rotate, sinusoidal_positions

ROPE = DecoderConfig(n_layers=1, d_model=64, n_heads=4, vocab_size=8, seq_len=64, positions="rope")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.empty(shape).normal_(generator=torch.Generator().manual_seed(seed))


def test_rmsnorm_equals_torchs() -> None:
    x, norm = normal(3, 5, 16), RMSNorm(16, 1e-5)
    norm.weight.data = normal(16, seed=1)
    torch.testing.assert_close(norm(x), F.rms_norm(x, (16,), norm.weight, 1e-5))


def test_rmsnorm_takes_its_mean_in_fp32_even_of_bf16_numbers() -> None:
    x = (normal(4, 512) * 30).bfloat16()
    norm = RMSNorm(512, 1e-5).bfloat16()
    exact = F.rms_norm(x.double(), (512,), None, 1e-5)
    error = ((norm(x).double() - exact).abs() / exact.abs().clamp_min(1e-3)).max()
    assert error < 1.1 * 2**-8  # bf16's rounding of the result, and no other


def test_layernorm_has_a_bias_exactly_when_asked() -> None:
    for has_bias in (True, False):
        norm = make_norm(dataclasses.replace(ROPE, norm_bias=has_bias))
        assert ("bias" in dict(norm.named_parameters())) is has_bias
        x = normal(2, 64) * 3 + 1
        torch.testing.assert_close(norm(x), F.layer_norm(x, (64,)))


@pytest.mark.parametrize("width", [6, 7])
def test_sinusoidal_positions_follow_the_papers_formula(width: int) -> None:
    table = sinusoidal_positions(9, width)
    for t in range(9):
        for column in range(width):
            angle = t / 10_000 ** (2 * (column // 2) / width)
            want = math.sin(angle) if column % 2 == 0 else math.cos(angle)
            assert table[t, column].item() == pytest.approx(want, abs=1e-6)


def test_rope_turns_pairs_as_complex_numbers_turn() -> None:
    """Su et al., eq. 12: the pair as a complex number, times exp(i t theta_j)."""
    x = normal(2, 9, 3, 16)
    cos, sin = rope_tables(ROPE, torch.arange(9))
    theta = 10_000.0 ** (-torch.arange(0, 16, 2).double() / 16)
    turn = torch.polar(torch.ones(9, 8).double(), torch.outer(torch.arange(9).double(), theta))
    turned = torch.complex(x[..., :8].double(), x[..., 8:].double()) * turn[:, None]
    want = torch.cat((turned.real, turned.imag), dim=-1).float()
    torch.testing.assert_close(rotate(x, cos, sin), want, rtol=0, atol=1e-5)


def test_rotated_products_depend_on_distance_alone() -> None:
    q, k = normal(16), normal(16, seed=1)
    cos, sin = rope_tables(ROPE, torch.arange(40))
    turned_q = rotate(q.expand(1, 40, 1, 16), cos, sin)[0, :, 0]
    turned_k = rotate(k.expand(1, 40, 1, 16), cos, sin)[0, :, 0]
    products = turned_q @ turned_k.T  # [T, T]
    for distance in (-7, 0, 3, 20):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=0, atol=1e-4)
    assert products[0].std() > 0.1


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.25])
def test_rope_equals_transformers_with_a_part_of_each_head(fraction: float) -> None:
    neox = pytest.importorskip("transformers.models.gpt_neox.modeling_gpt_neox")
    config = dataclasses.replace(ROPE, rope_fraction=fraction, rope_theta=500.0)
    cos, sin = rope_tables(config, torch.arange(9))
    q, k = normal(2, 9, 4, 16), normal(2, 9, 4, 16, seed=1)
    both = [torch.cat((table, table), dim=-1)[None] for table in (cos, sin)]
    want_q, want_k = neox.apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), *both)
    torch.testing.assert_close(rotate(q, cos, sin), want_q.transpose(1, 2))
    torch.testing.assert_close(rotate(k, cos, sin), want_k.transpose(1, 2))
    assert torch.equal(rotate(q, cos, sin)[..., config.rotary_width :], q[..., config.rotary_width :])


@pytest.mark.parametrize(
    ("factor", "low", "high", "original"), [(8, 1, 4, 8192), (32, 1, 4, 8192), (2, 2, 3, 16)]
)
def test_llama3_stretching_equals_transformers(factor: float, low: float, high: float, original: int) -> None:
    transformers = pytest.importorskip("transformers")
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    scaling = RopeScaling(
        factor=factor, low_freq_factor=low, high_freq_factor=high, original_seq_len=original
    )
    config = dataclasses.replace(ROPE, d_head=128, rope_theta=500_000.0, rope_scaling=scaling)
    theirs = transformers.LlamaConfig(
        head_dim=128,
        rope_theta=500_000.0,
        rope_scaling={
            "rope_type": "llama3",
            "factor": float(factor),
            "low_freq_factor": float(low),
            "high_freq_factor": float(high),
            "original_max_position_embeddings": original,
        },
    )
    want, attention_factor = rope_utils.ROPE_INIT_FUNCTIONS["llama3"](theirs, torch.device("cpu"))
    assert attention_factor == 1.0
    torch.testing.assert_close(rope_frequencies(config), want)
    plain = rope_frequencies(dataclasses.replace(config, rope_scaling=None))
    assert not torch.allclose(rope_frequencies(config), plain)


@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "relu"])
def test_feed_forwards_bend_by_their_formula(kind: str) -> None:
    part = make_feed_forward(dataclasses.replace(ROPE, feed_forward=kind))
    x = normal(2, 3, 64)
    wide = part.up(x).double()
    bent = {
        "relu": wide.clamp_min(0),
        "gelu": wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2))),
        "gelu_tanh": 0.5 * wide * (1 + torch.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3))),
    }[kind]
    torch.testing.assert_close(part(x), part.down(bent.float()))


def test_swiglu_gates_by_its_formula() -> None:
    part = make_feed_forward(dataclasses.replace(ROPE, feed_forward="swiglu", feed_forward_bias=False))
    x = normal(2, 3, 64)
    gate, up = x @ part.gate.weight.T, x @ part.up.weight.T
    torch.testing.assert_close(part(x), (gate / (1 + torch.exp(-gate)) * up) @ part.down.weight.T)
