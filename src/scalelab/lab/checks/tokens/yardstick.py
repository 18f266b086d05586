"""Bits per byte from the losses of single tokens, and the ways to get another number.

Held against `scalelab.core.units.bits_per_byte` and `scalelab.train.evaluate`.
Taught in book/transformers/tokens.md.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from scalelab.lab.checks.answers import as_numbers, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation


def bits_per_byte(token_nats: npt.NDArray[np.float64], token_bytes: npt.NDArray[np.int64]) -> float:
    """All bits over all bytes.

    Args:
        token_nats: loss of each token, nats, [T].
        token_bytes: bytes of UTF-8 that each token spells, [T]; 0 for the end of a text.
    """
    return float(token_nats.sum() / math.log(2) / token_bytes.sum())


def _build(*, unit: str = "bits", per: str = "byte", ends: str = "counted", average: str = "whole") -> Answer:
    """Bits per byte with the given faults; without any, the right one."""

    def answer(token_nats: npt.NDArray[np.float64], token_bytes: npt.NDArray[np.int64]) -> float:
        nats, sizes = token_nats, token_bytes.astype(float)
        if ends == "left out":
            nats, sizes = nats[sizes > 0], sizes[sizes > 0]
        elif ends == "a byte each":
            sizes = np.maximum(sizes, 1)
        scale = {"bits": 1 / math.log(2), "nats": 1.0, "times": math.log(2), "ten": 1 / math.log(10)}[unit]
        if per == "token":
            return float(nats.mean() * scale)
        if per == "times":
            return float(nats.mean() * scale * sizes.mean())
        if average == "token by token":
            spelling = sizes > 0
            return float((nats[spelling] / sizes[spelling]).mean() * scale)
        return float(nats.sum() * scale / sizes.sum())

    return answer


MISTAKES = (
    Mistake(
        name="nats per byte",
        faults={"unit": "nats"},
        message="This is in nats. A bit is ln 2 = 0.693 nats, so divide by math.log(2).",
    ),
    Mistake(
        name="multiplied by ln 2",
        faults={"unit": "times"},
        message="A bit is smaller than a nat, so there are more of them: divide by ln 2, do not multiply.",
    ),
    Mistake(
        name="decimal logarithm",
        faults={"unit": "ten"},
        message="Divided by ln 10 the loss is in decimal digits; bits need ln 2 (np.log is the natural one).",
    ),
    Mistake(
        name="per token",
        faults={"per": "token"},
        message="This is bits per token, which grows with the tokens' length: divide by bytes, not by "
        "tokens.",
    ),
    Mistake(
        name="multiplied by bytes per token",
        faults={"per": "times"},
        message="A token of 3 bytes carries its loss for 3 bytes: divide by bytes per token, do not "
        "multiply.",
    ),
    Mistake(
        name="averaged token by token",
        faults={"average": "token by token"},
        message="This is the mean of each token's own bits per byte, so that a token of 1 byte weighs as "
        "much as one of 12. Sum the bits and the bytes first, then divide.",
    ),
    Mistake(
        name="ends of texts left out",
        faults={"ends": "left out"},
        message="The loss of the tokens that spell nothing is missing. To say where a text ends costs bits; "
        "they belong to the sum, though no byte does.",
    ),
    Mistake(
        name="ends of texts counted as a byte",
        faults={"ends": "a byte each"},
        message="The end of a text spells no byte, and here it is counted as one.",
    ),
)

HINTS = (
    "Think of a file: how many bits would the compressed text take in all, and how many bytes had it before?",
    "Two sums and a quotient. The losses are in nats; a bit is ln 2 nats.",
    "token_nats.sum() / math.log(2) / token_bytes.sum(), with every token in the first sum.",
)


def _case(about: str, nats: npt.NDArray[np.float64], sizes: npt.NDArray[np.int64]) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (nats.copy(), sizes.copy()), {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    n_tokens = int(rng.integers(6, 12))
    nats = rng.gamma(2.0, 1.5, size=n_tokens)
    sizes = rng.integers(1, 9, size=n_tokens)
    ended_nats, ended = np.append(nats, rng.uniform(3, 6, 2)), np.append(sizes, [0, 0])
    order = rng.permutation(n_tokens + 2)
    return (
        _case("one token of 4 bytes", rng.uniform(1, 5, 1), np.array([4])),
        _case(f"{n_tokens} tokens of 1 to 8 bytes", nats, sizes),
        _case(f"{n_tokens} tokens and two ends of texts", ended_nats[order], ended[order]),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return {"bits per byte": as_numbers(call(answer, *args), "bits per byte")}


EXERCISE = Exercise(
    name="bits_per_byte",
    reference=bits_per_byte,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
)
