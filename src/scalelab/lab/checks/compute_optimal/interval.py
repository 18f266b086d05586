"""From joint draws of a law's parameters to an interval of the best size: each draw is a whole law.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13. Taught in
book/scaling-laws/compute-optimal.md.
"""

from __future__ import annotations

import numpy as np

from scalelab.lab.checks.answers import as_numbers, as_tuple, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

PARTS = ("low", "high")


def best_sizes(draws: np.ndarray, flops: float) -> np.ndarray:
    """N_opt of each row (E, A, B, alpha, beta) at a budget, S."""
    _, A, B, alpha, beta = np.asarray(draws).T
    log_n = (np.log(alpha * A / (beta * B)) + beta * np.log(flops / 6)) / (alpha + beta)
    return np.asarray(np.exp(log_n))


def optimum_interval(draws: np.ndarray, flops: float, level: float) -> tuple[float, float]:
    """The middle `level` of the best sizes that S joint draws (E, A, B, alpha, beta) give."""
    sizes = best_sizes(draws, flops)
    tail = (1 - level) / 2
    low, high = np.quantile(sizes, [tail, 1 - tail])
    return float(low), float(high)


def _build(*, draw: str = "joint", tails: str = "both", of: str = "spread", what: str = "N") -> Answer:
    """The interval with the given faults; without any, the right one."""

    def answer(draws: np.ndarray, flops: float, level: float) -> tuple[float, float]:
        table = np.asarray(draws, dtype=float)
        tail = {"both": (1 - level) / 2, "one": 1 - level, "doubled": (1 - level) / 4}[tails]
        if draw == "ends":
            table = np.quantile(table, [tail, 1 - tail], axis=0)
        elif draw == "sorted":
            table = np.sort(table, axis=0)
        elif draw == "exponent alone":
            table = np.column_stack([np.tile(np.median(table[:, :3], axis=0), (len(table), 1)), table[:, 3:]])
        sizes = best_sizes(table, flops)
        if what == "D":
            sizes = flops / 6 / sizes
        if draw == "ends":
            return float(sizes.min()), float(sizes.max())
        if of in ("normal", "of the mean"):
            from scipy.special import ndtri

            reach = ndtri(1 - tail) * sizes.std() / (len(sizes) ** 0.5 if of == "of the mean" else 1)
            return float(sizes.mean() - reach), float(sizes.mean() + reach)
        low, high = np.quantile(sizes, [tail, 1 - tail])
        return float(low), float(high)

    return answer


MISTAKES = (
    Mistake(
        name="the ends of each parameter",
        faults={"draw": "ends"},
        message="Each parameter's own interval is taken, and the law is made of the ends. They never occur "
        "together: where alpha is high, A is high too, and what they do to the optimum cancels. Every row "
        "is one law; compute its optimum, then take the interval.",
    ),
    Mistake(
        name="columns sorted one by one",
        faults={"draw": "sorted"},
        message="The columns are sorted before the optimum is computed, so rows no longer belong together. "
        "Compute first, sort afterwards.",
    ),
    Mistake(
        name="only the exponents drawn",
        faults={"draw": "exponent alone"},
        message="A and B are held at their medians while alpha and beta vary. In a fit they move together "
        "along a valley: held still, the interval comes out many times too wide.",
    ),
    Mistake(
        name="both tails at one end",
        faults={"tails": "one"},
        message="1 - level is cut from each end. Half belongs to each: 5 % and 95 % for a level of 0.9.",
    ),
    Mistake(
        name="mean and standard deviations",
        faults={"of": "normal"},
        message="The interval is the mean and some standard deviations. Best sizes are lopsided, and a few "
        "far draws widen it, even below zero; take quantiles of the draws.",
    ),
    Mistake(
        name="interval of the mean",
        faults={"of": "of the mean"},
        message="The standard deviation is divided by the root of the number of draws. More draws do not "
        "make the runs tell more: their spread is the answer.",
    ),
    Mistake(
        name="tokens instead of parameters",
        faults={"what": "D"},
        message="The interval is of D. Asked for is N, the parameters.",
    ),
)

HINTS = (
    "One row is one law. Compute its best N for the budget, for all rows at once; then take quantiles.",
    "ln N = (ln(alpha A / (beta B)) + beta ln(C/6)) / (alpha + beta), with columns E, A, B, alpha, beta. The "
    "quantiles are (1 - level)/2 and 1 - (1 - level)/2.",
    "E, A, B, alpha, beta = draws.T; sizes = (alpha*A/(beta*B))**(1/(alpha+beta)) * (flops/6)**(beta/"
    "(alpha+beta)); return np.quantile(sizes, (1-level)/2), np.quantile(sizes, (1+level)/2)",
)


def _draws(rng: np.random.Generator, n: int) -> np.ndarray:
    """Refits along a valley: exponents and coefficients move together."""
    alpha = 0.35 + 0.03 * rng.standard_normal(n)
    beta = 0.38 + 0.03 * rng.standard_normal(n)
    A = np.exp(6.1 + 20.0 * (alpha - 0.35) + 0.05 * rng.standard_normal(n))
    B = np.exp(7.6 + 23.0 * (beta - 0.38) + 0.05 * rng.standard_normal(n))
    return np.column_stack([1.8 + 0.03 * rng.standard_normal(n), A, B, alpha, beta])


def _case(about: str, draws: np.ndarray, flops: float, level: float) -> Case:
    return Case(about=about, make=lambda: ((draws.copy(), flops, level), {}))


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    inside, beyond = float(10 ** rng.uniform(20, 21)), float(10 ** rng.uniform(23.5, 24.5))
    return (
        _case(f"400 draws, {inside:.2g} FLOPs, level 0.9", _draws(rng, 400), inside, 0.9),
        _case(f"300 draws, {beyond:.2g} FLOPs, level 0.8", _draws(rng, 300), beyond, 0.8),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    found = call(answer, *args)
    parts = as_tuple(tuple(found) if isinstance(found, np.ndarray) and found.ndim == 1 else found, PARTS)
    return {name: as_numbers(part, name) for name, part in zip(PARTS, parts, strict=True)}


EXERCISE = Exercise(
    name="optimum_interval",
    reference=optimum_interval,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=3e-3,
)
