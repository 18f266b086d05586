"""A check runs an answer on a few inputs and names the mistake it sees, rather than only "wrong".

An exercise is written once with switches for the usual mistakes ("faults"). A wrong answer is run on
the visible cases and its outputs are compared with those of each fault, then of each pair of faults:
the one that gives the same numbers everywhere is the one the learner made. Anything else gets a
neutral account of where the numbers differ. Nothing here prints, raises at a learner or keeps state:
`judge` maps an answer to a verdict.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from scalelab.core.errors import LabError
from scalelab.lab.checks.answers import NotWritten, Numbers, Rejected, describe, one_thread

Answer = Callable[..., Any]
Observation = Mapping[str, Numbers]
Outcome = Literal["right", "not written", "known mistake", "unknown mistake", "broken"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One set of inputs on which an answer is tried.

    Attributes:
        about: what is special about it, as it reads after "on": "2 sequences of 5 tokens, no padding".
        make: gives the positional and the keyword arguments, afresh each time, since answers may change them.
    """

    about: str
    make: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """One usual wrong answer.

    Attributes:
        name: a few words, as a report lists it: "no shift".
        message: one or two sentences to the learner: what was done, and why it is wrong.
        faults: the switches of `Exercise.build` that make it.
        seen_in: the outputs it is recognised by; all when empty. (Who clips too early may return the
            norm from before or after: the gradients alone tell.)
    """

    name: str
    message: str
    faults: Mapping[str, Any]
    seen_in: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Exercise:
    """What is asked, what is right, what goes wrong, and on which inputs that shows.

    Attributes:
        name: of the function the learner writes.
        reference: the right answer, written to be read: the lab goes on with it when the learner's is wrong.
        build: `build()` is right, `build(**faults)` makes the mistakes with those switches.
        mistakes: the usual ones. hints: three, each saying more than the one before.
        draw_cases: makes the cases from a random generator; every draw must tell all mistakes apart.
        observe: runs an answer on a case, returns its outputs by name, or raises Rejected.
        rtol, atol: how far an output may stray, relative to the right value and absolutely.
    """

    name: str
    reference: Answer
    build: Callable[..., Answer]
    mistakes: tuple[Mistake, ...]
    hints: tuple[str, str, str]
    draw_cases: Callable[[np.random.Generator], tuple[Case, ...]]
    observe: Callable[[Answer, Case], Observation]
    rtol: float = 1e-4
    atol: float = 1e-7

    def cases(self, seed: int) -> tuple[Case, ...]:
        """The visible cases of the variant `seed`."""
        return self.draw_cases(np.random.default_rng([seed, 0]))

    def hidden_cases(self, seed: int) -> tuple[Case, ...]:
        """Other cases of the same kinds: what a hidden test uses, and none with a visible one's right answer.

        Where a case is no more than a size or two, a draw may repeat one: then it is drawn again.

        Raises:
            LabError: no draw has other right answers.
        """
        shown = {self._right_numbers(case) for case in self.cases(seed)}
        for attempt in range(1, 1000):
            cases = self.draw_cases(np.random.default_rng([seed, attempt]))
            if not shown & {self._right_numbers(case) for case in cases}:
                return cases
        raise LabError(f"{self.name}: 1,000 draws of cases have the right answers of the visible ones")

    def _right_numbers(self, case: Case) -> tuple[tuple[str, tuple[int, ...], bytes], ...]:
        with one_thread():
            right = self.observe(self.reference, case)
        return tuple((name, part.values.shape, part.values.tobytes()) for name, part in right.items())

    def make_mistake(self, name: str) -> Answer:
        """The answer that makes the mistake of this name and no other."""
        return self.build(**next(m for m in self.mistakes if m.name == name).faults)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a check found.

    Attributes:
        outcome: right, not written, a known mistake (or two at once), an unknown one, or broken (it
            raised, or returned something of the wrong kind).
        message: for the learner; one to four lines.
        mistakes: names, as a report lists them; empty when right or not written.
        ran: whether the answer ran to its end on the cases; a hint helps only then.
    """

    outcome: Outcome
    message: str
    mistakes: tuple[str, ...] = field(default=())
    ran: bool = True

    @property
    def right(self) -> bool:
        """Whether the answer passed."""
        return self.outcome == "right"


def judge(exercise: Exercise, answer: object, cases: Sequence[Case]) -> Verdict:
    """Try an answer on the cases and say what it is: right, or which mistake."""
    with one_thread():
        return _judge(exercise, answer, cases)


def _judge(exercise: Exercise, answer: object, cases: Sequence[Case]) -> Verdict:
    if not callable(answer):
        return Verdict(
            outcome="broken",
            message=f"{exercise.name} should be a function, and it is {describe(answer)}. Did its cell run?",
            mistakes=("not a function",),
            ran=False,
        )
    observed = _observe_all(exercise, answer, cases)
    if isinstance(observed, Verdict):
        return observed
    expected = [exercise.observe(exercise.reference, case) for case in cases]
    seen = _first_difference(exercise, cases, observed, expected)
    if seen is None:
        return Verdict(outcome="right", message=f"{exercise.name} is right on {len(cases)} cases.")
    named = recognise(exercise, cases, observed)
    if not named:
        message = f"{exercise.name} is not right, and this is none of the usual mistakes.\n{seen}"
        return Verdict(outcome="unknown mistake", message=message, mistakes=("a mistake of its own",))
    names = tuple(mistake.name for mistake in named)
    if len(named) == 1:
        message = f"{exercise.name}: {named[0].name}. {named[0].message}\n{seen}"
    else:
        listed = "\n".join(f"({i}) {m.name}. {m.message}" for i, m in enumerate(named, start=1))
        message = f"{exercise.name}: two mistakes at once.\n{listed}\n{seen}"
    return Verdict(outcome="known mistake", message=message, mistakes=names)


def _observe_all(exercise: Exercise, answer: Answer, cases: Sequence[Case]) -> list[Observation] | Verdict:
    """An answer's outputs on each case; or, when one gives nothing to compare, the verdict on it."""
    observed: list[Observation] = []
    with warnings.catch_warnings():  # filters that an answer sets end with it
        for case in cases:
            try:
                observed.append(exercise.observe(answer, case))
            except NotWritten as refusal:
                message = f"not written yet: {exercise.name}. {refusal}"
                return Verdict(outcome="not written", message=message, ran=False)
            except Rejected as refusal:
                message = f"On {case.about}, {exercise.name} {refusal}"
                message += "" if message.endswith((".", "?", "!")) else "."
                return Verdict(outcome="broken", message=message, mistakes=(refusal.name,), ran=refusal.ran)
    return observed


