"""How much of the ranks' time a trace leaves empty, and the shares that are called by the same name.

Taught in book/parallelism/pipeline.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scalelab.lab.checks.answers import as_numbers, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import case_of
from scalelab.parallel.scratch.schedules import Operation, make_schedule
from scalelab.parallel.scratch.simulation import simulate

Row = tuple[int, str, int, float, float]  # rank, kind, micro-batch, start, end


def idle_share(rows: list[Row], pp: int) -> float:
    """The share of all ranks' time, from the first start to the last end, in which they do nothing."""
    begun = min(start for _, _, _, start, _ in rows)
    ended = max(end for _, _, _, _, end in rows)
    work = sum(end - start for _, _, _, start, end in rows)
    return 1 - work / (pp * (ended - begun))


def _build(
    *, over: str = "all the time", ranks: str = "all", frame: str = "step", counted: str = "all"
) -> Answer:
    """The share with the given faults; without any, the right one."""

    def answer(rows: list[Row], pp: int) -> float:
        m = 1 + max(i for _, _, i, _, _ in rows)
        if frame == "formula":
            return (pp - 1) / (m if over == "work" else m + pp - 1)
        works, lengths = [], []
        for rank in range(pp):
            own = [row for row in rows if row[0] == rank and (counted == "all" or row[1] == "F")]
            seen = own if frame == "own" else rows
            begun = 0.0 if frame == "zero" else min(row[3] for row in seen)
            ended = max(row[3] if frame == "last start" else row[4] for row in seen)
            works.append(sum(row[4] - row[3] for row in own))
            lengths.append(ended - begun)
        work = works[0] if ranks == "first" else sum(works)
        length = sum(lengths) if ranks == "all" else lengths[0]
        return (length - work) / (work if over == "work" else length)

    return answer


MISTAKES = (
    Mistake(
        name="over the work alone",
        faults={"over": "work"},
        message="The idle time is divided by the time at work. Papers print that, (p - 1)/m, and it can "
        "exceed 1; the share of *all* the time is smaller. Divide by ranks · length of the step.",
    ),
    Mistake(
        name="each rank only between its own first and last pass",
        faults={"frame": "own"},
        message="A rank's time is counted from its own first pass to its own last. Waiting for the first "
        "micro-batch, and for the others to finish, is idle time too, and most of it: the step has one "
        "length for all.",
    ),
    Mistake(
        name="the length of one rank",
        faults={"ranks": "one"},
        message="All ranks' work is compared with the length of the step once: the result is far below 0. "
        "pp ranks have pp times that time.",
    ),
    Mistake(
        name="rank 0 alone",
        faults={"ranks": "first"},
        message="Only rank 0's work is looked at. Stages are not equally long, so ranks do not idle alike: "
        "take all of them.",
    ),
    Mistake(
        name="the clock's zero for the start",
        faults={"frame": "zero"},
        message="The step is taken to begin at 0. The clock's zero is when the machine was started: begin "
        "with the smallest start.",
    ),
    Mistake(
        name="until the last start",
        faults={"frame": "last start"},
        message="The step is taken to end when its last pass begins. It ends with the largest end.",
    ),
    Mistake(
        name="forward passes alone",
        faults={"counted": "F"},
        message="Only forward passes count as work. Going back is work as well, and more of it.",
    ),
    Mistake(
        name="the formula instead of the trace",
        faults={"frame": "formula"},
        message="This is (p - 1)/(m + p - 1), whatever the trace says. The formula holds for equal stages "
        "and free messages; here it is to be tried against times.",
    ),
)

HINTS = (
    "Three sums: when the step begins and ends, how long all passes are together, how much time pp ranks "
    "have.",
    "begun = min of all starts, ended = max of all ends; work = sum of end - start over all rows.",
    "return 1 - work / (pp * (ended - begun)).",
)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    cases = []
    for name, pp, m in (("gpipe", 3, int(rng.integers(3, 6))), ("1f1b", 4, int(rng.integers(5, 9)))):
        lengths = rng.uniform(0.02, 0.05, pp).round(4)
        lengths[0] = lengths.max() + 0.01  # the first rank idles least

        def lasts(rank: int, operation: Operation, lengths: Any = lengths) -> float:
            return float(lengths[rank]) * (2 if operation.kind == "B" else 1)

        zero = round(float(rng.uniform(3, 9)), 3)
        spans = simulate(make_schedule(name, pp, m), lasts, message_s=0.003)
        rows = [
            (s.rank, s.operation.kind, s.operation.micro_batch, zero + s.start_s, zero + s.end_s)
            for s in spans
        ]
        shuffled = [rows[i] for i in rng.permutation(len(rows))]
        cases.append(case_of(f"{name} on {pp} ranks of unequal stages, {m} micro-batches", shuffled, pp))
    return tuple(cases)


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return {"the idle share": as_numbers(call(answer, *args), "the idle share")}


EXERCISE = Exercise(
    name="idle_share",
    reference=idle_share,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-6,
)
