"""The bottom of an IsoFLOP valley: a parabola in ln N, accepted only where sizes lie on both sides.

Source: Hoffmann et al. 2022, arXiv:2203.15556, section 3.2. Taught in book/scaling-laws/compute-optimal.md.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scalelab.lab.checks.answers import Numbers, Rejected, as_numbers, as_tuple, call, describe
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

PARTS = ("n_opt", "loss_opt", "bracketed")


def valley_bottom(n_params: np.ndarray, loss: np.ndarray) -> tuple[float, float, bool]:
    """(best N, loss there, True); (nan, nan, False) where the runs do not bracket a minimum."""
    x = np.log(n_params)
    square, line, level = np.polyfit(x - x.mean(), loss, 2)
    if square <= 0:
        return math.nan, math.nan, False
    at = -line / (2 * square)
    if not x.min() < at + x.mean() < x.max():
        return math.nan, math.nan, False
    return float(np.exp(x.mean() + at)), float(level - line**2 / (4 * square)), True


def _build(
    *,
    axis: str = "ln",
    height: str = "loss",
    vertex: str = "right",
    opening: bool = True,
    inside: bool = True,
) -> Answer:
    """The bottom with the given faults; without any, the right one."""

    def answer(n_params: np.ndarray, loss: np.ndarray) -> tuple[float, float, bool]:
        n, y = np.asarray(n_params, dtype=float), np.asarray(loss, dtype=float)
        x = {"ln": np.log(n), "N": n, "mixed": np.log10(n)}[axis]
        y = np.log(y) if height == "ln" else y
        square, line, level = np.polyfit(x - x.mean(), y, 2)
        at = -line / (square if vertex == "twice" else 2 * square)
        low = level + line * at + square * at * at
        place = x.mean() + at
        if (opening and square <= 0) or (inside and not x.min() < place < x.max()):
            return math.nan, math.nan, False
        if vertex == "best run":
            return float(n[np.argmin(y)]), float(np.exp(y.min()) if height == "ln" else y.min()), True
        best = place if axis == "N" else math.exp(place)
        return float(best), float(math.exp(low) if height == "ln" else low), True

    return answer


MISTAKES = (
    Mistake(
        name="parabola in N",
        faults={"axis": "N"},
        message="The parabola is fitted over N itself. Sizes are spaced by factors and the valley is "
        "lopsided over N: the largest sizes decide. Take ln N.",
    ),
    Mistake(
        name="logarithms of two bases",
        faults={"axis": "mixed"},
        message="The parabola is over log10 N and its vertex is raised as a power of e. Use one base.",
    ),
    Mistake(
        name="parabola of the logarithm of the loss",
        faults={"height": "ln"},
        message="The parabola goes through ln loss. Near the bottom it hardly matters, and the loss itself "
        "is what was asked.",
    ),
    Mistake(
        name="the best run instead of the vertex",
        faults={"vertex": "best run"},
        message="The size of the best run is handed back. It jumps from one trained size to the next and "
        "follows the luck of single runs; the parabola's vertex uses all of them.",
    ),
    Mistake(
        name="vertex without its 2",
        faults={"vertex": "twice"},
        message="The vertex of p x^2 + q x + r lies at -q/(2p), not at -q/p.",
    ),
    Mistake(
        name="a hill taken for a valley",
        faults={"opening": False},
        message="Where the parabola opens downwards its vertex is the *worst* size. Say that there is no "
        "minimum.",
    ),
    Mistake(
        name="a bottom outside the runs accepted",
        faults={"inside": False},
        message="The vertex lies beyond the smallest or the largest size that was run. All that is known is "
        "on which side to look: (nan, nan, False).",
    ),
)

HINTS = (
    "np.polyfit(np.log(n_params), loss, 2) gives p, q, r of p x^2 + q x + r with x = ln N, the square first.",
    "The vertex lies at x = -q/(2p) and is r - q^2/(4p) deep. It is a minimum when p > 0, and bracketed when "
    "ln(min N) < x < ln(max N).",
    "p, q, r = np.polyfit(np.log(n_params), loss, 2); x = -q/(2*p); ok = p > 0 and min < np.exp(x) < max; "
    "return (np.exp(x), r - q*q/(4*p), True) if ok, else (nan, nan, False).",
)


Valley = tuple[np.ndarray, np.ndarray]


def _case(about: str, *valleys: Valley) -> Case:
    return Case(about=about, make=lambda: (tuple((n.copy(), y.copy()) for n, y in valleys), {}))


def _parabola(rng: np.random.Generator, *, at: float, square: float, n: int = 7) -> Valley:
    """Sizes over a factor of about 60, and losses on a parabola in ln N, roughened."""
    x = math.log(float(rng.uniform(2e4, 5e4))) + np.linspace(0, 4.1, n) + rng.uniform(-0.1, 0.1, n)
    place = x[0] + at * (x[-1] - x[0])
    rough = 0.02 * np.where(np.arange(n) % 2, 1.0, -1.0)
    return np.round(np.exp(x)), float(rng.uniform(2.6, 3.4)) + square * (x - place) ** 2 + rough


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    middle, left = float(rng.uniform(0.4, 0.6)), float(rng.uniform(0.22, 0.32))
    return (
        _case(
            "three budgets: a valley, one whose bottom lies to the left, and losses that still fall at the "
            "largest size",
            _parabola(rng, at=middle, square=0.12),
            _parabola(rng, at=left, square=0.1),
            _parabola(rng, at=1.3, square=0.1),
        ),
        _case(
            "three budgets: a valley, a hill, and losses that rise from the smallest size on",
            _parabola(rng, at=left + 0.3, square=0.08),
            _parabola(rng, at=middle, square=-0.06),
            _parabola(rng, at=-0.3, square=0.1),
        ),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    valleys, _ = case.make()
    found = [as_tuple(call(answer, *valley), PARTS) for valley in valleys]
    numbers = {name: np.array([_one_number(one[i], name) for one in found]) for i, name in enumerate(PARTS)}
    lost = numbers["bracketed"] == 0
    for name in ("n_opt", "loss_opt"):  # what stands there where nothing was found is not compared
        numbers[name] = np.where(lost, 0.0, numbers[name])
    return {name: Numbers(numbers[name], "budget") for name in ("bracketed", "n_opt", "loss_opt")}


def _one_number(value: Any, name: str) -> float:
    """A part of an answer; True and False count as 1 and 0."""
    found = as_numbers(float(value) if isinstance(value, bool | np.bool_) else value, name).values
    if found.size != 1:
        raise Rejected(
            f"returned {describe(value)} for {name}, where one number should be", name="not one number"
        )
    return float(found.reshape(-1)[0])


EXERCISE = Exercise(
    name="valley_bottom",
    reference=valley_bottom,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
)
