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
    masks: tuple[int, int, int] = (1, 1, 1),
    streams: int = 5,
    scores_kept: int = 2,
    heads: bool = True,
    wides: int = 2,
    times_wider: int = 4,
    n_norms: int = 2,
    width: int = 2,
) -> Answer:
    """A count with the given faults; without any, the right one.

    Masks: bytes an entry, after the softmax, after attention, after the feed-forward.
    """

    def answer(s: int, b: int, h: int, a: int) -> Any:
        stream, scores = s * b * h, b * (a if heads else 1) * s * s
        attention = width * (streams * stream + scores_kept * scores) + masks[0] * scores + masks[1] * stream
        feed_forward = width * (1 + times_wider * wides) * stream + masks[2] * stream
        return attention, feed_forward, width * n_norms * stream

    return answer


MISTAKES = (
    Mistake(
        name="masks of two bytes",
        faults={"masks": (2, 2, 2)},
        message="A dropout mask says yes or no: one byte an entry, not two.",
    ),
    Mistake(
        name="masks forgotten",
        faults={"masks": (0, 0, 0)},
        message="Dropout keeps its mask, one byte an entry: after the softmax [b, a, s, s], after "
        "attention and after the feed-forward [s, b, h].",
    ),
    Mistake(
        name="the softmax's mask forgotten",
        faults={"masks": (0, 1, 1)},
        message="The weights of attention are dropped too: a mask of one byte an entry, as²b.",
    ),
    Mistake(
        name="the mask at attention's end forgotten",
        faults={"masks": (1, 0, 1)},
        message="Attention ends with a dropout: a mask of one byte an entry, sbh.",
    ),
    Mistake(
        name="the feed-forward's mask forgotten",
        faults={"masks": (1, 1, 0)},
        message="The feed-forward ends with a dropout: a mask of one byte an entry, sbh.",
    ),
    Mistake(
        name="the input of Q, K and V three times",
        faults={"streams": 7},
        message="Attention has 4sbh too much, two tensors as large as the stream. Q, K and V read the same "
        "tensor, which is kept once: 2sbh.",
    ),
    Mistake(
        name="one of attention's five tensors forgotten",
        faults={"streams": 4},
        message="Attention lacks 2sbh, a tensor as large as the stream. It keeps five: the common input of "
        "Q, K and V; Q and K, for their product; V, for its product with the weights; and the last map's "
        "input.",
    ),
    Mistake(
        name="two of attention's five tensors forgotten",
        faults={"streams": 3},
        message="Attention lacks 4sbh, two tensors as large as the stream. It keeps five: the common input "
        "of Q, K and V; Q and K, for their product; V, for its product with the weights; and the last map's "
        "input.",
    ),
    Mistake(
        name="one tensor of scores forgotten",
        faults={"scores_kept": 1},
        message="Two tensors of scores are kept, 2as²b each, besides the mask: the softmax's output, for the "
        "softmax, and what dropout makes of it, for the product with V.",
    ),
    Mistake(
        name="the softmax's input kept too",
        faults={"scores_kept": 3},
        message="A softmax goes back by its output alone. Kept are its output and what dropout makes of it, "
        "2as²b each, and a mask.",
    ),
    Mistake(
        name="one head",
        faults={"heads": False},
        message="Each head has a matrix of scores of its own: s × s, a times.",
    ),
    Mistake(
        name="one of the wide tensors forgotten",
        faults={"wides": 1},
        message="The feed-forward lacks 8sbh, a tensor 4h wide. It keeps two: the input of GELU (no product "
        "of matrices, but not linear), and its output, which is the second map's input.",
    ),
    Mistake(
        name="a feed-forward as narrow as the stream",
        faults={"times_wider": 1},
        message="Between its two maps the feed-forward is 4h wide: 8sbh a tensor, not 2sbh.",
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
