"""A rank's part of a pipelined step, from its order: what it receives, keeps, sends on and hands back.

The check runs it on ranks that are threads, with a small stage on each, and reads loss and gradients.
Source: Huang et al. 2018, arXiv:1811.06965, section 2. Taught in book/parallelism/pipeline.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scalelab.lab.checks.answers import Numbers, as_numbers
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.pipeline.ordering import one_f_one_b
from scalelab.lab.checks.ranks import on_ranks
from scalelab.parallel.scratch.group import Group

WIDTH = 3
Order = list[tuple[str, int]]
Losses = Callable[[Tensor, int], Tensor]


def receive(group: Group, tensor: Tensor, source: int) -> Tensor:
    """Wait for a rank's message: the tensor with what came, of which a gradient can be asked."""
    group.recv(tensor, source)
    return tensor.requires_grad_()


def run_stage(
    group: Group, order: Order, stage: nn.Module, streams: list[Tensor], losses: Losses, counts: list[int]
) -> float:
    """Do this rank's passes; returns the loss on the last rank, 0 elsewhere."""
    first, last = group.rank == 0, group.rank == group.size - 1
    kept, sending, total = {}, [], 0.0
    for kind, i in order:
        if kind == "F":
            x = streams[i] if first else receive(group, streams[i], group.previous)
            y = stage(x)
            if last:
                y = losses(y, i) / sum(counts)
                total += y.item()
            else:
                sending.append(group.isend(y, group.next))
            kept[i] = x, y
        else:
            x, y = kept.pop(i)
            dy = None if last else receive(group, torch.empty_like(y), group.next)
            y.backward(dy)
            if not first:
                sending.append(group.isend(x.grad, group.previous))  # type: ignore[arg-type]
    for pending in sending:
        pending.wait()
    return total


def _build(
    *, divided: str = "by all", sends: str = "at once", keeps: str = "by number", handed: str = "x",
    gradients: str = "added", returned: str = "sum", received: str = "each",
) -> Answer:  # fmt: skip
    """A rank's part with the given faults; without any, the right one."""

    def answer(
        group: Group, order: Order, stage: nn.Module, streams: list[Tensor], losses: Losses, counts: list[int]
    ) -> float:
        first, last = group.rank == 0, group.rank == group.size - 1
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        sending: list[Any] = []
        total, latest = 0.0, None
        for kind, i in order:
            if kind == "F":
                x = streams[i]
                if not first:
                    group.recv(x, group.rank - 1)
                    if received == "first again":
                        latest = x.clone() if latest is None else latest
                        x = latest.clone() if latest.shape == x.shape else x
                    x.requires_grad_()
                y = stage(x)
                if last:
                    y = losses(y, i) / _divisor(divided, i, counts)
                    total = y.item() + (total if returned == "sum" else 0.0)
                elif sends == "waits":
                    group.send(y, group.rank + 1)
                else:
                    sending.append(group.isend(y, group.rank + 1))
                kept[i] = x, y
                continue
            x, y = kept.pop(max(kept) if keeps == "a stack" else i)
            dy = None
            if not last:
                dy = torch.empty_like(y)
                group.recv(dy, group.rank + 1)
            if gradients == "overwritten":
                stage.zero_grad()
            y.backward(dy)  # type: ignore[no-untyped-call]
            gradient = x.grad
            if first or gradient is None or handed == "nothing":
                continue
            if handed == "y" and dy is not None:
                gradient = dy
            if handed == "zeros":
                gradient = torch.zeros_like(gradient)
            if sends == "waits":
                group.send(gradient, group.rank - 1)
            else:
                sending.append(group.isend(gradient, group.rank - 1))
        for pending in sending:
            pending.wait()
        return total

    return answer


def _divisor(divided: str, i: int, counts: list[int]) -> float:
    return {
        "not": 1,
        "by its own": counts[i],
        "mean of means": counts[i] * len(counts),
        "by number of micro-batches": len(counts),
    }.get(divided, sum(counts))


