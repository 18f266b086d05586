"""Kneser-Ney smoothing of a table of bigram counts, and the ways to lose or invent probability.

The reference is held against `scalelab.data.ngrams` at order 2 in the tests.
Source: Kneser & Ney 1995; Chen & Goodman 1999. Taught in book/transformers/tokens.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from scalelab.lab.checks.answers import as_numbers, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

Floats = npt.NDArray[np.float64]


def kneser_ney(counts: npt.NDArray[np.int64], discount: float) -> Floats:
    """P(next | previous) for a table of bigram counts, interpolated Kneser-Ney.

    Args:
        counts: [V, V]; counts[i, j] is how often j came right after i. discount: D, between 0 and 1.

    Returns:
        [V, V]: rows sum to one, also where i was never seen.
    """
    seen = counts > 0
    continuation = seen.sum(axis=0) / seen.sum()  # [V]: in how many contexts j was seen, as a share
    total = counts.sum(axis=1, keepdims=True)  # [V, 1]
    divisor = np.maximum(total, 1)
    kept = np.maximum(counts - discount, 0) / divisor
    freed = np.where(total > 0, discount * seen.sum(axis=1, keepdims=True) / divisor, 1.0)
    return np.asarray(kept + freed * continuation, dtype=np.float64)


def _build(
    *,
    lower: str = "continuation",
    axis: int = 0,
    freed: str = "types",
    discounted: bool = True,
    clipped: bool = True,
    unseen: str = "lower order",
    divisor: str = "row",
) -> Answer:
    """Smoothing with the given faults; without any, the right one."""

    def answer(counts: npt.NDArray[np.int64], discount: float) -> Floats:
        seen = counts > 0
        table = seen if lower == "continuation" else counts
        below = table.sum(axis=axis) / table.sum()
        if lower == "uniform":
            below = np.full(len(counts), 1 / len(counts))
        total = counts.sum(axis=1, keepdims=True)
        if divisor == "column":
            total = counts.sum(axis=0, keepdims=True)
        safe = np.maximum(total, 1)
        kept = counts - discount if discounted else counts.astype(float)
        if clipped:
            kept = np.maximum(kept, 0)
        weight = {
            "types": discount * seen.sum(axis=1, keepdims=True) / safe,
            "discount": np.full((len(counts), 1), discount),
            "nothing": np.zeros((len(counts), 1)),
        }[freed]
        empty = {"lower order": 1.0, "zero": 0.0, "uniform": 0.0}[unseen]
        p = kept / safe + np.where(counts.sum(axis=1, keepdims=True) > 0, weight, empty) * below
        if unseen == "uniform":
            p[counts.sum(axis=1) == 0] = 1 / len(counts)
        return np.asarray(p, dtype=np.float64)

    return answer


MISTAKES = (
    Mistake(
        name="frequency in place of contexts",
        faults={"lower": "frequency"},
        message="The lower order is how often a symbol comes. Kneser and Ney ask in how many different "
        "contexts it was seen: count the cells above zero in its column, not their sum.",
    ),
    Mistake(
        name="a uniform lower order",
        faults={"lower": "uniform"},
        message="What the discounts free is spread evenly. It should go to each symbol in proportion to the "
        "number of contexts in which it was seen.",
    ),
    Mistake(
        name="contexts counted along the wrong axis",
        faults={"axis": 1},
        message="You count what follows each symbol. A symbol's contexts are what came before it: the cells "
        "above zero in its column, sum over axis 0.",
    ),
    Mistake(
        name="the freed share is D itself",
        faults={"freed": "discount"},
        message="The weight of the lower order is D in every row. Each distinct follower gave up D counts, "
        "so it is D × (distinct followers) / (row's total).",
    ),
    Mistake(
        name="what was freed is lost",
        faults={"freed": "nothing"},
        message="Counts are discounted and nobody gets what was taken: the rows sum to less than one.",
    ),
    Mistake(
        name="nothing discounted",
        faults={"discounted": False},
        message="The lower order is added without taking D off the counts: the rows sum to more than one.",
    ),
    Mistake(
        name="negative counts",
        faults={"clipped": False},
        message="A count of 0 less D is negative, and stays so. max(count - D, 0).",
    ),
    Mistake(
        name="unseen contexts have no probabilities",
        faults={"unseen": "zero"},
        message="A row that was never seen is all zero. Where nothing is known of the context, all weight "
        "belongs to the lower order.",
    ),
    Mistake(
        name="unseen contexts are uniform",
        faults={"unseen": "uniform"},
        message="A row that was never seen is uniform. The lower order knows more than that: use it alone.",
    ),
    Mistake(
        name="divided by columns",
        faults={"divisor": "column"},
        message="Counts are divided by their column's total, which is P(previous | next). Divide by the "
        "row's.",
    ),
)

HINTS = (
    "Two parts are added: what each count keeps, and what the row gave up, handed out by the lower order. "
    "Sum a row in your head: is it one?",
    "Kept: max(c - D, 0) / row total. Given up by a row: D × number of its cells above zero / row total. "
    "Lower order of j: cells above zero in column j over all cells above zero.",
    "seen = counts > 0; below = seen.sum(0) / seen.sum(); total = counts.sum(1, keepdims=True); where total "
    "is 0 the given-up share is 1.",
)


def _case(about: str, counts: npt.NDArray[np.int64], discount: float) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (counts.copy(), discount), {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    size = int(rng.integers(5, 8))
    small = np.array([[4, 1, 0], [0, 2, int(rng.integers(3, 7))], [1, 0, 0]])
    table = rng.poisson(rng.gamma(0.6, 2.0, size=(size, size)))
    table[np.arange(size), rng.integers(size, size=size)] += 1  # no row is empty by chance
    empty = table.copy()
    empty[int(rng.integers(size))] = 0
    empty[:, 0] += (empty.sum(axis=1) > 0) * 2
    return (
        _case("3 symbols", small, float(rng.uniform(0.4, 0.6))),
        _case(f"{size} symbols", table, float(rng.uniform(0.6, 0.9))),
        _case(f"{size} symbols, of which one was never followed by any", empty, float(rng.uniform(0.3, 0.7))),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    with np.errstate(all="ignore"):  # a learner's division by zero is told by what it gives
        return {"P": as_numbers(call(answer, *args), "P")}


EXERCISE = Exercise(
    name="kneser_ney",
    reference=kneser_ney,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
)
