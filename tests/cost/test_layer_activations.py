"""sbh (34 + 5as/h) and its cuts, against what torch saves of a GPT layer and against the paper's numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from scalelab.core.errors import ConfigError
from scalelab.cost import (
    end_activation_bytes,
    layer_activation_bytes,
    layer_activation_parts,
    stage_activation_bytes,
)

GPT3 = {"seq_len": 2048, "batch_size": 1, "d_model": 12_288, "n_heads": 96}
MT_530B = {"seq_len": 2048, "batch_size": 1, "d_model": 20_480, "n_heads": 128}


def _layer(x: Tensor, weights: dict[str, Tensor], heads: int, drop: float) -> Tensor:
    """GPT-2's layer with dropout and plain attention, in the order in which the paper counts it."""

    def dropped(value: Tensor) -> Tensor:
        return torch.native_dropout(value, drop, True)[0] if drop else value

    b, s, h = x.shape
    normed = functional.layer_norm(x, (h,), weights["gain"], weights["bias"])
    split = functional.linear(normed, weights["qkv"]).chunk(3, dim=-1)
    # Each of the three in memory of its own, head by head, as batched products want them.
    q, k, v = (t.view(b, s, heads, h // heads).transpose(1, 2).contiguous() for t in split)
    scores = (q @ k.transpose(-1, -2)).softmax(dim=-1)
    mixed = (dropped(scores) @ v).transpose(1, 2).reshape(b, s, h)
    x = x + dropped(functional.linear(mixed, weights["out"]))
    normed = functional.layer_norm(x, (h,), weights["gain"], weights["bias"])
    wide = functional.gelu(functional.linear(normed, weights["in"]))
    return x + dropped(functional.linear(wide, weights["back"]))


def _saved_bytes(s: int, b: int, h: int, a: int, f: int, dtype: torch.dtype, drop: float) -> int:
    """Bytes that autograd keeps of one layer, weights and the norms' statistics left out."""
    make = torch.Generator().manual_seed(0)
    shapes = {"qkv": (3 * h, h), "out": (h, h), "in": (f, h), "back": (h, f), "gain": (h,), "bias": (h,)}
    weights = {
        n: torch.randn(shape, generator=make).to(dtype).requires_grad_() for n, shape in shapes.items()
    }
    own = {w.untyped_storage().data_ptr() for w in weights.values()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own and tensor.shape != (b, s, 1):  # a norm's mean and deviation
            kept.setdefault(place, tensor)
        return tensor

    x = torch.randn(b, s, h, generator=make).to(dtype).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = _layer(x, weights, a, drop)
    assert out.grad_fn is not None
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("drop", [0.1, 0.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("s", "b", "h", "a", "f"), [(16, 2, 32, 4, 128), (24, 3, 16, 2, 48)])
def test_the_bytes_are_those_that_torch_saves(
    s: int, b: int, h: int, a: int, f: int, dtype: torch.dtype, drop: float
) -> None:
    expected = layer_activation_bytes(
        seq_len=s,
        batch_size=b,
        d_model=h,
        n_heads=a,
        d_ff=f,
        dropout=drop > 0,
        bytes_per_number=dtype.itemsize,
    )
    assert _saved_bytes(s, b, h, a, f, dtype, drop) == expected


@pytest.mark.parametrize(
    ("t", "sequence_parallel", "recompute", "formula"),
    [
        # Korthikanti et al. 2022, table 2
        (1, False, "none", lambda s, h, a, t: 34 + 5 * a * s / h),
        (8, False, "none", lambda s, h, a, t: 10 + 24 / t + 5 * a * s / (h * t)),
        (8, True, "none", lambda s, h, a, t: 34 / t + 5 * a * s / (h * t)),
        (8, False, "selective", lambda s, h, a, t: 10 + 24 / t),
        (8, True, "selective", lambda s, h, a, t: 34 / t),
        (8, False, "full", lambda s, h, a, t: 2),
    ],
)
@pytest.mark.parametrize("shape", [GPT3, MT_530B, {**GPT3, "batch_size": 4, "seq_len": 512}])
def test_the_papers_table_2_follows(t, sequence_parallel, recompute, formula, shape) -> None:  # type: ignore[no-untyped-def]
    found = layer_activation_bytes(**shape, tp=t, sequence_parallel=sequence_parallel, recompute=recompute)
    s, b, h, a = shape["seq_len"], shape["batch_size"], shape["d_model"], shape["n_heads"]
    assert found == pytest.approx(s * b * h * formula(s, h, a, t), rel=1e-12)


def test_attentions_share_is_what_the_paper_says() -> None:
    # Section 5: selective recomputation saves 70 % of GPT-3's activations and 65 % of the 530B model's.
    for shape, scores, percent in ((GPT3, 80, 70), (MT_530B, 64, 65)):
        whole = layer_activation_bytes(**shape)
        without = layer_activation_bytes(**shape, recompute="selective")
        sbh = shape["seq_len"] * shape["batch_size"] * shape["d_model"]
        assert (whole - without) / sbh == scores
        assert 100 * (1 - without / whole) == pytest.approx(percent, abs=0.5)


def test_parts_add_up_and_attention_alone_is_11_and_feed_forward_19() -> None:
    parts = layer_activation_parts(**GPT3)
    sbh = 2048 * 12_288
    assert sum(parts.values()) == layer_activation_bytes(**GPT3)
    feed_forward = [n for n in parts if n.startswith(("feed-forward", "activation"))]
    attention = [n for n in parts if not n.startswith(("feed-forward", "activation", "softmax", "norm"))]
    assert sum(parts[n] for n in feed_forward) == 19 * sbh
    assert sum(parts[n] for n in attention) == 11 * sbh
    assert parts["norm inputs"] == 4 * sbh


def test_the_first_stage_holds_as_much_as_all_layers_however_many_stages() -> None:
    layer = layer_activation_bytes(**GPT3, tp=8, sequence_parallel=True)
    for pp in (1, 2, 8, 32):
        held = stage_activation_bytes(layer, n_layers=96, pp=pp, n_micro_batches=64)
        assert held == 96 * layer
    # Equation after 5: interleaved by v pieces, 1 + (p-1)/(pv) times as much.
    held = stage_activation_bytes(layer, n_layers=96, pp=8, n_micro_batches=64, schedule="interleaved", v=3)
    assert held == pytest.approx(96 * layer * (1 + 7 / 24), rel=1e-12)


def test_later_stages_hold_less_and_gpipes_hold_every_micro_batch() -> None:
    held = [stage_activation_bytes(10, n_layers=8, pp=4, n_micro_batches=16, rank=rank) for rank in range(4)]
    assert held == [80, 60, 40, 20]
    gpipe = stage_activation_bytes(10, n_layers=8, pp=4, n_micro_batches=16, rank=3, schedule="gpipe")
    assert gpipe == 320
    assert stage_activation_bytes(10, n_layers=7, pp=4, n_micro_batches=16, rank=3) == 10


def test_embedding_norm_and_logits_are_a_small_share_of_the_530b_models_first_stage() -> None:
    # Section 4.3: sbhp/t, and without a pipeline (4sbh/t)(1 + v/h) more.
    shape = {"seq_len": 2048, "batch_size": 1, "d_model": 6144}
    assert end_activation_bytes(**shape, vocab_size=51_200, tp=8, pp=4) == 2048 * 6144 * 4 // 8
    alone = end_activation_bytes(**shape, vocab_size=51_200, tp=8)
    assert alone == pytest.approx(2048 * 6144 / 8 * (1 + 4 * (1 + 51_200 / 6144)))


def test_sizes_that_cannot_be_cut_are_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match="tp=5 does not divide d_model=12288"):
        layer_activation_bytes(**GPT3, tp=5)
    with pytest.raises(ConfigError, match="tp=2 does not divide n_heads=3"):
        layer_activation_bytes(seq_len=8, batch_size=1, d_model=12, n_heads=3, tp=2)
    with pytest.raises(ConfigError, match="tp=2 does not divide seq_len=7"):
        layer_activation_bytes(seq_len=7, batch_size=1, d_model=8, n_heads=2, tp=2, sequence_parallel=True)
    with pytest.raises(ConfigError, match="recompute must be one of none, selective, full; got 'half'"):
        layer_activation_bytes(**GPT3, recompute="half")
    with pytest.raises(ConfigError, match="seq_len must be a whole number of at least 1, got 0"):
        layer_activation_bytes(seq_len=0, batch_size=1, d_model=8, n_heads=2)
    with pytest.raises(ConfigError, match="10 layers cannot be cut into pp=4 times v=2 equal pieces"):
        stage_activation_bytes(1, n_layers=10, pp=4, n_micro_batches=4, schedule="interleaved", v=2)
