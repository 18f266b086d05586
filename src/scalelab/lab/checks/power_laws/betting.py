"""An interval for one run to come: how well the law is known *and* how far one run strays from it.

Source: Efron and Tibshirani 1993, chapter 13 (percentile intervals) and section 25 (prediction).
Taught in book/scaling-laws/power-laws.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtri

from scalelab.lab.checks.answers import call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import numbers_of

PARTS = ("low", "high")


def bet_interval(
    means: np.ndarray, errors: np.ndarray, picks: np.ndarray, level: float
) -> tuple[float, float]:
    """(low, high), nats: the middle `level` of losses that one new run could have.

    Args:
        means: [S], the loss that each refitted law foretells. errors: [R], ln(loss / law) of the fitted runs.
        picks: [S], which of the errors the new run meets in each draw.
    """
    losses = means * np.exp(errors[picks])
    tail = (1 - level) / 2
    low, high = np.quantile(losses, [tail, 1 - tail])
    return float(low), float(high)


def _build(
    *, noise: str = "relative", law: str = "drawn", tails: str = "both", order: str = "rising"
) -> Answer:
    """The interval with the given faults; without any, the right one."""

    def answer(means: np.ndarray, errors: np.ndarray, picks: np.ndarray, level: float) -> tuple[float, float]:
        centre = np.full_like(means, np.mean(means)) if law == "mean" else means
        losses = {
            "relative": centre * np.exp(errors[picks]),
            "none": centre,
            "nats": centre + errors[picks],
            "of a mean": centre * np.exp(errors[picks] / np.sqrt(len(errors))),
            "mean error": centre * np.exp(np.mean(errors)),
        }[noise]
        if tails == "normal":
            half = float(ndtri((1 + level) / 2)) * np.std(losses)
            ends = [float(np.mean(losses) - half), float(np.mean(losses) + half)]
        else:
            tail = {"both": (1 - level) / 2, "one each": 1 - level, "all": 0.0}[tails]
            ends = [float(end) for end in np.quantile(losses, [tail, 1 - tail])]
        return (ends[1], ends[0]) if order == "falling" else (ends[0], ends[1])

    return answer


MISTAKES = (
    Mistake(
        name="a confidence interval used for a prediction",
        faults={"noise": "none"},
        message="This interval is about the *law*: where the mean of endlessly many runs lies. The bet is on "
        "one run, which strays from its law by its own error: let each draw meet errors[picks].",
    ),
    Mistake(
        name="a relative error added as nats",
        faults={"noise": "nats"},
        message="errors are logarithms of loss over law, so they multiply: means * exp(errors[picks]).",
    ),
    Mistake(
        name="the error of a mean",
        faults={"noise": "of a mean"},
        message="The errors are divided by the root of their number. That is how far the mean of so many "
        "runs strays; one run strays by a whole error.",
    ),
    Mistake(
        name="the mean error for every draw",
        faults={"noise": "mean error"},
        message="Every draw meets the mean of the errors, which is small. Each meets one of its own: "
        "errors[picks].",
    ),
    Mistake(
        name="the law taken for known",
        faults={"law": "mean"},
        message="All draws start from the mean prediction, as if the law were known exactly. Each refit has "
        "its own.",
    ),
    Mistake(
        name="the whole share cut off on each side",
        faults={"tails": "one each"},
        message="1 - level is cut off at *each* end, so that the interval holds too little: half of it on "
        "each side.",
    ),
    Mistake(
        name="from smallest to largest draw",
        faults={"tails": "all"},
        message="The ends are the smallest and the largest draw: that grows with the number of draws, and "
        "holds them all, not `level` of them.",
    ),
    Mistake(
        name="as many standard deviations as a normal law has",
        faults={"tails": "normal"},
        message="The ends are the mean and 1.64 (or so) standard deviations to either side, as if the draws "
        "were normal. They need not be; the draws themselves say where their middle `level` lies: quantiles.",
    ),
    Mistake(
        name="high before low",
        faults={"order": "falling"},
        message="The larger end comes first; asked is (low, high).",
    ),
)

HINTS = (
    "Two things are uncertain: which law is right (means), and what this one run does (errors). Both belong "
    "in each draw.",
    "An error is ln(loss / law), so a draw's loss is means * np.exp(errors[picks]). Then quantiles, with "
    "half of 1 - level at either end.",
    "np.quantile(means * np.exp(errors[picks]), [(1 - level) / 2, (1 + level) / 2]).",
)


def _case(about: str, values: tuple[Any, ...]) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        means, errors, picks, level = values
        return (means.copy(), errors.copy(), picks.copy(), level), {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    """Draws so many that every usual definition of a quantile gives the same; errors that are not normal."""
    cases = []
    for n_runs, n_draws, level in ((20, 20_000, 0.9), (30, 25_000, 0.8)):  # roots far from any mean
        means = rng.uniform(2.5, 3.5) * np.exp(rng.normal(0, 0.03, n_draws))
        errors = 0.1 * rng.uniform(size=n_runs) ** 2  # skewed, and no gap in the tail
        errors += 0.006 - np.mean(errors)
        picks = rng.integers(n_runs, size=n_draws)
        about = f"{n_draws:,} refits, {n_runs} errors, level {level}"
        cases.append(_case(about, (means, errors, picks, level)))
    return tuple(cases)


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return numbers_of(call(answer, *args), PARTS)


EXERCISE = Exercise(
    name="bet_interval",
    reference=bet_interval,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=3e-4,
)
