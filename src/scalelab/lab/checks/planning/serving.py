"""A model's whole life: trained to a loss, then served; on the curve of equal loss D follows from N.

Source: Sardana et al. 2024, arXiv:2401.00448, equations 2 and 3. Taught in book/scaling-laws/planning.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scalelab.lab.checks.answers import as_numbers, as_tuple, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.planning.common import case_of
from scalelab.laws import ChinchillaLaw

PARTS = ("n_tokens", "flops")


def lifetime_flops(law: Any, loss: float, n_params: float, served: float) -> tuple[float, float]:
    """(training tokens, FLOPs of training and serving) of a model of n_params trained to a loss.

    Args:
        law: with E, A, B, alpha and beta. served: tokens over its whole life, read or written.
    """
    rest = loss - law.E - law.A / n_params**law.alpha
    n_tokens = (law.B / rest) ** (1 / law.beta)
    return n_tokens, 6 * n_params * n_tokens + 2 * n_params * served


def _build(
    *, serve: float = 2.0, tokens: str = "to the loss", floor: bool = True, size: bool = True,
    power: str = "1/beta", train: float = 6.0,
) -> Answer:  # fmt: skip
    """The cost with the given faults; without any, the right one."""

    def answer(law: Any, loss: float, n_params: float, served: float) -> tuple[float, float]:
        gap = loss - (law.E if floor else 0.0) - (law.A / n_params**law.alpha if size else 0.0)
        exponent = {"1/beta": 1 / law.beta, "beta": law.beta, "1/alpha": 1 / law.alpha}[power]
        n_tokens = 20 * n_params if tokens == "20 a parameter" else (law.B / gap) ** exponent
        return float(n_tokens), float(train * n_params * n_tokens + serve * n_params * served)

    return answer


MISTAKES = (
    Mistake(
        name="serving forgotten",
        faults={"serve": 0.0},
        message="Only the training is counted. Each token that is served costs about 2 N FLOPs.",
    ),
    Mistake(
        name="serving at the price of training",
        faults={"serve": 6.0},
        message="A served token is charged 6 N. Nothing goes back through the model: 2 N.",
    ),
    Mistake(
        name="training at the price of serving",
        faults={"train": 2.0},
        message="Training is charged 2 N D. It goes forward and back: 6 N D.",
    ),
    Mistake(
        name="20 tokens a parameter",
        faults={"tokens": "20 a parameter"},
        message="Every size gets 20 tokens a parameter, and so every size ends at another loss. Compare "
        "models of the "
        "*same* loss: solve L(N, D) = loss for D.",
    ),
    Mistake(
        name="the floor forgotten",
        faults={"floor": False},
        message="E is missing: data have to bring down only what is left of loss - E - A / N^alpha.",
    ),
    Mistake(
        name="the size forgotten",
        faults={"size": False},
        message="A / N^alpha is missing: so every size needs as many tokens. A smaller model needs more.",
    ),
    Mistake(
        name="beta not turned over",
        faults={"power": "beta"},
        message="rest = B / D^beta is solved by D = (B / rest)^(1/beta).",
    ),
    Mistake(
        name="alpha for beta",
        faults={"power": "1/alpha"},
        message="The exponent of data is beta; alpha belongs to the size.",
    ),
)

HINTS = (
    "Which D brings this N to the loss? Then two costs: training once, serving for life.",
    "B / D^beta = loss - E - A / N^alpha. Training is 6 N D, serving 2 N for each token.",
    "D = (law.B / (loss - law.E - law.A / n_params**law.alpha)) ** (1 / law.beta); return D, 6 * "
    "n_params * D + "
    "2 * n_params * served.",
)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    cases = []
    for budget in (1e21, 1e23):
        law = ChinchillaLaw(
            E=float(rng.uniform(1.6, 1.9)), A=float(rng.uniform(350, 500)), B=float(rng.uniform(900, 2100)),
            alpha=float(rng.uniform(0.33, 0.36)), beta=float(rng.uniform(0.29, 0.325)),
        )  # fmt: skip
        best = law.optimal(budget)
        n_params = best.n_params * float(rng.uniform(0.5, 0.85))
        served = best.n_tokens * float(rng.uniform(2, 9))
        about = f"{n_params / best.n_params:.2f} of the compute-optimal size, {served:.2g} tokens served"
        cases.append(case_of(about, law, best.loss, n_params, served))
    return tuple(cases)


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    with np.errstate(all="ignore"):
        parts = as_tuple(call(answer, *args), PARTS)
    return {name: as_numbers(part, name) for name, part in zip(PARTS, parts, strict=True)}


EXERCISE = Exercise(
    name="lifetime_flops",
    reference=lifetime_flops,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-6,
)
