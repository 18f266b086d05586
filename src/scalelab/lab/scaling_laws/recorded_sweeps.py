"""The recorded sweeps, read one scale at a time: on `markov`, and on real text over compute and over tokens.

No torch here. Taught in book/scaling-laws/power-laws.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scalelab.core.records import RunRecord
from scalelab.core.units import FLOPS_PER_PARAM_TOKEN
from scalelab.lab.records import study_folder, study_json, study_runs

STUDY = "scaling-laws/power-laws"
PACKAGES = "scaling-laws/packages"

_SAME_BUDGET = 1.5  # runs of one IsoFLOP budget differ by less, budgets by a factor of 3


def recorded(grid: str) -> list[RunRecord]:
    """The record of the same: "sizes" (a sweep in N, four seeds) or "tokens" (one in D, three seeds).

    Raises:
        LabError: there is no such grid.
    """
    return study_runs(STUDY, grid)


def recorded_exact_loss() -> float:
    """The true language's loss on the tokens that judged the record, nats per token."""
    return float(study_json(STUDY, "measurements")["exact_loss_nats"])


def columns(runs: Sequence[RunRecord]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parameters (all of them), tokens and losses of runs, as arrays."""
    table = np.array([(run.n_params, run.n_tokens, run.loss_nats) for run in runs], dtype=np.float64)
    return table[:, 0], table[:, 1], table[:, 2]


def packages_runs(arm: str) -> list[RunRecord]:
    """All runs of one way of training in the sweep over `packages`, with the grids that complete it.

    An arm is a grid of studies/scaling-laws/packages.toml, such as `isoflop`; its grids `-small` (small
    models, fewer tokens) and `-long` (small models, more tokens per parameter) belong to it.

    Raises:
        LabError: there is no such grid.
    """
    found = study_runs(PACKAGES, arm)
    for part in ("-small", "-long"):
        if (study_folder(PACKAGES) / f"{arm}{part}.jsonl").is_file():
            found = [*found, *study_runs(PACKAGES, f"{arm}{part}")]
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedNoise:
    """How far runs stray that differ in nothing but their seed.

    Attributes:
        nats: standard deviation of one run, over all sizes together.
        lowest, highest: that of the calmest and of the most restless size.
        n_sizes, n_seeds: how many sizes, and how many seeds each of them has at least.
    """

    nats: float
    lowest: float
    highest: float
    n_sizes: int
    n_seeds: int


def seed_noise() -> SeedNoise | None:
    """The noise between seeds on text, at the one budget that has several; None while only one is recorded.

    Seed 0 is the run of `isoflop` with the same settings.
    """
    if not (study_folder(PACKAGES) / "isoflop-seeds.jsonl").is_file():
        return None
    by_setting: dict[tuple[int, int], list[float]] = {}
    for run in [*packages_runs("isoflop"), *study_runs(PACKAGES, "isoflop-seeds")]:
        by_setting.setdefault((run.n_params, run.n_tokens), []).append(run.loss_nats)
    repeated = [losses for losses in by_setting.values() if len(losses) > 1]
    if not repeated:
        return None
    deviations = [float(np.std(losses, ddof=1)) for losses in repeated]
    free = [len(losses) - 1 for losses in repeated]
    return SeedNoise(
        nats=float(np.sqrt(np.average(np.square(deviations), weights=free))),
        lowest=min(deviations),
        highest=max(deviations),
        n_sizes=len(repeated),
        n_seeds=min(map(len, repeated)),
    )


def shape_scatter(runs: Sequence[RunRecord]) -> float:
    """How far single shapes lie from a smooth valley, nats: a parabola in ln N for each budget.

    Part of it is luck of the seed, part the shape's own (depth over width, heads): more seeds do not average
    that away.
    """
    squares, free = 0.0, 0
    for budget in _budgets(runs):
        if len(budget) > 3:
            n, _, loss = columns(budget)
            bent = np.polyval(np.polyfit(np.log(n), loss, 2), np.log(n))
            squares, free = squares + float(np.sum((loss - bent) ** 2)), free + len(budget) - 3
    return float(np.sqrt(squares / free)) if free else float("nan")


def _budgets(runs: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Runs by compute budget, smallest first."""
    budgets: list[list[RunRecord]] = []
    for run in sorted(runs, key=lambda run: run.n_params * run.n_tokens):
        flops = run.n_params * run.n_tokens
        if budgets and flops < _SAME_BUDGET * budgets[-1][0].n_params * budgets[-1][0].n_tokens:
            budgets[-1].append(run)
        else:
            budgets.append([run])
    return budgets


def best_of_budgets(runs: Sequence[RunRecord]) -> tuple[np.ndarray, np.ndarray]:
    """(6 N D, loss) of the best run of each budget whose minimum lies inside its sizes, smallest first.

    A budget whose best run is its smallest or largest model may have a better one beyond: it is left out.
    """
    found = []
    for budget in _budgets(runs):
        by_size = sorted(budget, key=lambda run: run.n_params)
        best = min(budget, key=lambda run: run.loss_nats)
        if len(by_size) >= 3 and best not in (by_size[0], by_size[-1]):
            found.append((FLOPS_PER_PARAM_TOKEN * best.n_params * best.n_tokens, best.loss_nats))
    table = np.array(found, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def known_budgets(flops: np.ndarray) -> np.ndarray:
    """Which budgets a bet on the largest may see: those up to a tenth of it, at least two; flops rises."""
    n_known = max(
        2, int(np.sum(flops < 0.11 * flops.max()))
    )  # runs end on whole steps, so not exactly a tenth
    return np.arange(len(flops)) < n_known


def over_tokens(runs: Sequence[RunRecord], *, at_least: int = 4) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """By size: (tokens, loss) of its runs, fewest tokens first; of `at_least` runs or more."""
    by_size: dict[int, list[RunRecord]] = {}
    for run in runs:
        by_size.setdefault(run.n_params, []).append(run)
    found = {}
    for size, of_size in sorted(by_size.items()):
        if len(of_size) >= at_least:
            of_size.sort(key=lambda run: run.n_tokens)
            found[size] = (
                np.array([run.n_tokens for run in of_size], dtype=np.float64),
                np.array([run.loss_nats for run in of_size], dtype=np.float64),
            )
    return found
