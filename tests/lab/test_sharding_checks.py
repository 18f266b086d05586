"""Checks of the sharding lab: right passes, usual mistakes are named, references equal the package's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from scalelab.cost.layer_activations import layer_activation_bytes, layer_activation_parts
from scalelab.cost.sharding import zero_memory
from scalelab.lab.checks import Exercise, exercises, judge
from scalelab.parallel.scratch.collectives import (
    all_to_all,
    naive_all_reduce,
    piece_of,
    ring_all_gather,
    ring_all_reduce,
    ring_reduce_scatter,
    tree_all_reduce,
)
from scalelab.parallel.scratch.cut_optimizer import global_norm
from scalelab.parallel.scratch.threads import run_threads

EXERCISES = exercises("parallelism/sharding")
SEEDS = (0, 1, 12345)


@pytest.fixture(params=list(EXERCISES))
def exercise(request: pytest.FixtureRequest) -> Exercise:
    return EXERCISES[request.param]


def test_there_are_five_exercises() -> None:
    assert list(EXERCISES) == ["bytes_a_rank", "cut_step", "clip_pieces", "backward_again", "layer_bytes"]


UNLISTED: dict[str, list[Callable[..., Any]]] = {
    "bytes_a_rank": [lambda *a: (1, 2, 3), lambda n, s, p, r, k: (4 * n, 4 * n, 8 * n)],
    "cut_step": [
        lambda weights, gradient, update, group: None,
        lambda weights, gradient, update, group: weights.zero_(),
    ],
    "clip_pieces": [
        lambda pieces, max_norm, group: 0.0,
        lambda pieces, max_norm, group: max(float(p.norm()) for p in pieces),
    ],
    "backward_again": [
        lambda block, x, state, gradient: gradient,
        lambda block, x, s, g: torch.zeros_like(x),
    ],
    "layer_bytes": [lambda s, b, h, a: (34 * s * b * h, 0, 0), lambda s, b, h, a: (1, 1, 1)],
}


@pytest.mark.parametrize(("name", "number"), [(n, i) for n, a in UNLISTED.items() for i in range(len(a))])
def test_unlisted_mistakes_get_a_neutral_account(name: str, number: int) -> None:
    for seed in SEEDS:
        verdict = judge(EXERCISES[name], UNLISTED[name][number], EXERCISES[name].cases(seed))
        assert verdict.outcome == "unknown mistake", verdict.message
        assert "On " in verdict.message


@pytest.mark.parametrize(
    "answer", [None, 3, lambda: 1, lambda *a: "text", lambda *a: (1, "b"), lambda *a: 1j]
)
def test_answers_of_the_wrong_kind_get_a_precise_account(exercise: Exercise, answer: Any) -> None:
    verdict = judge(exercise, answer, exercise.cases(0))
    assert not verdict.right
    assert exercise.name in verdict.message


def by_tree(pieces: Any, max_norm: float, group: Any) -> Any:
    """Another way to add over ranks; the norm as a tensor."""
    square = sum((piece**2).sum() for piece in pieces)
    tree_all_reduce(square, group)
    for piece in pieces:
        piece.mul_((max_norm / square.sqrt()).clamp(max=1))
    return square.sqrt()


def in_slices(weights: Any, gradient: Any, update: Any, group: Any) -> None:
    own = ring_reduce_scatter(gradient, group)
    sizes = [part.numel() for part in weights.tensor_split(group.size)]
    start = sum(sizes[: group.rank])
    update(weights[start : start + own.numel()], own)
    weights[:] = ring_all_gather(weights[start : start + own.numel()].clone(), group, len(weights))


def by_grad(block: Any, x: Any, state: Any, gradient: Any) -> Any:
    """With torch.autograd.grad, a loss of its own, and the state put back by hand."""
    before = torch.get_rng_state()
    torch.set_rng_state(state)
    with torch.enable_grad():
        own = x.clone().detach()
        own.requires_grad = True
        loss = (block(own) * gradient).sum()
        params = list(block.parameters())
        first, *rest = torch.autograd.grad(loss, [own, *params])
    torch.set_rng_state(before)
    for parameter, new in zip(params, rest, strict=True):
        parameter.grad = new if parameter.grad is None else parameter.grad + new
    return first


def directly(weights: Any, gradient: Any, update: Any, group: Any) -> None:
    """No ring: each rank sends more or less than a ring's, and all together the same."""
    piece = piece_of(weights, group)
    update(piece, sum(all_to_all(list(gradient.tensor_split(group.size)), group)))
    sizes = [len(part) for part in weights.tensor_split(group.size)]
    weights.copy_(torch.cat(all_to_all([piece] * group.size, group, sizes=sizes)))


