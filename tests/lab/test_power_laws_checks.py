"""Checks of the power-laws lab: right passes, usual mistakes are named, references equal its laws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import curve_fit

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
    """The first of several numbers, or the only one, times a factor."""
    return (value[0] * factor, *value[1:]) if isinstance(value, tuple) else value * factor


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
    "power_over_floor": [lambda x, y, b: (1.0, b[3], 0.1), lambda x, y, b: (y[0], b[-1], 0.99 * y.min())],
    "held_out_rmse": [
        lambda x, y, fit, n: float(fit(x, y)(x)[0]),
        lambda x, y, fit, n: float(np.max(np.abs(fit(x, y)(x) - y))),
    ],
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


def last_runs(x: Any, y: Any, fit: Any, n: int) -> float:
    order = np.argsort(x)  # not stable: which seeds of the largest size come last is anybody's guess
    rest, held = order[:-n], order[-n:]
    return float(np.sqrt(np.mean((fit(x[rest], y[rest])(x[held]) - y[held]) ** 2)))


def r2_of_the_fit(x: Any, y: Any, fit: Any, n: int) -> float:
    return float(1 - np.sum((fit(x, y)(x) - y) ** 2) / np.sum((y - y.mean()) ** 2))


def by_runs(x: Any, rng: Any) -> Any:
    return rng.integers(len(x), size=len(x))


def by_numpys_global_generator(x: Any, rng: Any) -> Any:
    sizes = np.unique(x)
    drawn = np.random.choice(sizes, len(sizes))
    return np.concatenate([np.flatnonzero(x == size) for size in drawn])


def polyfits_own(x: Any, y: Any) -> Any:
    return np.polyfit(np.log(x), np.log(y), 1)


def by_a_new_generator(x: Any, rng: Any) -> Any:
    return EXERCISES["draw_sizes"].reference(x, np.random.default_rng())


def floor_at(level: Any) -> Any:
    """The fit with a floor that is guessed, the rest solved for."""

    def answer(x: Any, y: Any, exponents: Any) -> Any:
        c, found = level(y), []
        for b in exponents:
            a = x**-b @ (y - c) / (x**-b @ x**-b)
            found.append((np.sum((c + a * x**-b - y) ** 2), a, b, c))
        return min(found)[1:]

    return answer


def search_of_its_own(x: Any, y: Any, exponents: Any) -> Any:
    a, b, c = curve_fit(lambda u, a, b, c: c + a * u**-b, x / x.min(), y, p0=(1, 0.5, 1), maxfev=20_000)[0]
    return a * x.min() ** b, b, c


@pytest.mark.parametrize(
    ("name", "answer", "found"),
    [
        (
            "straight_line",
            lambda x, y: np.polyfit(np.log(x), np.log(y), 1),
            "slope and intercept as they come",
        ),
        ("power_over_floor", floor_at(np.mean), "a floor above the smallest loss"),
        ("power_over_floor", floor_at(lambda y: np.sort(y)[:3].mean()), "a floor above the smallest loss"),
        ("power_over_floor", floor_at(np.min), "a floor as high as the smallest loss"),
        ("power_over_floor", floor_at(lambda y: 0.0), "a straight line where there is a floor"),
        ("power_over_floor", search_of_its_own, "an exponent that was not given"),
        ("held_out_rmse", random_hold_out, "random hold-out"),
        ("held_out_rmse", last_runs, "some seeds of a size held out, others fitted"),
        ("draw_sizes", by_runs, "seeds resampled as if they were sizes"),
        ("draw_sizes", by_numpys_global_generator, "the same draw every time"),  # a check puts its state back
        ("draw_sizes", by_a_new_generator, "a generator of its own"),
        (
            "bet_interval",
            lambda m, e, p, level: tuple(np.percentile(m, [50 - 50 * level, 50 + 50 * level])),
            "a confidence interval used for a prediction",
        ),
    ],
)
def test_mistakes_made_in_other_words_are_named(name: str, answer: Any, found: str) -> None:
    for seed in range(4):
        for cases in (EXERCISES[name].cases(seed), EXERCISES[name].hidden_cases(seed)):
            assert judge(EXERCISES[name], answer, cases).mistakes == (found,)


def test_r2_of_the_fitted_runs_is_two_mistakes() -> None:
    verdict = judge(EXERCISES["held_out_rmse"], r2_of_the_fit, EXERCISES["held_out_rmse"].cases(0))
    assert verdict.mistakes == ("nothing held out", "judged by R²")


def test_a_judgement_that_does_not_call_the_fit_is_told_so() -> None:
    verdict = judge(EXERCISES["held_out_rmse"], lambda x, y, fit, n: 0.1, EXERCISES["held_out_rmse"].cases(0))
    assert verdict.mistakes == ("fit not called",)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("draw_sizes", lambda x, rng: list(x)),
        ("draw_sizes", lambda x, rng: tuple(range(len(x)))),
    ],
)
def test_what_the_lab_could_not_use_never_passes(name: str, answer: Any) -> None:
    assert not judge(EXERCISES[name], answer, EXERCISES[name].cases(0)).right


@pytest.mark.parametrize("method", ["lower", "higher", "nearest", "median_unbiased", "inverted_cdf"])
def test_every_usual_quantile_passes(method: Any) -> None:
    def answer(m: Any, e: Any, p: Any, level: float) -> Any:
        return np.quantile(m * np.exp(e[p]), [(1 - level) / 2, (1 + level) / 2], method=method)

    for seed in range(10):
        for cases in (EXERCISES["bet_interval"].cases(seed), EXERCISES["bet_interval"].hidden_cases(seed)):
            assert judge(EXERCISES["bet_interval"], answer, cases).right


def test_other_right_ways_pass() -> None:
    def by_lstsq(x: Any, y: Any) -> Any:
        columns = np.stack([np.log10(x), np.ones_like(x)], axis=1)
        slope, intercept = np.linalg.lstsq(columns, np.log10(y), rcond=None)[0]
        return np.array([10**intercept, -slope])

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
        return chosen  # a list of whole numbers asks an array too

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
