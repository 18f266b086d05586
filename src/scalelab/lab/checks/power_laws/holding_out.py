"""A form is judged by the largest runs, which its fit has not seen; and the ways to let it see or miss them.

Source: Alabdulmohsin et al. 2022, arXiv:2209.06640 (laws judged by extrapolation, not by fit).
Taught in book/scaling-laws/power-laws.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from scalelab.lab.checks.answers import Numbers, Rejected, as_numbers, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

Predict = Callable[[np.ndarray], np.ndarray]
Fit = Callable[[np.ndarray, np.ndarray], Predict]


def held_out_rmse(scale: np.ndarray, loss: np.ndarray, fit: Fit, n_sizes: int) -> float:
    """Root mean squared error, nats, on all runs of the n_sizes largest sizes, none of them fitted.

    Args:
        scale, loss: [R], in any order, several runs (seeds) of a size. fit: (scale, loss) to a function that
            predicts losses of scales.
    """
    first = np.unique(scale)[-n_sizes]  # unique sorts
    held = scale >= first
    predict = fit(scale[~held], loss[~held])
    return float(np.sqrt(np.mean((predict(scale[held]) - loss[held]) ** 2)))


def _build(*, which: str = "largest sizes", fitted: str = "rest", measure: str = "rmse") -> Answer:
    """The judgement with the given faults; without any, the right one."""

    def answer(scale: np.ndarray, loss: np.ndarray, fit: Fit, n_sizes: int) -> float:
        held = _held(scale, loss, n_sizes, which)
        seen = np.ones_like(held) if fitted in ("all", "nothing held out") else ~held
        judged = seen if fitted in ("judged in sample", "nothing held out") else held
        foretold = fit(scale[seen], loss[seen])(scale)
        if fitted == "in turn":
            judged = np.ones_like(held)
            for size in np.unique(scale):
                rest = scale != size
                foretold[~rest] = fit(scale[rest], loss[rest])(scale[~rest])
        error = foretold[judged] - loss[judged]
        squares = float(np.mean(error**2))
        spread = float(np.mean((loss[judged] - loss[judged].mean()) ** 2))
        return float(
            {
                "rmse": np.sqrt(squares),
                "r2": 1 - squares / spread,
                "mse": squares,
                "bias": float(np.mean(error)),
                "absolute": float(np.mean(np.abs(error))),
                "log": float(np.sqrt(np.mean(np.log(foretold[judged] / loss[judged]) ** 2))),
            }[measure]
        )

    return answer


def _held(scale: np.ndarray, loss: np.ndarray, n_sizes: int, which: str) -> np.ndarray:
    sizes, n_runs = np.unique(scale), len(scale)
    n_held = int(np.sum(scale >= sizes[-n_sizes]))
    held = np.zeros(n_runs, dtype=bool)
    if which == "random":
        held[np.random.default_rng(0).permutation(n_runs)[:n_held]] = True
    elif which == "largest runs":
        held[np.argsort(scale, kind="stable")[-n_sizes:]] = True
    elif which == "other seeds":  # as an unstable sort may order the runs of one size
        held[n_runs - 1 - np.argsort(scale[::-1], kind="stable")[-n_sizes:]] = True
    elif which == "smallest sizes":
        held = scale <= sizes[n_sizes - 1]
    elif which == "above":  # > instead of >=: a size too few
        held = scale > sizes[-n_sizes]
    else:
        held = scale >= sizes[-n_sizes]
    return held


SEEN = ("largest sizes in the fit", "smaller sizes left out of the fit", "held-out runs between fitted ones")
N_SEEN = "runs of the largest sizes in the fit"
ALONE = {"which": "largest sizes", "fitted": "rest", "measure": "rmse"}  # no other mistake goes with it

# The last two are known by what the fit was shown alone, so they come after those known by their numbers too.
MISTAKES = (
    Mistake(
        name="the largest runs seen by the fit",
        faults={"fitted": "all"},
        message="The fit has seen the runs that it is judged by. Fit the rest alone.",
    ),
    Mistake(
        name="judged by the runs of the fit",
        faults={"fitted": "judged in sample"},
        message="The error is that of the runs which were fitted. Predict the held-out ones.",
    ),
    Mistake(
        name="nothing held out",
        faults={"fitted": "nothing held out"},
        message="All runs are fitted, and all are judged: this says how well the form bends to runs that it "
        "has seen. Hold the largest sizes out.",
    ),
    Mistake(
        name="each size held out in turn",
        faults={**ALONE, "fitted": "in turn"},
        message="Each size is left out once, and most of them lie *between* those that are fitted, where "
        "every smooth curve passes. A law is used beyond its runs: hold out the largest sizes alone.",
    ),
    Mistake(
        name="judged by R²",
        faults={"measure": "r2"},
        message="This is R². It compares errors with the spread of the losses, so it is near 1 for any "
        "falling curve, and of runs that hardly differ it means nothing. Asked is the error in nats.",
    ),
    Mistake(
        name="runs counted, not sizes",
        faults={"which": "largest runs"},
        message="The last n_sizes *runs* are held out: other seeds of the same size stay in the fit, and "
        "tell it the answer. Hold out whole sizes.",
    ),
    Mistake(
        name="the smallest sizes held out",
        faults={"which": "smallest sizes"},
        message="The smallest sizes are held out. Laws are used upwards: hold out the largest.",
    ),
    Mistake(
        name="a size too few",
        faults={"which": "above"},
        message="One size too few is held out: >= the smallest of the held-out sizes, not >.",
    ),
    Mistake(
        name="no root",
        faults={"measure": "mse"},
        message="The mean of the squares is returned, in nats squared. Take its root.",
    ),
    Mistake(
        name="errors cancel",
        faults={"measure": "bias"},
        message="The mean error is returned, in which misses upwards and downwards cancel. Square first.",
    ),
    Mistake(
        name="absolute errors",
        faults={"measure": "absolute"},
        message="The mean of the absolute errors is returned. It says nearly the same, but asked is the root "
        "of the mean square, to which a large miss counts for more.",
    ),
    Mistake(
        name="errors of logarithms",
        faults={"measure": "log"},
        message="These are errors of ln loss, shares of it. Asked are nats: subtract losses, not logarithms.",
    ),
    Mistake(
        name="some seeds of a size held out, others fitted",
        faults={**ALONE, "which": "other seeds"},
        seen_in=(*SEEN, N_SEEN),
        message="Only n_sizes *runs* are held out: other seeds of the same size stay in the fit, and tell it "
        "the answer. Hold out whole sizes.",
    ),
    Mistake(
        name="random hold-out",
        faults={**ALONE, "which": "random"},
        seen_in=SEEN,
        message="Runs are held out at random, or by their place in the table: they lie *between* those of "
        "the fit, where every smooth curve passes. What is asked is how a form does beyond its runs: hold "
        "out the largest sizes.",
    ),
)

HINTS = (
    "Which sizes are there (np.unique), which are the n_sizes largest, and which runs have them?",
    "held = scale >= np.unique(scale)[-n_sizes] is True for every seed of the largest sizes. Fit the others, "
    "predict these.",
    "predict = fit(scale[~held], loss[~held]); error = predict(scale[held]) - loss[held]; "
    "np.sqrt(np.mean(error ** 2)).",
)


def line_fit(scale: np.ndarray, loss: np.ndarray) -> Predict:
    """A pure power by log-log regression, as something that predicts."""
    slope, intercept = np.polyfit(np.log(scale), np.log(loss), 1)
    return lambda x: np.asarray(np.exp(intercept + slope * np.log(x)))


def _case(about: str, scale: np.ndarray, loss: np.ndarray, n_sizes: int) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (scale.copy(), loss.copy(), line_fit, n_sizes), {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    cases = []
    for n_all, n_sizes, n_seeds in ((9, 3, 4), (10, 2, 5)):
        sizes = np.geomspace(1e3, 1e5, n_all)
        scale = np.repeat(sizes, n_seeds)
        law = rng.uniform(1, 2) + 3 * (scale / 1e3) ** -rng.uniform(0.4, 0.6)
        loss = law * np.exp(rng.normal(0, 0.01, len(scale)))
        mixed = rng.permutation(len(scale))
        about = f"{n_all} sizes with {n_seeds} seeds each, the {n_sizes} largest sizes held out"
        cases.append(_case(about, scale[mixed], loss[mixed], n_sizes))
    return tuple(cases)


def _observe(answer: Answer, case: Case) -> Observation:
    """The error, and what the fit was shown: 1 where any of those runs was, or was not; and how many."""
    (scale, loss, given, n_sizes), _ = case.make()
    fit: Fit = given
    shown: list[float] = []

    def watched(x: np.ndarray, y: np.ndarray) -> Predict:
        shown.extend(np.atleast_1d(np.asarray(x, dtype=float)).tolist())
        return fit(x, y)

    value = call(answer, scale, loss, watched, n_sizes)
    if not shown:
        raise Rejected("never calls the fit that it is handed", name="fit not called")
    large = scale >= np.unique(scale)[-n_sizes]
    missing = [x for x in np.unique(scale) if shown.count(x) < np.sum(scale == x)]
    between = any(min(shown) < x < max(shown) for x in missing)
    return {
        SEEN[0]: Numbers(np.array(float(_n_shown(shown, scale[large]) > 0))),
        SEEN[1]: Numbers(np.array(float(_n_shown(shown, scale[~large]) < np.sum(~large)))),
        SEEN[2]: Numbers(np.array(float(between))),
        N_SEEN: Numbers(np.array(float(_n_shown(shown, scale[large])))),
        "the error": as_numbers(value, "the error"),
    }


def _n_shown(shown: list[float], runs: np.ndarray) -> int:
    """How many of these runs are among those shown."""
    return sum(min(shown.count(size), int(np.sum(runs == size))) for size in np.unique(runs))


EXERCISE = Exercise(
    name="held_out_rmse",
    reference=held_out_rmse,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
)
