"""The critical batch size from two runs to one loss, and the ways to draw the wrong line through them.

Source: McCandlish et al. 2018, arXiv:1812.06162, section 2. Taught in book/parallelism/data-parallel.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scalelab.lab.checks.answers import call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import case_of, numbers_of

NAMES = ("min_steps", "min_tokens", "critical_batch")


def critical_batch(batch_a: int, steps_a: float, batch_b: int, steps_b: float) -> tuple[float, float, float]:
    """The law S = S_min + E_min / B through two runs that reached the same loss.

    Args:
        batch_a, batch_b: tokens a step. steps_a, steps_b: steps that each took.

    Returns:
        S_min, steps of an endless batch; E_min, tokens of a vanishing one; and E_min / S_min.
    """
    min_tokens = (steps_a - steps_b) / (1 / batch_a - 1 / batch_b)
    min_steps = steps_a - min_tokens / batch_a
    return min_steps, min_tokens, min_tokens / min_steps


def _build(
    *, line: str = "1/B", tokens: str = "slope", ratio: str = "right", steps: str = "intercept"
) -> Answer:
    """The law through two points with the given faults; without any, the right one."""

    def answer(batch_a: int, steps_a: float, batch_b: int, steps_b: float) -> Any:
        if line == "B":
            slope = (steps_a - steps_b) / (batch_a - batch_b)
            least_steps, least_tokens = steps_a - slope * batch_a, abs(slope)
        elif line == "tokens":
            # E against B has S_min for its slope and E_min where it begins; here they are exchanged.
            least_tokens = (batch_a * steps_a - batch_b * steps_b) / (batch_a - batch_b)
            least_steps = batch_a * steps_a - least_tokens * batch_a
        else:
            least_tokens = (steps_a - steps_b) / (1 / batch_a - 1 / batch_b)
            least_steps = steps_a - least_tokens / batch_a
        if steps == "larger batch":
            least_steps = steps_a if batch_a > batch_b else steps_b
        if tokens == "smaller batch":
            least_tokens = min(batch_a * steps_a, batch_b * steps_b)
        critical = least_steps / least_tokens if ratio == "upside down" else least_tokens / least_steps
        if ratio == "mean":
            critical = (batch_a * batch_b) ** 0.5
        return least_steps, least_tokens, critical

    return answer


MISTAKES = (
    Mistake(
        name="a line in B",
        faults={"line": "B"},
        message="Steps fall as 1/B towards S_min, and here a straight line in B itself is drawn through the "
        "runs: it would reach zero steps.",
    ),
    Mistake(
        name="slope and intercept exchanged",
        faults={"line": "tokens"},
        message="In E = E_min + S_min B the slope is S_min and the intercept is E_min: here they are "
        "exchanged.",
    ),
    Mistake(
        name="the larger batch's steps taken for the least",
        faults={"steps": "larger batch"},
        message="S_min is what an endless batch would take; the larger of two runs is still above it.",
    ),
    Mistake(
        name="the smaller run's tokens taken for the least",
        faults={"tokens": "smaller batch"},
        message="E_min is what a vanishing batch would take; the cheaper of two runs is still above it.",
    ),
    Mistake(
        name="upside down",
        faults={"ratio": "upside down"},
        message="The critical batch is tokens over steps, so that it is tokens a step.",
    ),
    Mistake(
        name="the middle of the two batches",
        faults={"ratio": "mean"},
        message="The middle of the batches that were tried says nothing of the law: B_crit is E_min / S_min.",
    ),
)

HINTS = (
    "The law is a straight line in x = 1/B: S = S_min + E_min x. Two points give slope and intercept.",
    "E_min = (S_a - S_b) / (1/B_a - 1/B_b).",
    "Then S_min = S_a - E_min / B_a, and the critical batch is E_min / S_min.",
)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    cases = []
    for exchanged in (False, True):
        steps, critical = float(rng.integers(40, 400)), float(rng.integers(2_000, 9_000))
        sizes = [int(critical * rng.uniform(0.2, 0.7)), int(critical * rng.uniform(1.5, 4))]
        sizes = sizes[::-1] if exchanged else sizes
        runs = [(size, round(steps * (1 + critical / size), 1)) for size in sizes]
        about = " and ".join(f"{taken:,} steps of {size:,} tokens" for size, taken in runs)
        cases.append(case_of(about, *runs[0], *runs[1]))
    return tuple(cases)


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return numbers_of(call(answer, *args), NAMES)


EXERCISE = Exercise(
    name="critical_batch",
    reference=critical_batch,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-4,
    atol=0.0,
)
