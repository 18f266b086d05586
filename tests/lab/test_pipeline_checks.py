"""Checks of the pipeline lab: references equal the package's; odd answers are told from right ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scalelab.lab.checks import Exercise, exercises, judge
from scalelab.lab.checks.pipeline.running import WIDTH
from scalelab.parallel.scratch import schedules
from scalelab.parallel.scratch.simulation import simulate
from scalelab.parallel.scratch.stages import layers_of
from scalelab.parallel.scratch.trace import shares

EXERCISES = exercises("parallelism/pipeline")
SEEDS = (0, 1, 12345)


@pytest.fixture(params=list(EXERCISES))
def exercise(request: pytest.FixtureRequest) -> Exercise:
    return EXERCISES[request.param]


def test_there_are_four_exercises() -> None:
    assert list(EXERCISES) == ["deal_layers", "one_f_one_b", "run_stage", "idle_share"]


def test_references_equal_the_packages_own() -> None:
    order, deal = EXERCISES["one_f_one_b"].reference, EXERCISES["deal_layers"].reference
    for pp in range(1, 6):
        for m in range(1, 10):
            for rank, own in enumerate(schedules.one_f_one_b(pp, m)):
                assert order(rank, pp, m) == [(o.kind, o.micro_batch) for o in own]
            spans = simulate(schedules.gpipe(pp, m), message_s=0.1)
            rows = [(s.rank, s.operation.kind, s.operation.micro_batch, s.start_s, s.end_s) for s in spans]
            assert EXERCISES["idle_share"].reference(rows, pp) == pytest.approx(1 - shares(spans).work)
        for v in (1, 2, 3):
            n_layers = pp * v + 4
            for rank, chunks in enumerate(deal(n_layers, pp, v)):
                wanted = [layers_of(n_layers, schedules.stage_of(rank, c, pp), pp * v) for c in range(v)]
                assert chunks == [list(layers) for layers in wanted]


UNLISTED: dict[str, list[Any]] = {
    "deal_layers": [
        lambda n, pp, v: [[list(range(n))] + [[]] * (v - 1)] + [[[]] * v] * (pp - 1),
        lambda n, pp, v: [[list(range(r + c * pp, n, pp * v)) for c in range(v)] for r in range(pp)],
    ],
    "one_f_one_b": [
        lambda rank, pp, m: [],
        lambda rank, pp, m: [(kind, i) for i in range(m) for kind in "BF"],
    ],
    "run_stage": [lambda group, *rest: 0.0, lambda group, *rest: float("nan")],
    "idle_share": [lambda rows, pp: 0.5, lambda rows, pp: float("nan"), lambda rows, pp: len(rows) / pp],
}


@pytest.mark.parametrize(("name", "number"), [(n, i) for n, a in UNLISTED.items() for i in range(len(a))])
def test_unlisted_mistakes_get_a_neutral_account(name: str, number: int) -> None:
    for seed in SEEDS:
        verdict = judge(EXERCISES[name], UNLISTED[name][number], EXERCISES[name].cases(seed))
        assert verdict.outcome == "unknown mistake", verdict.message
        assert "On " in verdict.message


@pytest.mark.parametrize(
    "answer",
    [None, 3, lambda: 1, lambda *a: None, lambda *a: "text", lambda *a: (1, "b"), lambda *a: 1j,
     lambda *a: [("F", "0")], lambda *a: [[1.5]], lambda *a: [3, 4, 5]],
)  # fmt: skip
def test_answers_of_the_wrong_kind_get_a_precise_account(exercise: Exercise, answer: Any) -> None:
    verdict = judge(exercise, answer, exercise.cases(0))
    assert not verdict.right
    assert exercise.name in verdict.message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda n, pp, v: [[[0], [0]]] + [[[]] * v] * (pp - 1), "deals layer 0 twice"),
        (lambda n, pp, v: [[[n]]] + [[[]] * v] * (pp - 1), "deals layer"),
        (lambda n, pp, v: [[]], "a list with one entry for each rank"),
        (lambda n, pp, v: [["text"]] * pp, "a list of layers"),
        (lambda n, pp, v: [[["a"]]] * pp, "for a layer's number"),
    ],
)
def test_a_deal_that_is_none_is_told_in_words(answer: Any, words: str) -> None:
    verdict = judge(EXERCISES["deal_layers"], answer, EXERCISES["deal_layers"].cases(0))
    assert verdict.outcome == "broken"
    assert words in verdict.message


# --- ranks that run together --------------------------------------------------------------------------------


def send_first(group: Any, order: Any, stage: Any, streams: Any, losses: Any, counts: Any) -> float:
    """Messages that are waited for: the deadlock that every pipeline's author meets once."""
    reference = EXERCISES["run_stage"].make_mistake("waits for each message to be taken")
    return float(reference(group, order, stage, streams, losses, counts))


