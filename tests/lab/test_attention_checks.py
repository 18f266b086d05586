"""Checks of the attention lab: right passes, usual mistakes are named, references equal others' code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scalelab.lab.checks import Exercise, exercises, judge

EXERCISES = exercises("transformers/attention")
SEEDS = (0, 1, 12345)


@pytest.fixture(params=list(EXERCISES))
def exercise(request: pytest.FixtureRequest) -> Exercise:
    return EXERCISES[request.param]


def test_there_are_five_exercises() -> None:
    assert list(EXERCISES) == ["attention", "multi_head", "rotate", "alibi_bias", "tiled_attention"]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.37])
def test_numbers_that_are_nan_infinite_or_off_by_a_factor_are_unknown_mistakes(
    exercise: Exercise, value: float
) -> None:
    verdict = judge(exercise, lambda *args: exercise.reference(*args) * value, exercise.cases(0))
    assert verdict.outcome == "unknown mistake"
    assert "On " in verdict.message


UNLISTED: dict[str, list[Any]] = {
    "attention": [
        lambda q, k, v, c: v.mean(-2, keepdim=True).expand(*q.shape[:-1], v.shape[-1]),
        lambda q, k, v, c: F.scaled_dot_product_attention(k[..., : q.shape[-2], :], k, v, is_causal=c),
    ],
    "multi_head": [lambda x, *rest: x, lambda x, wq, wk, wv, wo, h, kv: x @ wq @ wo],
    "rotate": [lambda x, p: x, lambda x, p: x * p[:, None].cos()],
    "alibi_bias": [lambda h, t: torch.zeros(h, t, t), lambda h, t: torch.zeros(h, t, t).triu(1) * -9.0],
    "tiled_attention": [
        lambda q, k, v, tile, c: v,
        lambda q, k, v, tile, c: F.softmax(q @ k[:tile].T / 2, -1) @ v[:tile],
    ],
}


@pytest.mark.parametrize(("name", "number"), [(n, i) for n, a in UNLISTED.items() for i in range(len(a))])
def test_unlisted_mistakes_get_a_neutral_account(name: str, number: int) -> None:
    for seed in SEEDS:
        verdict = judge(EXERCISES[name], UNLISTED[name][number], EXERCISES[name].cases(seed))
        assert verdict.outcome == "unknown mistake"
        assert "On " in verdict.message


@pytest.mark.parametrize(
    "answer", [None, 3, lambda: 1, lambda *a: None, lambda *a: "text", lambda *a: (1, "b"), lambda *a: 1j]
)
def test_answers_of_the_wrong_kind_get_a_precise_account(exercise: Exercise, answer: Any) -> None:
    verdict = judge(exercise, answer, exercise.cases(0))
    assert not verdict.right
    assert exercise.name in verdict.message


def test_other_right_ways_pass() -> None:
    """Torch's own attention, a loop over queries, ALiBi as Bloom writes it, and tiles in two passes."""

    def by_loop(q: Any, k: Any, v: Any, is_causal: bool) -> Any:
        rows = []
        for t in range(q.shape[-2]):
            end = t + 1 if is_causal else k.shape[-2]
            scores = (q[..., t : t + 1, :] * k[..., :end, :]).sum(-1) / q.shape[-1] ** 0.5
            rows.append((scores.softmax(-1)[..., None] * v[..., :end, :]).sum(-2))
        return torch.stack(rows, dim=-2)

    def like_bloom(n_heads: int, seq_len: int) -> Any:
        slopes = 2.0 ** (-8 / n_heads * torch.arange(1, n_heads + 1))
        by_key = slopes[:, None, None] * torch.arange(seq_len)[None, None, :]
        hidden = torch.ones(seq_len, seq_len, dtype=torch.bool).triu(1)
        return by_key.expand(n_heads, seq_len, seq_len).masked_fill(hidden, -math.inf)

    def two_passes(q: Any, k: Any, v: Any, tile: int, is_causal: bool) -> Any:
        parts = [slice(s, min(s + tile, len(k))) for s in range(0, len(k), tile)]

        def scores(part: slice) -> Any:
            raw = q @ k[part].T / q.shape[1] ** 0.5
            late = torch.arange(part.start, part.stop) > torch.arange(len(q))[:, None]
            return raw.masked_fill(late, -math.inf) if is_causal else raw

        top = torch.stack([scores(part).amax(1) for part in parts]).amax(0)[:, None]
        weights = [(scores(part) - top).exp() for part in parts]
        total = sum(w.sum(1, keepdim=True) for w in weights)
        return sum(w @ v[part] for w, part in zip(weights, parts, strict=True)) / total

    right = {
        "attention": [lambda q, k, v, c: F.scaled_dot_product_attention(q, k, v, is_causal=c), by_loop],
        "alibi_bias": [like_bloom],
        "tiled_attention": [two_passes],
    }
    for name, answers in right.items():
        for answer in answers:
            for seed in SEEDS:
                assert judge(EXERCISES[name], answer, EXERCISES[name].cases(seed)).right