MISTAKES = (
    Mistake(
        name="not divided",
        faults={"divided": "not"},
        message="A micro-batch's loss stays a sum, so loss and gradients grow with the batch. Divide by the "
        "count of targets in the *whole* batch, sum(counts).",
    ),
    Mistake(
        name="each micro-batch divided by its own count",
        faults={"divided": "by its own"},
        message="Each micro-batch's mean is added up: m times too much. Divide by sum(counts), so that the "
        "parts add up to the batch's mean.",
    ),
    Mistake(
        name="a mean of means",
        faults={"divided": "mean of means"},
        message="The means of the micro-batches are averaged. That is right only where all have equally many "
        "targets; padding and the last batch see to it that they do not. Divide every sum by sum(counts).",
    ),
    Mistake(
        name="divided by the number of micro-batches",
        faults={"divided": "by number of micro-batches"},
        message="Sums over targets are divided by the number of micro-batches. The batch's mean is per "
        "target: divide by sum(counts).",
    ),
    Mistake(
        name="waits for each message to be taken",
        faults={"sends": "waits"},
        message="`group.send` returns when the other rank has received. In 1F1B two neighbours send at the "
        "same time, one forward and one back: both wait to be received from. Begin with `isend`, go on, and "
        "wait at the end.",
    ),
    Mistake(
        name="activations on a stack",
        faults={"keeps": "a stack"},
        message="The way back takes what was kept last. In 1F1B the oldest micro-batch goes back first, so "
        "one micro-batch's gradient meets another's activations: keep them under their number.",
    ),
    Mistake(
        name="the first micro-batch again",
        faults={"received": "first again"},
        message="Every micro-batch is computed from what came for the first: stale activations. Each has a "
        "tensor of its own to receive into, streams[i].",
    ),
    Mistake(
        name="hands on the gradient it got",
        faults={"handed": "y"},
        message="The rank passes the gradient of its output back as it came. The rank before needs that of "
        "*its* output, which is this rank's input: x.grad, after backward.",
    ),
    Mistake(
        name="sends no gradient back",
        faults={"handed": "nothing"},
        message="No gradient is sent to the rank before, which waits for one at its first backward pass. "
        "After backward, isend x.grad to group.previous.",
    ),
    Mistake(
        name="sends zeros back",
        faults={"handed": "zeros"},
        message="Zeros are sent to the rank before, so its weights learn nothing. Was x.grad read before "
        "backward, or of another tensor? The input must require a gradient before the stage computes.",
    ),
    Mistake(
        name="each micro-batch's gradients replace the others'",
        faults={"gradients": "overwritten"},
        message="The weights' gradients are those of the last micro-batch. backward adds to what is there: "
        "clear them once before the step, not for every micro-batch.",
    ),
    Mistake(
        name="the last micro-batch's loss",
        faults={"returned": "last"},
        message="What is returned is one micro-batch's part of the loss. The batch's is the sum of all "
        "parts.",
    ),
)

HINTS = (
    "F: where does x come from (rank 0 has it), where does y go (the last rank makes a loss of it)? B: "
    "where does the gradient of y come from, and where does that of x go?",
    "x = receive(group, streams[i], group.previous); kept[i] = x, y. On the way back y.backward(dy), with dy "
    "received into torch.empty_like(y), None on the last rank; then isend x.grad.",
    "Last rank: y = losses(y, i) / sum(counts). Others: sending.append(group.isend(y, group.next)). "
    "After the loop: for pending in sending: pending.wait().",
)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    cases = []
    for pp, m, rows in ((2, 4, 2), (3, 5, 2), (3, 2, 3)):
        # Targets of 1, 2, …: no two micro-batches have equally many.
        counts = rng.permutation(np.arange(1, m + 1)).tolist()
        seed = int(rng.integers(1 << 30))
        about = f"{pp} ranks and {m} micro-batches of {', '.join(map(str, counts))} targets"

        def make(pp: int = pp, m: int = m, rows: int = rows, counts: Any = counts, seed: int = seed) -> Any:
            return (pp, m, rows, list(counts), seed), {}

        cases.append(Case(about=about, make=make))
    return tuple(cases)


def _make_stage(rank: int, draw: torch.Generator) -> nn.Module:
    linear = nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(WIDTH, WIDTH, generator=draw, dtype=torch.float64))
    return nn.Sequential(linear, nn.Tanh())


def _observe(answer: Answer, case: Case) -> Observation:
    (pp, m, rows, counts, seed), _ = case.make()
    stages: dict[int, nn.Module] = {}

    def arguments(group: Group) -> tuple[Any, ...]:
        draw = torch.Generator().manual_seed(seed)
        inputs = torch.randn(m, rows, WIDTH, generator=draw, dtype=torch.float64)
        weights = torch.rand(m, rows, WIDTH, generator=draw, dtype=torch.float64)
        all_stages = [_make_stage(rank, draw) for rank in range(pp)]
        stages[group.rank] = all_stages[group.rank]
        empty = torch.full_like(inputs, torch.nan)  # what has not been received shows
        streams = [part.clone() for part in (inputs if group.rank == 0 else empty)]

        def losses(y: Tensor, i: int) -> Tensor:
            loss: Tensor = counts[i] * (weights[i] * (y - 0.3) ** 2).sum()
            return loss

        order = one_f_one_b(group.rank, pp, m)
        return group, order, stages[group.rank], streams, losses, list(counts)

    def read(answers: list[Any]) -> Observation:
        found = {"the loss": as_numbers(answers[-1], "the loss")}
        for rank in range(pp):
            weight = next(stages[rank].parameters())
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            found[f"rank {rank}'s gradient"] = Numbers(gradient.numpy().copy())
        return found

    return on_ranks(answer, pp, arguments, read)


EXERCISE = Exercise(
    name="run_stage",
    reference=run_stage,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-6,
    atol=1e-10,
)
