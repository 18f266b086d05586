"""ZeRO's three stages equal one process, hold what the formula says, and send what the formula says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from equality import (
    CONFIG,
    alone,
    assert_same_found,
    assert_same_tensors,
    assert_same_weights,
    make_batch,
    make_batches,
    make_model,
    summed_loss,
    weights_of,
)
from torch import Tensor
from zero_runs import SETTINGS, STAGES, TIED, backward, gradients_on_ranks, own_pieces, trained, trained_alone

from scalelab.core.errors import ParallelError
from scalelab.cost.collectives import all_reduce
from scalelab.cost.sharding import States, zero_memory
from scalelab.cost.traffic import zero_traffic
from scalelab.parallel.scratch.cut_optimizer import CutAdamW
from scalelab.parallel.scratch.flat import Unit, units_of
from scalelab.parallel.scratch.fully_sharded import FullySharded
from scalelab.parallel.scratch.group import Group, Traffic
from scalelab.parallel.scratch.threads import run_threads
from scalelab.parallel.scratch.zero import ZeroTwo
from scalelab.train.optimizer import parameter_groups


@pytest.fixture(params=STAGES)
def stage(request: pytest.FixtureRequest) -> int:
    return int(request.param)


# --- equality ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["own head", "tied"])
@pytest.mark.parametrize(("size", "micro_batches"), [(1, 1), (2, 1), (3, 1), (4, 1), (3, 2)])
def test_loss_and_every_gradient_equal_one_process(
    stage: int, size: int, micro_batches: int, config: Any
) -> None:
    expected = alone(make_model(config=config), make_batch())
    for found in gradients_on_ranks(size, stage, micro_batches=micro_batches, config=config):
        assert_same_found(found, expected)


@pytest.mark.parametrize(("size", "micro_batches"), [(2, 1), (4, 1), (3, 2)])
@pytest.mark.parametrize("clip", [None, 0.3])
def test_weights_after_ten_steps_equal_one_process(
    stage: int, size: int, micro_batches: int, clip: float | None
) -> None:
    expected = trained_alone(clip=clip)
    for found in trained(size, stage, clip=clip, micro_batches=micro_batches):
        assert_same_weights(found, expected)


def test_a_tied_table_and_more_ranks_than_rows_are_no_exception(stage: int) -> None:
    expected = trained_alone(config=TIED)
    for found in trained(5, stage, config=TIED):
        assert_same_weights(found, expected)


def test_every_rank_ends_with_the_same_bits_and_its_model_computes_with_them(stage: int) -> None:
    batch = make_batch()

    def work(group: Group) -> tuple[dict[str, Tensor], float]:
        zero = STAGES[stage](make_model(), group, **SETTINGS)
        backward(zero.model, own_pieces(group, batch, 1), batch.n_targets)
        zero.step()
        with torch.no_grad():
            return zero.whole_weights(), summed_loss(zero.model, batch).item()

    found = run_threads(3, work)
    model = make_model()
    model.load_state_dict(found[0][0], strict=False)
    with torch.no_grad():
        expected = summed_loss(model, batch).item()
    assert [loss for _, loss in found] == [expected] * 3
    for weights, _ in found[1:]:
        assert all(torch.equal(weights[name], value) for name, value in found[0][0].items())


def test_clipping_returns_the_norm_of_the_whole_gradient(stage: int) -> None:
    batch = make_batch()
    gradients = alone(make_model(), batch).gradients.values()
    expected = float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients])))

    def work(group: Group) -> float:
        zero = STAGES[stage](make_model(), group)
        backward(zero.model, own_pieces(group, batch, 1), batch.n_targets)
        return float(zero.step(0.1))

    assert run_threads(3, work) == pytest.approx([expected] * 3, rel=1e-6)


def test_parameters_that_are_not_used_get_zeros_on_every_rank(stage: int) -> None:
    """Of two heads a forward pass reads one: its unit is never complete, and is reduced by `reduce`."""

    class TwoHeads(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.ModuleList([torch.nn.Linear(5, 5) for _ in range(2)])
            self.used, self.unused = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x).tanh()
            return self.used(x)

    def work(group: Group) -> dict[str, Tensor]:
        torch.manual_seed(0)
        zero = STAGES[stage](TwoHeads(), group)
        zero.model(torch.ones(2, 5) * (1 + group.rank)).square().sum().backward()
        zero.reduce()
        return zero.whole_gradients()  # type: ignore[no-any-return]

    for found in run_threads(3, work):
        assert not found["unused.weight"].any()
        assert found["used.weight"].abs().min() > 0


# --- bytes ------------------------------------------------------------------------------------------------


def unit_sizes(config: Any = CONFIG) -> list[int]:
    model = make_model(config=config)
    return [sum(p.numel() for p in own) for _, own in units_of(model)]


@pytest.mark.parametrize("precision", ["fp32", "mixed"])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_bytes_held_equal_the_formula_after_each_backward(stage: int, size: int, precision: str) -> None:
    batch = make_batch(9)

    def work(group: Group) -> list[States]:
        zero = STAGES[stage](make_model(), group, mixed=precision == "mixed")
        held = []
        for _ in range(2):
            backward(zero.model, own_pieces(group, batch, 2), batch.n_targets)
            held.append(zero.held())
            zero.step()
        return held

    for rank, (first, second) in enumerate(run_threads(size, work)):
        expected = zero_memory(unit_sizes(), stage=stage, dp=size, precision=precision, rank=rank)
        assert second == expected
        # AdamW makes its moments at the first step.
        owned = sum(n // size + (rank < n % size) for n in unit_sizes())
        assert first == dataclasses.replace(expected, optimizer_bytes=expected.optimizer_bytes - 8 * owned)


@pytest.mark.parametrize("precision", ["fp32", "mixed"])
@pytest.mark.parametrize(("size", "micro_batches"), [(2, 1), (3, 1), (4, 2)])
def test_bytes_sent_equal_the_formula(stage: int, size: int, micro_batches: int, precision: str) -> None:
    batch, n_bytes = make_batch(8), 2 if precision == "mixed" else 4

    def work(group: Group) -> tuple[Traffic, Traffic]:
        zero = STAGES[stage](make_model(), group, mixed=precision == "mixed")
        with group.counted() as sent:
            backward(zero.model, own_pieces(group, batch, micro_batches), batch.n_targets)
            zero.step()
        with group.counted() as clipped:
            backward(zero.model, own_pieces(group, batch, micro_batches), batch.n_targets)
            zero.step(1.0)
        return sent.traffic, clipped.traffic - sent.traffic

    *blocks, root = unit_sizes()

    def formula(units: Sequence[int], resharded: bool) -> Any:
        return zero_traffic(
            units, size, stage=stage, micro_batches=micro_batches, resharded=resharded,
            weight_bytes=n_bytes, gradient_bytes=n_bytes,
        ).total  # fmt: skip

    expected = formula(blocks, True) + formula([root], False)
    norm = all_reduce(1, size)
    for rank, (sent, more) in enumerate(run_threads(size, work)):
        assert sent == Traffic(expected.messages[rank], expected.sent_bytes[rank])
        assert more == Traffic(norm.messages[rank], norm.sent_bytes[rank])


def test_stage_3_without_an_exception_for_the_root_sends_three_times_the_parameters() -> None:
    batch = make_batch()

    def work(group: Group) -> int:
        zero = FullySharded(make_model(), group, keeps_root=False)
        with group.counted() as sent:
            backward(zero.model, own_pieces(group, batch, 1), batch.n_targets)
            zero.step()
        return sent.traffic.n_bytes

    assert tuple(run_threads(4, work)) == zero_traffic(unit_sizes(), 4, stage=3).sent_bytes
    assert sum(run_threads(4, work)) == (4 - 1) * 3 * sum(unit_sizes()) * 4  # all ranks together: (p-1) · 3Ψ


def test_whole_weights_and_gradients_of_one_unit_at_most_are_there_at_a_time() -> None:
    """Stage 3 looked at from inside of every block, forward and backward."""
    batch, most = make_batch(), []

    def work(group: Group) -> None:
        zero = FullySharded(make_model(), group)
        blocks, _ = zero.units[:-1], zero.units[-1]

        def look(*_: Any) -> None:
            if group.rank == 0:
                whole = sum(unit.is_here for unit in blocks)
                graded = sum(any(p.grad is not None for p in unit.parameters) for unit in blocks)
                most.append((whole, graded))

        for module in zero.model.modules():
            module.register_forward_hook(look)
        for p in zero.model.parameters():
            p.register_post_accumulate_grad_hook(look)
        backward(zero.model, own_pieces(group, batch, 1), batch.n_targets)
        assert not any(unit.is_here for unit in zero.units)

    run_threads(2, work)
    assert max(whole for whole, _ in most) == 1
    assert max(graded for _, graded in most) == 1


def test_stage_2_never_holds_more_than_one_blocks_whole_gradients_beside_the_roots() -> None:
    batch = make_batch()

    def work(group: Group) -> int:
        zero, most = ZeroTwo(make_model(), group), 0
        blocks = zero.units[:-1]

        def look(*_: Any) -> None:
            nonlocal most
            most = max(most, sum(any(p.grad is not None for p in unit.parameters) for unit in blocks))

        for p in zero.model.parameters():
            p.register_post_accumulate_grad_hook(look)
        backward(zero.model, own_pieces(group, batch, 1), batch.n_targets)
        return most

    assert run_threads(2, work) == [1, 1]


# --- mixed precision --------------------------------------------------------------------------------------


def mixed_on_ranks(size: int, stage: int, clip: float | None = None) -> list[dict[str, Tensor]]:
    batches = make_batches()

    def work(group: Group) -> dict[str, Tensor]:
        zero = STAGES[stage](make_model(), group, mixed=True, **SETTINGS)
        for batch in batches:
            backward(zero.model, own_pieces(group, batch, 1), batch.n_targets)
            zero.step(clip)
        return zero.whole_weights()

    return run_threads(size, work)


def test_mixed_precision_on_one_rank_equals_bf16_products_with_fp32_adamw_bit_for_bit(stage: int) -> None:
    model, master = make_model().bfloat16(), make_model()
    optimizer = torch.optim.AdamW(parameter_groups(master, 0.1), lr=1e-2, betas=(0.9, 0.95))
    pairs = list(zip(model.parameters(), master.parameters(), strict=True))
    for batch in make_batches():
        (summed_loss(model, batch) / batch.n_targets).backward()
        for low, high in pairs:
            high.grad = low.grad.float()
        optimizer.step()
        with torch.no_grad():
            for low, high in pairs:
                low.copy_(high)
                low.grad = None
    (found,) = mixed_on_ranks(1, stage)
    assert_same_tensors(found, weights_of(master), 0.0)


def test_mixed_precision_gives_the_same_bits_in_all_stages() -> None:
    """Gradients are added up in bf16, so that the order counts: it is the ring's, and the same in each."""
    expected = mixed_on_ranks(3, 1, clip=1.0)[0]
    for stage in (2, 3):
        for found in mixed_on_ranks(3, stage, clip=1.0):
            assert all(torch.equal(found[name], value) for name, value in expected.items())


