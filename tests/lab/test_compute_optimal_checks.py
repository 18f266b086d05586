"""Checks of the compute-optimal lab: right ways pass, unlisted mistakes get an account, references hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from scalelab.core.config import DecoderConfig
from scalelab.cost import params
from scalelab.lab.checks import Exercise, exercises, judge
from scalelab.lab.scaling_laws.chinchilla_points import PUBLISHED
from scalelab.laws import fit_isoflop
from scalelab.laws.bootstrap import ChinchillaBootstrap
from scalelab.laws.huber import objective

EXERCISES = exercises("scaling-laws/compute-optimal")
SEEDS = (0, 1, 12345)


@pytest.fixture(params=list(EXERCISES))
def exercise(request: pytest.FixtureRequest) -> Exercise:
    return EXERCISES[request.param]


def test_there_are_five_exercises_in_the_order_of_the_lab() -> None:
    names = ["compute_optimum", "valley_bottom", "chinchilla_objective", "optimum_interval", "count_two_ways"]
    assert list(EXERCISES) == names


def scaled(value: Any, factor: float) -> Any:
    """Every number of an answer times a factor, truth values left alone."""
    if isinstance(value, tuple):
        return tuple(part if isinstance(part, bool) else part * factor for part in value)
    return value * factor


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1.37])
def test_numbers_that_are_nan_infinite_or_off_by_a_factor_are_unknown_mistakes(
    exercise: Exercise, factor: float
) -> None:
    verdict = judge(exercise, lambda *args: scaled(exercise.reference(*args), factor), exercise.cases(0))
    assert verdict.outcome == "unknown mistake"
    assert "On " in verdict.message


UNLISTED: dict[str, list[Any]] = {
    "compute_optimum": [
        lambda E, A, B, alpha, beta, flops: ((flops / 120) ** 0.5, 20 * (flops / 120) ** 0.5, E),
        lambda E, A, B, alpha, beta, flops: (1e9, flops / 6e9, E + A / 1e9**alpha),
    ],
    "valley_bottom": [
        lambda n, loss: (float(np.median(n)), float(loss.min()), True),
        lambda n, loss: (math.nan, math.nan, False),
    ],
    "chinchilla_objective": [
        lambda theta, n, d, loss, delta: 0.0,
        lambda theta, n, d, loss, delta: float(np.var(np.log(loss))),
    ],
    "optimum_interval": [
        lambda draws, flops, level: (0.0, 1e12),
        lambda draws, flops, level: (float(draws[:, 1].min()), float(draws[:, 1].max())),
    ],
    "count_two_ways": [
        lambda n, d, f, v, tied, tokens: (n * d, n * d * tokens, n * d + v, 6.0 * v * tokens),
        lambda n, d, f, v, tied, tokens: (1.0, 2.0, 3.0, 4.0),
    ],
}


@pytest.mark.parametrize(("name", "number"), [(n, i) for n, a in UNLISTED.items() for i in range(len(a))])
def test_unlisted_mistakes_get_a_neutral_account(name: str, number: int) -> None:
    for seed in SEEDS:
        verdict = judge(EXERCISES[name], UNLISTED[name][number], EXERCISES[name].cases(seed))
        assert verdict.outcome == "unknown mistake"
        assert "On " in verdict.message


@pytest.mark.parametrize(
    "answer", [None, 3, lambda: 1, lambda *a: None, lambda *a: "text", lambda *a: (1, "b"), lambda *a: 1j,
               lambda *a: (np.ones(3), np.ones(3), True)]
)  # fmt: skip
def test_answers_of_the_wrong_kind_get_a_precise_account(exercise: Exercise, answer: Any) -> None:
    verdict = judge(exercise, answer, exercise.cases(0))
    assert not verdict.right
    assert exercise.name in verdict.message


def test_other_right_ways_pass() -> None:
    """Minimising numerically; a parabola without centring; logsumexp spelt out; a loop over draws."""

    def by_search(E: float, A: float, B: float, alpha: float, beta: float, flops: float) -> Any:
        def loss(x: float) -> float:
            return float(E + A * math.exp(-alpha * x) + B * math.exp(beta * x) * (flops / 6) ** -beta)

        x = minimize_scalar(loss, bounds=(5, 40), method="bounded", options={"xatol": 1e-10}).x
        return np.float64(math.exp(x)), flops / 6 / math.exp(x), loss(x)

    def not_centred(n: np.ndarray, loss: np.ndarray) -> Any:
        p, q, r = np.polyfit(np.log10(n), loss, 2)
        best = 10 ** (-q / 2 / p)
        if p > 0 and n.min() < best < n.max():
            return best, r - q * q / 4 / p, np.True_
        return np.nan, np.nan, np.False_

    def by_rows(draws: np.ndarray, flops: float, level: float) -> Any:
        sizes = []
        for _, A, B, alpha, beta in draws:
            n = (alpha * A / beta / B) ** (1 / (alpha + beta)) * (flops / 6) ** (beta / (alpha + beta))
            sizes.append(n)
        return np.percentile(sizes, [50 * (1 - level), 50 * (1 + level)])

    right = {"compute_optimum": by_search, "valley_bottom": not_centred, "optimum_interval": by_rows}
    for name, answer in right.items():
        for seed in SEEDS:
            for cases in (EXERCISES[name].cases(seed), EXERCISES[name].hidden_cases(seed)):
                verdict = judge(EXERCISES[name], answer, cases)
                assert verdict.right, verdict.message


# The references against the package's own laws.


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_compute_optimum_equals_the_laws(name: str) -> None:
    law = PUBLISHED[name]
    n, d, loss = EXERCISES["compute_optimum"].reference(law.E, law.A, law.B, law.alpha, law.beta, 5.76e23)
    best = law.optimal(5.76e23)
    assert (n, d, loss) == pytest.approx((best.n_params, best.n_tokens, best.loss), rel=1e-10)


def test_valley_bottom_equals_the_vertices_of_fit_isoflop() -> None:
    rng = np.random.default_rng(0)
    n = np.tile(np.geomspace(2e4, 6e5, 7), 2)
    flops = np.repeat([1e12, 1e13], 7)
    middle = np.repeat(np.log([8e4, 2.4e5]), 7)
    loss = 3 + 0.1 * (np.log(n) - middle) ** 2 + 0.002 * rng.standard_normal(14)
    fit = fit_isoflop(n, flops / 6 / n, loss, budgets=[1e12, 1e13], robust=False)
    for budget, vertex in zip((1e12, 1e13), fit.vertices, strict=True):
        found = EXERCISES["valley_bottom"].reference(n[flops == budget], loss[flops == budget])
        assert found == (pytest.approx(vertex.n_params, rel=1e-9), pytest.approx(vertex.loss), True)


def test_the_objective_equals_the_laws_own() -> None:
    case = EXERCISES["chinchilla_objective"].cases(3)[0]
    theta, n, d, loss, delta = case.make()[0]
    ours = EXERCISES["chinchilla_objective"].reference(theta, n, d, loss, delta)
    assert ours == pytest.approx(objective(theta, n, d, loss, delta)[0], rel=1e-12)


def test_the_interval_equals_the_bootstraps_own() -> None:
    draws, flops, level = EXERCISES["optimum_interval"].cases(0)[0].make()[0]
    theirs = ChinchillaBootstrap(
        draws=draws, n_resamples=len(draws), n_redrawn=0, n_unsettled=0, n_groups=len(draws)
    ).interval_of(lambda law: law.optimal(flops).n_params, level)
    ours = EXERCISES["optimum_interval"].reference(draws, flops, level)
    assert ours == pytest.approx((theirs.low, theirs.high), rel=1e-9)


@pytest.mark.parametrize("tied", [True, False])
def test_count_two_ways_equals_scalelab_cost(tied: bool) -> None:
    config = DecoderConfig(
        n_layers=3, d_model=48, n_heads=3, d_ff=192, vocab_size=512, seq_len=64, norm="rmsnorm",
        positions="rope", feed_forward="gelu", attention_bias=False, feed_forward_bias=False,
        tie_embeddings=tied,
    )  # fmt: skip
    found = params(config)
    body, _, total, flops = EXERCISES["count_two_ways"].reference(3, 48, 192, 512, tied, 1000.0)
    assert (body, total) == (found.non_embedding, found.total)
    assert flops == 6 * found.matmul * 1000
