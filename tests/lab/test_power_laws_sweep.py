"""The lab's plumbing for power-laws: what it trains, what it reads of a record."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from scalelab.lab.scaling_laws import recorded_sweeps
from scalelab.lab.scaling_laws.markov_sweep import exact_loss, train_on_markov
from scalelab.lab.scaling_laws.recorded_sweeps import (
    best_of_budgets,
    columns,
    known_budgets,
    over_tokens,
    recorded,
    recorded_exact_loss,
    seed_noise,
    shape_scatter,
)


def test_runs_come_by_width_seed_and_tokens() -> None:
    runs = train_on_markov([6, 4], [20_480, 10_240], [1, 0], device="cpu")
    keys = [(run.config["d_model"], run.seed, run.n_tokens) for run in runs]
    assert keys == sorted(keys)
    assert len(keys) == 8


def test_the_exact_loss_is_the_recorded_one_and_no_run_is_below_it() -> None:
    assert exact_loss() == pytest.approx(recorded_exact_loss(), abs=1e-6)
    for grid in ("sizes", "tokens"):
        assert columns(recorded(grid))[2].min() > recorded_exact_loss()


def test_a_budget_whose_best_run_is_its_smallest_or_largest_model_is_left_out() -> None:
    template = recorded("sizes")[0]

    def run(n: int, flops: float, loss: float):
        return dataclasses.replace(template, n_params=n, n_tokens=int(flops / (6 * n)), loss_nats=loss)

    inside = [run(n, 1e9, loss) for n, loss in ((1000, 4.0), (2000, 3.8), (4000, 3.9))]
    open_end = [run(n, 1e10, loss) for n, loss in ((2000, 3.5), (4000, 3.3), (8000, 3.2))]
    flops, loss = best_of_budgets([*open_end, *inside])
    assert flops == pytest.approx([1e9], rel=1e-3)
    assert loss.tolist() == [3.8]


def test_shape_scatter_is_the_error_about_a_parabola_of_each_budget() -> None:
    template = recorded("sizes")[0]
    rng, runs, errors = np.random.default_rng(0), [], []
    for flops, bottom in ((1e9, 4.0), (1e10, 3.0)):
        for n in np.geomspace(1e3, 3e4, 60):
            errors.append(rng.normal(0, 0.02))
            loss = bottom + 0.1 * np.log(n / 5e3) ** 2 + errors[-1]
            tokens = int(flops / (6 * n))
            runs.append(dataclasses.replace(template, n_params=int(n), n_tokens=tokens, loss_nats=loss))
    assert shape_scatter(runs) == pytest.approx(np.std(errors), rel=0.05)
    assert np.isnan(shape_scatter(runs[:3]))


@pytest.mark.parametrize(("flops", "n_known"), [([1, 3.2, 10, 32, 100], 3), ([1, 3.2, 10, 32, 100, 320], 4)])
def test_a_bet_knows_the_budgets_up_to_a_tenth(flops: list[float], n_known: int) -> None:
    rounded = 1e11 * np.array(flops) * np.array([0.999, 1.001, 1.0, 1.001, 0.999, 1.0])[: len(flops)]
    assert known_budgets(rounded).tolist() == [i < n_known for i in range(len(flops))]


def test_seed_noise_is_pooled_over_the_settings_that_have_several_seeds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    template = recorded("sizes")[0]

    def run(n: int, tokens: int, seed: int, loss: float):
        return dataclasses.replace(template, n_params=n, n_tokens=tokens, seed=seed, loss_nats=loss)

    first = [run(100, 1000, 0, 3.0), run(200, 500, 0, 2.9), run(300, 9, 0, 1.0)]
    others = [run(100, 1000, 1, 3.01), run(100, 1000, 2, 3.02), run(200, 500, 1, 2.92)]
    monkeypatch.setattr(recorded_sweeps, "study_folder", lambda study: tmp_path)
    monkeypatch.setattr(recorded_sweeps, "packages_runs", lambda arm: first)
    monkeypatch.setattr(recorded_sweeps, "study_runs", lambda study, grid: others)
    assert seed_noise() is None
    (tmp_path / "isoflop-seeds.jsonl").touch()
    noise = seed_noise()
    assert noise is not None
    assert (noise.n_sizes, noise.n_seeds) == (2, 2)
    assert noise.nats == pytest.approx(np.sqrt((2 * 0.01**2 + 0.02**2 / 2) / 3))
    assert (noise.lowest, noise.highest) == pytest.approx((0.01, 0.02 / np.sqrt(2)))


def test_sizes_with_few_budgets_are_left_out_and_tokens_rise() -> None:
    found = over_tokens(recorded("tokens"), at_least=5)
    assert list(found) == [1824, 57600]
    assert all(np.all(np.diff(d) >= 0) for d, _ in found.values())