# --- what it refuses --------------------------------------------------------------------------------------


def test_frozen_parameters_several_types_and_a_step_without_backward_are_refused(stage: int) -> None:
    def frozen(group: Group) -> None:
        model = make_model()
        model.final_norm.weight.requires_grad_(False)
        STAGES[stage](model, group)

    def two_types(group: Group) -> None:
        model = make_model()
        model.final_norm.double()
        STAGES[stage](model, group)

    def in_bf16(group: Group) -> None:
        STAGES[stage](make_model().bfloat16(), group, mixed=True)

    def no_gradients(group: Group) -> None:
        STAGES[stage](make_model(), group).whole_gradients()

    for work, words in (
        (frozen, "1 of .* parameters are frozen"),
        (two_types, "float32, torch.float64: one vector has one type"),
        (in_bf16, "bfloat16: mixed precision begins with fp32 weights"),
        (no_gradients, r"call backward\(\)"),
    ):
        with pytest.raises(ParallelError, match=words):
            run_threads(2, work)


def test_an_optimiser_step_without_a_gradient_is_refused() -> None:
    def work(group: Group) -> None:
        unit = Unit(list(make_model().parameters()), group)
        CutAdamW([unit], group, learning_rate=1e-3, weight_decay=0.0, betas=(0.9, 0.95)).step()

    with pytest.raises(ParallelError, match=r"call backward\(\) before step\(\)"):
        run_threads(2, work)
