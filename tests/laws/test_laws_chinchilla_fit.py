"""fit_chinchilla: planted laws, scipy's L-BFGS-B, the published re-analysis, runs that determine nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from scalelab.core.errors import ConfigError, FitError
from scalelab.laws.batched import columns
from scalelab.laws.chinchilla import ChinchillaLaw
from scalelab.laws.chinchilla_fit import data_starts, fit_chinchilla, grid_starts
from scalelab.laws.huber import objective
from scalelab.laws.profile import profile

Points = tuple[np.ndarray, np.ndarray, np.ndarray]
NAMES = ("E", "A", "B", "alpha", "beta")
# The best of 4,500 starts printed in Epoch AI's notebook (epoch-research/analyzing-chinchilla,
# data_analysis.ipynb at 4d27c36): objective, and E, A, B, alpha, beta.
EPOCH_OBJECTIVE = 0.00101827402401235
EPOCH = (1.8172225059988196, 477.9237687368171, 2143.069028946833, 0.3473226657739243, 0.3671641565590177)
PRINTED = (1.8172, 482.01, 2085.43, 0.3478, 0.3658)  # Besiroglu et al. 2024, arXiv:2404.10102, table 1
ROUNDED = (1.69, 406.4, 410.7, 0.34, 0.28)  # Hoffmann et al. 2022, arXiv:2203.15556, eq. 10
# The same before rounding, in the comments of the paper's TeX source: as log A, log B, log E, alpha, beta.
FROM_TEX = (math.exp(0.5267228), math.exp(6.0073404), math.exp(6.0179186), 0.33917084, 0.2849083)


def _theta(parameters: tuple[float, ...]) -> np.ndarray:
    return np.array([*np.log(parameters[:3]), *parameters[3:]])


def _grid(n_sizes: int = 6, n_tokens: int = 6) -> tuple[np.ndarray, np.ndarray]:
    sizes, tokens = np.meshgrid(np.geomspace(1e7, 1e10, n_sizes), np.geomspace(1e9, 3e11, n_tokens))
    return sizes.ravel(), tokens.ravel()


LAW = ChinchillaLaw(E=1.8, A=480.0, B=2100.0, alpha=0.348, beta=0.366)


@pytest.mark.parametrize("seed", range(4))
def test_planted_laws_are_recovered_without_noise(seed: int) -> None:
    rng = np.random.default_rng(seed)
    law = ChinchillaLaw(
        E=rng.uniform(0.5, 3),
        A=10 ** rng.uniform(1, 4),
        B=10 ** rng.uniform(1, 4),
        alpha=rng.uniform(0.15, 0.6),
        beta=rng.uniform(0.15, 0.6),
    )
    n_params, n_tokens = _grid()
    fit = fit_chinchilla(n_params, n_tokens, law.loss(n_params, n_tokens))
    for name in NAMES:
        assert getattr(fit, name) == pytest.approx(getattr(law, name), rel=1e-6), name
    assert fit.objective < 1e-20
    assert fit.status == "converged"


def test_the_starts_made_from_the_data_reach_where_the_grid_does_not() -> None:
    # Models of a thousand parameters and a loss in other units: Hoffmann's grid was not made for them.
    rng = np.random.default_rng(0)
    n_params, n_tokens = np.exp(rng.uniform(5, 9, size=40)), np.exp(rng.uniform(6, 12, size=40))
    law = ChinchillaLaw(E=90.0, A=800.0, B=4000.0, alpha=0.4, beta=0.5)
    fit = fit_chinchilla(n_params, n_tokens, law.loss(n_params, n_tokens), starts="quick")
    assert [getattr(fit, name) for name in NAMES] == pytest.approx(
        [getattr(law, name) for name in NAMES], rel=1e-6
    )


def test_the_objective_on_the_reanalysed_points_is_at_most_the_best_reported(
    chinchilla_points: Points,
) -> None:
    fit = fit_chinchilla(*chinchilla_points)
    assert fit.n_runs == 240
    assert fit.objective <= EPOCH_OBJECTIVE
    assert objective(_theta(EPOCH), *chinchilla_points)[0] == pytest.approx(EPOCH_OBJECTIVE, rel=1e-9)
    assert [getattr(fit, name) for name in NAMES] == pytest.approx(EPOCH, rel=3e-4)
    # The re-analysis' table, within its own standard errors: 0.03, 124.58, 1293.23, 0.02, 0.02.
    for name, printed, error in zip(NAMES, PRINTED, (0.03, 124.58, 1293.23, 0.02, 0.02), strict=True):
        assert abs(getattr(fit, name) - printed) < 0.1 * error, name
    assert fit.status == "converged"
    assert (fit.n_starts, len(fit.minima)) == (4536, 1)
    _, gradient = objective(fit.theta, *chinchilla_points)
    assert np.abs(gradient).max() < 1e-9 * 1e-3 * 240 * 25  # delta, runs, and log N or log D at most


def test_no_start_leads_scipy_lower(chinchilla_points: Points) -> None:
    fit = fit_chinchilla(*chinchilla_points)
    chosen = np.random.default_rng(0).choice(len(grid_starts()), size=25, replace=False)
    found = [
        1e-3
        * minimize(
            lambda theta: tuple(part * 1e3 for part in objective(theta, *chinchilla_points)),
            start,
            jac=True,
            method="L-BFGS-B",
            options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 3000, "maxfun": 5000},
        ).fun
        for start in grid_starts()[chosen]
    ]
    assert min(found) == pytest.approx(fit.objective, rel=1e-9)
    assert min(found) >= fit.objective * (1 - 1e-12)


@pytest.mark.parametrize("published", [ROUNDED, FROM_TEX, PRINTED])
def test_printed_parameters_are_no_minimum(chinchilla_points: Points, published: tuple[float, ...]) -> None:
    fit = fit_chinchilla(*chinchilla_points, starts="quick")
    value, gradient = objective(_theta(published), *chinchilla_points)
    assert value > fit.objective * 1.004
    assert np.abs(gradient).max() > 0.05


def test_rounding_the_exponents_alone_triples_the_objective(chinchilla_points: Points) -> None:
    rounded, unrounded = (objective(_theta(p), *chinchilla_points)[0] for p in (ROUNDED, FROM_TEX))
    assert rounded > 3 * unrounded


def test_an_optimiser_on_the_mean_takes_the_unrounded_published_point_for_a_minimum(
    chinchilla_points: Points,
) -> None:
    def scaled(theta: np.ndarray, factor: float) -> tuple[float, np.ndarray]:
        value, gradient = objective(theta, *chinchilla_points)
        return factor * value, factor * gradient

    start = _theta(FROM_TEX)
    on_mean = minimize(scaled, start, args=(1 / 240,), jac=True, method="L-BFGS-B")
    on_scaled_sum = minimize(scaled, start, args=(1e3,), jac=True, method="L-BFGS-B")
    assert on_mean.success
    assert np.abs(on_mean.x - start).max() < 1e-3  # it says "converged" where it stands
    assert on_scaled_sum.fun / 1e3 < 0.001019 < 0.00115 < on_mean.fun * 240


def test_one_wild_run_hardly_moves_a_fit_by_hubers_loss() -> None:
    n_params, n_tokens = _grid()
    loss = LAW.loss(n_params, n_tokens) * np.exp(1e-4 * np.random.default_rng(0).normal(size=36))
    clean = fit_chinchilla(n_params, n_tokens, loss, starts="quick")
    loss[20] *= 1.5
    wild = fit_chinchilla(n_params, n_tokens, loss, starts="quick")
    squares = fit_chinchilla(n_params, n_tokens, loss, starts="quick", delta=10.0)
    assert abs(wild.E - clean.E) < 0.01
    assert abs(squares.E - clean.E) > 10 * abs(wild.E - clean.E)
    assert np.argmin(wild.residuals) == 20


def test_order_of_runs_and_whole_numbers_do_not_matter() -> None:
    n_params, n_tokens = (np.round(column).astype(np.int64) for column in _grid())
    loss = LAW.loss(n_params, n_tokens) * np.exp(0.01 * np.random.default_rng(0).normal(size=36))
    one = fit_chinchilla(n_params, n_tokens, loss, starts="quick")
    other = fit_chinchilla(
        n_params[::-1].tolist(), n_tokens[::-1].tolist(), loss[::-1].tolist(), starts="quick"
    )
    assert other.theta == pytest.approx(one.theta, rel=1e-7)


def test_the_fit_answers_as_its_law() -> None:
    n_params, n_tokens = _grid()
    fit = fit_chinchilla(n_params, n_tokens, LAW.loss(n_params, n_tokens), starts="quick")
    assert fit.optimal(1e22) == fit.law.optimal(1e22)
    assert fit.flops_for(2.5) == fit.law.flops_for(2.5)
    assert fit.tokens_for(1e9, 2.5) == fit.law.tokens_for(1e9, 2.5)
    assert (fit.a, fit.b) == (fit.law.a, fit.law.b)
    assert not fit.observed.flags.writeable


N, D = _grid()
GOOD = LAW.loss(N, D)


def _with(column: np.ndarray, value: float) -> np.ndarray:
    changed = column.copy()
    changed[3] = value
    return changed


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (([], [], []), "0 runs"),
        ((N[:5], D[:5], GOOD[:5]), "at least 6 runs"),
        ((N, D, GOOD[:-1]), "35 loss"),
        ((N, D, _with(GOOD, math.nan)), r"run 3 \(from 0\) has loss=nan"),
        ((N, _with(D, math.inf), GOOD), r"run 3 \(from 0\) has n_tokens=inf"),
        ((_with(N, 0), D, GOOD), r"run 3 \(from 0\) has n_params=0"),
        ((N, D, _with(GOOD, -2)), r"run 3 \(from 0\) has loss=-2"),
        ((N, D, ["a"] * 36), "loss must be a column of numbers"),
        ((N, D, GOOD.reshape(6, 6)), "one column"),
        ((np.full(36, 1e9), D, GOOD), "same n_params .*A and alpha cannot be told from E"),
        ((np.where(N > 1e8, 1e9, 1e8), D, GOOD), "one of two values of n_params"),
        ((N, np.full(36, 1e10), GOOD), "same n_tokens .*B and beta cannot be told from E"),
        ((N, 20 * N, GOOD), "proportional in all runs"),
        ((N, N**1.3, GOOD), r"n_tokens as n_params\^1.30"),
        ((N, D, np.full(36, 2.5)), "same loss"),
        ((N, D, 5 - GOOD), "does not fall with"),
    ],
)
def test_runs_that_determine_no_law_are_refused_with_what_is_missing(runs: Any, message: str) -> None:
    with pytest.raises(FitError, match=message):
        fit_chinchilla(*runs, starts="quick")


@pytest.mark.parametrize("delta", [0, -1e-3, math.nan, "1e-3", None])
def test_a_delta_that_is_no_positive_number_is_refused(delta: Any) -> None:
    with pytest.raises(ConfigError, match="delta"):
        fit_chinchilla(N, D, GOOD, delta=delta)


@pytest.mark.parametrize(
    "starts", ["fast", [], [[1, 2, 3]], [[0, 0, 0, 0, math.nan]], [["a"] * 5], [[1e308] * 5]]
)
def test_starts_of_another_form_are_refused(starts: Any) -> None:
    with pytest.raises(ConfigError, match="starts"):
        fit_chinchilla(N, D, GOOD, starts=starts)


def test_the_grid_is_hoffmanns_4500_starts() -> None:
    starts = grid_starts()
    assert starts.shape == (4500, 5)
    assert len(np.unique(starts, axis=0)) == 4500
    assert starts.min(axis=0).tolist() == [-1, 0, 0, 0, 0]
    assert starts.max(axis=0).tolist() == [1, 25, 25, 2, 2]


def test_data_starts_see_all_three_terms() -> None:
    law = ChinchillaLaw(E=1.0, A=300.0, B=2100.0, alpha=0.35, beta=0.35)
    starts = data_starts(N, D, law.loss(N, D))
    exact = starts[np.all(np.isclose(starts[:, 3:], 0.35), axis=1)][0]
    assert np.exp(exact[:3]) == pytest.approx([1.0, 300.0, 2100.0], rel=1e-3)


def test_a_term_that_stands_in_for_the_floor_is_not_called_a_law_without_one() -> None:
    """With D = 20 N to a per cent, E = 0 is best fitted by an exponent below 0."""
    rng = np.random.default_rng(1)
    n_params = np.geomspace(1e7, 1e10, 24)
    n_tokens = 20 * n_params * np.exp(0.01 * rng.normal(size=24))
    loss = LAW.loss(n_params, n_tokens) * np.exp(0.003 * rng.normal(size=24))
    fit = fit_chinchilla(n_params, n_tokens, loss, starts="quick")
    (floor,) = (warning for warning in fit.warnings if "cannot be told from 0" in warning)
    assert "a term that does not fall" in floor
    assert "their ratio would tell" in floor
    assert "without a floor" not in floor


@pytest.mark.filterwarnings("error")
def test_a_profile_of_what_no_run_feels_is_unbounded() -> None:
    """Losses that rise: in the best law two terms are too small to be felt at any of the runs."""
    n_params, n_tokens = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 3e9, 6), [5.0, 20, 60, 200]))
    n_tokens = n_tokens * n_params
    loss = 8 - LAW.loss(n_params, n_tokens)
    with pytest.raises(FitError, match=r"does not fall with n_params.*8e-17 of 4\.91"):
        fit_chinchilla(n_params, n_tokens, loss)
    theta = _theta((4.9128645, 1335.1345, 2.8072e-13, 2.74812, 0.481508))
    for name in ("alpha", "beta"):
        found = profile(columns(n_params, n_tokens, loss), theta, 1e-3, name, n_points=7)
        assert not found.bounded


def test_a_narrow_noisy_sweep_is_told_that_it_leaves_the_floor_open() -> None:
    rng = np.random.default_rng(1)
    n_params, n_tokens = np.exp(rng.uniform(18, 19, size=40)), np.exp(rng.uniform(22, 23, size=40))
    loss = LAW.loss(n_params, n_tokens) * np.exp(0.01 * rng.normal(size=40))
    fit = fit_chinchilla(n_params, n_tokens, loss, starts="quick")
    assert fit.status != "converged"
    assert any("cannot be told from 0" in warning for warning in fit.warnings)
    assert any("known only to" in warning for warning in fit.warnings)
    assert not fit.profile("E", n_points=7).bounded


def test_a_narrow_sweep_has_a_worse_condition_number_than_a_wide_one() -> None:
    wide = fit_chinchilla(N, D, GOOD, starts="quick").condition
    sizes, tokens = N ** (1 / 3) * 1e6, D ** (1 / 3) * 1e7
    narrow = fit_chinchilla(sizes, tokens, LAW.loss(sizes, tokens), starts="quick").condition
    assert narrow > 10 * wide > 100
