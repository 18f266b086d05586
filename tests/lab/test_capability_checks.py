"""Checks of the capability lab: right passes, usual mistakes are named, references hold what they claim."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from scalelab.data.contamination import overlap
from scalelab.lab.checks import Exercise, exercises, judge
from scalelab.lab.scaling_laws import small_text
from scalelab.lab.scaling_laws.small_tasks import score

EXERCISES = exercises("scaling-laws/capability")
SEEDS = (0, 1, 12345)


@pytest.fixture(params=list(EXERCISES))
def exercise(request: pytest.FixtureRequest) -> Exercise:
    return EXERCISES[request.param]


def test_there_are_five_exercises() -> None:
    names = ["three_metrics", "questions_needed", "paired_difference", "overfitting", "clean_loss"]
    assert list(EXERCISES) == names


def scaled(value: Any, factor: float) -> Any:
    return tuple(part * factor for part in value) if isinstance(value, tuple) else value * factor


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1.37])
def test_numbers_that_are_nan_infinite_or_off_by_a_factor_are_unknown_mistakes(
    exercise: Exercise, factor: float
) -> None:
    verdict = judge(exercise, lambda *args: scaled(exercise.reference(*args), factor), exercise.cases(0))
    assert verdict.outcome == "unknown mistake"
    assert "On " in verdict.message


UNLISTED: dict[str, list[Any]] = {
    "three_metrics": [lambda p, r: (0.0, 1.0, 1.0), lambda p, r: (-p.mean(), 0.5, 0.5)],
    "questions_needed": [lambda p, n, s: 100, lambda p, n, s: 7 * n],
    "paired_difference": [lambda a, b: (0.0, 0.1), lambda a, b: (b.mean(), 0.0)],
    "overfitting": [lambda t, h: (0.0, 0.0, 0.0), lambda t, h: (h[-1], h[-1], h[-1])],
    "clean_loss": [lambda t, d, y, w: (0.0, 1.0), lambda t, d, y, w: (0.5, float(y.max()))],
}


@pytest.mark.parametrize(("name", "number"), [(n, i) for n, a in UNLISTED.items() for i in range(len(a))])
def test_unlisted_mistakes_get_a_neutral_account(name: str, number: int) -> None:
    for seed in SEEDS:
        verdict = judge(EXERCISES[name], UNLISTED[name][number], EXERCISES[name].cases(seed))
        assert verdict.outcome == "unknown mistake"
        assert "On " in verdict.message


@pytest.mark.parametrize("answer", [None, 3, lambda: 1, lambda *a: None, lambda *a: "text", lambda *a: 1j])
def test_answers_of_the_wrong_kind_get_a_precise_account(exercise: Exercise, answer: Any) -> None:
    verdict = judge(exercise, answer, exercise.cases(0))
    assert not verdict.right
    assert exercise.name in verdict.message


def test_the_metrics_are_the_packages_where_answers_are_equally_long() -> None:
    rng = np.random.default_rng(0)
    right = rng.integers(0, 6, (40, 5))
    logits = rng.normal(0, 1, (40, 5, 6)) + 2 * (np.arange(6) == right[..., None])
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    theirs = score(log_probs, right)
    ours = EXERCISES["three_metrics"].reference(log_probs, right)
    assert ours == pytest.approx((theirs.nats, theirs.token_accuracy, theirs.exact), rel=1e-12)
    assert 0 < theirs.brier < 2


def test_so_many_questions_show_one_right_answer_as_often_as_asked() -> None:
    n, wrong = EXERCISES["questions_needed"].reference(0.5, 4, 0.9), 1 - 0.5**4
    assert wrong**n <= 0.1 < wrong ** (n - 1)
    none = (np.random.default_rng(0).random((20_000, n)) < wrong).all(axis=1).mean()
    assert none == pytest.approx(wrong**n, abs=0.01)


def test_the_standard_error_is_the_spread_of_the_difference_over_tests() -> None:
    rng = np.random.default_rng(0)
    reference = EXERCISES["paired_difference"].reference
    gains, errors = [], []
    for _ in range(2000):
        skill = rng.random(100)
        first, second = (skill > 0.6).astype(int), (skill + rng.normal(0, 0.1, 100) > 0.5).astype(int)
        gain, error = reference(first, second)
        gains.append(gain)
        errors.append(error)
    assert np.std(gains) == pytest.approx(np.mean(errors), rel=0.05)


def test_the_search_agrees_with_the_packages() -> None:
    held_out = small_text.draw_documents(40, 7)
    train = small_text.leak(small_text.draw_documents(60, 8), held_out[:10], 2)
    share, _ = EXERCISES["clean_loss"].reference(train, held_out, np.ones(40), 25)
    theirs = overlap(small_text.as_text(train, "train"), small_text.as_text(held_out, "held-out"))
    assert share == np.mean([seen > 0 for seen in theirs.n_seen]) == 0.25
