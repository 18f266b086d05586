"""What was bet and what came of it: the committed prediction on real text, and the small one on `markov`.

The prediction was shown the sweep over `packages` up to CUT and bets on a run of BET FLOPs. The sweep went on
afterwards: its budget NEXT was not shown either, and is a second thing to hold the same fit against.
No torch here. Taught in book/scaling-laws/planning.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scalelab.core.records import RunRecord
from scalelab.core.units import FLOPS_PER_PARAM_TOKEN
from scalelab.lab.records import study_folder, study_json, study_runs
from scalelab.lab.scaling_laws.extrapolation import SAME_BUDGET, Budgets, Played, budgets_of, play
from scalelab.lab.scaling_laws.recorded_sweeps import packages_runs

STUDY = "scaling-laws/planning"
CUT, NEXT, BET = 1e13, 3.2e13, 1e14  # FLOPs: the largest budget shown, the sweep's next, the run bet on
FEWEST_SIZES = 5  # of a budget whose best size can be told; with fewer, its runs are still being made
SHOWN_WIDTHS = (4, 6, 8, 12, 16)
SHOWN_TOKENS = (25_600, 51_200, 102_400, 204_800)
LARGE = (24, 1_024_000)  # width and tokens: 9.7 times the FLOPs of the largest shown


def recorded_small() -> dict[int, tuple[list[RunRecord], RunRecord]]:
    """By seed: the runs shown, and the one bet on.

    Raises:
        LabError: there is no record.
    """
    found: dict[int, tuple[list[RunRecord], RunRecord]] = {}
    runs = study_runs(STUDY, "small")
    for seed in sorted({run.seed for run in runs}):
        mine = [run for run in runs if run.seed == seed]
        large = next(run for run in mine if (run.config["d_model"], run.n_tokens) == LARGE)
        found[seed] = [run for run in mine if run is not large], large
    return found


def recorded_bet() -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The committed prediction on real text, and what came of it (None until its run is made).

    Raises:
        LabError: there is no record.
    """
    made = (study_folder(STUDY) / "outcome.json").is_file()
    return study_json(STUDY, "prediction"), study_json(STUDY, "outcome") if made else None


def shown_runs(cut: float = CUT) -> list[RunRecord]:
    """The sweep's runs of budgets up to a cut: what the committed prediction was made from.

    Raises:
        LabError: there is no record.
    """
    return [run for run in packages_runs("isoflop") if _six_nd(run) <= SAME_BUDGET * cut]


def all_budgets() -> Budgets:
    """Every budget of the sweep that has been run at FEWEST_SIZES sizes or more.

    Raises:
        LabError: there is no record.
    """
    runs = budgets_of(packages_runs("isoflop"))
    sizes = np.array([np.sum(runs.budget == value) for value in runs.budget])
    return runs.where(sizes >= FEWEST_SIZES)


def play_next(*, n_draws: int = 400) -> Played | None:
    """The prediction's own rule and runs on the sweep's next budget; None while that is not in the record."""
    runs = all_budgets()
    later = [value for value in runs.values if 1 / SAME_BUDGET < value / NEXT < SAME_BUDGET]
    return play(runs, CUT, later[0], n_draws=n_draws) if later else None


def _six_nd(run: RunRecord) -> float:
    return FLOPS_PER_PARAM_TOKEN * run.n_params * run.n_tokens
