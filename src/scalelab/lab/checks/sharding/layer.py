"""Bytes that a GPT layer keeps for backward, part by part, and the tensors that are easily forgotten.

Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4.1. Taught in book/parallelism/sharding.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scalelab.lab.checks.answers import call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import case_of, numbers_of

NAMES = ("attention", "feed-forward", "norms")


def layer_bytes(s: int, b: int, h: int, a: int) -> tuple[int, int, int]:
    """Bytes that attention, feed-forward and norms of one layer keep: 16-bit numbers, masks of one byte.

    Args:
        s: tokens of a sequence. b: sequences. h: width. a: heads.
    """
    stream, scores = s * b * h, b * a * s * s
    # Input of Q, K and V; Q, K; V; input of the last map; and its mask. Softmax, mask, what was not dropped.
    attention = (2 + 4 + 2 + 2 + 1) * stream + (2 + 1 + 2) * scores
    # Inputs of both maps, the second four times as wide; of GELU; and the mask.
    feed_forward = (2 + 8 + 8 + 1) * stream
    return attention, feed_forward, 2 * 2 * stream


def _build(
    *,
    mask: int = 1,
    qkv: int = 2,
    keeps_dropped: bool = True,
    heads: bool = True,
    bends: int = 8,
    n_norms: int = 2,
    has_v: bool = True,
    width: int = 2,
) -> Answer:
    """A count with the given faults; without any, the right one."""

    def answer(s: int, b: int, h: int, a: int) -> Any:
        stream, scores = s * b * h, b * (a if heads else 1) * s * s
        size = width / 2
        attention = (qkv + 4 + 2 * has_v + 2) * size * stream + mask * stream
        attention += (2 + 2 * keeps_dropped) * size * scores + mask * scores
        feed_forward = (2 + 8 + bends) * size * stream + mask * stream
        return attention, feed_forward, 2 * n_norms * size * stream

    return answer


MISTAKES = (
    Mistake(
        name="masks of two bytes",
        faults={"mask": 2},
        message="A dropout mask says yes or no: one byte an entry, not two.",
    ),
    Mistake(
        name="masks forgotten",
        faults={"mask": 0},
        message="Dropout keeps its mask, one byte an entry: after the softmax [b, a, s, s], after "
        "attention and after the feed-forward [s, b, h].",
    ),
    Mistake(
        name="the input of Q, K and V three times",
        faults={"qkv": 6},
        message="Q, K and V read the same tensor, which is kept once: 2sbh.",
    ),
    Mistake(
        name="V forgotten",
        faults={"has_v": False},
        message="The product of weights and values keeps both: V is 2sbh more.",
    ),
    Mistake(
        name="what dropout lets through forgotten",
        faults={"keeps_dropped": False},
        message="The softmax's output is kept for the softmax, and what dropout makes of it for the "
        "product with V: 2as²b each, and as²b for the mask.",
    ),
    Mistake(
        name="one head",
        faults={"heads": False},
        message="Each head has a matrix of scores of its own: s × s, a times.",
    ),
    Mistake(
        name="the input of GELU forgotten",
        faults={"bends": 0},
        message="GELU is no matrix product, but it is not linear: its gradient needs its input, 4h wide, "
        "8sbh.",
    ),
    Mistake(
        name="one norm",
        faults={"n_norms": 1},
        message="A layer has two norms, and each keeps its input: 2sbh twice.",
    ),
    Mistake(
        name="four bytes a number",
        faults={"width": 4},
        message="Activations are in 16 bits here: 2 bytes a number.",
    ),
)

HINTS = (
    "Go through the layer and ask of each operation what its backward needs: a product both its factors "
    "(weights are no activations), a softmax its output, GELU and a norm their inputs, dropout its mask.",
    "Attention: 11sbh + 5as²b. Of the 11: the common input of Q, K, V is 2; Q and K are 4; V 2; the last "
    "map's input 2; a mask 1. The 5 are softmax output, mask, and what dropout lets through.",
    "return 11*s*b*h + 5*a*s*s*b, 19*s*b*h, 4*s*b*h: of the 19, the maps' inputs are 2 and 8, GELU's is 8, "
    "the mask 1.",
)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    cases = []
    for _ in range(2):
        a = int(rng.integers(2, 9))
        s, b, h = int(rng.integers(5, 40)), int(rng.integers(1, 5)), a * int(rng.integers(2, 9))
        cases.append(case_of(f"s = {s}, b = {b}, h = {h}, a = {a}", s, b, h, a))
    return tuple(cases)


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return numbers_of(call(answer, *args), NAMES)


EXERCISE = Exercise(
    name="layer_bytes",
    reference=layer_bytes,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-9,
)
