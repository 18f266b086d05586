"""The course's own sweep over real text: that it is what its file asks for, and what it shows."""

from __future__ import annotations

import collections
import math
from pathlib import Path

import numpy as np
import pytest

from scalelab.core.config import config_to_dict
from scalelab.core.records import RunRecord
from scalelab.lab.records import study_folder, study_json, study_runs
from scalelab.laws import check_runs, fit_isoflop, runs_from_records
from scalelab.sweeps import Sweep, read_sweep

STUDY = "scaling-laws/packages"
TOML = Path(__file__).parents[2] / "studies" / "scaling-laws" / "packages.toml"


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    return read_sweep(TOML)


def arms() -> list[str]:
    return sorted(file.stem for file in study_folder(STUDY).glob("*.jsonl"))


def identity(record: RunRecord) -> tuple[object, ...]:
    return (str(dict(record.config)), record.n_tokens, record.learning_rate, record.seed, record.batch_tokens)


def test_the_file_writes_where_the_records_are(sweep: Sweep) -> None:
    assert sweep.out.resolve() == study_folder(STUDY).resolve()
    assert str(TOML.relative_to(TOML.parents[2])) in study_json(STUDY, "provenance")["command"]


def test_every_run_that_the_file_asks_for_is_recorded_once_and_no_other(sweep: Sweep) -> None:
    asked = collections.defaultdict(list)
    there = study_runs(STUDY, "rates")[0]
    for cell in sweep.cells(vocab_size=512, n_tokens_there=58_222_607):
        asked[cell.grid].append(
            (
                str(config_to_dict(cell.model)),
                cell.n_tokens,
                cell.train.learning_rate,
                cell.train.seed,
                cell.train.batch_tokens,
            )
        )
    assert set(asked) == set(arms())
    for arm, cells in asked.items():
        records = study_runs(STUDY, arm)
        assert sorted(map(identity, records)) == sorted(cells), arm
        assert len({record.run_id for record in records}) == len(records)
        assert {(r.corpus, r.tokenizer) for r in records} == {(there.corpus, there.tokenizer)}
        assert max(record.epochs for record in records) <= 1


def test_no_record_contradicts_itself() -> None:
    of_rates = {"rates", "rates-large"}  # there, runs of one size and length differ in the rate
    for arm in set(arms()) - of_rates:
        assert not check_runs(runs_from_records(study_runs(STUDY, arm)), vocab_size=512), arm


def test_the_rate_that_was_used_is_no_more_than_a_factor_of_two_from_the_best_tried() -> None:
    law = 5e-3
    for arm in ("rates", "rates-large"):
        by_size = collections.defaultdict(list)
        for record in study_runs(STUDY, arm):
            by_size[record.n_params].append((record.loss_nats, record.learning_rate))
        for n_params, tried in by_size.items():
            used = law * (n_params / 1e5) ** -0.3
            best = min(tried)[1]
            assert 0.5 <= used / best <= 2, (n_params, best)


def test_every_budget_has_six_sizes_and_a_bracketed_bottom_and_they_give_the_exponent() -> None:
    runs = runs_from_records(study_runs(STUDY, "isoflop"))
    fit = fit_isoflop(runs.n_params, runs.n_tokens, runs.loss)
    budgets = [vertex.flops for vertex in fit.vertices]
    assert len(budgets) >= 6
    assert math.log10(max(budgets) / min(budgets)) >= 2.5
    for vertex in fit.vertices:
        assert vertex.bracketed, vertex
        assert vertex.n_runs >= 6, vertex
    interval = fit.bootstrap(1000, 0).intervals()["a"]
    assert interval.width <= 0.15
    assert interval.contains(fit.a)
    bottoms = np.array([vertex.loss for vertex in fit.vertices])
    assert np.all(np.diff(bottoms) < 0)


def test_seeds_agree_better_than_runs_keep_to_their_parabola() -> None:
    """Three seeds of each size at one budget: the rest of the scatter is the shape's, not luck."""
    losses = collections.defaultdict(list)
    for record in study_runs(STUDY, "isoflop-seeds"):
        losses[record.n_params, record.n_tokens].append(record.loss_nats)
    for record in study_runs(STUDY, "isoflop"):
        if (record.n_params, record.n_tokens) in losses:
            losses[record.n_params, record.n_tokens].append(record.loss_nats)
    assert len(losses) >= 6
    assert {len(seeds) for seeds in losses.values()} == {3}
    between_seeds = math.sqrt(np.mean([np.var(seeds, ddof=1) for seeds in losses.values()]))
    runs = runs_from_records(study_runs(STUDY, "isoflop"))
    assert 0 < between_seeds < fit_isoflop(runs.n_params, runs.n_tokens, runs.loss).noise


def test_the_decay_is_worth_more_than_any_noise() -> None:
    """The same steps with and without the decay at the end, at the same tokens."""
    decayed = {(r.n_params, r.n_tokens): r.loss_nats for r in study_runs(STUDY, "isoflop")}
    pairs = [
        (record.loss_nats, decayed[key])
        for record in study_runs(STUDY, "stable")
        if (key := (record.n_params, record.n_tokens)) in decayed
    ]
    assert len(pairs) >= 6
    assert min(stable - after for stable, after in pairs) > 0.15
    assert all(math.isfinite(stable) for stable, _ in pairs)
