"""What every exercise of every lab must hold: right passes, each usual mistake is named, hidden cases differ.

A lab's own file holds what is its own: unlisted mistakes, other right ways, oracles of its references.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scalelab.lab.checks import Exercise, Mistake, exercises, judge
from scalelab.lab.checks.answers import Rejected, one_thread
from scalelab.lab.checks.framework import Answer, Case, Observation, same


@dataclass(frozen=True)
class Bar:
    """How far a lab's checks are tried, and what they must reach.

    Attributes:
        n_mistakes: each exercise knows at least so many.
        share_named: of pairs of mistakes made at once, the share whose two are both named.
        right_seeds, named_seeds: variants that right answers and mistakes are tried on.
        says: an account of a mistake has one of these in it.
    """

    n_mistakes: int
    share_named: float
    right_seeds: Sequence[int]
    named_seeds: Sequence[int]
    says: Sequence[str]


FOUR = (0, 1, 2, 12345)
BARS: Mapping[str, Bar] = {
    "parallelism/data-parallel": Bar(6, 0.6, FOUR, FOUR, ["should"]),
    "parallelism/sharding": Bar(8, 0.45, FOUR, range(8), ["should", "wait for each other"]),
    "parallelism/pipeline": Bar(8, 0.6, FOUR, range(8), ["should"]),
    "transformers/basics": Bar(6, 0.6, FOUR, FOUR, ["should"]),
    "transformers/tokens": Bar(6, 0.4, FOUR, FOUR, ["should"]),
    "transformers/attention": Bar(6, 0.75, FOUR, range(8), ["should be", "should have"]),
    "transformers/block": Bar(6, 0.6, FOUR, range(8), ["should be"]),
    "transformers/architectures": Bar(6, 0.75, FOUR, range(8), ["should"]),
    "transformers/training": Bar(4, 0.9, FOUR, FOUR, ["should be"]),
    "scaling-laws/capability": Bar(8, 0.6, FOUR, range(8), ["should"]),
    "scaling-laws/compute-optimal": Bar(7, 0.6, FOUR, range(8), ["should"]),
    "scaling-laws/planning": Bar(7, 0.6, FOUR, range(8), ["should"]),
    "scaling-laws/power-laws": Bar(6, 0.5, FOUR, range(8), ["should"]),
    "transformers/inference": Bar(8, 0.6, (*range(20), 12345), range(8), ["should be", "should have"]),
    "parallelism/tensor-parallel": Bar(9, 0.6, FOUR, FOUR, ["should be", "should have"]),
}
# The table's work put in the wrong place is the right sum.
CANCELLING = {
    frozenset({"input table counted as if it multiplied", "tied head forgotten"}),
    frozenset({"the sum for the mean", "a confidence interval used for a prediction"}),  # times and over √P
    frozenset({"half of the ring", "four bytes a number"}),  # half of the tensor, twice as wide
}
ALL = [(lab, name) for lab in BARS for name in exercises(lab)]


@dataclass(frozen=True, eq=False)
class Tried:
    """An exercise that remembers what came of its own wrong answers, and its bar.

    To name a pair of mistakes a check makes every pair, and here every pair is judged: without memory each
    would be made hundreds of times.
    """

    exercise: Exercise
    bar: Bar

    @functools.cache  # noqa: B019 (both live as long as the tests)
    def all_cases(self, seed: int) -> list[tuple[Case, ...]]:
        """The visible cases of a variant, and its hidden ones: the same objects each time."""
        return [self.exercise.cases(seed), self.exercise.hidden_cases(seed)]


@functools.cache
def tried_of(lab: str, name: str) -> Tried:
    return Tried(remembering(exercises(lab)[name]), BARS[lab])


@pytest.fixture(params=ALL, ids="-".join)
def tried(request: pytest.FixtureRequest) -> Tried:
    return tried_of(*request.param)


def remembering(exercise: Exercise) -> Exercise:
    """The exercise, which looks up what it has observed of an answer that it has built."""
    made: dict[Any, Answer] = {}
    built: set[Answer] = set()
    seen: dict[tuple[Answer, int], Observation | Rejected] = {}
    alive: list[Case] = []  # so that no other case gets the number of one that has gone

    def build(**faults: Any) -> Answer:
        key = tuple(sorted(faults.items()))
        if key not in made:
            made[key] = exercise.build(**faults)
            built.add(made[key])
        return made[key]

    def observe(answer: Answer, case: Case) -> Observation:
        if answer not in built:
            return exercise.observe(answer, case)
        if (answer, id(case)) not in seen:
            alive.append(case)
            try:
                seen[answer, id(case)] = exercise.observe(answer, case)
            except Rejected as refusal:
                seen[answer, id(case)] = refusal
        found = seen[answer, id(case)]
        if isinstance(found, Rejected):
            raise found
        return found

    return dataclasses.replace(exercise, build=build, observe=observe)


def pairs_of_mistakes(exercise: Exercise) -> list[tuple[Mistake, Mistake]]:
    """Those that can be made at once."""
    pairs = itertools.combinations(exercise.mistakes, 2)
    return [(first, second) for first, second in pairs if not set(first.faults) & set(second.faults)]


def test_every_lab_has_its_bar() -> None:
    labs = Path(__file__).resolve().parents[2] / "labs"
    assert set(BARS) == {path.relative_to(labs).with_suffix("").as_posix() for path in labs.glob("*/*.ipynb")}


def test_reference_and_the_builder_without_faults_are_right(tried: Tried) -> None:
    exercise, bar = tried.exercise, tried.bar
    for seed in bar.right_seeds:
        for cases in tried.all_cases(seed):
            assert judge(exercise, exercise.reference, cases).right, seed
            assert judge(exercise, exercise.build(), cases).right, seed


@pytest.mark.parametrize(
    ("lab", "name", "mistake"),
    [(lab, name, mistake.name) for lab, name in ALL for mistake in exercises(lab)[name].mistakes],
)
def test_each_listed_mistake_is_named_on_visible_and_hidden_cases(lab: str, name: str, mistake: str) -> None:
    tried = tried_of(lab, name)
    exercise, bar = tried.exercise, tried.bar
    for seed in bar.named_seeds:
        for cases in tried.all_cases(seed):
            verdict = judge(exercise, exercise.make_mistake(mistake), cases)
            assert verdict.outcome == "known mistake", verdict.message
            assert verdict.mistakes == (mistake,), verdict.message
            assert mistake in verdict.message
            assert any(words in verdict.message for words in bar.says)


def test_two_mistakes_at_once_never_pass_and_are_mostly_both_named(tried: Tried) -> None:
    exercise, bar = tried.exercise, tried.bar
    cases = tried.all_cases(0)[0]
    named = []
    for first, second in pairs_of_mistakes(exercise):
        verdict = judge(exercise, exercise.build(**first.faults, **second.faults), cases)
        assert verdict.right == (frozenset({first.name, second.name}) in CANCELLING)
        named.append(set(verdict.mistakes) == {first.name, second.name})
    assert sum(named) >= bar.share_named * len(named)


def test_a_checks_own_wrong_answers_can_be_compared_and_two_at_once_are_wrong_on_every_variant(
    tried: Tried,
) -> None:
    """What the check makes itself, one mistake or two, must neither raise nor be rejected nor pass.

    Of thirty variants each mistake is tried on every third, of three each pair on one: all are tried on many.
    """
    exercise = tried.exercise
    with one_thread():
        for seed in range(30):
            for cases in tried.all_cases(seed):
                for mistake in exercise.mistakes[seed % 3 :: 3]:
                    for case in cases:
                        exercise.observe(exercise.build(**mistake.faults), case)
        for number, (first, second) in enumerate(pairs_of_mistakes(exercise)):
            cases = tried.all_cases((1, 2, 12345)[number % 3])[0]
            answer = exercise.build(**first.faults, **second.faults)
            agrees = all(
                same(exercise, got[key], wanted[key])
                for case in cases
                for got, wanted in [
                    (exercise.observe(answer, case), exercise.observe(exercise.build(), case))
                ]
                for key in wanted
            )
            assert agrees == (frozenset({first.name, second.name}) in CANCELLING)


def test_an_exercise_has_mistakes_enough_three_hints_and_signatures_that_agree(
    tried: Tried,
) -> None:
    exercise, bar = tried.exercise, tried.bar
    assert len({mistake.name for mistake in exercise.mistakes}) == len(exercise.mistakes) >= bar.n_mistakes
    assert len(set(exercise.hints)) == 3
    names = list(inspect.signature(exercise.reference).parameters)
    assert names == list(inspect.signature(exercise.build()).parameters)
    assert exercise.reference.__name__ == exercise.name


def test_hidden_cases_are_other_inputs_than_the_visible_ones(tried: Tried) -> None:
    exercise = tried.exercise

    def outputs(cases: Any) -> list[str]:
        with one_thread():
            return [repr(exercise.observe(exercise.reference, case)) for case in cases]

    for seed in range(10):
        shown, hidden = outputs(exercise.cases(seed)), outputs(exercise.hidden_cases(seed))
        assert not set(shown) & set(hidden)
        assert outputs(exercise.cases(seed)) == shown, "the same seed gives the same cases"
        assert outputs(exercise.cases(seed + 100)) != shown, "another variant gives others"


def test_an_unwritten_answer_is_no_mistake(tried: Tried) -> None:
    def answer(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("write this")

    exercise = tried.exercise
    verdict = judge(exercise, answer, exercise.cases(0))
    assert verdict.outcome == "not written"
    assert verdict.message.startswith(f"not written yet: {exercise.name}")
    assert verdict.mistakes == ()
