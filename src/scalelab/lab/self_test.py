"""A self-test: a few short questions, marked at the end, each missed one with the place to read up.

The questions' texts stand in the notebook, where they are read; what is right, what usual slips give
and where to read stands here, out of sight. Nothing is marked before the end, so that the tenth answer
is given as freely as the first. An answer that is missing is no mistake, and one that cannot be read
(text for a number) is said at once.
Taught in book/transformers/basics.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from scalelab.core.errors import LabError
from scalelab.lab.predictions import is_blank, read_number, show

Answer = float | tuple[int, ...]
Outcome = Literal["right", "wrong", "not answered"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Slip:
    """A usual wrong answer.

    Attributes:
        answer: what it gives. remark: what was done, and what should have been.
    """

    answer: Answer
    remark: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a reader who missed a question goes.

    Attributes:
        section: the chapter's section that teaches it. anchor: its place on the page.
        reading: a source outside the course, with its address.
    """

    section: str
    anchor: str
    reading: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question: the right answer, usual slips, and where to read what it asks.

    Attributes:
        name: as the notebook calls it. topic: in a few words, for the list of results.
        right: a number, or a shape as a tuple of whole numbers.
        place: where it is taught.
        slips: usual wrong answers.
        rtol: how far a number may stray, relative to the right one; 0.01 lets people round.
    """

    name: str
    topic: str
    right: Answer
    place: Place
    slips: tuple[Slip, ...] = ()
    rtol: float = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """How one answer was found: right, wrong or not answered, and what there is to say about it."""

    question: Question
    outcome: Outcome
    remark: str = ""


class SelfTest:
    """A sitting of a self-test: answers are collected by `answer`, and marked together by `result`."""

    def __init__(self, questions: Sequence[Question], *, chapter: str, onward: str) -> None:
        """Start one.

        Args:
            questions: in the order they are asked. chapter: the address of the page that teaches them.
            onward: what to do next, for who has missed little: "Go on to …".
        """
        self._questions = {question.name: question for question in questions}
        self._chapter = chapter
        self._onward = onward
        self._answers: dict[str, Answer] = {}

    def answer(self, name: str, answer: Any) -> None:
        """Keep an answer, unmarked; the last one given counts.

        Args:
            name: of the question. answer: a number or a shape; None or ... while there is none.

        Raises:
            LabError: no such question, or an answer of another kind than the question asks for.
        """
        question = self._questions.get(name)
        if question is None:
            raise LabError(f"no question is called {name!r}; there are: {', '.join(self._questions)}")
        if is_blank(answer):
            self._answers.pop(name, None)
            print(f"{name}: not answered yet.")
            return
        self._answers[name] = read_answer(question, answer)
        print(f"{name}: you say {_shown(self._answers[name])}.")

    def result(self) -> int:
        """Print each answer's mark and where to read what was missed; the number that were right."""
        marks = mark(list(self._questions.values()), self._answers)
        print(as_text(marks, chapter=self._chapter, onward=self._onward))
        return sum(one.outcome == "right" for one in marks)


def read_answer(question: Question, answer: Any) -> Answer:
    """An answer in the form its question asks for.

    Raises:
        LabError: a number where a shape is asked for, the other way round, or neither.
    """
    if isinstance(question.right, tuple):
        wanted = f"{question.name} asks for a shape, such as (2, 3, 4)"
        if not isinstance(answer, tuple | list | np.ndarray | torch.Tensor):  # "234" has sides to loop over
            raise LabError(f"{wanted}; got {answer!r}")
        try:
            numbers = [read_number("a side of a shape", side) for side in answer]
        except (TypeError, LabError):
            raise LabError(f"{wanted}; got {answer!r}") from None
        if not numbers or any(number != int(number) or number < 0 for number in numbers):
            raise LabError(f"{wanted}; got {answer!r}")
        return tuple(int(number) for number in numbers)
    return read_number(f"the answer to {question.name!r}", answer)


def mark(questions: Sequence[Question], answers: Mapping[str, Answer]) -> list[Mark]:
    """The mark of each question, in order."""
    return [_mark(question, answers.get(question.name)) for question in questions]


def as_text(marks: Sequence[Mark], *, chapter: str, onward: str) -> str:
    """All marks as plain text, and what to do next."""
    signs = {"right": "✓", "wrong": "✗", "not answered": "–"}
    width = max(len(one.question.topic) for one in marks)
    lines = []
    for one in marks:
        said = one.remark or {"right": "", "wrong": "not so", "not answered": "not answered"}[one.outcome]
        lines.append(f"{signs[one.outcome]} {one.question.topic:<{width}}  {said}".rstrip())
    n_right = sum(one.outcome == "right" for one in marks)
    missed = [one for one in marks if one.outcome != "right"]
    lines += ["", f"{n_right} of {len(marks)} right. {_advice(n_right, len(marks), onward)}"]
    if missed:
        lines += ["", "To read:"]
        for place, topics in _places(missed, chapter).items():
            lines += [f"  {' · '.join(topics)}", *(f"    {line}" for line in place)]
    return "\n".join(lines)


def _mark(question: Question, answer: Answer | None) -> Mark:
    if answer is None:
        return Mark(question=question, outcome="not answered")
    if _agrees(answer, question.right, question.rtol):
        return Mark(question=question, outcome="right")
    for slip in question.slips:
        if _agrees(answer, slip.answer, question.rtol):
            return Mark(question=question, outcome="wrong", remark=slip.remark)
    return Mark(question=question, outcome="wrong")


def _agrees(answer: Answer, other: Answer, rtol: float) -> bool:
    if isinstance(answer, tuple) or isinstance(other, tuple):
        return answer == other
    return math.isclose(answer, other, rel_tol=rtol, abs_tol=1e-9)


def _advice(n_right: int, n_all: int, onward: str) -> str:
    """On, on after a little reading, or back to the chapter."""
    if n_right == n_all:
        return onward
    if n_right >= 0.8 * n_all:
        return f"{onward} What you missed is listed below; read it when it comes up."
    if n_right >= 0.5 * n_all:
        return "Read the sections below first, then go on."
    return "Take an evening for the chapter, then try again: what follows builds on it everywhere."


def _places(missed: Sequence[Mark], chapter: str) -> dict[tuple[str, str], list[str]]:
    """(section with its address, reading) → the topics it is for, each place once."""
    places: dict[tuple[str, str], list[str]] = {}
    for one in missed:
        place = one.question.place
        where = (f'"{place.section}": {chapter}#{place.anchor}', place.reading)
        places.setdefault(where, []).append(one.question.topic)
    return places


def _shown(answer: Answer) -> str:
    return str(answer) if isinstance(answer, tuple) else show(answer)
