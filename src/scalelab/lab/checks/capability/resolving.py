"""How many questions a test needs before a skill that is there can show.

Source: Schaeffer et al. 2023, arXiv:2304.15004, section 2 (resolution). Taught in
book/scaling-laws/capability.md.
"""

from __future__ import annotations

import math

import numpy as np

from scalelab.lab.checks.answers import as_numbers, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import case_of


def questions_needed(token_accuracy: float, length: int, sure: float) -> int:
    """Fewest questions of which at least one is answered without a mistake, with probability `sure`.

    Args:
        token_accuracy: chance that a token is right, whatever the others. length: tokens of an answer.
    """
    exact = token_accuracy**length
    return math.ceil(math.log(1 - sure) / math.log(1 - exact))


def _build(
    *, exact: str = "p^L", tail: str = "1 - sure", how: str = "until the first", rounding: str = "up"
) -> Answer:
    """The number with the given faults; without any, the right one."""

    def answer(token_accuracy: float, length: int, sure: float) -> float:
        whole = {
            "p^L": token_accuracy**length,
            "p": token_accuracy,
            "p/L": token_accuracy / length,
            "any": 1 - (1 - token_accuracy) ** length,
        }[exact]
        level = 1 - sure if tail == "1 - sure" else sure
        found = {
            "until the first": math.log(level) / math.log(1 - whole),
            "one expected": 1 / whole,
            "sure over chance": (1 - level) / whole,
            "logarithm of chance": math.log(level) / math.log(whole),
        }[how]
        return math.ceil(found) if rounding == "up" else found

    return answer


MISTAKES = (
    Mistake(
        name="one token for the answer",
        faults={"exact": "p"},
        message="A question counts as answered when one token is right. All `length` tokens must be: "
        "token_accuracy ** length.",
    ),
    Mistake(
        name="accuracy divided by the length",
        faults={"exact": "p/L"},
        message="The chance of a whole answer is taken as accuracy over length. Chances of independent "
        "tokens multiply: token_accuracy ** length.",
    ),
    Mistake(
        name="any token for all",
        faults={"exact": "any"},
        message="1 - (1 - p)^L is the chance that *some* token is right. All must be: p^L.",
    ),
    Mistake(
        name="the other tail",
        faults={"tail": "sure"},
        message="The number makes all answers wrong with probability `sure`. Wanted is at least one right "
        "answer with probability `sure`, so all are wrong with probability 1 - sure.",
    ),
    Mistake(
        name="one answer expected",
        faults={"how": "one expected"},
        message="With 1/q questions one right answer is *expected*, and more than a third of such tests show "
        "none. Solve (1 - q)^n = 1 - sure.",
    ),
    Mistake(
        name="chances added up",
        faults={"how": "sure over chance"},
        message="The chances of n questions are added: that passes 1 for many. What multiplies is the chance "
        "that all are wrong: (1 - q)^n.",
    ),
    Mistake(
        name="all right for all wrong",
        faults={"how": "logarithm of chance"},
        message="The logarithm is of q, the chance of a right answer: so all n are right. All n are wrong "
        "with (1 - q)^n; take ln(1 - q).",
    ),
    Mistake(
        name="part of a question",
        faults={"rounding": "none"},
        message="The number is right and is no whole one. There is no part of a question: round up.",
    ),
)

HINTS = (
    "What is the chance that one question is answered whole? That all n are not?",
    "q = token_accuracy ** length; all n fail with probability (1 - q)^n, which may be at most 1 - sure.",
    "math.ceil(math.log(1 - sure) / math.log(1 - token_accuracy ** length)).",
)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    cases = []
    for length, sure in zip((4, 5, 6, 8), rng.permutation([0.8, 0.9, 0.95, 0.99]), strict=True):
        accuracy = float(rng.uniform(0.2, 0.45))
        about = f"token accuracy {accuracy:.3f}, {length} tokens, {sure:.0%} sure"
        cases.append(case_of(about, accuracy, length, float(sure)))
    return tuple(cases)


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return {"the number of questions": as_numbers(call(answer, *args), "the number of questions")}


EXERCISE = Exercise(
    name="questions_needed",
    reference=questions_needed,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-9,
)
