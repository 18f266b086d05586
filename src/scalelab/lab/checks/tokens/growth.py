"""The exponent of a power law through measured points, and the ways to read off another number.

Held against numpy's polyfit on logarithms and against planted exponents.
Taught in book/transformers/tokens.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from scalelab.lab.checks.answers import as_numbers, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

Floats = npt.NDArray[np.float64]


def heaps_exponent(n_words: Floats, n_distinct: Floats) -> float:
    """b of n_distinct = K · n_words^b, by least squares on logarithms.

    Args:
        n_words: words read, [P]. n_distinct: distinct words among them, [P].
    """
    x, y = np.log(n_words), np.log(n_distinct)
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


def _build(
    *, scale: str = "log-log", regress: str = "y on x", result: str = "slope", centred: bool = True
) -> Answer:
    """A fit with the given faults; without any, the right one."""

    def answer(n_words: Floats, n_distinct: Floats) -> float:
        x, y = np.asarray(n_words, dtype=float), np.asarray(n_distinct, dtype=float)
        if scale in ("log-log", "log x"):
            x = np.log(x)
        if scale in ("log-log", "log y"):
            y = np.log(y)
        if regress == "x on y":
            x, y = y, x
        if result == "ends":
            return float((y[-1] - y[0]) / (x[-1] - x[0]))
        if not centred:
            return float((x * y).sum() / (x * x).sum())
        dx, dy = x - x.mean(), y - y.mean()
        slope = (dx * dy).sum() / (dx * dx).sum()
        if result == "correlation":
            return float((dx * dy).sum() / np.sqrt((dx * dx).sum() * (dy * dy).sum()))
        return float(y.mean() - slope * x.mean() if result == "intercept" else slope)

    return answer


MISTAKES = (
    Mistake(
        name="no logarithms",
        faults={"scale": "linear"},
        message="This is the slope of a straight line through the counts themselves, distinct words per "
        "word. A power law is straight in the logarithms of both.",
    ),
    Mistake(
        name="logarithm of the distinct words only",
        faults={"scale": "log y"},
        message="Only n_distinct is in logarithms: that fits an exponential. Take the logarithm of both.",
    ),
    Mistake(
        name="logarithm of the words read only",
        faults={"scale": "log x"},
        message="Only n_words is in logarithms: that fits a logarithm. Take the logarithm of both.",
    ),
    Mistake(
        name="axes swapped",
        faults={"regress": "x on y"},
        message="This is the slope of words read over distinct words, about 1/b. n_distinct is the one "
        "that is explained: it goes on the y axis.",
    ),
    Mistake(
        name="intercept in place of slope",
        faults={"result": "intercept"},
        message="This is ln K, the height at one word. The exponent is the slope; np.polyfit returns it "
        "first.",
    ),
    Mistake(
        name="correlation in place of slope",
        faults={"result": "correlation"},
        message="This is the correlation coefficient, which says how straight the line is and not how steep.",
    ),
    Mistake(
        name="line forced through the origin",
        faults={"centred": False},
        message="The line is forced through (ln 1, ln 1), that is, K = 1. K is free: take the means off "
        "first, or fit an intercept.",
    ),
    Mistake(
        name="first and last point only",
        faults={"result": "ends"},
        message="Only the two end points count here; least squares uses all of them.",
    ),
)

HINTS = (
    "Take the logarithm of n_distinct = K · n_words^b. What kind of line is it, and in which variables?",
    "ln n_distinct = ln K + b · ln n_words: b is the slope of y = ln n_distinct over x = ln n_words.",
    "Σ (x - x̄)(y - ȳ) / Σ (x - x̄)², or np.polyfit(x, y, 1)[0].",
)


def _case(about: str, n_words: Floats, n_distinct: Floats) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (n_words.copy(), n_distinct.copy()), {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    exponent, height = rng.uniform(0.5, 0.9), rng.uniform(2, 9)
    exact = np.array([100.0, 1_000.0, 10_000.0, 100_000.0])
    noisy = np.geomspace(1_000, 1_000_000, 9)
    noise = np.exp(rng.normal(0, 0.15, size=9))
    return (
        _case("4 points of an exact power law", exact, height * exact**exponent),
        _case("9 points with noise", noisy, height * noisy ** rng.uniform(0.5, 0.9) * noise),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return {"the exponent": as_numbers(call(answer, *args), "the exponent")}


EXERCISE = Exercise(
    name="heaps_exponent",
    reference=heaps_exponent,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
)
