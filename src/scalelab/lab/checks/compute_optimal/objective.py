"""What approach 3 minimises: the sum over runs of Huber's loss of the residual in log loss.

Source: Hoffmann et al. 2022, arXiv:2203.15556, eq. 3 and section D.2. Taught in
book/scaling-laws/compute-optimal.md.
"""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

from scalelab.lab.checks.answers import as_numbers, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation


def chinchilla_objective(
    theta: np.ndarray, n_params: np.ndarray, n_tokens: np.ndarray, loss: np.ndarray, delta: float
) -> float:
    """Sum of Huber(log predicted - log loss); theta is log E, log A, log B, alpha, beta."""
    e, a, b, alpha, beta = theta
    terms = np.stack([e + 0 * n_params, a - alpha * np.log(n_params), b - beta * np.log(n_tokens)])
    size = np.abs(logsumexp(terms, axis=0) - np.log(loss))
    return float(np.where(size <= delta, size**2 / 2, delta * (size - delta / 2)).sum())


def _build(
    *, over: str = "sum", residual: str = "log", shape: str = "huber", floor: str = "log", sign: float = -1.0,
    threshold: str = "delta",
) -> Answer:  # fmt: skip
    """The objective with the given faults; without any, the right one."""

    def answer(
        theta: np.ndarray, n_params: np.ndarray, n_tokens: np.ndarray, loss: np.ndarray, delta: float
    ) -> float:
        e, a, b, alpha, beta = theta
        E = {"log": np.exp(e), "itself": e, "none": 0.0}[floor]
        predicted = (
            E + np.exp(a + sign * alpha * np.log(n_params)) + np.exp(b + sign * beta * np.log(n_tokens))
        )
        size = np.abs(predicted - loss if residual == "loss" else np.log(predicted) - np.log(loss))
        inner = size <= (delta**2 if threshold == "squared" else delta)
        outer = {
            "huber": delta * (size - delta / 2),
            "no offset": delta * size,
            "square": size**2 / 2,
            "absolute": size,
        }[shape]
        each = np.where(inner & (shape != "absolute"), size**2 / 2, outer)
        return float(each.mean() if over == "mean" else each.sum())

    return answer


MISTAKES = (
    Mistake(
        name="mean instead of sum",
        faults={"over": "mean"},
        message="The mean over runs is handed back. Its minimum is the same, and an optimiser with an "
        "absolute tolerance stops far before it.",
    ),
    Mistake(
        name="residual of the loss, not of its logarithm",
        faults={"residual": "loss"},
        message="The residual is predicted - observed loss. The objective takes the difference of "
        "logarithms, so that one per cent counts alike at every loss.",
    ),
    Mistake(
        name="squares instead of Huber's loss",
        faults={"shape": "square"},
        message="All residuals are squared. Beyond delta Huber's loss goes on as a straight line, so that a "
        "run that went wrong does not decide the fit.",
    ),
    Mistake(
        name="absolute values",
        faults={"shape": "absolute"},
        message="All residuals count by their size. Within delta Huber's loss is r^2/2, and beyond it delta "
        "(|r| - delta/2).",
    ),
    Mistake(
        name="a step at delta",
        faults={"shape": "no offset"},
        message="Beyond delta the loss is delta |r|, which jumps at delta from delta^2/2 to delta^2. Take "
        "delta (|r| - delta/2).",
    ),
    Mistake(
        name="delta squared",
        faults={"threshold": "squared"},
        message="The parabola ends at delta^2. The residual, not its square, is held against delta.",
    ),
    Mistake(
        name="log E taken for E",
        faults={"floor": "itself"},
        message="theta[0] is added as it is. It is log E: the floor is exp(theta[0]).",
    ),
    Mistake(
        name="floor left out",
        faults={"floor": "none"},
        message="E is not in the prediction. Without a floor the two powers have to bend for it.",
    ),
    Mistake(
        name="loss that rises with size",
        faults={"sign": 1.0},
        message="The terms are A N^alpha and B D^beta. They fall: a - alpha ln N, b - beta ln D.",
    ),
)

HINTS = (
    "Three steps: the predicted loss (its logarithm), the residual against log loss, its Huber loss summed.",
    "log predicted = logsumexp of e, a - alpha ln N and b - beta ln D. Huber: r^2/2 where |r| <= delta, else "
    "delta (|r| - delta/2).",
    "r = np.abs(np.log(np.exp(e) + np.exp(a - alpha*np.log(N)) + np.exp(b - beta*np.log(D))) - "
    "np.log(loss)); return np.where(r <= delta, r**2/2, delta*(r - delta/2)).sum()",
)


def _case(about: str, *args: object) -> Case:
    return Case(about=about, make=lambda: (tuple(_fresh(arg) for arg in args), {}))


def _fresh(value: object) -> object:
    return value.copy() if isinstance(value, np.ndarray) else value


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    def runs(n: int, spread: float) -> tuple[np.ndarray, ...]:
        alpha, beta = rng.uniform(0.3, 0.4, 2)
        theta = np.array([rng.uniform(0.45, 0.65), 6.1 + rng.uniform(-0.2, 0.2), 7.6, alpha, beta])
        n_params, n_tokens = 10 ** rng.uniform(7.5, 10, n), 10 ** rng.uniform(9, 11.5, n)
        loss = np.exp(theta[0]) + np.exp(theta[1]) * n_params**-alpha + np.exp(theta[2]) * n_tokens**-beta
        off = spread * rng.uniform(0.2, 3.0, n) * np.where(np.arange(n) % 2, 1, -1)
        return theta, n_params, n_tokens, loss * np.exp(off)

    return (
        _case("12 runs, residuals on both sides of delta = 0.001", *runs(12, 1e-3), 1e-3),
        _case("7 runs, delta = 0.03", *runs(7, 0.03), 0.03),
        _case("9 runs, all residuals beyond delta", *runs(9, 0.05), 1e-3),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return {"the objective": as_numbers(call(answer, *args), "the objective")}


EXERCISE = Exercise(
    name="chinchilla_objective",
    reference=chinchilla_objective,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-6,
    atol=1e-12,
)
