"""What was bet and what came of it: the committed prediction on real text, and the small one on `markov`.

No torch here. Taught in book/scaling-laws/planning.md.
"""

from __future__ import annotations

from typing import Any

from scalelab.core.records import RunRecord
from scalelab.lab.records import study_folder, study_json, study_runs

STUDY = "scaling-laws/planning"
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
