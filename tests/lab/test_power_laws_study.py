"""The study recorded for `power-laws` shows what its chapter says, and is what its sweep would run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scalelab.lab.records import study_json
from scalelab.lab.scaling_laws import markov_sweep
from scalelab.lab.scaling_laws.recorded_sweeps import (
    STUDY,
    best_of_budgets,
    columns,
    known_budgets,
    packages_runs,
    recorded,
    recorded_exact_loss,
    seed_noise,
    shape_scatter,
)
from scalelab.laws import compare_forms, fit_power_law
from scalelab.sweeps import read_sweep, sweep_from_dict

SWEEP = Path(__file__).resolve().parents[2] / "studies" / "scaling-laws" / "markov.toml"
LARGE = 33_984


def small() -> tuple[np.ndarray, np.ndarray]:
    n, _, loss = columns(recorded("sizes"))
    return n[n < LARGE], loss[n < LARGE]


def large() -> float:
    n, _, loss = columns(recorded("sizes"))
    return float(loss[n == LARGE].mean())


def test_a_straight_line_promises_a_loss_below_the_entropy_ten_times_further_out() -> None:
    n, loss = small()
    line = fit_power_law(n, loss, form="power", method="log_linear")
    assert line.r2 > 0.9
    assert large() - float(line.loss(LARGE)) > 0.3
    assert float(line.loss(LARGE)) < recorded_exact_loss()


def test_the_law_with_a_floor_foretells_the_large_model_within_its_interval() -> None:
    n, loss = small()
    fit = fit_power_law(n, loss, form="power_floor", groups=n)
    assert abs(float(fit.loss(LARGE)) - large()) < 0.05
    assert fit.bootstrap(300, 0).prediction_interval(LARGE).contains(large())


@pytest.mark.parametrize("held_out", [1, 2])
def test_the_largest_sizes_held_out_choose_the_floor(held_out: int) -> None:
    n, loss = small()
    forms = ("power", "power_floor", "log")
    assert compare_forms(n, loss, forms=forms, hold_out=held_out, groups=n).best == "power_floor"


def test_the_floor_of_a_large_model_covers_the_known_loss_and_a_small_ones_lies_above() -> None:
    n, d, loss = columns(recorded("tokens"))
    truth, floors = recorded_exact_loss(), {}
    for size in np.unique(n):
        fit = fit_power_law(d[n == size], loss[n == size], form="power_floor", groups=d[n == size])
        floors[size] = fit.profile_floor().interval, fit.bootstrap(500, 0).interval("c")
    for interval in floors[max(floors)]:
        assert interval.contains(truth)
        assert interval.width < 0.03 * truth
    assert all(interval.low > truth for interval in floors[min(floors)])


def test_the_small_models_floor_is_the_entropy_and_what_the_law_of_sizes_leaves_for_it() -> None:
    n, loss = small()
    of_sizes = fit_power_law(n, loss, form="power_floor", groups=n)
    size, d, of_d = columns(recorded("tokens"))
    few = size == size.min()
    floor = fit_power_law(d[few], of_d[few], form="power_floor", groups=d[few]).profile_floor().interval
    expected = recorded_exact_loss() + float(of_sizes.loss(size.min())) - of_sizes.c
    assert floor.contains(expected)
    assert not floor.contains(recorded_exact_loss())


def test_each_trunk_alone_has_its_floor_inside_the_interval() -> None:
    size, d, loss = columns(recorded("tokens"))
    seeds = np.array([run.seed for run in recorded("tokens")])
    large = size == size.max()
    together = fit_power_law(d[large], loss[large], form="power_floor", groups=d[large])
    for seed in np.unique(seeds):
        one = large & (seeds == seed)
        assert together.profile_floor().interval.contains(
            fit_power_law(d[one], loss[one], form="power_floor").c
        )


def test_the_bet_on_text_is_on_a_budget_eight_times_those_it_knows_or_more() -> None:
    flops, loss = best_of_budgets(packages_runs("isoflop"))
    known = known_budgets(flops)
    assert known.sum() >= 3
    assert flops.max() / flops[known].max() > 8
    bets = [
        float(fit_power_law(flops[known], loss[known], form=form).loss(flops[-1]))
        for form in ("power", "log")
    ]
    assert abs(bets[0] - bets[1]) > 2 * shape_scatter(packages_runs("isoflop"))


def test_seeds_on_text_differ_by_little() -> None:
    noise = seed_noise()
    if noise is None:
        pytest.skip("the record has one seed for each setting")
    assert noise.n_seeds >= 2
    assert 0 < noise.lowest <= noise.nats <= noise.highest
    assert noise.nats < 0.1


def test_the_frontier_on_text_falls_at_every_budget() -> None:
    flops, loss = best_of_budgets(packages_runs("isoflop"))
    assert len(flops) >= 3
    assert np.all(np.diff(flops) > 0)
    assert np.all(np.diff(loss) < 0)


def test_the_recorded_runs_are_those_that_the_sweep_asks_for() -> None:
    sweep = read_sweep(SWEEP)
    vocab_size = recorded("sizes")[0].config["vocab_size"]  # the symbols and the end of text
    cells = sweep.cells(vocab_size=vocab_size, n_tokens_there=4_000_000)
    asked = {
        (cell.grid, cell.n_params, cell.n_tokens, cell.train.seed, cell.train.learning_rate) for cell in cells
    }
    there = {
        (grid, run.n_params, run.n_tokens, run.seed, run.learning_rate)
        for grid in ("sizes", "tokens")
        for run in recorded(grid)
    }
    assert asked == there
    runs = [*recorded("sizes"), *recorded("tokens")]
    provenance = study_json(STUDY, "provenance")
    assert provenance["n_runs"] == len(there) == len(runs), "no run twice"
    assert set(provenance["devices"]) == {run.device for run in runs}
    assert set(provenance["commits"]) == {run.commit for run in runs}
    assert SWEEP.with_name("power_laws.py").is_file(), provenance["command"]
    assert all(run.epochs <= 1 and run.n_tokens_unique == run.n_tokens for run in runs)


def test_the_labs_own_sweep_has_the_settings_of_the_recorded_one() -> None:
    live = sweep_from_dict(markov_sweep._settings([8], [204_800], [0])).cells(vocab_size=128)
    cells = read_sweep(SWEEP).cells(vocab_size=128)
    twin = next(
        cell for cell in cells if cell.shape == "d8" and cell.n_tokens == 204_800 and cell.train.seed == 0
    )
    assert (live[0].model, live[0].train) == (twin.model, twin.train)
