"""The lab's plumbing for power-laws: what it trains, what it reads of a record."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from scalelab.lab.scaling_laws.markov_sweep import exact_loss, train_on_markov
from scalelab.lab.scaling_laws.recorded_sweeps import (
    best_of_budgets,
    columns,
    over_tokens,
    recorded,
    recorded_exact_loss,
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


def test_sizes_with_few_budgets_are_left_out_and_tokens_rise() -> None:
    found = over_tokens(recorded("tokens"), at_least=5)
    assert list(found) == [1824, 57600]
    assert all(np.all(np.diff(d) >= 0) for d, _ in found.values())