def test_a_deadlock_is_named_and_says_who_waits_for_whom() -> None:
    verdict = judge(EXERCISES["run_stage"], send_first, EXERCISES["run_stage"].cases(0))
    assert verdict.mistakes == ("waits for each message to be taken",)
    assert "rank 0 waits to send" in verdict.message
    assert "rank 1 waits to send" in verdict.message


def test_a_rank_that_stays_away_is_told_by_who_waits_for_it() -> None:
    def away(group: Any, order: Any, stage: Any, streams: Any, losses: Any, counts: Any) -> float:
        return 0.0 if group.rank == 0 else EXERCISES["run_stage"].reference(
            group, order, stage, streams, losses, counts
        )  # fmt: skip

    verdict = judge(EXERCISES["run_stage"], away, EXERCISES["run_stage"].cases(0))
    assert not verdict.right
    assert "rank 1 waits to receive" in verdict.message


def test_an_error_on_a_rank_is_the_learners_with_its_line() -> None:
    def forgets(group: Any, order: Any, stage: Any, streams: Any, losses: Any, counts: Any) -> float:
        x = streams[0]
        if group.rank > 0:
            group.recv(x, group.rank - 1)
        y = stage(x)
        group.isend(x.grad, 1 - group.rank)
        return float(y.sum())

    verdict = judge(EXERCISES["run_stage"], forgets, EXERCISES["run_stage"].cases(0))
    assert verdict.outcome == "broken"
    assert "AttributeError" in verdict.message


def batched_sends(group: Any, order: Any, stage: Any, streams: Any, losses: Any, counts: Any) -> float:
    """Right in another way: inputs are received ahead of time, gradients by autograd.grad."""
    first, last = group.rank == 0, group.rank == group.size - 1
    coming = {} if first else {i: group.irecv(x, group.rank - 1) for i, x in enumerate(streams)}
    kept, sent, total = {}, [], torch.zeros((), dtype=torch.float64)
    for kind, i in order:
        if kind == "F":
            if not first:
                coming[i].wait()
            x = streams[i].detach().requires_grad_(not first)
            y = stage(x)
            if last:
                y = losses(y, i) * (1 / sum(counts))
                total = total + y.detach()
            else:
                sent.append(group.isend(y.detach().clone(), group.rank + 1))
            kept[i] = (x, y)
        else:
            x, y = kept.pop(i)
            dy = None if last else torch.zeros_like(y)
            if dy is not None:
                group.recv(dy, group.rank + 1)
            inputs = [*stage.parameters()] + ([] if first else [x])
            found = torch.autograd.grad(y, inputs, dy)
            for weight, gradient in zip(stage.parameters(), found, strict=False):
                weight.grad = gradient if weight.grad is None else weight.grad + gradient
            if not first:
                sent.append(group.isend(found[-1], group.rank - 1))
    for message in sent:
        message.wait()
    return float(total)


def test_other_right_ways_pass() -> None:
    def by_steps(rank: int, pp: int, m: int) -> Any:
        """At each moment: forward if too few are under way, else back."""
        order, held, done = [], [], 0
        while done < m or held:
            if done < m and len(held) < pp - rank:
                order.append(["F", done])
                held.append(done)
                done += 1
            else:
                order.append(["B", held.pop(0)])
        return order

    def by_split(n: int, pp: int, v: int) -> Any:
        pieces = torch.arange(n).tensor_split(pp * v)
        return tuple(tuple(tuple(piece.tolist()) for piece in pieces[rank::pp]) for rank in range(pp))

    def by_rank(rows: Any, pp: int) -> Any:
        begun, ended = min(row[3] for row in rows), max(row[4] for row in rows)
        idle = [ended - begun - sum(e - s for r, _, _, s, e in rows if r == rank) for rank in range(pp)]
        return torch.tensor(idle, dtype=torch.float64).mean() / (ended - begun)

    ways = {
        "one_f_one_b": by_steps,
        "deal_layers": by_split,
        "idle_share": by_rank,
        "run_stage": batched_sends,
    }
    for name, answer in ways.items():
        for seed in SEEDS:
            for cases in (EXERCISES[name].cases(seed), EXERCISES[name].hidden_cases(seed)):
                verdict = judge(EXERCISES[name], answer, cases)
                assert verdict.right, verdict.message


def test_streams_that_were_never_received_show() -> None:
    """What other ranks are to receive into is filled with NaN, so reading it early cannot pass."""

    def reads_early(group: Any, order: Any, stage: Any, streams: Any, losses: Any, counts: Any) -> float:
        assert streams[0].shape[-1] == WIDTH
        return float(streams[0].sum())

    verdict = judge(EXERCISES["run_stage"], reads_early, EXERCISES["run_stage"].cases(0))
    assert not verdict.right
