"""The study of batch sizes: planted laws are found, steps read from noisy curves, the record is as told."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scalelab.core.errors import FitError, LabError
from scalelab.core.records import RunRecord
from scalelab.lab.parallelism import batch_runs
from scalelab.lab.parallelism.batch_runs import MODEL, SEQ_LEN, BatchRun, exact_loss, train_until
from scalelab.lab.parallelism.recorded_batches import (
    LOWEST_EXCESS,
    STUDY,
    TARGETS,
    BatchPoint,
    batch_points,
    fit_batch_law,
    law_interval,
    recorded_batches,
    recorded_entropy,
    steps_to,
)
from scalelab.lab.records import study_json

PROGRAM = Path(__file__).resolve().parents[2] / "studies" / "parallelism" / "critical_batch.py"
SIZES = (128, 512, 2048, 8192, 32768)


def planted(min_steps: float, critical: float, noise: float = 0.0, seed: int = 0) -> list[float]:
    draw = np.random.default_rng(seed)
    return [min_steps * (1 + critical / size) * math.exp(noise * draw.standard_normal()) for size in SIZES]


@pytest.mark.parametrize(("min_steps", "critical"), [(50.0, 3_000.0), (900.0, 200.0), (12.0, 60_000.0)])
def test_a_planted_law_is_found(min_steps: float, critical: float) -> None:
    law = fit_batch_law(SIZES, planted(min_steps, critical))
    assert law.min_steps == pytest.approx(min_steps, rel=1e-4)
    assert law.critical_tokens == pytest.approx(critical, rel=1e-4)
    assert law.min_tokens == pytest.approx(min_steps * critical, rel=1e-4)
    assert law.scatter < 1e-4
    assert law.steps(critical) == pytest.approx(2 * min_steps, rel=1e-4)
    assert law.tokens(critical) == pytest.approx(2 * law.min_tokens, rel=1e-4)
    # The hyperbola as the paper writes it.
    for size in SIZES:
        product = (law.steps(size) / law.min_steps - 1) * (law.tokens(size) / law.min_tokens - 1)
        assert product == pytest.approx(1, rel=1e-3)


def test_the_interval_holds_a_planted_law_and_its_scatter_is_the_noise() -> None:
    held = 0
    for seed in range(20):
        taken = [planted(60, 4_000, noise=0.05, seed=100 * seed + k) for k in range(3)]
        points = [
            BatchPoint(
                batch_tokens=size, learning_rate=1.0, steps=float(np.exp(np.mean(np.log(steps)))),
                all_steps=tuple(steps), rates=(),
            )
            for size, steps in zip(SIZES, zip(*taken, strict=True), strict=True)
        ]  # fmt: skip
        low, high = law_interval(points, n_draws=100, seed=seed)
        held += low <= 4_000 <= high
    assert held >= 15
    assert fit_batch_law(SIZES, planted(60, 4_000, noise=0.1)).scatter < 0.3


@pytest.mark.parametrize(
    ("sizes", "steps"),
    [((1, 2), (5, 4)), ((1, 2, 2), (3, 2, 2)), ((1, 2, 4), (3, 2, math.nan)), ((0, 2, 4), (3, 2, 1))],
)
def test_a_law_needs_three_sizes_and_real_steps(sizes: Any, steps: Any) -> None:
    with pytest.raises(FitError):
        fit_batch_law(sizes, steps)


def a_run(batch: int, losses: Any, *, rate: float = 1e-3, seed: int = 0) -> RunRecord:
    run = recorded_batches()[0]
    curve = tuple((batch * (step + 1), float(loss)) for step, loss in enumerate(losses))
    return dataclasses.replace(run, batch_tokens=batch, curve=curve, learning_rate=rate, seed=seed)


def test_steps_are_read_where_the_smoothed_curve_crosses() -> None:
    steps = np.arange(1, 201)
    assert steps_to(a_run(64, 2 + 10 / steps), 0.1, 2.0) == pytest.approx(100, rel=0.01)
    noisy = 2 + 10 / steps * np.exp(0.05 * np.random.default_rng(0).standard_normal(200))
    assert steps_to(a_run(64, noisy), 0.1, 2.0) == pytest.approx(100, rel=0.1)
    assert math.isnan(steps_to(a_run(64, 2 + 10 / steps), 0.01, 2.0)), "never that low"
    assert math.isnan(steps_to(a_run(64, [2.5, 2.0]), 0.1, 2.0)), "too few to average"


def test_of_each_batch_the_rate_with_the_fewest_steps_counts_with_all_its_seeds() -> None:
    steps = np.arange(1, 201)
    runs = [
        a_run(64, 2 + 10 / steps, rate=1e-3),
        a_run(64, 2 + 5 / steps, rate=2e-3),
        a_run(64, 2 + 6 / steps, rate=2e-3, seed=1),
        a_run(64, 2 + 90 / steps, rate=4e-3),
        a_run(128, 2 + 90 / steps),
    ]
    (point,) = batch_points(runs, 0.1, 2.0)
    assert (point.batch_tokens, point.learning_rate) == (64, 2e-3)
    assert point.all_steps == pytest.approx((50, 60), rel=0.02)
    assert point.steps == pytest.approx(math.sqrt(3000), rel=0.02)
    assert [rate for rate, _ in point.rates] == [1e-3, 2e-3, 4e-3]
    assert math.isnan(point.rates[-1][1])


# --- the record ---------------------------------------------------------------------------------------------


def test_the_record_shows_the_law_and_that_the_critical_batch_grows_as_loss_falls() -> None:
    runs, floor = recorded_batches(), recorded_entropy()
    assert len({run.run_id for run in runs}) == len(runs)
    laws = []
    for excess in TARGETS:
        points = batch_points(runs, excess, floor)
        sizes = [point.batch_tokens for point in points]
        assert sizes == [SEQ_LEN * 4 * 2**k for k in range(9)]
        laws.append(fit_batch_law(sizes, [point.steps for point in points]))
        assert laws[-1].scatter < 0.08
        low, high = law_interval(points, n_draws=200)
        assert low < laws[-1].critical_tokens < high < 2 * low
    assert laws[1].critical_tokens > 2 * laws[0].critical_tokens


def test_the_best_rate_is_bracketed_and_has_three_seeds_to_the_lower_loss() -> None:
    runs, floor = recorded_batches(), recorded_entropy()
    for point in batch_points(runs, LOWEST_EXCESS, floor):
        rates = [rate for rate, _ in point.rates]
        assert min(rates) < point.learning_rate < max(rates)
        assert len(point.all_steps) == 3
        assert max(point.all_steps) < 1.15 * min(point.all_steps)


def test_the_record_is_of_the_studys_model_and_text() -> None:
    runs = recorded_batches()
    assert recorded_entropy() == pytest.approx(exact_loss(), abs=1e-9)
    for run in runs:
        rebuilt = BatchRun(
            batch_size=run.batch_tokens // SEQ_LEN, learning_rate=run.learning_rate, seed=run.seed
        )
        assert rebuilt.run_id == run.run_id
        assert run.config["d_model"] == MODEL.d_model
        assert run.epochs == 1.0


def test_the_study_has_nothing_left_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("critical_batch_study", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)

    def train_again(run: BatchRun, **_: Any) -> None:
        raise AssertionError(f"{run} is not recorded")

    monkeypatch.setattr(program, "train_until", train_again)
    kept: list[list[RunRecord]] = []
    monkeypatch.setattr(program, "keep_provenance", kept.append)
    monkeypatch.setattr(sys, "argv", [str(PROGRAM)])
    program.main()
    assert len(kept[0]) == len(recorded_batches()) == study_json(STUDY, "provenance")["n_runs"]


def test_a_recorded_run_made_again_takes_as_many_steps() -> None:
    (recorded,) = [
        run for run in recorded_batches()
        if (run.batch_tokens, run.learning_rate, run.seed) == (1024, 4e-3, 0)
    ]  # fmt: skip
    again = train_until(BatchRun(batch_size=32, learning_rate=4e-3), excess=0.5)
    assert again.run_id == recorded.run_id
    assert again.curve[-1][1] - exact_loss() < 0.6
    for (tokens, loss), (their_tokens, theirs) in zip(again.curve, recorded.curve, strict=False):
        assert tokens == their_tokens
        assert loss == pytest.approx(theirs, rel=0.02)


def test_too_few_tokens_for_the_warm_up_are_refused() -> None:
    with pytest.raises(LabError, match="warm-up"):
        batch_runs.train_until(BatchRun(batch_size=32, learning_rate=1e-3), max_tokens=5_000)
