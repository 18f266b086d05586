"""T5's span corruption of one window, and the ways in which its two halves come not to fit.

Source: Raffel et al. 2019, arXiv:1910.10683, section 3.1.4. Taught in book/transformers/architectures.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from scalelab.lab.checks.answers import Numbers, Rejected, as_numbers, as_tuple, call, describe
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

PARTS = ("source", "target")


def corrupt_spans(
    ids: Sequence[int], spans: Sequence[tuple[int, int]], sentinels: Sequence[int], end_id: int
) -> tuple[list[int], list[int]]:
    """What an encoder–decoder reads and what it must write.

    Args:
        ids: a text. spans: (first, last + 1) of each hidden span, in order; they do not touch.
        sentinels: the first stands for the first span, and so on. end_id: closes source and target.

    Returns:
        source: the text with each span replaced by its sentinel. target: each sentinel, followed by what it
        hides. Both end with end_id.
    """
    source: list[int] = []
    target: list[int] = []
    at = 0
    for (first, stop), sentinel in zip(spans, sentinels, strict=False):
        source += [*ids[at:first], sentinel]
        target += [sentinel, *ids[first:stop]]
        at = stop
    return [*source, *ids[at:], end_id], [*target, end_id]


def _build(
    *,
    marks: str = "one a span",
    order: str = "upwards",
    target_marks: str = "before",
    ends: str = "both",
    shown: str = "left out",
    tail: str = "kept",
    last: str = "kept",
    reach: int = 0,
) -> Answer:
    """Span corruption with the given faults; without any, the right one."""

    def answer(
        ids: Sequence[int], spans: Sequence[tuple[int, int]], sentinels: Sequence[int], end_id: int
    ) -> tuple[list[int], list[int]]:
        signs = list(sentinels[: len(spans)])
        signs = signs[::-1] if order == "downwards" else signs
        signs = [signs[0]] * len(signs) if marks == "the same" else signs
        source: list[int] = []
        target: list[int] = []
        at = 0
        for (first, end), sentinel in zip(spans, signs, strict=True):
            stop = end + reach
            if last == "lost at the end" and stop == len(ids):
                source += ids[at:first]
                at = stop
                continue
            hidden = list(ids[first:stop])
            n_marks = len(hidden) if marks == "one a token" else 1
            source += [*ids[at:first], *[sentinel] * n_marks, *(hidden if shown == "left in" else [])]
            before = {"before": [sentinel], "after": [], "none": []}[target_marks]
            target += [*before, *hidden, *([sentinel] if target_marks == "after" else [])]
            at = stop
        source += list(ids[at:]) if tail == "kept" else []
        source_end = [end_id] if ends in ("both", "source") else []
        return source + source_end, target + ([end_id] if ends in ("both", "target") else [])

    return answer


MISTAKES = (
    Mistake(
        name="one sentinel for each token",
        faults={"marks": "one a token"},
        message="The source has as many sentinels as hidden tokens, so it says how long each span is. One "
        "sentinel stands for a whole span; its length is for the model to find out.",
    ),
    Mistake(
        name="the same sentinel for all spans",
        faults={"marks": "the same"},
        message="Every span has the same sentinel, so the target cannot say which gap it fills.",
    ),
    Mistake(
        name="sentinels in the wrong order",
        faults={"order": "downwards"},
        message="The first span must get the first sentinel; here the last one's comes first.",
    ),
    Mistake(
        name="no sentinels in the target",
        faults={"target_marks": "none"},
        message="The target lists hidden tokens without their sentinels: nobody knows where a span ends and "
        "the next begins.",
    ),
    Mistake(
        name="sentinel after its span",
        faults={"target_marks": "after"},
        message="In the target the sentinel stands behind what it hides. It comes first: it says which gap "
        "is filled next.",
    ),
    Mistake(
        name="target without its end",
        faults={"ends": "source"},
        message="The target does not end with end_id, so the model never learns to stop.",
    ),
    Mistake(
        name="no end at all",
        faults={"ends": "none"},
        message="Neither list ends with end_id; both must.",
    ),
    Mistake(
        name="spans one too long",
        faults={"reach": 1},
        message="A span is (first, last + 1), as in ids[first:stop]: stop itself is not hidden.",
    ),
    Mistake(
        name="spans one too short",
        faults={"reach": -1},
        message="The last token of each span is not hidden: ids[first:stop] already leaves stop out.",
    ),
    Mistake(
        name="source without its end",
        faults={"ends": "target"},
        message="The source does not end with end_id. Both lists do: the reader must know where the text is "
        "over.",
    ),
    Mistake(
        name="hidden tokens left in the source",
        faults={"shown": "left in"},
        message="The source has the sentinels, and the hidden tokens after them: nothing is hidden.",
    ),
    Mistake(
        name="text after the last span lost",
        faults={"tail": "lost"},
        message="What follows the last span is missing in the source.",
    ),
    Mistake(
        name="a span that ends the text lost",
        faults={"last": "lost at the end"},
        message="A span is written when the walk leaves it, and one that ends the text is never left: its "
        "sentinel and its tokens are missing. Write it where it begins, or look once more after the loop.",
    ),
)

HINTS = (
    "Work it out on paper for a b c d e f with c d hidden: a b <0> e f, and <0> c d, each with its end.",
    "Walk through the spans and remember where the last one stopped: the text from there to the next span "
    "goes to the source.",
    "for (first, stop), sentinel in zip(spans, sentinels): source += [*ids[at:first], sentinel]; target += "
    "[sentinel, *ids[first:stop]]; at = stop. Then what is left, and end_id for both.",
)


def _case(about: str, rng: np.random.Generator, lengths: Sequence[int]) -> Case:
    """Spans of these lengths with 2 to 4 tokens before each, and 3 after the last."""
    ids: list[int] = []
    spans = []
    for length in lengths:
        ids += rng.integers(10, 90, size=int(rng.integers(2, 5))).tolist()
        spans.append((len(ids), len(ids) + length))
        ids += rng.integers(10, 90, size=length).tolist()
    ids += rng.integers(10, 90, size=3).tolist()
    return _case_of(about, rng, ids, spans)


def _case_of(about: str, rng: np.random.Generator, ids: list[int], spans: list[tuple[int, int]]) -> Case:
    first = 100 + int(rng.integers(50))

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (list(ids), list(spans), list(range(first, first + 8)), first - 1), {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    lengths = [int(length) for length in rng.integers(2, 5, size=3)]
    n_between = int(rng.integers(2, 6))
    edges = [(0, 2), (2 + n_between, 3 + n_between)]
    edge_ids = rng.integers(10, 90, size=3 + n_between).tolist()
    return (
        _case("1 span of 2 tokens", rng, [2]),
        _case(f"3 spans of {', '.join(map(str, lengths))} tokens", rng, lengths),
        _case_of("a span that begins the text and one of 1 token that ends it", rng, edge_ids, edges),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    parts = as_tuple(call(answer, *args), PARTS)
    return {name: _row(part, f"the {name}") for name, part in zip(PARTS, parts, strict=True)}


def _row(value: Any, what: str) -> Numbers:
    """A list, tensor or array of ids.

    Raises:
        Rejected: anything else; text is no id, and neither is a number too large for any.
    """
    try:
        row = as_numbers(value, what).values if isinstance(value, torch.Tensor) else np.asarray(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # ragged lists, tensors with gradients
        row = np.array(0.0)
    if row.ndim != 1 or row.dtype.kind not in "iuf":
        raise Rejected(
            f"returned {describe(value)} for {what}, where a list of ids should be",
            name="returned the wrong kind of thing",
        )
    return Numbers(row.astype(np.float64))


EXERCISE = Exercise(
    name="corrupt_spans",
    reference=corrupt_spans,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
)