def clip_with_numpys_norm(pieces: Any, max_norm: float, group: Any) -> Any:
    return np.float32(EXERCISES["clip_pieces"].reference(pieces, max_norm, group))


RIGHT: dict[str, list[Callable[..., Any]]] = {
    "cut_step": [in_slices, directly],
    "clip_pieces": [by_tree, clip_with_numpys_norm],
    "backward_again": [by_grad],
    "bytes_a_rank": [
        lambda n, stage, p, r, precision: (
            lambda found: (found.weights_bytes, found.gradients_bytes, found.optimizer_bytes)
        )(zero_memory(n, stage=stage, dp=p, rank=r, precision=precision))
    ],
}


@pytest.mark.parametrize("name", RIGHT)
def test_other_right_ways_pass(name: str) -> None:
    for answer in RIGHT[name]:
        for seed in SEEDS:
            verdict = judge(EXERCISES[name], answer, EXERCISES[name].cases(seed))
            assert verdict.right, verdict.message


def test_more_is_sent_than_needed_by_everybody_to_everyone() -> None:
    def wasteful(weights: Any, gradient: Any, update: Any, group: Any) -> None:
        naive_all_reduce(gradient, group)
        piece = piece_of(weights, group)
        update(piece, piece_of(gradient, group))
        weights.copy_(ring_all_gather(piece, group, weights.numel()))

    verdict = judge(EXERCISES["cut_step"], wasteful, EXERCISES["cut_step"].cases(0))
    assert not verdict.right
    assert "sent beyond what is needed" in verdict.message


def test_ranks_that_stay_away_are_told_who_waits_for_whom() -> None:
    for name, mistake in (
        ("cut_step", "only rank 0 gathers"),
        ("clip_pieces", "only ranks with a large norm ask"),
    ):
        found = judge(EXERCISES[name], EXERCISES[name].make_mistake(mistake), EXERCISES[name].cases(0))
        assert found.mistakes == (mistake,)
        assert "waits" in found.message


def test_a_forward_without_gradients_and_a_backward_that_runs_on_are_told() -> None:
    def without(block: Any, x: Any, state: Any, gradient: Any) -> Any:
        torch.set_rng_state(state)
        x = x.detach().requires_grad_()
        block(x).backward(gradient)
        return x.grad

    def on(block: Any, x: Any, state: Any, gradient: Any) -> Any:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            block(x).backward(gradient)
        return x.grad if x.is_leaf else None

    exercise = EXERCISES["backward_again"]
    assert "torch.enable_grad()" in judge(exercise, without, exercise.cases(0)).message
    assert judge(exercise, on, exercise.cases(0)).mistakes == ("backward runs on",)


def test_a_new_name_for_the_weights_is_no_change_of_them() -> None:
    def rebinds(weights: Any, gradient: Any, update: Any, group: Any) -> None:
        piece = piece_of(weights, group)
        update(piece, ring_reduce_scatter(gradient, group))
        weights = ring_all_gather(piece, group, weights.numel())

    verdict = judge(EXERCISES["cut_step"], rebinds, EXERCISES["cut_step"].cases(0))
    assert verdict.mistakes == ("weights not handed round",)
    assert "only a name" in verdict.message


def named(name: str, answer: Callable[..., Any]) -> tuple[str, ...]:
    return judge(EXERCISES[name], answer, EXERCISES[name].cases(0)).mistakes


def test_weights_in_other_memory_are_not_changed_in_place() -> None:
    """The model's parameters are views of the old memory."""

    def replaces(weights: Any, gradient: Any, update: Any, group: Any) -> None:
        update(piece_of(weights, group), ring_reduce_scatter(gradient, group))
        weights.data = ring_all_gather(piece_of(weights, group), group, weights.numel())

    assert named("cut_step", replaces) == ("weights in other memory",)


def test_an_update_of_the_gradient_is_not_called_an_update_of_a_copy() -> None:
    def turned(weights: Any, gradient: Any, update: Any, group: Any) -> None:
        piece = piece_of(weights, group)
        update(ring_reduce_scatter(gradient, group), piece)
        weights.copy_(ring_all_gather(piece, group, weights.numel()))

    message = judge(EXERCISES["cut_step"], turned, EXERCISES["cut_step"].cases(0)).message
    assert "the gradient comes second" in message


def test_pieces_replaced_in_their_list_are_not_scaled_in_place() -> None:
    def replaces(pieces: Any, max_norm: float, group: Any) -> float:
        square = torch.stack([piece.square().sum() for piece in pieces]).sum()
        ring_all_reduce(square, group)
        norm = float(square.sqrt())
        for i, piece in enumerate(pieces):
            pieces[i] = piece * min(1.0, max_norm / norm)
        return norm

    assert named("clip_pieces", replaces) == ("nothing is scaled",)


