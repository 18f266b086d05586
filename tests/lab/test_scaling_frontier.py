"""Best sizes read off curves: planted laws come back, noise is shared by arms, records hold what they say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from scalelab.core.errors import DataFileError, LabError
from scalelab.data import datasets
from scalelab.lab.records import study_json
from scalelab.lab.scaling_laws import chinchilla_points as points
from scalelab.lab.scaling_laws import frontier
from scalelab.lab.scaling_laws.frontier import CHAIN, Curve, Step, chain, difference, losses_at
from scalelab.laws import ChinchillaLaw, fit_chinchilla

LAW = ChinchillaLaw(E=1.9, A=60.0, B=120.0, alpha=0.42, beta=0.36)
SHAPES = [(2, 12), (2, 16), (2, 24), (2, 32), (2, 40), (2, 48), (3, 48), (3, 56), (3, 64), (3, 80), (4, 80)]


def planted(*, noise: float = 0.0, wait: float = 0.0, seed: int = 0) -> list[Curve]:
    """Curves of the sweep's sizes under LAW; `wait` tokens of each run teach nothing."""
    rng = np.random.default_rng(seed)
    curves = []
    for n_layers, d_model in SHAPES:
        body = 12 * n_layers * d_model**2 + (2 * n_layers + 1) * d_model
        n = body + 512 * d_model
        tokens = np.geomspace(0.02, 1.0, 16) * 6e12 / 6 / n
        useful = np.maximum(tokens - wait, 0.05 * tokens)
        loss = LAW.loss(n, useful) + noise * (rng.standard_normal() + 0.3 * rng.standard_normal(16))
        curves.append(Curve(n_params=n, n_params_non_embedding=body, tokens=tokens, loss=loss))
    return curves


@pytest.fixture
def arms(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Curve]]:
    found: dict[str, list[Curve]] = {"plain": planted(), "noisy": planted(noise=0.01)}
    found["waiting"] = planted(wait=400_000)
    monkeypatch.setattr(frontier, "arm_curves", lambda arm: found[arm])
    return found


BUDGETS = (2e11, 4e11, 8e11, 1.6e12, 3e12)


def test_losses_between_points_of_a_curve_are_the_laws(arms: dict[str, list[Curve]]) -> None:
    found = losses_at(arms["plain"], 1e12, "all", ends=False)
    sizes = np.array([curve.n_params for curve in arms["plain"]], dtype=float)
    assert np.nanmax(np.abs(found - LAW.loss(sizes, 1e12 / 6 / sizes))) < 2e-4


def test_a_planted_exponent_comes_back(arms: dict[str, list[Curve]]) -> None:
    step = chain([Step(name="plain", arm="plain", count="all")], n_draws=200, budgets=BUDGETS)[0]
    assert step.a == pytest.approx(LAW.a, abs=0.03), "a parabola over a factor of four is nearly the valley"
    # The sizes lie on the law within what a parabola can follow, so the draws hardly move.
    assert step.interval().width < 0.05


def test_nine_in_ten_intervals_of_noisy_arms_hold_the_planted_exponent(
    arms: dict[str, list[Curve]],
) -> None:
    step = Step(name="noisy", arm="noisy", count="all")
    held = 0
    for seed in range(60):
        arms["noisy"] = planted(noise=0.02, seed=seed)
        found = chain([step], n_draws=300, seed=seed, budgets=BUDGETS)[0]
        held += found.interval().contains(LAW.a)
    assert 48 <= held <= 59


def test_counting_without_the_head_and_waiting_both_steepen_the_line(arms: dict[str, list[Curve]]) -> None:
    steps = chain(
        [
            Step(name="plain", arm="plain", count="all"),
            Step(name="counted", arm="plain", count="non-embedding"),
            Step(name="waiting", arm="waiting", count="all"),
        ],
        n_draws=200,
    )
    assert steps[1].a > steps[0].a + 0.05
    assert steps[2].a > steps[0].a + 0.05


def test_the_same_noise_is_drawn_in_every_arm(arms: dict[str, list[Curve]]) -> None:
    twice = chain([Step(name=name, arm="noisy", count="all") for name in "ab"], n_draws=100, budgets=BUDGETS)
    change, interval = difference(*twice)
    assert change == interval.low == interval.high == 0.0
    other = chain([Step(name="a", arm="noisy", count="all")], n_draws=100, seed=1, budgets=BUDGETS)[0]
    assert not np.allclose(other.draws, twice[0].draws)


def test_too_few_sizes_say_so(arms: dict[str, list[Curve]]) -> None:
    arms["plain"] = arms["plain"][:3]
    with pytest.raises(LabError, match="slope needs two"):
        chain([Step(name="plain", arm="plain", count="all")], n_draws=10)


def test_an_unknown_grid_is_refused_by_name() -> None:
    with pytest.raises(LabError, match="no arm 'isoflops'"):
        frontier.arm_curves("isoflops")


@pytest.mark.parametrize("arm", sorted(frontier.DECAYED))
def test_where_the_rate_decays_only_ends_of_runs_count(arm: str) -> None:
    """A budget between those that were run finds no loss, though curves pass it."""
    curves = frontier.arm_curves(arm)
    assert np.isfinite(losses_at(curves, 1e12, "all", ends=True)).sum() >= 5
    assert np.isnan(losses_at(curves, 1.7e12, "all", ends=True)).all()


