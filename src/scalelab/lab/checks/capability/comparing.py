"""The difference of two models on the same questions, with its standard error.

Source: Miller 2024, arXiv:2411.00640, section 4 (paired differences). Taught in
book/scaling-laws/capability.md.
"""

from __future__ import annotations

import numpy as np

from scalelab.lab.checks.answers import call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import case_of, numbers_of

PARTS = ("difference", "standard error")


def paired_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """(accuracy of the second less that of the first, its standard error), over the same questions.

    Args:
        first, second: [Q], 1 where the model answered question q rightly, else 0.
    """
    change = second.astype(float) - first.astype(float)
    return change.mean(), change.std(ddof=1) / np.sqrt(len(change))


def _build(*, paired: str = "yes", error: str = "of the mean", sign: int = 1, ddof: int = 1) -> Answer:
    """The difference with the given faults; without any, the right one."""

    def answer(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
        a, b = first.astype(float), second.astype(float)
        var = {
            "yes": (b - a).var(ddof=ddof),
            "no": a.var(ddof=ddof) + b.var(ddof=ddof),
            "one": b.var(ddof=ddof),
            "errors subtracted": abs(b.var(ddof=ddof) - a.var(ddof=ddof)),
        }[paired]
        n = len(a)
        spread = {
            "of the mean": np.sqrt(var / n),
            "of a question": np.sqrt(var),
            "over n": np.sqrt(var) / n,
            "variance": var / n,
        }[error]
        return float(sign * (b - a).mean()), float(spread)

    return answer


MISTAKES = (
    Mistake(
        name="unpaired",
        faults={"paired": "no"},
        message="The variances of the two models are added, as if each had questions of its own. They "
        "answered the same ones, and a hard question is hard for both: take the spread of the differences.",
    ),
    Mistake(
        name="the error of one model",
        faults={"paired": "one"},
        message="This is the standard error of the second model's accuracy. Asked is that of the difference.",
    ),
    Mistake(
        name="variances subtracted",
        faults={"paired": "errors subtracted"},
        message="The variance of a difference is not the difference of the variances. Take the differences "
        "first, question by question, and then their variance.",
    ),
    Mistake(
        name="spread of a single question",
        faults={"error": "of a question"},
        message="This is how much one question's difference varies. The mean of n varies by 1/√n of it.",
    ),
    Mistake(
        name="divided by n",
        faults={"error": "over n"},
        message="The spread is divided by n. Variances of independent questions add up, so it is √n.",
    ),
    Mistake(
        name="a variance for an error",
        faults={"error": "variance"},
        message="This is the variance of the mean. Its square root is the standard error.",
    ),
    Mistake(
        name="first less second",
        faults={"sign": -1},
        message="The sign is turned: asked is what the second model gains over the first.",
    ),
    Mistake(
        name="no degree of freedom for the mean",
        faults={"ddof": 0},
        message="The spread about the questions' own mean is too small by (n - 1)/n in variance: ddof=1.",
    ),
)

HINTS = (
    "What is the unit that was drawn at random? A question, with both answers to it.",
    "Take second - first for each question (-1, 0 or 1): its mean, and its standard deviation over √n.",
    "change = second - first; return change.mean(), change.std(ddof=1) / np.sqrt(len(change)).",
)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    cases = []
    for n in (40, 65):
        skill = rng.uniform(0, 1, n)
        first = (skill + rng.normal(0, 0.2, n) > 0.62).astype(int)
        second = (skill + rng.normal(0, 0.2, n) > 0.3).astype(int)
        cases.append(
            case_of(f"{n} questions, {first.mean():.2f} and {second.mean():.2f} right", first, second)
        )
    return tuple(cases)


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return numbers_of(call(answer, *args), PARTS)


EXERCISE = Exercise(
    name="paired_difference",
    reference=paired_difference,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-9,
    atol=1e-12,
)
