"""What every exercise of every lab must hold: right passes, each usual mistake is named, hidden cases differ.

A lab's own file holds what is its own: unlisted mistakes, other right ways, oracles of its references.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scalelab.lab.checks import Exercise, Mistake, exercises, judge
from scalelab.lab.checks.answers import one_thread
from scalelab.lab.checks.framework import same


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


@pytest.fixture(params=ALL, ids="-".join)
def tried(request: pytest.FixtureRequest) -> tuple[Exercise, Bar]:
    lab, name = request.param
    return exercises(lab)[name], BARS[lab]


def all_cases(exercise: Exercise, seed: int) -> list[Any]:
    return [exercise.cases(seed), exercise.hidden_cases(seed)]


def pairs_of_mistakes(exercise: Exercise) -> list[tuple[Mistake, Mistake]]:
    """Those that can be made at once."""
    pairs = itertools.combinations(exercise.mistakes, 2)
    return [(first, second) for first, second in pairs if not set(first.faults) & set(second.faults)]


def test_every_lab_has_its_bar() -> None:
    labs = Path(__file__).resolve().parents[2] / "labs"
    assert set(BARS) == {path.relative_to(labs).with_suffix("").as_posix() for path in labs.glob("*/*.ipynb")}


def test_reference_and_the_builder_without_faults_are_right(tried: tuple[Exercise, Bar]) -> None:
    exercise, bar = tried
    for seed in bar.right_seeds:
        for cases in all_cases(exercise, seed):
            assert judge(exercise, exercise.reference, cases).right, seed
            assert judge(exercise, exercise.build(), cases).right, seed


@pytest.mark.parametrize(
    ("lab", "name", "mistake"),
    [(lab, name, mistake.name) for lab, name in ALL for mistake in exercises(lab)[name].mistakes],
)
def test_each_listed_mistake_is_named_on_visible_and_hidden_cases(lab: str, name: str, mistake: str) -> None:
    exercise, bar = exercises(lab)[name], BARS[lab]
    for seed in bar.named_seeds:
        for cases in all_cases(exercise, seed):
            verdict = judge(exercise, exercise.make_mistake(mistake), cases)
            assert verdict.outcome == "known mistake", verdict.message
            assert verdict.mistakes == (mistake,), verdict.message
            assert mistake in verdict.message
            assert any(words in verdict.message for words in bar.says)


def test_two_mistakes_at_once_never_pass_and_are_mostly_both_named(tried: tuple[Exercise, Bar]) -> None:
    exercise, bar = tried
    cases = exercise.cases(0)
    named = []
    for first, second in pairs_of_mistakes(exercise):
        verdict = judge(exercise, exercise.build(**first.faults, **second.faults), cases)
        assert verdict.right == (frozenset({first.name, second.name}) in CANCELLING)
        named.append(set(verdict.mistakes) == {first.name, second.name})
    assert sum(named) >= bar.share_named * len(named)


def test_a_checks_own_wrong_answers_can_be_compared_and_two_at_once_are_wrong_on_every_variant(
    tried: tuple[Exercise, Bar],
) -> None:
    """What the check makes itself, one mistake or two, must neither raise nor be rejected nor pass."""
    exercise, _ = tried
    with one_thread():
        for seed in range(30):
            for cases in all_cases(exercise, seed):
                for mistake in exercise.mistakes:
                    for case in cases:
                        exercise.observe(exercise.build(**mistake.faults), case)
        for seed in (1, 2, 12345):
            cases = exercise.cases(seed)
            right = [exercise.observe(exercise.reference, case) for case in cases]
            for first, second in pairs_of_mistakes(exercise):
                answer = exercise.build(**first.faults, **second.faults)
                found = [exercise.observe(answer, case) for case in cases]
                agrees = all(
                    same(exercise, got[key], wanted[key])
                    for got, wanted in zip(found, right, strict=True)
                    for key in wanted
                )
                assert agrees == (frozenset({first.name, second.name}) in CANCELLING)


def test_an_exercise_has_mistakes_enough_three_hints_and_signatures_that_agree(
    tried: tuple[Exercise, Bar],
) -> None:
    exercise, bar = tried
    assert len({mistake.name for mistake in exercise.mistakes}) == len(exercise.mistakes) >= bar.n_mistakes
    assert len(set(exercise.hints)) == 3
    names = list(inspect.signature(exercise.reference).parameters)
    assert names == list(inspect.signature(exercise.build()).parameters)
    assert exercise.reference.__name__ == exercise.name


def test_hidden_cases_are_other_inputs_than_the_visible_ones(tried: tuple[Exercise, Bar]) -> None:
    exercise, _ = tried

    def outputs(cases: Any) -> list[str]:
        with one_thread():
            return [repr(exercise.observe(exercise.reference, case)) for case in cases]

    for seed in range(10):
        shown, hidden = outputs(exercise.cases(seed)), outputs(exercise.hidden_cases(seed))
        assert not set(shown) & set(hidden)
        assert outputs(exercise.cases(seed)) == shown, "the same seed gives the same cases"
        assert outputs(exercise.cases(seed + 100)) != shown, "another variant gives others"


def test_an_unwritten_answer_is_no_mistake(tried: tuple[Exercise, Bar]) -> None:
    def answer(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("write this")

    exercise, _ = tried
    verdict = judge(exercise, answer, exercise.cases(0))
    assert verdict.outcome == "not written"
    assert verdict.message.startswith(f"not written yet: {exercise.name}")
    assert verdict.mistakes == ()