def test_the_sweep_gives_the_chain_and_it_moves_in_kaplans_direction() -> None:
    """The finding: run and counted as Kaplan did the exponent is larger, by more than the draws allow for."""
    steps = chain(n_draws=1000)
    assert [step.step for step in steps] == list(CHAIN)
    for step in steps:
        assert len(step.flops) >= 3, step.step.name
        assert step.flops.max() < 1.05 * frontier.LARGEST_OF_ALL
    moved, joint = difference(steps[-1], steps[0])
    assert moved > 0
    assert joint.low > 0


@pytest.mark.parametrize("near", [5.0, 8.0])
@pytest.mark.parametrize("in_common", [0.0, 0.8])
def test_the_finding_hangs_on_no_choice_of_ours(
    monkeypatch: pytest.MonkeyPatch, near: float, in_common: float
) -> None:
    """Other windows of sizes for the parabola, and other shares of luck that arms have in common."""
    monkeypatch.setattr(frontier, "NEAR", near)
    monkeypatch.setattr(frontier, "IN_COMMON", in_common)
    steps = chain([CHAIN[0], CHAIN[-1]], n_draws=500)
    assert difference(steps[1], steps[0])[1].low > 0


def test_the_finding_stands_where_curves_are_read_at_the_planned_budgets_alone() -> None:
    steps = chain([CHAIN[0], CHAIN[-1]], n_draws=500, budgets=frontier._budgets(ends=True))
    assert difference(steps[1], steps[0])[1].low > 0


def test_errors_of_arms_have_that_in_common_which_their_residuals_have() -> None:
    found: dict[tuple[str, float, int], float] = {}
    arms_run = ("one-rate-long-warmup", "one-rate", "one-rate-decay", "isoflop")
    for arm in arms_run:
        curves, ends = frontier.arm_curves(arm), arm in frontier.DECAYED
        for valley in frontier._valleys(curves, frontier._budgets(ends=True), "all", ends=ends):
            for index, residual in zip(valley.used, valley.residuals, strict=True):
                found[arm, valley.flops, curves[index].n_params] = residual
    correlations = []
    for place, one in enumerate(arms_run):
        for other in arms_run[:place]:
            where = [key[1:] for key in found if key[0] == one and (other, *key[1:]) in found]
            pairs = [[found[(arm, *at)] for at in where] for arm in (one, other)]
            correlations.append(np.corrcoef(pairs)[0, 1])
    assert np.mean(correlations) == pytest.approx(frontier.IN_COMMON, abs=0.2)


def test_more_budgets_in_the_record_leave_the_chain_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step is compared over the budgets that every arm has."""
    runs = frontier.packages_runs("isoflop")
    before = chain([CHAIN[-1]], n_draws=50)[0]
    top = max(run.n_tokens * run.n_params for run in runs)
    big = [run for run in runs if run.n_tokens * run.n_params > 0.8 * top]
    more = [dataclasses.replace(run, run_id=f"{run.run_id}-more", n_tokens=20 * run.n_tokens) for run in big]
    monkeypatch.setattr(frontier, "packages_runs", lambda arm: [*runs, *more])
    after = chain([CHAIN[-1]], n_draws=50)[0]
    assert after.a == before.a
    assert after.flops.tolist() == before.flops.tolist()


# The record of the re-analysis.


def test_the_record_holds_the_minimum_and_it_is_as_low_as_any_reported() -> None:
    record = study_json("scaling-laws/compute-optimal", "chinchilla")
    assert record["n_runs"] == 240
    assert record["minimum"]["objective"] <= record["best_elsewhere"]
    published = {name: row["objective"] for name, row in record["published"].items()}
    assert published["Hoffmann, printed"] / published["Hoffmann's source"] == pytest.approx(3.35, abs=0.01)
    assert published["Hoffmann's source"] / record["minimum"]["objective"] == pytest.approx(1.209, abs=0.001)


def test_no_start_on_the_mean_arrives_though_all_say_so() -> None:
    stops = study_json("scaling-laws/compute-optimal", "stops")
    assert stops["mean"]["n_starts"] == 4500
    assert stops["mean"]["share_said_converged"] == 1.0
    assert stops["mean"]["n_within_a_thousandth"] == 0
    assert stops["sum"]["n_within_a_thousandth"] > 10


def test_the_record_is_what_the_points_give(monkeypatch: pytest.MonkeyPatch, public_set: object) -> None:
    found = public_set("epoch-chinchilla")["all"]  # type: ignore[operator]
    monkeypatch.setenv("SCALELAB_DATA", str(Path(found).parent))
    runs = points.chinchilla_points()
    assert runs is not None
    fit = fit_chinchilla(*runs, starts="quick")
    record = study_json("scaling-laws/compute-optimal", "chinchilla")["minimum"]
    assert fit.objective == pytest.approx(record["objective"], rel=1e-9)
    assert fit.a == pytest.approx(record["a"], abs=1e-6)


def test_points_that_are_not_to_be_had_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise DataFileError("no network")

    monkeypatch.setattr(datasets, "find", refuse)
    assert points.chinchilla_points() is None