def test_a_collective_that_empty_pieces_skip_does_not_pass() -> None:
    """Ranks have different numbers of empty pieces, so some would wait."""

    def skips(pieces: Any, max_norm: float, group: Any) -> float:
        total = 0.0
        for piece in pieces:
            if piece.numel():
                square = piece.square().sum()
                ring_all_reduce(square, group)
                total += float(square)
        for piece in pieces:
            piece *= min(1.0, max_norm / total**0.5)
        return total**0.5

    assert named("clip_pieces", skips) == ("empty pieces are passed over",)


def test_no_message_says_more_than_the_numbers_do() -> None:
    """The same bytes are lacking whichever tensor was forgotten, so all of them are named."""

    def lacking(attention: int, feed_forward: int) -> Callable[..., Any]:
        def answer(s: int, b: int, h: int, a: int) -> Any:
            n, scores = s * b * h, b * a * s * s
            return attention * n + 5 * scores, feed_forward * n, 4 * n

        return answer

    assert named("layer_bytes", lacking(9, 19)) == ("one of attention's five tensors forgotten",)
    assert named("layer_bytes", lacking(11, 11)) == ("one of the wide tensors forgotten",)


def test_a_gradient_that_is_not_there_is_told_from_a_missing_return() -> None:
    def no_leaf(block: Any, x: Any, state: Any, gradient: Any) -> Any:
        x = x.detach()
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            block(x).backward(gradient)
        return x.grad

    message = judge(EXERCISES["backward_again"], no_leaf, EXERCISES["backward_again"].cases(0)).message
    assert "x.grad of an x that requires no gradient" in message


# The references against the package's own and others'.


def test_layer_bytes_are_the_papers_and_add_up_to_34_and_5() -> None:
    for s, b, h, a in ((2048, 1, 12288, 96), (64, 2, 32, 4)):
        sizes = {"seq_len": s, "batch_size": b, "d_model": h, "n_heads": a}
        found = EXERCISES["layer_bytes"].reference(s, b, h, a)
        assert sum(found) == layer_activation_bytes(**sizes) == s * b * h * (34 + 5 * a * s // h)
        parts = layer_activation_parts(**sizes)
        assert found[2] == parts["norm inputs"]
        assert found[1] == sum(
            n for name, n in parts.items() if name.startswith(("feed-forward", "activation"))
        )


def test_bytes_a_rank_are_zeros_table() -> None:
    """Rajbhandari et al. 2019, figure 1: 7.5 B parameters on 64 ranks, K = 12."""
    reference = EXERCISES["bytes_a_rank"].reference
    gb = [sum(reference(7_500_000_000, stage, 64, 0, "mixed")) / 1e9 for stage in range(4)]
    assert [round(value, 1) for value in gb] == [120.0, 31.4, 16.6, 1.9]


def test_clip_pieces_is_the_packages_norm_and_torchs() -> None:
    pieces = [[torch.randn(n) for n in (3, 0, 4)] for _ in range(3)]
    whole = torch.cat([p for own in pieces for p in own]).norm()

    def work(group: Any) -> tuple[float, float]:
        own = [p.clone() for p in pieces[group.rank]]
        return float(global_norm(own, group)), EXERCISES["clip_pieces"].reference(own, 1.0, group)

    for ours, theirs in run_threads(3, work):
        assert ours == pytest.approx(theirs) == pytest.approx(float(whole))


def test_backward_again_equals_torchs_checkpoint() -> None:
    block = nn.Sequential(nn.Linear(4, 9), nn.Dropout(0.5), nn.Linear(9, 4))
    x, gradient = torch.randn(3, 4), torch.randn(3, 4)
    state = torch.Generator().manual_seed(5).get_state()
    ours = EXERCISES["backward_again"].reference(block, x, state, gradient)
    mine = [p.grad.clone() for p in block.parameters()]
    block.zero_grad()
    own = x.clone().requires_grad_()
    torch.set_rng_state(state)
    checkpoint(block, own, use_reentrant=False).backward(gradient)
    assert torch.equal(ours, own.grad)
    assert all(torch.equal(a, p.grad) for a, p in zip(mine, block.parameters(), strict=True))


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1.37])
def test_numbers_that_are_off_are_unknown_mistakes(factor: float) -> None:
    for name in ("bytes_a_rank", "layer_bytes"):
        exercise = EXERCISES[name]
        answer = partial(scaled, exercise.reference, factor)
        assert judge(exercise, answer, exercise.cases(0)).outcome == "unknown mistake"


def scaled(reference: Callable[..., Any], factor: float, *args: Any) -> Any:
    return tuple(part * factor for part in reference(*args))
