"""A model's whole life: trained to a loss, then served; on the curve of equal loss D follows from N.

Source: Sardana et al. 2024, arXiv:2401.00448, equations 2 and 3. Taught in book/scaling-laws/planning.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scalelab.lab.checks.answers import call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import case_of, numbers_of
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
    power: str = "1/beta", train: float = 6.0, upside_down: bool = False, order: str = "tokens first",
) -> Answer:  # fmt: skip
    """The cost with the given faults; without any, the right one."""

    def answer(law: Any, loss: float, n_params: float, served: float) -> tuple[float, float]:
        gap = loss - (law.E if floor else 0.0) - (law.A / n_params**law.alpha if size else 0.0)
        exponent = {"1/beta": 1 / law.beta, "beta": law.beta, "1/alpha": 1 / law.alpha}[power]
        least = law.flops_for(loss)
        n_tokens = {
            "to the loss": (gap / law.B if upside_down else law.B / gap) ** exponent,
            "20 a parameter": 20 * n_params,
            "the optimum's": law.optimal(least).n_tokens,
            "the optimum's compute": least / (6 * n_params),
        }[tokens]
        flops = train * n_params * n_tokens + serve * n_params * served
        parts = float(n_tokens), float(flops)
        return parts if order == "tokens first" else parts[::-1]

    return answer


MISTAKES = (
    Mistake(
        name="serving forgotten",
        faults={"serve": 0.0},
        message="Only the training counts. Each token that is served costs about 2 N FLOPs, the N included.",
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
        "models of the *same* loss: solve L(N, D) = loss for D.",
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
    Mistake(
        name="the fraction upside down",
        faults={"upside_down": True},
        message="Less than one token comes out. B / D^beta = rest gives D^beta = B / rest, not rest / B.",
    ),
    Mistake(
        name="one FLOP for a multiply and an add",
        faults={"serve": 1.0},
        message="A served token is charged N FLOPs. Each parameter multiplies and adds: 2 N.",
    ),
    Mistake(
        name="the optimum's tokens",
        faults={"tokens": "the optimum's"},
        message="Every size reads as many tokens as the compute-optimal model, and a smaller one then "
        "stays above the loss. Solve L(N, D) = loss for this N.",
    ),
    Mistake(
        name="the optimum's compute",
        faults={"tokens": "the optimum's compute"},
        message="Every size is trained with the optimum's FLOPs, D = C / 6N. Off the optimum that does not "
        "reach the loss: solve L(N, D) = loss for D.",
    ),
    Mistake(
        name="the parts exchanged",
        faults={"order": "FLOPs first"},
        message="The FLOPs stand first. Asked is (training tokens, FLOPs).",
    ),
)

HINTS = (
    "Which D brings this N to the loss? Then two costs: training once, serving for life.",
    "B / D^beta = loss - E - A / N^alpha. Training is 6 N D, serving 2 N for each token.",
    "D = (law.B / (loss - law.E - law.A / n_params**law.alpha)) ** (1 / law.beta); return D, 6 * n_params "
    "* D + 2 * n_params * served.",
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
        return numbers_of(call(answer, *args), PARTS)


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
