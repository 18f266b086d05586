"""An interval from errors that were made before: one run to come, few errors to judge by.

Source: Student 1908, doi:10.2307/2331554. Taught in book/scaling-laws/planning.md.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import norm, t

from scalelab.lab.checks.answers import call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import case_of, numbers_of

PARTS = ("low", "high")


def interval_from_errors(foretold: float, errors: np.ndarray, level: float) -> tuple[float, float]:
    """(low, high), nats, for one run that is foretold; errors [P] are ln(foretold / measured) of earlier
    bets."""
    rms = np.sqrt(np.mean(errors**2))
    half = t.ppf((1 + level) / 2, df=len(errors)) * rms
    return float(foretold * np.exp(-half)), float(foretold * np.exp(half))


def _build(
    *,
    quantile: str = "t",
    spread: str = "rms",
    of: str = "one run",
    tail: str = "both",
    scale: str = "relative",
    freedom: int = 0,
    order: str = "low first",
) -> Answer:
    """The interval with the given faults; without any, the right one."""

    def answer(foretold: float, errors: np.ndarray, level: float) -> tuple[float, float]:
        mean_square = np.mean(errors**2)
        size = {
            "rms": np.sqrt(mean_square), "mean square": mean_square, "about the mean": np.std(errors),
            "sample deviation": np.std(errors, ddof=1), "mean of sizes": np.mean(np.abs(errors)),
            "root of the sum": np.sqrt(np.sum(errors**2)), "largest": np.max(np.abs(errors)),
        }[spread]  # fmt: skip
        at = {"both": (1 + level) / 2, "one": level}[tail]
        times = {"t": t.ppf(at, df=len(errors) - freedom), "normal": norm.ppf(at), "1.96": 1.96, "none": 1.0}
        half = times[quantile] * size / (np.sqrt(len(errors)) if of == "the mean" else 1.0)
        low, high = {
            "nats": (foretold - half, foretold + half),
            "linear": (foretold * (1 - half), foretold * (1 + half)),
            "relative": (foretold * np.exp(-half), foretold * np.exp(half)),
        }[scale]
        return (float(low), float(high)) if order == "low first" else (float(high), float(low))

    return answer


MISTAKES = (
    Mistake(
        name="a normal quantile for few errors",
        faults={"quantile": "normal"},
        message="The quantile is the normal one, as if the spread were known. It is estimated from a "
        "handful of errors: Student's t with as many degrees of freedom is wider.",
    ),
    Mistake(
        name="errors taken about their own mean",
        faults={"spread": "about the mean"},
        message="The errors' mean is subtracted. A way that always errs upwards is not forgiven for it: "
        "root of the mean square, about 0.",
    ),
    Mistake(
        name="no root",
        faults={"spread": "mean square"},
        message="The mean square is used for the spread. Take its root.",
    ),
    Mistake(
        name="mean of the errors' sizes",
        faults={"spread": "mean of sizes"},
        message="The mean of |error| is smaller than the root of the mean square, and t quantiles go with "
        "the latter.",
    ),
    Mistake(
        name="a confidence interval used for a prediction",
        faults={"of": "the mean"},
        message="The spread is divided by the root of the number of errors. So sure is one of a *mean*; "
        "the bet is on one run, which errs by a whole error.",
    ),
    Mistake(
        name="one tail for two",
        faults={"tail": "one"},
        message="The quantile is taken at `level`, so that 1 - level is cut off at each end. Half of it at "
        "each: (1 + level) / 2.",
    ),
    Mistake(
        name="logarithms added as nats",
        faults={"scale": "nats"},
        message="Errors are ln(foretold / measured): the ends are foretold times exp(-half) and exp(half).",
    ),
    Mistake(
        name="logarithms taken for shares",
        faults={"scale": "linear"},
        message="The ends are foretold times 1 - half and 1 + half. Errors are logarithms: exp(-half) and "
        "exp(half). For small errors that is nearly the same, for these it shows.",
    ),
    Mistake(
        name="one degree of freedom taken off",
        faults={"freedom": 1},
        message="The degrees of freedom are one too few. No mean was estimated, the errors are taken about "
        "0: there are as many as errors.",
    ),
    Mistake(
        name="a sample's standard deviation",
        faults={"spread": "sample deviation"},
        message="np.std(errors, ddof=1) subtracts the errors' own mean. A way that always errs upwards is "
        "not forgiven for it: root of the mean square, about 0.",
    ),
    Mistake(
        name="1.96 for every case",
        faults={"quantile": "1.96"},
        message="1.96 is the normal quantile of 95 %. Asked is Student's, for this level and so few errors.",
    ),
    Mistake(
        name="no quantile",
        faults={"quantile": "none"},
        message="The interval is one usual error wide to each side, whatever the level. Multiply by "
        "Student's quantile.",
    ),
    Mistake(
        name="the largest error for the interval",
        faults={"quantile": "none", "spread": "largest"},
        message="The largest error so far is taken for half the width. The next one may be larger, and the "
        "level plays no part: t times the root of the mean square.",
    ),
    Mistake(
        name="the sum for the mean",
        faults={"spread": "root of the sum"},
        message="The squares are summed and not averaged: so the interval widens with every error that is "
        "known.",
    ),
    Mistake(
        name="the ends exchanged",
        faults={"order": "high first"},
        message="The higher end stands first: either they are exchanged, or the quantile was taken in the "
        "lower tail, where t is below 0.",
    ),
)

HINTS = (
    "How large is a usual error? And by how much must one go beyond it, if that is known from few errors "
    "only?",
    "rms = np.sqrt(np.mean(errors**2)); half = t.ppf((1 + level) / 2, df=len(errors)) * rms, in logarithms.",
    "foretold * np.exp(-half), foretold * np.exp(half).",
)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    cases = []
    for n_errors, level in ((4, 0.9), (7, 0.8)):
        errors = rng.normal(0.06 * rng.choice([-1, 1]), 0.05, n_errors)
        foretold = float(rng.uniform(1.6, 3.4))
        about = f"{n_errors} errors, level {level}, foretold {foretold:.3g}"
        cases.append(case_of(about, foretold, errors, level))
    return tuple(cases)


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return numbers_of(call(answer, *args), PARTS)


EXERCISE = Exercise(
    name="interval_from_errors",
    reference=interval_from_errors,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-6,
)
