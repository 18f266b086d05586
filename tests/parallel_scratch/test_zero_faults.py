"""Mistakes planted into ZeRO's stages are seen by the helpers that its tests use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from equality import (
    Differs,
    assert_same_weights,
)
from torch import Tensor
from zero_runs import STAGES, trained, trained_alone

from scalelab.parallel.scratch import cut_optimizer, flat, fully_sharded
from scalelab.parallel.scratch.cut_optimizer import CutAdamW
from scalelab.parallel.scratch.flat import Unit
from scalelab.parallel.scratch.fully_sharded import CutUnit
from scalelab.parallel.scratch.group import Group


def mean_instead_of_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    right = flat.ring_reduce_scatter
    monkeypatch.setattr(flat, "ring_reduce_scatter", lambda t, group: right(t, group) / group.size)


def last_micro_batch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Unit.reduce_gradient

    def wrong(unit: Unit) -> None:
        unit.gradient = None
        right(unit)

    monkeypatch.setattr(Unit, "reduce_gradient", wrong)


def gradient_of_the_step_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale bucket: what the last step should have dropped is added to."""
    right = CutAdamW.step

    def wrong(optimizer: CutAdamW, max_norm: float | None = None) -> Tensor:
        kept = [unit.gradient.clone() for unit in optimizer.units]
        norm = right(optimizer, max_norm)
        for unit, gradient in zip(optimizer.units, kept, strict=True):
            unit.gradient = gradient
        return norm

    monkeypatch.setattr(CutAdamW, "step", wrong)


def weights_not_handed_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Unit, "spread", lambda unit: None)


def pieces_in_the_wrong_order(monkeypatch: pytest.MonkeyPatch) -> None:
    right = flat.ring_all_gather

    def wrong(piece: Tensor, group: Group, n: int) -> Tensor:
        pieces = right(piece, group, n).tensor_split(group.size)
        return torch.cat([*pieces[1:], pieces[0]])

    monkeypatch.setattr(flat, "ring_all_gather", wrong)
    monkeypatch.setattr(fully_sharded, "ring_all_gather", wrong)


def norm_of_its_own_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut_optimizer, "ring_all_reduce", lambda tensor, group: None)


def sum_of_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(gradients: Sequence[Tensor], group: Group) -> Tensor:
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        cut_optimizer.ring_all_reduce(norm, group)
        return norm

    monkeypatch.setattr(cut_optimizer, "global_norm", wrong)


def vectors_decay_too(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Unit.cut

    def wrong(unit: Unit) -> Any:
        for _, place in right(unit):
            yield unit.whole.new_empty(1, 1), place

    monkeypatch.setattr(Unit, "cut", wrong)


def shares_one_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decay falls on numbers that are not a matrix's: a cut that is off by one at its ends."""
    right = Unit.cut

    def wrong(unit: Unit) -> Any:
        shares = list(right(unit))
        for index, (parameter, place) in enumerate(shares):
            first, last = index == 0, index == len(shares) - 1
            yield parameter, slice(place.start + (not first), place.stop + (not last))

    monkeypatch.setattr(Unit, "cut", wrong)


def weights_of_the_step_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage 3 that finds gathered weights in memory, and trusts them."""
    monkeypatch.setattr(CutUnit, "free", lambda unit: None)


EVERYWHERE: list[Callable[[pytest.MonkeyPatch], None]] = [
    mean_instead_of_sum,
    gradient_of_the_step_before,
    pieces_in_the_wrong_order,
    norm_of_its_own_pieces,
    sum_of_norms,
    vectors_decay_too,
    shares_one_late,
]


@pytest.mark.parametrize(
    ("stage", "plant"),
    [(stage, plant) for stage in STAGES for plant in EVERYWHERE]
    + [
        (1, weights_not_handed_round),
        (2, weights_not_handed_round),
        (2, last_micro_batch_only),
        (3, last_micro_batch_only),
        (3, weights_of_the_step_before),
    ],
)
def test_planted_faults_are_seen(
    stage: int, plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = trained_alone(clip=0.3)
    plant(monkeypatch)
    found = trained(3, stage, clip=0.3, micro_batches=2)
    with pytest.raises(Differs):
        assert_all_same_weights(found, expected)


def assert_all_same_weights(found: Sequence[dict[str, Tensor]], expected: dict[str, Tensor]) -> None:
    for weights in found:
        assert_same_weights(weights, expected)
