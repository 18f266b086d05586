"""What repeated tokens are worth: the first pass in full, each further one less.

Source: Muennighoff et al. 2023, arXiv:2305.16264, equation 5. Taught in book/scaling-laws/planning.md.
"""

from __future__ import annotations

import numpy as np

from scalelab.lab.checks.answers import as_numbers, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.planning.common import case_of


def effective_tokens(n_tokens: float, unique_tokens: float, r_star: float) -> float:
    """Fresh tokens that would be worth as much as n_tokens drawn from unique_tokens; r_star counts
    repeats."""
    seen = min(n_tokens, unique_tokens)
    repeats = n_tokens / seen - 1
    return float(seen * (1 + r_star * (1 - np.exp(-repeats / r_star))))


def _build(
    *, repeats_of: str = "epochs - 1", decay: str = "1 - exp(-r/R)", first: bool = True, capped: bool = True,
    outer: str = "R",
) -> Answer:  # fmt: skip
    """The worth with the given faults; without any, the right one."""

    def answer(n_tokens: float, unique_tokens: float, r_star: float) -> float:
        seen = min(n_tokens, unique_tokens) if capped else unique_tokens
        epochs = n_tokens / seen
        repeats = epochs - 1 if repeats_of == "epochs - 1" else epochs
        share = {
            "1 - exp(-r/R)": 1 - np.exp(-repeats / r_star),
            "exp(-r/R)": np.exp(-repeats / r_star),
            "exp(r/R) - 1": np.exp(repeats / r_star) - 1,
            "1 - exp(-r)": 1 - np.exp(-repeats),
        }[decay]
        return float(seen * (float(first) + (r_star if outer == "R" else 1.0) * share))

    return answer


MISTAKES = (
    Mistake(
        name="epochs taken for repeats",
        faults={"repeats_of": "epochs"},
        message="The first pass is no repeat: after one epoch r is 0 and the data are worth what they are. "
        "r = epochs - 1.",
    ),
    Mistake(
        name="the sign in the exponent",
        faults={"decay": "exp(r/R) - 1"},
        message="Repeats are worth more and more, without end. The exponent is -r / r_star, so that the "
        "worth levels "
        "off.",
    ),
    Mistake(
        name="what is lost taken for what is kept",
        faults={"decay": "exp(-r/R)"},
        message="exp(-r/r_star) falls to nothing as repeats are added; what they have brought so far is "
        "1 minus that.",
    ),
    Mistake(
        name="r_star left out of the exponent",
        faults={"decay": "1 - exp(-r)"},
        message="Repeats fade after one or two of them. The decay is over r_star repeats: exp(-r / r_star).",
    ),
    Mistake(
        name="r_star left out in front",
        faults={"outer": "1"},
        message="Repeats together are worth at most one epoch here. They are worth up to r_star of "
        "them: r_star times "
        "the bracket.",
    ),
    Mistake(
        name="the first pass forgotten",
        faults={"first": False},
        message="Only the repeats are counted. The first pass, unique_tokens in all, comes before them.",
    ),
    Mistake(
        name="tokens that were never read",
        faults={"capped": False},
        message="With fewer tokens than there are, part of the text is never read: what was seen is the "
        "smaller of "
        "the two, and r is 0.",
    ),
)

HINTS = (
    "How many passes are repeats? And what must come out when there are none?",
    "seen = min(n_tokens, unique_tokens), r = n_tokens / seen - 1; all repeats are worth seen · r_star "
    "· (1 - exp(-r / "
    "r_star)).",
    "seen * (1 + r_star * (1 - np.exp(-(n_tokens / seen - 1) / r_star))).",
)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    cases = []
    for epochs in (float(rng.uniform(2.5, 6)), float(rng.uniform(12, 40)), float(rng.uniform(0.3, 0.8))):
        unique, r_star = float(rng.uniform(1e9, 9e10)), float(rng.uniform(8, 20))
        about = f"{epochs:.3g} epochs of {unique:.2g} unique tokens, r_star = {r_star:.3g}"
        cases.append(case_of(about, epochs * unique, unique, r_star))
    return tuple(cases)


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return {"the worth": as_numbers(call(answer, *args), "the worth")}


EXERCISE = Exercise(
    name="effective_tokens",
    reference=effective_tokens,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-6,
)
