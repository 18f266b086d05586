"""Checks of the data-parallel lab: other right ways pass, unlisted mistakes are told, waits are named."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from scalelab.cost import Link, all_reduce
from scalelab.lab.checks import Exercise, exercises, judge
from scalelab.lab.checks.answers import Rejected
from scalelab.lab.checks.data_parallel.meeting import APART, that_meet
from scalelab.parallel.scratch.collectives import naive_all_reduce, ring_all_reduce, tree_all_reduce
from scalelab.parallel.scratch.group import Group

EXERCISES = exercises("parallelism/data-parallel")
SEEDS = (0, 1, 12345)


@pytest.fixture(params=list(EXERCISES))
def exercise(request: pytest.FixtureRequest) -> Exercise:
    return EXERCISES[request.param]


def test_there_are_five_exercises() -> None:
    names = [
        "ring_all_reduce",
        "all_reduce_seconds",
        "shared_gradients",
        "reduce_in_buckets",
        "critical_batch",
    ]
    assert list(EXERCISES) == names


# --- right in another way ----------------------------------------------------------------------------------


def other_ring(tensor: Any, group: Group) -> None:
    """The convention in which a rank's own chunk sets out first, and the next one's ends on it."""
    rank, size = group.rank, group.size
    chunks = tensor.tensor_split(size)
    for step in range(size - 1):
        mine = chunks[(rank - step - 1) % size]
        into = torch.zeros_like(mine)
        group.exchange(chunks[(rank - step) % size].clone(), group.next, into, group.previous)
        mine.add_(into)
    for step in range(size - 1):
        into = chunks[(rank - step) % size]
        group.exchange(chunks[(rank + 1 - step) % size].clone(), group.next, into, group.previous)


def the_other_way_round(tensor: Any, group: Group) -> None:
    """Messages go to the previous rank."""
    rank, size = group.rank, group.size
    chunks = tensor.tensor_split(size)
    for step in range(size - 1):
        mine = chunks[(rank + 2 + step) % size]
        into = torch.zeros_like(mine)
        group.exchange(chunks[(rank + 1 + step) % size], group.previous, into, group.next)
        mine += into
    for step in range(size - 1):
        known, missing = chunks[(rank + step) % size], chunks[(rank + 1 + step) % size]
        group.exchange(known, group.previous, missing, group.next)


def one_flat_row(model: Any, micro_batches: Any, group: Group) -> float:
    """Count, loss and gradients in one all-reduce, divided at the end."""
    model.zero_grad()
    total, count = 0.0, 0
    for tokens, targets in micro_batches:
        loss = functional.cross_entropy(
            model(tokens).flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"
        )
        loss.backward()
        total, count = total + loss.item(), count + int((targets != -100).sum())
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    flat = torch.cat([torch.tensor([total, float(count)]), *(grad.flatten() for grad in grads)])
    ring_all_reduce(flat, group)
    flat /= float(flat[1])
    parts = flat[2:].split([p.numel() for p in model.parameters()])
    for parameter, part in zip(model.parameters(), parts, strict=True):
        parameter.grad = part.view_as(parameter)
    return float(flat[0])


def torchs_own_utilities(parameters: Any, limit_bytes: int, group: Group) -> tuple[int, ...]:
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    buckets: list[list[Any]] = [[]]
    for parameter in parameters[::-1]:
        if buckets[-1] and sum(p.numel() for p in buckets[-1]) * 4 + parameter.numel() * 4 > limit_bytes:
            buckets.append([])
        buckets[-1].append(parameter)
    for bucket in buckets:
        flat = torch._utils._flatten_dense_tensors([p.grad for p in bucket])
        tree_all_reduce(flat, group)
        for parameter, part in zip(
            bucket, torch._utils._unflatten_dense_tensors(flat, [p.grad for p in bucket]), strict=True
        ):
            parameter.grad.copy_(part)
    return tuple(sum(p.numel() for p in bucket) for bucket in buckets)


def by_linear_system(
    batch_a: int, steps_a: float, batch_b: int, steps_b: float
) -> tuple[float, float, float]:
    system = torch.tensor([[1.0, 1 / batch_a], [1.0, 1 / batch_b]], dtype=torch.float64)
    steps, tokens = torch.linalg.solve(system, torch.tensor([steps_a, steps_b], dtype=torch.float64)).tolist()
    return steps, tokens, tokens / steps


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("ring_all_reduce", other_ring),
        ("ring_all_reduce", the_other_way_round),
        ("shared_gradients", one_flat_row),
        ("reduce_in_buckets", torchs_own_utilities),
        ("critical_batch", by_linear_system),
    ],
)
def test_other_ways_are_right_on_every_variant(name: str, answer: Any) -> None:
    for seed in (*range(6), 12345):
        for cases in (EXERCISES[name].cases(seed), EXERCISES[name].hidden_cases(seed)):
            verdict = judge(EXERCISES[name], answer, cases)
            assert verdict.right, verdict.message


def test_the_bill_is_the_cost_models() -> None:
    for ranks in (2, 3, 6, 8):
        n = 840 * ranks
        link = Link(latency_s=2e-5, bytes_per_s=3e9)
        found = EXERCISES["all_reduce_seconds"].reference(4 * n, ranks, 2e-5, 1 / 3e9)
        theirs = [
            all_reduce(n, ranks, algorithm=name).seconds(link) for name in ("ring", "tree", "all_to_all")
        ]
        assert found == pytest.approx(theirs, rel=1e-9)


# --- wrong in ways that are not listed ---------------------------------------------------------------------


def halved_ring(tensor: Any, group: Group) -> None:
    ring_all_reduce(tensor, group)
    tensor /= 2


def all_ones(model: Any, micro_batches: Any, group: Group) -> float:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return 1.0


UNLISTED: dict[str, list[Any]] = {
    "ring_all_reduce": [halved_ring, lambda tensor, group: tree_all_reduce(tensor, group)],
    "all_reduce_seconds": [
        lambda n, p, a, b: (a + b * n, a + b * n, a + b * n),
        lambda n, p, a, b: (2 * (p - 1) * (a + b * n / (p - 1)), 0.0, 0.0),
    ],
    "shared_gradients": [
        lambda model, batches, group: one_flat_row(model, batches, group) * 0 + 1.0,
        all_ones,
    ],
    "reduce_in_buckets": [
        lambda parameters, limit, group: [1, 2, 3],
        lambda parameters, limit, group: [float("nan")],
    ],
    "critical_batch": [lambda a, s, b, t: (s, a * s, a), lambda a, s, b, t: (math.nan, 1.0, 1.0)],
}


@pytest.mark.parametrize(("name", "number"), [(n, i) for n, a in UNLISTED.items() for i in range(len(a))])
def test_unlisted_mistakes_get_a_neutral_account(name: str, number: int) -> None:
    for seed in SEEDS:
        verdict = judge(EXERCISES[name], UNLISTED[name][number], EXERCISES[name].cases(seed))
        assert verdict.outcome == "unknown mistake", verdict.message
        assert "On " in verdict.message


@pytest.mark.parametrize(
    "answer", [None, 3, lambda: 1, lambda *a: None, lambda *a: "text", lambda *a: (1, "b"), lambda *a: 1j]
)
def test_answers_of_the_wrong_kind_get_a_precise_account(exercise: Exercise, answer: Any) -> None:
    verdict = judge(exercise, answer, exercise.cases(0))
    assert not verdict.right
    assert exercise.name in verdict.message


# --- ranks that wait, as learners bring it about ------------------------------------------------------------


def send_then_receive(tensor: Any, group: Group) -> None:
    """The whole tensor handed on, everybody sending first."""
    total, going = tensor.clone(), tensor.clone()
    for _ in range(group.size - 1):
        into = torch.empty_like(going)
        group.send(going, group.next)
        group.recv(into, group.previous)
        total += into
        going = into
    tensor.copy_(total)


def test_a_deadlock_is_named_with_who_waits_for_whom() -> None:
    exercise = EXERCISES["ring_all_reduce"]
    for answer in (send_then_receive, exercise.make_mistake("all send first")):
        verdict = judge(exercise, answer, exercise.cases(0))
        assert "all send first" in verdict.mistakes, verdict.message
        assert "rank 0 waits to send" in verdict.message


def skipping(last: str) -> Any:
    """A rank without rows skips the gradients; what it calls next decides how the others fail."""

    def shared_gradients(model: Any, micro_batches: Any, group: Group) -> float:
        loss = one_flat_row(model, micro_batches, group)
        if micro_batches:
            naive_all_reduce(torch.zeros(5), group)
        if last == "waits":
            return loss
        naive_all_reduce(torch.zeros(3), group)
        return loss

    return shared_gradients


@pytest.mark.parametrize("last", ["waits", "meets others"])
def test_a_rank_that_stays_away_is_one_mistake_however_it_shows(last: str) -> None:
    exercise = EXERCISES["shared_gradients"]
    verdict = judge(exercise, skipping(last), exercise.cases(0))
    assert verdict.mistakes == ("a rank without rows stays away",), verdict.message


def test_a_tensor_of_another_type_is_not_taken_for_a_rank_that_stays_away() -> None:
    def of_two_types(group: Group) -> None:
        ring_all_reduce(torch.zeros(4, dtype=torch.float64 if group.rank else torch.float32), group)

    with pytest.raises(Rejected, match=r"torch\.float64"):
        that_meet(of_two_types, 2, lambda group: (group,), lambda _: {})

    def of_two_sizes(group: Group) -> None:
        ring_all_reduce(torch.zeros(4 + 4 * group.rank), group)

    assert that_meet(of_two_sizes, 2, lambda group: (group,), lambda _: {})[APART].values == 1
