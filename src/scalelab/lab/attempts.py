"""Handing in an answer: right goes back as it came, wrong is explained, counted and replaced.

Whatever the answer, the lab goes on, with the learner's function or with the reference. Only in
strict mode (grading, tests) does a wrong answer raise.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, TypeVar

from scalelab.core.errors import LabError
from scalelab.lab.checks import Exercise, Verdict, exercises, find_exercise, judge
from scalelab.lab.environment import is_strict

A = TypeVar("A")


@dataclass(slots=True)
class Attempts:
    """What was handed in for one exercise.

    Attributes:
        n_tries: answers handed in, not counting unwritten ones and repeats of the same.
        passed_at: the try that passed, None before.
        mistakes: names of those met, in order, each once.
        last: the answer handed in last, which hidden tests try.
        n_hints: shown so far. hinted: the answer that got the newest of them.
    """

    n_tries: int = 0
    passed_at: int | None = None
    mistakes: list[str] = field(default_factory=list)
    last: Any = None
    n_hints: int = 0
    hinted: Any = None


class Checks:
    """`lab.check`: one attribute for each exercise of the lab."""

    def __init__(self, lab: str, seed: int, attempts: dict[str, Attempts]) -> None:
        self._lab = lab
        self._seed = seed
        self._attempts = attempts

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *exercises(self._lab)]

    def __getattr__(self, name: str) -> Callable[[A], A]:
        if name.startswith("__"):  # copy and pickle ask for these; they are no exercises
            raise AttributeError(name)
        exercise = find_exercise(self._lab, name)

        def check(answer: A) -> A:
            return self._check(exercise, answer)

        check.__name__ = name
        check.__doc__ = f"Check an answer to {name}: hands it back when it is right, else the reference."
        return check

    def hidden_test(self, name: str, answer: Callable[..., Any] | None, *, seed: int) -> None:
        """Raise LabError unless the answer (by default the last one checked) is right on the hidden cases."""
        exercise = find_exercise(self._lab, name)
        handed_in = self._attempts[name].last if answer is None or answer is exercise.reference else answer
        if handed_in is None:
            raise LabError(f"✗ hidden test of {name}: nothing was handed in to lab.check.{name}")
        verdict = judge(exercise, handed_in, exercise.hidden_cases(self._seed + seed))
        if not verdict.right:
            raise LabError(f"✗ hidden test: {verdict.message}")
        print(f"✓ hidden test of {name}")

    def _check(self, exercise: Exercise, answer: A) -> A:
        attempts = self._attempts[exercise.name]
        repeated = answer is exercise.reference or _same_answer(answer, attempts.last)
        if answer is exercise.reference:
            # The check's cell was run again without the answer's: its name now holds the reference.
            if attempts.last is None:
                raise LabError(f"this is the reference of {exercise.name}: hand in a function of your own")
            answer = attempts.last
        attempts.last = answer
        verdict = judge(exercise, answer, exercise.cases(self._seed))
        if verdict.outcome != "not written" and not repeated:
            attempts.n_tries += 1
        if verdict.right:
            if attempts.passed_at is None:
                attempts.passed_at = attempts.n_tries
            print(f"✓ {verdict.message}")
            return answer
        attempts.mistakes.extend(name for name in verdict.mistakes if name not in attempts.mistakes)
        message = _message(exercise, verdict, attempts)
        if is_strict(os.environ):
            raise LabError(message)
        print(f"{message}\nThe lab goes on with the reference. To try again, change your cell and run both.")
        reference: Any = exercise.reference
        return reference  # type: ignore[no-any-return]


def _message(exercise: Exercise, verdict: Verdict, attempts: Attempts) -> str:
    """The verdict and, once something ran, a hint: the next one for each new answer.

    An answer that raised gets none: its error says what to do, and a hint would be spent on a typing slip.
    """
    if verdict.outcome == "not written":
        return verdict.message
    if not verdict.ran:
        return f"✗ {verdict.message}"
    if not _same_answer(attempts.last, attempts.hinted):
        attempts.n_hints = min(attempts.n_hints + 1, len(exercise.hints))
        attempts.hinted = attempts.last
    hint = exercise.hints[attempts.n_hints - 1]
    return f"✗ {verdict.message}\nHint {attempts.n_hints} of {len(exercise.hints)}: {hint}"


def _same_answer(one: Any, other: Any) -> bool:
    """Whether two answers are the same one, or a cell run again unchanged: functions of the same code."""
    if one is other:
        return True
    codes = [getattr(answer, "__code__", None) for answer in (one, other)]
    if not all(isinstance(code, CodeType) for code in codes) or _content(codes[0]) != _content(codes[1]):
        return False
    try:
        return bool(_bound(one) == _bound(other))
    except Exception:  # what they hold compares to no yes or no (tensors): call them different
        return False


def _content(code: Any) -> tuple[Any, ...]:
    """What a function does, whatever line it stands on; constants by repr, or 1, 1.0 and True were equal."""
    constants = tuple(_content(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts)
    return code.co_code, constants, code.co_names


def _bound(function: Any) -> tuple[Any, ...]:
    """The values a function carries along: defaults, and those of the functions around it."""
    held = tuple(cell.cell_contents for cell in function.__closure__ or ())
    return function.__defaults__, function.__kwdefaults__, held