def recognise(
    exercise: Exercise, cases: Sequence[Case], observed: Sequence[Observation]
) -> tuple[Mistake, ...]:
    """The one mistake, or else the one pair, that gives the observed outputs on every case; else none.

    A pair is only named when no other pair fits: naming the wrong one is worse than naming none.
    """
    for mistake in exercise.mistakes:
        if _gives(exercise, (mistake,), cases, observed):
            return (mistake,)
    pairs = [
        pair
        for pair in itertools.combinations(exercise.mistakes, 2)
        if not set(pair[0].faults) & set(pair[1].faults) and _gives(exercise, pair, cases, observed)
    ]
    return pairs[0] if len(pairs) == 1 else ()


def same(exercise: Exercise, observed: Numbers, expected: Numbers) -> bool:
    """Whether two outputs agree within the exercise's tolerance; NaN agrees with NaN."""
    if observed.values.shape != expected.values.shape:
        return False
    return bool(
        np.allclose(observed.values, expected.values, rtol=exercise.rtol, atol=exercise.atol, equal_nan=True)
    )


def _gives(
    exercise: Exercise,
    mistakes: tuple[Mistake, ...],
    cases: Sequence[Case],
    observed: Sequence[Observation],
) -> bool:
    faults = {name: value for mistake in mistakes for name, value in mistake.faults.items()}
    wrong_answer = exercise.build(**faults)
    seen_in = next((mistake.seen_in for mistake in mistakes if mistake.seen_in), ())
    for case, outputs in zip(cases, observed, strict=True):
        try:
            suspected = exercise.observe(wrong_answer, case)
        except Rejected:  # faults that together give nothing to compare are not what was seen
            return False
        keys = [key for key in suspected if not seen_in or key in seen_in]
        if not all(key in outputs and same(exercise, outputs[key], suspected[key]) for key in keys):
            return False
    return True


def _first_difference(
    exercise: Exercise,
    cases: Sequence[Case],
    observed: Sequence[Observation],
    expected: Sequence[Observation],
) -> str | None:
    """Where an answer first leaves the right one, in words and numbers; None when it never does."""
    for case, yours, right in zip(cases, observed, expected, strict=True):
        for key, wanted in right.items():
            got = yours[key]
            if got.values.shape != wanted.values.shape:
                return f"On {case.about}: {key} has shape {_shape(got)}, and it should have {_shape(wanted)}."
            if not same(exercise, got, wanted):
                return f"On {case.about}: {_worst_element(exercise, key, got, wanted)}"
    return None


def _worst_element(exercise: Exercise, key: str, got: Numbers, wanted: Numbers) -> str:
    off = ~np.isclose(got.values, wanted.values, rtol=exercise.rtol, atol=exercise.atol)
    n_off, n_all = int(off.sum()), off.size
    # The first one, not the largest: in a schedule or a sequence the first is where it went wrong.
    index = tuple(int(i) for i in np.argwhere(off)[0])
    place = f"{key}{wanted.place(index)}"
    share = "" if n_all == 1 else f" ({n_off} of {n_all} values differ)"
    should = f"it should be {_number(wanted.values[index])}{share}."
    more = f" {got.account}" if got.account else ""
    return f"{place} = {_number(got.values[index])}, and {should}{more}"


def _number(value: float) -> str:
    if np.isnan(value):
        return "NaN"
    if np.isfinite(value) and value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.5g}"


def _shape(numbers: Numbers) -> str:
    return "()" if numbers.values.ndim == 0 else str(list(numbers.values.shape))
