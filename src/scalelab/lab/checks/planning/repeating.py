"""What repeated tokens are worth: the first pass in full, each further one less.

Source: Muennighoff et al. 2023, arXiv:2305.16264, equation 5. Taught in book/scaling-laws/planning.md.
"""

from __future__ import annotations

import numpy as np

from scalelab.lab.checks.answers import as_numbers, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import case_of


def effective_tokens(n_tokens: float, unique_tokens: float, r_star: float) -> float:
    """Fresh tokens that would be worth as much as n_tokens of unique_tokens; r_star counts repeats."""
    seen = min(n_tokens, unique_tokens)
    repeats = n_tokens / seen - 1
    return float(seen * (1 + r_star * (1 - np.exp(-repeats / r_star))))


def _build(
    *, repeats_of: str = "epochs - 1", decay: str = "1 - exp(-r/R)", first: bool = True,
    capped: bool = True, outer: str = "R", answers: str = "tokens", whole: str = "",
) -> Answer:  # fmt: skip
    """The worth with the given faults; without any, the right one."""

    def answer(n_tokens: float, unique_tokens: float, r_star: float) -> float:
        seen = min(n_tokens, unique_tokens) if capped else unique_tokens
        epochs = n_tokens / seen
        repeats = {"epochs - 1": epochs - 1, "epochs": epochs, "0 or more": max(epochs - 1, 0.0)}[repeats_of]
        if whole == "epochs":
            repeats = float(np.floor(repeats))
        plain = {"margin": n_tokens * np.exp(-repeats / r_star), "fresh": n_tokens, "once": seen}
        if answers in plain:
            return float(plain[answers])
        share = {
            "1 - exp(-r/R)": 1 - np.exp(-repeats / r_star),
            "exp(-r/R)": np.exp(-repeats / r_star),
            "exp(r/R) - 1": np.exp(repeats / r_star) - 1,
            "1 - exp(r/R)": 1 - np.exp(repeats / r_star),
            "1 - 2^(-r/R)": 1 - 2 ** (-repeats / r_star),
            "1 - exp(-r)": 1 - np.exp(-repeats),
        }[decay]
        worth = float(first) + (r_star if outer == "R" else 1.0) * share
        of = {"tokens": seen, "share": seen / n_tokens, "all read": n_tokens}[answers]
        return float(of * worth)

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
        "worth levels off.",
    ),
    Mistake(
        name="what is lost taken for what is kept",
        faults={"decay": "exp(-r/R)"},
        message="exp(-r/r_star) falls to nothing as repeats are added; what they have brought so far is 1 "
        "minus that.",
    ),
    Mistake(
        name="r_star left out of the exponent",
        faults={"decay": "1 - exp(-r)"},
        message="Repeats fade after one or two of them. The decay is over r_star repeats: exp(-r / r_star).",
    ),
    Mistake(
        name="r_star left out in front",
        faults={"outer": "1"},
        message="Repeats together are worth at most one epoch here. They are worth up to r_star of them: "
        "r_star times the bracket.",
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
        "smaller of the two, and r is 0.",
    ),
    Mistake(
        name="a worth below nothing",
        faults={"decay": "1 - exp(r/R)"},
        message="The bracket is below 0, so that repeats take something away. The exponent is -r / r_star.",
    ),
    Mistake(
        name="all tokens, though few were read",
        faults={"capped": False, "repeats_of": "0 or more"},
        message="With fewer tokens than there are, the answer is still all that there are. What was seen "
        "is the smaller of the two.",
    ),
    Mistake(
        name="a share for tokens",
        faults={"answers": "share"},
        message="This is the worth of the average token, a share. Asked are tokens: seen times the bracket.",
    ),
    Mistake(
        name="the last token's worth for all",
        faults={"answers": "margin"},
        message="exp(-r / r_star) is what the *next* token is worth. Earlier ones were worth more: sum "
        "from the first repeat on.",
    ),
    Mistake(
        name="counted from all that was read",
        faults={"answers": "all read"},
        message="The bracket multiplies n_tokens. It counts passes of what there is: multiply by what was "
        "seen.",
    ),
    Mistake(
        name="a half-life",
        faults={"decay": "1 - 2^(-r/R)"},
        message="The decay is in powers of 2. After r_star repeats the next is worth 1/e, not a half: exp.",
    ),
    Mistake(
        name="whole epochs alone",
        faults={"whole": "epochs"},
        message="Part of an epoch counts for nothing. r = n_tokens / seen - 1 need not be a whole number.",
    ),
    Mistake(
        name="repeats as good as fresh text",
        faults={"answers": "fresh"},
        message="Every token counts in full, however often it was read. Repeats lose their worth: exp(-r / "
        "r_star).",
    ),
    Mistake(
        name="repeats worth nothing",
        faults={"answers": "once"},
        message="Only the first pass counts. The first repeats are worth nearly as much as it was.",
    ),
)

HINTS = (
    "How many passes are repeats? And what must come out when there are none?",
    "seen = min(n_tokens, unique_tokens), r = n_tokens / seen - 1; all repeats are worth seen · r_star · "
    "(1 - exp(-r / r_star)).",
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
