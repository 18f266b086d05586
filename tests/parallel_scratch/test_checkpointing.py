"""Forward once more instead of keeping: the same bits of gradients, and kept is what the formula says."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from equality import CONFIG, Differs, Found, alone, assert_same_found, make_batch, make_model, summed_loss
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from scalelab.cost.layer_activations import layer_activation_bytes, layer_activation_parts
from scalelab.lab.parallelism.gpt_layer import GPTLayer
from scalelab.models import Decoder
from scalelab.parallel.scratch import checkpointing
from scalelab.parallel.scratch.bytes_held import kept_for_backward, storage_bytes
from scalelab.parallel.scratch.checkpointing import recompute, recomputed
from scalelab.parallel.scratch.fully_sharded import FullySharded
from scalelab.parallel.scratch.group import Group
from scalelab.parallel.scratch.threads import run_threads
from scalelab.parallel.scratch.zero import ZeroOne, ZeroTwo

DROPS = dataclasses.replace(CONFIG, dropout=0.2)
ROPE = dataclasses.replace(CONFIG, positions="rope", n_layers=3)
PARTS: dict[str, Callable[[Decoder], Any]] = {
    "blocks": lambda model: model.blocks,
    "one block": lambda model: model.blocks[1],
    "feed-forwards": lambda model: [block.feed_forward for block in model.blocks],
    "attentions": lambda model: [block.attention for block in model.blocks],
}


def found_with(parts: str | None, config: Any, *, seed: int = 0) -> Found:
    torch.manual_seed(seed)
    model = make_model(config=config)
    if parts is not None:
        recompute(PARTS[parts](model))
    return alone(model, make_batch())


@pytest.mark.parametrize("config", [CONFIG, DROPS, ROPE], ids=["plain", "dropout", "rope"])
@pytest.mark.parametrize("parts", PARTS)
def test_gradients_are_the_same_bits_as_without_and_so_is_the_random_state_after(
    parts: str, config: Any
) -> None:
    expected, state = found_with(None, config), torch.get_rng_state()
    found = found_with(parts, config)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_found(found, expected, tolerance=0.0)


def test_other_dropout_would_have_been_seen() -> None:
    with pytest.raises(Differs):
        assert_same_found(found_with("blocks", DROPS, seed=1), found_with(None, DROPS))


def test_torchs_checkpoint_gives_the_same_bits() -> None:
    expected = found_with("blocks", DROPS)
    torch.manual_seed(0)
    model = make_model(config=DROPS)
    for block in model.blocks:
        inner = block.forward
        block.forward = lambda *args, inner=inner: checkpoint(inner, *args, use_reentrant=False)
    assert_same_found(alone(model, make_batch()), expected, tolerance=0.0)


def test_autocast_is_as_it_was() -> None:
    def gradients(again: bool) -> list[Tensor]:
        torch.manual_seed(0)
        layer = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        x = torch.randn(3, 8, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            y = recomputed(layer, x) if again else layer(x)
        y.float().square().sum().backward()
        return [x.grad, *(p.grad for p in layer.parameters())]  # type: ignore[list-item]

    assert all(torch.equal(a, b) for a, b in zip(gradients(True), gradients(False), strict=True))


def test_an_input_that_needs_no_gradient_gets_none_and_several_inputs_get_theirs() -> None:
    a, b, c = (torch.randn(4, requires_grad=wants) for wants in (True, False, True))
    recomputed(lambda x, y, n, z: (x * y).sin() * n + z.square(), a, b, 3, c).sum().backward()
    x, z = a.detach().requires_grad_(), c.detach().requires_grad_()
    ((x * b).sin() * 3 + z.square()).sum().backward()
    assert b.grad is None
    assert torch.equal(a.grad, x.grad)  # type: ignore[arg-type]
    assert torch.equal(c.grad, z.grad)  # type: ignore[arg-type]


def test_a_module_that_stands_in_two_checkpointed_ones_gets_both_gradients() -> None:
    shared, first = nn.Linear(5, 5), nn.Linear(5, 5)
    x = torch.randn(2, 5)

    def gradient(call: Callable[..., Tensor]) -> Tensor:
        shared.zero_grad()
        call(shared, call(shared, first(x)).tanh()).sum().backward()
        assert shared.weight.grad is not None
        return shared.weight.grad.clone()

    assert torch.equal(gradient(recomputed), gradient(lambda module, x: module(x)))


def test_one_inside_another_gives_the_same_bits_too() -> None:
    torch.manual_seed(0)
    model = make_model(config=DROPS)
    recompute(block.attention for block in model.blocks)
    recompute(model.blocks)
    assert_same_found(alone(model, make_batch()), found_with(None, DROPS), tolerance=0.0)


@pytest.mark.parametrize("zero", [ZeroOne, ZeroTwo, FullySharded])
def test_it_goes_together_with_sharding(zero: Any) -> None:
    batch = make_batch()
    expected = alone(make_model(), batch)

    def work(group: Group) -> tuple[dict[str, Tensor], int]:
        model = make_model()
        recompute(model.blocks)
        sharded = zero(model, group)
        with group.counted() as sent:
            (summed_loss(model, batch.cut(group.size)[group.rank]) / batch.n_targets).backward()
        sharded.reduce()
        return sharded.whole_gradients(), sent.traffic.n_bytes

    def plain(group: Group) -> int:
        sharded = zero(make_model(), group)
        with group.counted() as sent:
            (summed_loss(sharded.model, batch.cut(group.size)[group.rank]) / batch.n_targets).backward()
        return sent.traffic.n_bytes

    found = run_threads(3, work)
    for gradients, _ in found:
        assert_same_found(Found(expected.loss, gradients), expected)
    assert [n for _, n in found] == run_threads(3, plain)  # forward again gathers nothing more


def test_blocks_keep_their_inputs_alone() -> None:
    model, batch = make_model(), make_batch()
    recompute(model.blocks)
    inputs = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with kept_for_backward(model.parameters()) as kept:
        summed_loss(model, batch)
    block_size = storage_bytes(inputs[:1])
    stream = [t for t in kept.tensors if t.shape == inputs[0].shape]
    assert storage_bytes(stream) == (len(model.blocks) + 1) * block_size  # and the last norm's input


# --- bytes kept -------------------------------------------------------------------------------------------


def layer_and_input(
    how: str, sizes: dict[str, int], dtype: torch.dtype = torch.bfloat16
) -> tuple[GPTLayer, Tensor]:
    torch.manual_seed(0)
    layer = GPTLayer(sizes["d_model"], sizes["n_heads"]).to(dtype)
    if how != "none":
        recompute(layer.core if how == "selective" else layer)
    x = torch.randn(sizes["batch_size"], sizes["seq_len"], sizes["d_model"], dtype=dtype)
    return layer, x.requires_grad_()


SIZES = [
    {"batch_size": 2, "seq_len": 64, "d_model": 32, "n_heads": 4},
    {"batch_size": 3, "seq_len": 17, "d_model": 24, "n_heads": 2},
    {"batch_size": 1, "seq_len": 128, "d_model": 64, "n_heads": 8},
]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("how", ["none", "selective", "full"])
def test_a_layer_keeps_sbh_34_plus_5as_over_h_and_its_norms_statistics(
    how: str, sizes: dict[str, int]
) -> None:
    layer, x = layer_and_input(how, sizes)
    with kept_for_backward(layer.parameters()) as kept:
        layer(x)
    statistics = 0 if how == "full" else 2 * 2 * sizes["batch_size"] * sizes["seq_len"] * 2
    assert kept.n_bytes == layer_activation_bytes(**sizes, recompute=how) + statistics


def test_each_kept_tensor_is_one_of_the_formulas() -> None:
    sizes = SIZES[0]
    layer, x = layer_and_input("none", sizes)
    with kept_for_backward(layer.parameters()) as kept:
        layer(x)
    tokens = sizes["batch_size"] * sizes["seq_len"]
    found = sorted(n for t in kept.tensors if (n := storage_bytes([t])) > 2 * tokens)
    parts = dict(layer_activation_parts(**sizes))
    expected = [parts.pop("queries and keys") // 2] * 2 + [parts.pop("norm inputs") // 2] * 2
    assert found == sorted([*expected, *parts.values()])


def test_full_recomputation_does_a_third_more_work_and_selective_attentions_products() -> None:
    b, s, h = 2, 64, 32
    done = {}
    for how in ("none", "selective", "full"):
        layer, x = layer_and_input(how, SIZES[0], torch.float32)
        with FlopCounterMode(display=False) as counted:
            layer(x).sum().backward()
        done[how] = counted.get_total_flops()
    forward = 24 * b * s * h * h + 4 * b * s * s * h
    assert done["none"] == 3 * forward
    assert done["full"] == 4 * forward
    assert done["selective"] == 3 * forward + 4 * b * s * s * h


# --- planted faults ---------------------------------------------------------------------------------------


def random_state_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointing._Surroundings, "again", lambda self: contextlib.nullcontext())


def gradient_of_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    right = checkpointing._Recomputed.backward

    def wrong(ctx: Any, *gradients: Tensor) -> Any:
        return right(ctx, *(torch.ones_like(g) for g in gradients))

    monkeypatch.setattr(checkpointing._Recomputed, "backward", staticmethod(wrong))


def of_parameters_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient does not go on to what came before the block."""
    right = checkpointing._Recomputed.backward

    def wrong(ctx: Any, *gradients: Tensor) -> Any:
        return tuple(None if g is None else torch.zeros_like(g) for g in right(ctx, *gradients))

    monkeypatch.setattr(checkpointing._Recomputed, "backward", staticmethod(wrong))


@pytest.mark.parametrize("plant", [random_state_left_alone, gradient_of_ones, of_parameters_alone])
def test_planted_faults_are_seen(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = found_with(None, DROPS)
    plant(monkeypatch)
    found = found_with("blocks", DROPS)
    monkeypatch.undo()
    with pytest.raises(Differs):
        assert_same_found(found, expected, tolerance=0.0)
