"""The best N and D on C = 6 N D under Chinchilla's law, in closed form, and the ways to get it wrong.

Source: Hoffmann et al. 2022, arXiv:2203.15556, eq. 4. Taught in book/scaling-laws/compute-optimal.md.
"""

from __future__ import annotations

import numpy as np

from scalelab.lab.checks.answers import as_numbers, as_tuple, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

PARTS = ("n_params", "n_tokens", "loss")


def compute_optimum(
    E: float, A: float, B: float, alpha: float, beta: float, flops: float
) -> tuple[float, float, float]:
    """(N, D, loss) that minimise E + A/N^alpha + B/D^beta where 6 N D = flops."""
    product = flops / 6  # N D
    ratio = (alpha * A) / (beta * B)
    n_params = ratio ** (1 / (alpha + beta)) * product ** (beta / (alpha + beta))
    n_tokens = product / n_params
    return n_params, n_tokens, E + A / n_params**alpha + B / n_tokens**beta


def _build(
    *,
    exponent: str = "beta",
    six: str = "divided",
    ratio: str = "right",
    root: bool = True,
    floor: bool = True,
) -> Answer:
    """The optimum with the given faults; without any, the right one."""

    def answer(
        E: float, A: float, B: float, alpha: float, beta: float, flops: float
    ) -> tuple[float, float, float]:
        product = {"divided": flops / 6, "left out": flops, "multiplied": 6 * flops}[six]
        if exponent == "equal":
            n_params = product**0.5
        else:
            share = {
                "right": alpha * A / (beta * B),
                "inverted": beta * B / (alpha * A),
                "without exponents": A / B,
                "none": 1.0,
            }[ratio]
            over = beta if exponent == "beta" else alpha
            n_params = share ** (1 / (alpha + beta) if root else 1.0) * product ** (over / (alpha + beta))
        n_tokens = product / n_params
        loss = A / n_params**alpha + B / n_tokens**beta
        return n_params, n_tokens, loss + (E if floor else 0.0)

    return answer


MISTAKES = (
    Mistake(
        name="exponents swapped",
        faults={"exponent": "alpha"},
        message="N grows as (C/6)^(alpha/(alpha+beta)). It is beta that stands on top: where data stop "
        "helping soon (a large beta), compute goes into size.",
    ),
    Mistake(
        name="N and D in equal parts",
        faults={"exponent": "equal"},
        message="N and D are both the root of N D. That is the optimum of a symmetric law only; this one has "
        "an A, a B, an alpha and a beta.",
    ),
    Mistake(
        name="6 left out",
        faults={"six": "left out"},
        message="C is taken for N D. A parameter costs six FLOPs a token, so N D = C/6.",
    ),
    Mistake(
        name="multiplied by 6",
        faults={"six": "multiplied"},
        message="C is multiplied by 6. N D = C/6.",
    ),
    Mistake(
        name="coefficients the wrong way up",
        faults={"ratio": "inverted"},
        message="The ratio is beta B / alpha A. At the optimum alpha A N^-alpha = beta B D^-beta: with a "
        "larger A it pays to have a larger N.",
    ),
    Mistake(
        name="exponents missing from the ratio",
        faults={"ratio": "without exponents"},
        message="The ratio is A/B. The derivatives bring the exponents down: alpha A / (beta B).",
    ),
    Mistake(
        name="coefficients left out",
        faults={"ratio": "none"},
        message="N is (C/6)^a without its factor G = (alpha A / beta B)^(1/(alpha+beta)).",
    ),
    Mistake(
        name="no root of the ratio",
        faults={"root": False},
        message="The ratio stands for N^(alpha+beta): take its root, the power 1/(alpha+beta).",
    ),
    Mistake(
        name="loss without its floor",
        faults={"floor": False},
        message="The loss lacks E. E does not move the optimum, and it is a part of the loss there.",
    ),
)

HINTS = (
    "Put D = C/(6N) into the law, so that it is a function of N alone, and set its derivative by ln N to 0.",
    "alpha A N^-alpha = beta B D^-beta. With D = (C/6)/N: N^(alpha+beta) = (alpha A / beta B) (C/6)^beta.",
    "N = (alpha*A/(beta*B))**(1/(alpha+beta)) * (flops/6)**(beta/(alpha+beta)); D = flops/6/N; the loss is "
    "E + A/N**alpha + B/D**beta.",
)


def _case(about: str, *args: float) -> Case:
    return Case(about=about, make=lambda: (args, {}))


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    def law() -> tuple[float, ...]:
        alpha, beta = rng.uniform(0.3, 0.36), rng.uniform(0.42, 0.55)
        return (
            float(rng.uniform(1.5, 2.2)),
            float(rng.uniform(300, 600)),
            float(rng.uniform(1500, 5000)),
            float(alpha),
            float(beta),
        )

    small, large = float(10 ** rng.uniform(18, 19)), float(10 ** rng.uniform(23, 24.5))
    E, A, B, alpha, beta = law()
    return (
        _case(f"a budget of {small:.2g} FLOPs", *law(), small),
        _case(f"a budget of {large:.2g} FLOPs", *law(), large),
        _case(f"a law whose data term is the flatter one, {large:.2g} FLOPs", E, A, B, beta, alpha, large),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    parts = as_tuple(call(answer, *args), PARTS)
    return {name: as_numbers(part, name) for name, part in zip(PARTS, parts, strict=True)}


EXERCISE = Exercise(
    name="compute_optimum",
    reference=compute_optimum,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
)
