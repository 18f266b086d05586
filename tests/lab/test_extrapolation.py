"""Ways of foretelling larger runs, the committed bet, and published models beside the law."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from scalelab.core.errors import FitError, LabError
from scalelab.lab.records import study_folder, study_json
from scalelab.lab.scaling_laws.extrapolation import (
    SAME_SIZE,
    Budgets,
    best_way,
    budgets_of,
    fingerprint,
    foretell,
    play,
    rms_error,
    try_ways,
)
from scalelab.lab.scaling_laws.published import MODELS, check_published, named, place, rows
from scalelab.lab.scaling_laws.recorded_bets import (
    CUT,
    LARGE,
    all_budgets,
    play_next,
    recorded_bet,
    recorded_small,
    shown_runs,
)
from scalelab.lab.scaling_laws.recorded_sweeps import packages_runs
from scalelab.laws import ChinchillaLaw

ROOT = Path(__file__).resolve().parents[2]
LAW = ChinchillaLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)


def planted(noise: float = 0.0, *, seed: int = 0) -> Budgets:
    """Valleys whose bottoms lie on 50 C^-0.1, the best size growing as C^0.5."""
    rng = np.random.default_rng(seed)
    budgets = np.array([1e11, 3.2e11, 1e12, 3.2e12, 1e13])
    c = np.repeat(budgets, 7)
    n = 2e4 * (c / 1e11) ** 0.5 * np.tile(np.geomspace(0.3, 3.3, 7), 5)
    away = np.log(n / (2e4 * (c / 1e11) ** 0.5))
    loss = 50 * c**-0.1 + 0.15 * away**2 + noise * rng.standard_normal(len(c))
    return Budgets(n, c / (6 * n), loss, c)


def test_a_planted_power_law_is_chosen_and_foretold() -> None:
    runs = planted()
    tries = try_ways(runs)
    assert rms_error(tries, "power law, valleys")[0] < 0.003
    assert rms_error(tries, "power law, valleys")[0] < rms_error(tries, "logarithm, valleys")[0]
    assert best_way(tries) != SAME_SIZE
    found = foretell(planted(0.01), 6e5, 1e14 / 6 / 6e5)
    assert found.low < 50 * 1e14**-0.1 < found.high
    assert found.low <= min(found.by_bootstrap[0], found.by_errors[0])


def test_no_way_sees_what_it_is_judged_on() -> None:
    runs = planted(0.01)
    before = [one.foretold for one in try_ways(runs) if one.cut < 4e11]
    changed = Budgets(runs.n_params, runs.n_tokens, np.where(runs.budget > 4e11, 1.0, runs.loss), runs.budget)
    after = [one.foretold for one in try_ways(changed) if one.cut < 4e11]
    assert before == after


def test_two_budgets_are_too_few_to_try_a_way_on() -> None:
    with pytest.raises(FitError, match="three budgets"):
        foretell(planted().up_to(3.2e11), 1e5, 1e6)


def test_the_committed_bet_is_what_its_runs_give_and_reaches_eight_times_beyond() -> None:
    foretold, outcome = recorded_bet()
    runs = shown_runs()
    assert foretold["fitted_up_to_flops"] == CUT
    assert foretold["run"]["flops_6nd"] >= 8 * max(foretold["budgets"])
    low, high = foretold["interval"]
    assert low < foretold["loss_nats"] < high
    if fingerprint(runs) != foretold["data_sha256"]:
        pytest.skip("the record here is not the one that the prediction was made from")
    found = foretell(budgets_of(runs), foretold["run"]["n_params"], foretold["run"]["n_tokens"])
    assert found.way == foretold["way"]
    assert found.loss == pytest.approx(foretold["loss_nats"], abs=1e-6)
    assert (found.low, found.high) == pytest.approx(foretold["interval"], abs=1e-3)
    if outcome is not None:
        assert outcome["inside"] == (low <= outcome["loss_nats"] <= high)


def test_playing_sees_nothing_above_its_cut() -> None:
    runs = planted(0.01)
    before = play(runs, 1e12, 1e13, n_draws=30)
    later = runs.budget > 1.1e12
    changed = Budgets(runs.n_params, runs.n_tokens, np.where(later, 9.0, runs.loss), runs.budget)
    after = play(changed, 1e12, 1e13, n_draws=30)
    assert after.foretold == before.foretold
    assert after.measured == 9.0
    assert not after.inside
    assert before.inside
    assert abs(before.error) < 0.05


def test_a_run_within_the_cut_or_of_no_budget_is_no_bet() -> None:
    for budget in (1e12, 1e11, 2e13):
        with pytest.raises(LabError, match="no runs of"):
            play(planted(), 1e12, budget)


def test_the_runs_shown_are_the_sweeps_up_to_the_cut_whatever_came_later() -> None:
    shown, everything = shown_runs(), packages_runs("isoflop")
    assert {run.run_id for run in everything} >= {run.run_id for run in shown}
    assert max(budgets_of(shown).values) == pytest.approx(CUT, rel=0.01)
    assert all(6 * run.n_params * run.n_tokens > 1.05 * CUT for run in everything if run not in shown)


def test_the_next_budget_is_scored_once_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from scalelab.lab.scaling_laws import recorded_bets

    shown = budgets_of(shown_runs())
    n = np.array([1.8e5, 2.7e5, 3.5e5, 4.9e5, 8.5e5, 1.07e6])
    for sizes in (n[:4], n):  # half a budget is none yet
        c = np.full(len(sizes), 3.2e13)
        parts = (sizes, c / (6 * sizes), 1.95 + 0.1 * np.log(sizes / 5e5) ** 2, c)
        pairs = zip((shown.n_params, shown.n_tokens, shown.loss, shown.budget), parts, strict=True)
        table = Budgets(*(np.concatenate(pair) for pair in pairs))
        monkeypatch.setattr(recorded_bets, "budgets_of", lambda runs, table=table: table)
        if len(sizes) < 5:
            assert play_next(n_draws=30) is None
            assert max(all_budgets().values) < 2e13
    played = play_next(n_draws=30)
    assert played is not None
    assert played.n_params == 4.9e5
    assert played.foretold.way == recorded_bet()[0]["way"]


def test_the_small_record_has_three_seeds_of_the_bet() -> None:
    found = recorded_small()
    assert len(found) == 3
    for shown, large in found.values():
        assert len(shown) == 20
        assert (large.config["d_model"], large.n_tokens) == LARGE
        dearest = max(run.n_params * run.n_tokens for run in shown)
        assert large.n_params * large.n_tokens > 8 * dearest


def test_the_study_does_not_run_an_uncommitted_prediction(tmp_path: Path) -> None:
    """In a copy of its record under git: refused before the commit and after a change."""
    spec = importlib.util.spec_from_file_location(
        "planning", ROOT / "studies" / "scaling-laws" / "planning.py"
    )
    assert spec is not None
    assert spec.loader is not None
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    path = tmp_path / "prediction.json"
    path.write_bytes((study_folder("scaling-laws/planning") / "prediction.json").read_bytes())

    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    with pytest.raises(SystemExit, match="not committed"):
        study.committed(path)
    git("add", ".")
    with pytest.raises(SystemExit):
        study.committed(path)
    git("commit", "-m", "a bet")
    assert len(study.committed(path)) == 40
    path.write_text(json.dumps(json.loads(path.read_text()) | {"loss_nats": 1.0}))
    with pytest.raises(SystemExit, match="changed"):
        study.committed(path)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_placed_model_costs_no_less_than_the_optimum(model: object) -> None:
    found = place(model, LAW)  # type: ignore[arg-type]
    assert found.above >= 0
    assert found.compute >= 1 - 1e-9
    if found.size < 1:
        n, d = found.model.working_params, found.model.n_tokens
        best = LAW.optimal(LAW.flops_for(found.loss))
        ours = 6 * n * d + 2 * n * found.break_even
        assert ours == pytest.approx(best.flops + 2 * best.n_params * found.break_even, rel=1e-6)


def test_printed_figures_contradict_each_other_where_the_chapter_says() -> None:
    found = {(one.row, one.what.split(" against")[0]): one for one in check_published()}
    assert set(found) == {
        ("PaLM", "d_model"),  # by design
        ("PaLM", "mfu"),  # of the running machine, against all hours
        ("GPT-3 XL", "d_model"),
        ("GPT-3 13B", "d_model"),
    }
    assert found["GPT-3 13B", "d_model"].expected == 5120
    assert found["PaLM", "mfu"].expected == pytest.approx(0.304, abs=1e-3)
    assert "Gopher" in named(check_published(flops_tolerance=1.1))


def test_printed_flops_are_6nd_but_for_gophers_and_rounding() -> None:
    over = {model.name: model.stated_over_6nd for model in MODELS if model.stated_over_6nd is not None}
    assert over.pop("Gopher") == pytest.approx(1.143, abs=1e-3)
    assert over.pop("SmolLM2") == pytest.approx(0.886, abs=1e-3)  # "1e23", in one figure
    assert all(abs(value - 1) < 0.025 for value in over.values())
    assert len(over) >= 5


def test_shares_of_the_peak_are_possible_and_every_row_has_a_source() -> None:
    assert all(0.1 < model.used < 0.5 for model in MODELS if model.used is not None)
    assert all(model.source for model in MODELS)
    assert len({row["name"] for row in rows()}) == len(rows())
    experts = next(model for model in MODELS if model.active_params)
    assert experts.flops == pytest.approx(6 * 37e9 * 14.8e12)


def test_provenance_names_its_command() -> None:
    assert "planning.py" in study_json("scaling-laws/planning", "provenance")["command"]