def test_holding_all_scores_is_refused_however_it_is_done() -> None:
    tiles = EXERCISES["tiled_attention"]

    def plain(q: Any, k: Any, v: Any, tile: int, is_causal: bool) -> Any:
        return EXERCISES["attention"].reference(q, k, v, is_causal)

    def fused(q: Any, k: Any, v: Any, tile: int, is_causal: bool) -> Any:
        return F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=is_causal)[0]

    def whole_mask(q: Any, k: Any, v: Any, tile: int, is_causal: bool) -> Any:
        torch.ones(len(q), len(k)).tril()
        return tiles.reference(q, k, v, tile, is_causal)

    for answer in (plain, fused, whole_mask):
        verdict = judge(tiles, answer, tiles.cases(0))
        assert verdict.mistakes == ("holds all T × T",)
        assert "T × T" in verdict.message


# The references against others' code.


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_equals_torchs_forward_and_gradients(is_causal: bool) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(2, 3, 7, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    ours = EXERCISES["attention"].reference(*tensors, is_causal)
    torchs = F.scaled_dot_product_attention(*tensors, is_causal=is_causal)
    torch.testing.assert_close(ours, torchs, rtol=0, atol=1e-13)
    probe = torch.randn_like(ours)
    for got, want in zip(
        torch.autograd.grad(ours, tensors, probe), torch.autograd.grad(torchs, tensors, probe), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_multi_head_equals_torchs_multiheadattention() -> None:
    torch.manual_seed(1)
    module = nn.MultiheadAttention(12, 3, bias=False, batch_first=True, dtype=torch.float64)
    x = torch.randn(2, 6, 12, dtype=torch.float64)
    w_q, w_k, w_v = (part.T for part in module.in_proj_weight.chunk(3))
    ours = EXERCISES["multi_head"].reference(x, w_q, w_k, w_v, module.out_proj.weight.T, 3, 3)
    mask = torch.ones(6, 6, dtype=torch.bool).triu(1)
    torch.testing.assert_close(ours, module(x, x, x, attn_mask=mask)[0], rtol=0, atol=1e-12)


def test_multi_head_with_shared_keys_equals_llamas_attention() -> None:
    modeling = pytest.importorskip("transformers.models.llama.modeling_llama")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=24, num_attention_heads=6, num_key_value_heads=2, attn_implementation="eager"
    )
    torch.manual_seed(2)
    module = modeling.LlamaAttention(config, layer_idx=0).eval()
    x = torch.randn(2, 7, 24)
    still = torch.ones(1, 7, 4), torch.zeros(1, 7, 4)  # cosines and sines of no rotation
    mask = torch.full((7, 7), -math.inf).triu(1)[None, None]
    with torch.no_grad():
        theirs = module(x, position_embeddings=still, attention_mask=mask)[0]
        weights = [getattr(module, f"{name}_proj").weight.T for name in "qkvo"]
        ours = EXERCISES["multi_head"].reference(x, *weights, 6, 2)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_rotate_equals_llamas_rotation() -> None:
    modeling = pytest.importorskip("transformers.models.llama.modeling_llama")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(hidden_size=16, num_attention_heads=2, head_dim=8)
    rotary = modeling.LlamaRotaryEmbedding(config)
    x, positions = torch.randn(1, 2, 9, 8), torch.arange(13, 22)
    theirs, _ = modeling.apply_rotary_pos_emb(x, x, *rotary(x, positions[None]))
    torch.testing.assert_close(EXERCISES["rotate"].reference(x, positions), theirs, rtol=0, atol=2e-5)


def test_rotate_makes_products_depend_on_the_offset_alone() -> None:
    torch.manual_seed(3)
    rotate = EXERCISES["rotate"].reference
    q, k = torch.randn(1, 16), torch.randn(1, 16)

    def product(at: int, seen: int) -> float:
        return float(rotate(q, torch.tensor([at])) @ rotate(k, torch.tensor([seen])).T)

    assert product(7, 4) == pytest.approx(product(107, 104), abs=1e-4)
    assert product(7, 4) != pytest.approx(product(7, 5), abs=1e-2)


@pytest.mark.parametrize("n_heads", [2, 8, 16])
def test_alibi_equals_blooms_up_to_a_constant_in_each_row(n_heads: int) -> None:
    modeling = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    theirs = modeling.build_alibi_tensor(torch.ones(1, 11), n_heads, torch.float32)  # [H, 1, T]
    ours = EXERCISES["alibi_bias"].reference(n_heads, 11)
    seen = torch.isfinite(ours)
    hidden = torch.full((11, 11), -math.inf).triu(1)
    torch.testing.assert_close(ours.softmax(-1), (theirs + hidden).softmax(-1), rtol=0, atol=1e-6)
    assert torch.equal(seen[0], torch.ones(11, 11, dtype=torch.bool).tril())


@pytest.mark.parametrize("tile", [1, 4, 7, 50])
@pytest.mark.parametrize("is_causal", [False, True])
def test_tiled_attention_equals_torchs(tile: int, is_causal: bool) -> None:
    torch.manual_seed(4)
    q, k, v = (torch.randn(23, 8) for _ in range(3))
    got = EXERCISES["tiled_attention"].reference(q, k, v, tile, is_causal)
    want = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=is_causal)[0]
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6)
    assert np.isfinite(got.numpy()).all()
