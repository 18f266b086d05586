"""Checks of the planning lab: right passes, mistakes are named, references equal the package's plans."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from scalelab.lab.checks import Exercise, exercises, judge
from scalelab.lab.checks.planning.backtesting import straight_fit
from scalelab.laws import ChinchillaLaw
from scalelab.laws.data_constrained import MUENNIGHOFF_2023
from scalelab.plan import Assumptions, bill, plan_serving, serving_cost

EXERCISES = exercises("scaling-laws/planning")
SEEDS = (0, 1, 12345)
LAW = ChinchillaLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)


@pytest.fixture(params=list(EXERCISES))
def exercise(request: pytest.FixtureRequest) -> Exercise:
    return EXERCISES[request.param]


def test_there_are_five_exercises() -> None:
    names = ["backtest_errors", "interval_from_errors", "training_bill", "lifetime_flops", "effective_tokens"]
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
    "backtest_errors": [lambda c, y, fit, h: np.zeros(3), lambda c, y, fit, h: np.log(y)],
    "interval_from_errors": [lambda f, e, level: (f, f), lambda f, e, level: (0.9 * f, 1.1 * f)],
    "training_bill": [lambda *a: (1.0, 2.0, 3.0, 4.0), lambda n, d, *a: (6 * n * d,) * 4],
    "lifetime_flops": [lambda law, y, n, t: (t, n * t), lambda law, y, n, t: (1.0, 1.0)],
    "effective_tokens": [lambda d, u, r: d / 2, lambda d, u, r: u * r],
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


def in_a_list(answer: Any) -> Any:
    """The same numbers in another container: a list for an array, an array for a tuple."""
    return answer.tolist() if isinstance(answer, np.ndarray) else np.array(answer)


@pytest.mark.parametrize(
    "name", ["backtest_errors", "interval_from_errors", "training_bill", "lifetime_flops"]
)
def test_right_numbers_pass_in_lists_and_in_arrays(name: str) -> None:
    exercise = EXERCISES[name]
    verdict = judge(exercise, lambda *args: in_a_list(exercise.reference(*args)), exercise.cases(0))
    assert verdict.right, verdict.message


def test_errors_of_both_signs_occur_so_that_a_lost_sign_shows() -> None:
    exercise = EXERCISES["backtest_errors"]
    for seed in SEEDS:
        errors = [exercise.reference(*case.make()[0]) for case in exercise.cases(seed)]
        assert np.concatenate(errors).min() < 0 < np.concatenate(errors).max()


def test_the_bill_is_the_packages_bill() -> None:
    assumed = Assumptions()
    n, d = 7e9, 2e12
    ours = EXERCISES["training_bill"].reference(
        n, d, assumed.peak_flops_per_s, assumed.mfu, assumed.price_per_gpu_hour, assumed.watts, assumed.pue,
        assumed.grid_kg_per_kwh,
    )  # fmt: skip
    theirs = bill(6 * n * d, assumed)
    assert ours == pytest.approx(
        (theirs.gpu_hours, theirs.money, theirs.energy_kwh, theirs.co2_kg), rel=1e-12
    )


def test_the_cost_of_a_life_is_the_packages_and_least_at_its_plan() -> None:
    lifetime = EXERCISES["lifetime_flops"].reference
    loss, served = LAW.optimal(1e23).loss, 2e12
    plan = plan_serving(LAW, loss, prompt_tokens=served).best
    tokens, flops = lifetime(LAW, loss, plan.n_params, served)
    assert tokens == pytest.approx(plan.n_tokens, rel=1e-9)
    assert flops == pytest.approx(
        float(serving_cost(LAW, loss, plan.n_params, prompt_tokens=served)), rel=1e-9
    )
    assert all(lifetime(LAW, loss, factor * plan.n_params, served)[1] > flops for factor in (0.9, 1.1))


def test_effective_tokens_are_muennighoffs() -> None:
    for epochs in (0.5, 1, 4, 40):
        ours = EXERCISES["effective_tokens"].reference(epochs * 1e9, 1e9, MUENNIGHOFF_2023.R_D)
        assert ours == pytest.approx(float(MUENNIGHOFF_2023.effective_tokens(epochs * 1e9, 1e9)), rel=1e-12)


def test_a_planted_power_is_foretold_without_error() -> None:
    flops = 10.0 ** np.arange(11, 17)
    errors = EXERCISES["backtest_errors"].reference(flops, 50 * flops**-0.1, straight_fit, 10.0)
    assert len(errors) == 3
    assert errors == pytest.approx(0, abs=1e-9)


def test_the_interval_holds_its_share_of_new_runs() -> None:
    rng = np.random.default_rng(0)
    interval = EXERCISES["interval_from_errors"].reference
    inside = 0
    for _ in range(2000):
        errors, new = rng.normal(0, 0.03, 5), rng.normal(0, 0.03)
        low, high = interval(2.0, errors, 0.9)
        inside += low <= 2.0 * math.exp(-new) <= high
    assert 0.88 < inside / 2000 < 0.92
