"""Three metrics of the same answers: nats a token, token accuracy, exact match.

Source: Schaeffer et al. 2023, arXiv:2304.15004, section 2. Taught in book/scaling-laws/capability.md.
"""

from __future__ import annotations

import numpy as np

from scalelab.lab.checks.answers import call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import case_of, numbers_of

PARTS = ("nats", "token accuracy", "exact match")


def three_metrics(log_probs: np.ndarray, right: np.ndarray) -> tuple[float, float, float]:
    """(nats an answer token, share of tokens right, share of answers right to the last token).

    Args:
        log_probs: [Q, L, V], natural logarithms. right: [Q, L], the right token; -1 behind a shorter answer.
    """
    asked = right >= 0
    index = np.where(asked, right, 0)
    of_right = np.take_along_axis(log_probs, index[..., None], axis=2)[..., 0]
    hit = log_probs.argmax(axis=2) == right
    exact = (hit | ~asked).all(axis=1)
    return -of_right[asked].mean(), hit[asked].mean(), exact.mean()


def _build(
    *, filling: str = "left out", nats: str = "mean", whole: str = "all", hits: str = "likeliest",
    over: str = "tokens",
) -> Answer:  # fmt: skip
    """The metrics with the given faults; without any, the right ones."""

    def answer(log_probs: np.ndarray, right: np.ndarray) -> tuple[float, float, float]:
        asked = right >= 0
        counted = asked if filling == "left out" else np.ones_like(asked)
        of_right = np.take_along_axis(log_probs, np.where(asked, right, 0)[..., None], axis=2)[..., 0]
        of_right = np.where(asked, of_right, 0.0)
        hit = (log_probs.argmax(axis=2) == right) & asked
        value = np.exp(of_right) * asked if hits == "probability" else hit.astype(float)

        def mean(values: np.ndarray) -> float:
            if over == "answers":
                return float(((values * counted).sum(axis=1) / counted.sum(axis=1)).mean())
            return float(values[counted].mean())

        accuracy = mean(value)
        by_answer = {
            "all": (hit | ~counted).all(axis=1),
            "any": (hit & counted).any(axis=1),
            "first": hit[:, 0],
        }
        exact = (
            accuracy ** right.shape[1] if whole == "power" else float(np.mean(by_answer[whole].astype(float)))
        )
        loss = {
            "mean": mean(-of_right),
            "sum": float(-of_right.sum(axis=1).mean()),
            "bits": mean(-of_right) / np.log(2),
        }[nats]
        return loss, accuracy, exact

    return answer


MISTAKES = (
    Mistake(
        name="filling counted",
        faults={"filling": "counted"},
        message="The places marked -1 are counted as tokens that are wrong. They are behind the answer's "
        "end: leave them out of every mean, and let them spoil no answer.",
    ),
    Mistake(
        name="nats of an answer",
        faults={"nats": "sum"},
        message="The losses of an answer are added up. Asked is the mean over tokens, so that answers of "
        "different lengths can be compared.",
    ),
    Mistake(
        name="bits for nats",
        faults={"nats": "bits"},
        message="The loss is in bits: the log-probabilities are natural logarithms already, and their mean "
        "needs no division by ln 2.",
    ),
    Mistake(
        name="one right token is enough",
        faults={"whole": "any"},
        message="An answer counts as exact when some token is right. All of its tokens must be.",
    ),
    Mistake(
        name="the first token alone",
        faults={"whole": "first"},
        message="Exact match looks at an answer's first token only. All of its tokens must be right.",
    ),
    Mistake(
        name="a power in place of a count",
        faults={"whole": "power"},
        message="Exact match is computed as accuracy to the power L. That is what it would be if errors were "
        "independent and answers equally long; count the answers instead, and compare later.",
    ),
    Mistake(
        name="probabilities for hits",
        faults={"hits": "probability"},
        message="Token accuracy is the mean probability of the right token. A token is right when it is the "
        "likeliest: count those.",
    ),
    Mistake(
        name="every answer counts the same",
        faults={"over": "answers"},
        message="The means are taken within each answer first, so that a token of a short answer weighs "
        "more. Average over all tokens that are asked.",
    ),
)

HINTS = (
    "Which places count? right >= 0 says it, and all three metrics need it.",
    "np.take_along_axis(log_probs, index[..., None], axis=2) picks the right token's log-probability; the "
    "likeliest token is log_probs.argmax(axis=2). Filling must not spoil an answer: (hit | ~asked).",
    "asked = right >= 0; hit = log_probs.argmax(2) == right; exact = (hit | ~asked).all(axis=1).mean(); "
    "accuracy = hit[asked].mean(); nats = -of_right[asked].mean().",
)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    cases = []
    for n, length, vocab, strength in ((24, 5, 6, 2.5), (30, 4, 5, 3.0)):
        right = rng.integers(0, vocab, (n, length))
        logits = rng.normal(0, 1, (n, length, vocab))
        logits += strength * (np.arange(vocab) == right[..., None])
        right[: n // 2, length - 1] = -1
        right[: n // 4, length - 2] = -1
        log_probs = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
        about = f"{n} answers of up to {length} tokens, some shorter"
        cases.append(case_of(about, log_probs, right))
    return tuple(cases)


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return numbers_of(call(answer, *args), PARTS)


EXERCISE = Exercise(
    name="three_metrics",
    reference=three_metrics,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-6,
)
