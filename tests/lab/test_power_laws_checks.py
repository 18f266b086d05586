"""Checks of the power-laws lab: right passes, usual mistakes are named, references equal its laws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from scalelab.lab.checks import Exercise, exercises, judge
from scalelab.laws import compare_forms, fit_power_law

EXERCISES = exercises("scaling-laws/power-laws")
SEEDS = (0, 1, 12345)


@pytest.fixture(params=list(EXERCISES))
def exercise(request: pytest.FixtureRequest) -> Exercise:
    return EXERCISES[request.param]


def test_there_are_five_exercises() -> None:
    names = ["straight_line", "power_over_floor", "held_out_rmse", "draw_sizes", "bet_interval"]
    assert list(EXERCISES) == names


def scaled(value: Any, factor: float) -> Any:
    return tuple(part * factor for part in value) if isinstance(value, tuple) else value * factor


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1.37])
@pytest.mark.parametrize("name", ["straight_line", "power_over_floor", "held_out_rmse", "bet_interval"])
def test_numbers_that_are_nan_infinite_or_off_by_a_factor_are_unknown_mistakes(
    name: str, factor: float
) -> None:
    exercise = EXERCISES[name]
    verdict = judge(exercise, lambda *args: scaled(exercise.reference(*args), factor), exercise.cases(0))
    assert verdict.outcome == "unknown mistake"
    assert "On " in verdict.message


UNLISTED: dict[str, list[Any]] = {
    "straight_line": [lambda x, y: (1.0, 0.5), lambda x, y: (float(y.max()), 0.0)],
    "power_over_floor": [lambda x, y, b: (1.0, 0.5, 0.1), lambda x, y, b: (y[0], b[-1], y.mean())],
    "held_out_rmse": [lambda x, y, fit, n: 0.1, lambda x, y, fit, n: float(np.std(y))],
    "draw_sizes": [lambda x, rng: np.arange(3), lambda x, rng: rng.integers(len(x), size=2 * len(x))],
    "bet_interval": [lambda m, e, p, level: (1.0, 2.0), lambda m, e, p, level: (m.mean() - 1, m.mean() + 1)],
}


@pytest.mark.parametrize(("name", "number"), [(n, i) for n, a in UNLISTED.items() for i in range(len(a))])
def test_unlisted_mistakes_get_a_neutral_account(name: str, number: int) -> None:
    for seed in SEEDS:
        verdict = judge(EXERCISES[name], UNLISTED[name][number], EXERCISES[name].cases(seed))
        assert verdict.outcome == "unknown mistake"
        assert "On " in verdict.message


@pytest.mark.parametrize(
    "answer", [None, 3, lambda: 1, lambda *a: None, lambda *a: "text", lambda *a: (1, "b"), lambda *a: 1j]
)
def test_answers_of_the_wrong_kind_get_a_precise_account(exercise: Exercise, answer: Any) -> None:
    verdict = judge(exercise, answer, exercise.cases(0))
    assert not verdict.right
    assert exercise.name in verdict.message


def random_hold_out(x: Any, y: Any, fit: Any, n: int) -> float:
    held = np.random.default_rng(77).random(len(x)) < 0.5
    return float(np.sqrt(np.mean((fit(x[~held], y[~held])(x[held]) - y[held]) ** 2)))


def by_runs(x: Any, rng: Any) -> Any:
    return rng.integers(len(x), size=len(x))


@pytest.mark.parametrize(
    ("name", "answer", "found"),
    [
        ("held_out_rmse", random_hold_out, ("random hold-out",)),
        ("draw_sizes", by_runs, ("seeds resampled as if they were sizes",)),
        (
            "bet_interval",
            lambda m, e, p, level: tuple(np.percentile(m, [50 - 50 * level, 50 + 50 * level])),
            ("a confidence interval used for a prediction",),
        ),
    ],
)
def test_mistakes_made_in_other_words_are_named(name: str, answer: Any, found: tuple[str, ...]) -> None:
    for seed in range(8):
        for cases in (EXERCISES[name].cases(seed), EXERCISES[name].hidden_cases(seed)):
            assert judge(EXERCISES[name], answer, cases).mistakes == found


def test_other_right_ways_pass() -> None:
    def by_lstsq(x: Any, y: Any) -> Any:
        columns = np.stack([np.log10(x), np.ones_like(x)], axis=1)
        slope, intercept = np.linalg.lstsq(columns, np.log10(y), rcond=None)[0]
        return 10**intercept, -slope

    def by_normal_equations(x: Any, y: Any, exponents: Any) -> Any:
        best = (math.inf, 0.0, 0.0, 0.0)
        for b in exponents:
            u = x**-b
            a = np.cov(u, y, bias=True)[0, 1] / np.var(u)
            c = y.mean() - a * u.mean()
            best = min(best, (float(((c + a * u - y) ** 2).sum()), a, b, c))
        return best[1:]

    def by_sorting(x: Any, y: Any, fit: Any, n: int) -> Any:
        keep = sorted(set(x.tolist()))[-n:]
        held = np.isin(x, keep)
        error = fit(x[~held], y[~held])(x[held]) - y[held]
        return math.sqrt(float(error @ error) / len(error))

    def by_loop(x: Any, rng: Any) -> Any:
        sizes, chosen = sorted(set(x.tolist())), []
        for _ in sizes:
            size = sizes[rng.integers(len(sizes))]
            chosen += [i for i, value in enumerate(x) if value == size]
        return np.array(chosen)

    def by_percentile(m: Any, e: Any, p: Any, level: float) -> Any:
        return tuple(np.percentile(m * np.exp(e)[p], [50 * (1 - level), 50 * (1 + level)]))

    answers = (by_lstsq, by_normal_equations, by_sorting, by_loop, by_percentile)
    for exercise, answer in zip(EXERCISES.values(), answers, strict=True):
        for seed in SEEDS:
            verdict = judge(exercise, answer, exercise.cases(seed))
            assert verdict.right, verdict.message


# The references against the package's laws, whose search is another.


def test_straight_line_equals_log_linear_regression() -> None:
    scale = np.geomspace(1e3, 1e6, 9)
    loss = 6 * scale**-0.08 * np.exp(np.random.default_rng(0).normal(0, 0.01, 9))
    fit = fit_power_law(scale, loss, form="power", method="log_linear")
    assert EXERCISES["straight_line"].reference(scale, loss) == pytest.approx((fit.a, fit.b), rel=1e-9)


def test_power_over_floor_equals_the_non_linear_fit_in_nats() -> None:
    scale = np.geomspace(1e3, 1e6, 12)
    loss = 2.5 + 40 * scale**-0.5 + np.random.default_rng(1).normal(0, 0.005, 12)
    fit = fit_power_law(scale, loss, form="power_floor", residual="loss")
    a, b, c = EXERCISES["power_over_floor"].reference(scale, loss, np.arange(0.1, 1.5, 1e-4))
    assert (b, c) == pytest.approx((fit.b, fit.c), rel=1e-3)
    assert a == pytest.approx(fit.a, rel=5e-3)


def test_held_out_rmse_equals_compare_forms() -> None:
    scale = np.repeat(np.geomspace(1e3, 1e5, 8), 3)
    loss = 2 + 3 * (scale / 1e3) ** -0.5 + np.random.default_rng(2).normal(0, 0.01, 24)

    def fit(x: Any, y: Any) -> Any:
        return fit_power_law(x, y, form="power").loss

    row = compare_forms(scale, loss, forms=["power"], hold_out=2).row("power")
    assert EXERCISES["held_out_rmse"].reference(scale, loss, fit, 2) == pytest.approx(row.held_out_rmse)
