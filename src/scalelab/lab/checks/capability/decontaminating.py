"""Held-out documents that stand in the training text, found by their stretches; the loss without them.

Source: Brown et al. 2020, arXiv:2005.14165, appendix C (overlaps of 8 to 13 words). Taught in
book/scaling-laws/capability.md.
"""

from __future__ import annotations

import numpy as np

from scalelab.lab.checks.answers import call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import case_of, numbers_of

PARTS = ("share found", "clean loss")


def clean_loss(
    train: np.ndarray, documents: np.ndarray, losses: np.ndarray, width: int
) -> tuple[float, float]:
    """(share of documents that overlap with the training text, mean loss of those that do not).

    Args:
        train: [n, T] training documents. documents: [m, T] held-out ones. losses: [m], of each, nats.
        width: a document overlaps when a stretch of so many symbols stands in a training document, anywhere.
    """
    known = {row[i : i + width].tobytes() for row in train for i in range(len(row) - width + 1)}
    found = np.array(
        [any(row[i : i + width].tobytes() in known for i in range(len(row) - width + 1)) for row in documents]
    )
    return found.mean(), losses[~found].mean()


def _build(*, search: str = "any stretch", keeps: str = "clean") -> Answer:
    """The search with the given faults; without any, the right one."""

    def answer(
        train: np.ndarray, documents: np.ndarray, losses: np.ndarray, width: int
    ) -> tuple[float, float]:
        longer = {"one more": 1, "one less": -1}.get(search, 0)
        length = documents.shape[1] if search == "whole" else width + longer
        starts = range(documents.shape[1] - length + 1)
        texts = [train.reshape(-1)] if search == "over seams" else list(train)
        known = {text[i : i + length].tobytes() for text in texts for i in range(len(text) - length + 1)}
        placed = {(i, row[i : i + length].tobytes()) for row in train for i in starts}

        def stands(i: int, part: bytes) -> bool:
            return (i, part) in placed if search == "same place" else part in known

        hits = np.array([[stands(i, row[i : i + length].tobytes()) for i in starts] for row in documents])
        found = {"all": hits.all(axis=1), "beginning": hits[:, 0]}.get(search, hits.any(axis=1))
        chosen = {"clean": ~found, "found": found, "all": np.ones_like(found)}[keeps]
        return float(found.mean()), float(losses[chosen].mean()) if chosen.any() else float("nan")

    return answer


MISTAKES = (
    Mistake(
        name="whole documents only",
        faults={"search": "whole"},
        message="A document counts only when all of it stands in the training text. A part is enough to be "
        "remembered: look for stretches of `width` symbols.",
    ),
    Mistake(
        name="one symbol too many",
        faults={"search": "one more"},
        message="The stretches are of width + 1 symbols. row[i : i + width] has `width`, and there are "
        "len(row) - width + 1 of them.",
    ),
    Mistake(
        name="one symbol too few",
        faults={"search": "one less"},
        message="The stretches are of width - 1 symbols: shorter ones are found by chance more often.",
    ),
    Mistake(
        name="every stretch for any",
        faults={"search": "all"},
        message="A document counts only when each of its stretches is found. One is enough.",
    ),
    Mistake(
        name="the beginning alone",
        faults={"search": "beginning"},
        message="Only a document's first stretch is looked for. A leak may begin anywhere in it.",
    ),
    Mistake(
        name="the same place only",
        faults={"search": "same place"},
        message="A stretch is compared with the training documents at its own place. It may stand at another "
        "place there.",
    ),
    Mistake(
        name="stretches over a seam",
        faults={"search": "over seams"},
        message="The training documents were joined to one text, and stretches that run from one into the "
        "next are taken for text. Nobody read these.",
    ),
    Mistake(
        name="the loss of what was found",
        faults={"keeps": "found"},
        message="This is the loss of the documents that *overlap*. Keep the others: ~found.",
    ),
    Mistake(
        name="the loss of all",
        faults={"keeps": "all"},
        message="The documents that overlap are found, and left in. The loss is to be the others' mean.",
    ),
)

HINTS = (
    "Two steps: which stretches does the training text hold? Which documents hold one of them?",
    "Put row[i : i + width].tobytes() of every training document into a set; a document is found when any of "
    "its stretches is in the set.",
    "known = {row[i : i + width].tobytes() for row in train for i in range(len(row) - width + 1)}; then "
    "any(... in known ...) for each document, found.mean() and losses[~found].mean().",
)


def _planted(train: np.ndarray, width: int, rng: np.random.Generator) -> np.ndarray:
    """Held-out documents [24, T] with parts of the training documents: each kind catches another mistake."""
    length = train.shape[1]
    documents = rng.integers(0, 100, (24, length))
    documents[0] = train[0]
    for row in (1, 2):  # a part at its own place
        documents[row, 2 : 5 + width] = train[row, 2 : 5 + width]
    for row in (3, 4, 5):  # a part elsewhere
        documents[row, length - width - 2 :] = train[row, 1 : width + 3]
    documents[6, :width] = train[6, length - width :]  # just as long as asked, at the beginning
    for row in (7, 8, 9, 10, 11):  # just as long, in the middle, elsewhere
        documents[row, 4 : 4 + width] = train[row, 3 : 3 + width]
    for row in range(12, 19):  # one symbol too short
        documents[row, 1:width] = train[row - 6, 2 : width + 1]
    for row in (19, 20):  # over the seam between two training documents
        half = width // 2
        documents[row, 3 : 3 + width] = np.concatenate(
            [train[row - 10, -half:], train[row - 9, : width - half]]
        )
    for row, (first, second) in ((21, (12, 13)), (22, (14, 15))):  # every stretch of it, in two halves
        middle = length // 2
        documents[row, : middle + width - 1] = train[first, : middle + width - 1]
        documents[row, middle:] = train[second, : length - middle]
        train[second, : width - 1] = documents[row, middle : middle + width - 1] = train[
            first, middle : middle + width - 1
        ]
    return documents


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    cases = []
    for n, length, width in ((18, 16, 5), (16, 20, 6)):
        train = rng.integers(0, 100, (n, length))
        documents = _planted(train, width, rng)
        losses = rng.uniform(2.4, 3.4, len(documents))
        about = f"{n} training documents of {length} symbols, {len(documents)} held-out ones, width {width}"
        cases.append(case_of(about, train, documents, losses, width))
    return tuple(cases)


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return numbers_of(call(answer, *args), PARTS)


EXERCISE = Exercise(
    name="clean_loss",
    reference=clean_loss,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-9,
)
