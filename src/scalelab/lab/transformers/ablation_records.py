"""The recorded ablations, read: what each change of a small decoder costs, over seeds, at its own best rate.

A change is compared with the unchanged model seed by seed, since both read the same text in the same order:
much of the noise between seeds is common to both and cancels. No torch here.
Taught in book/transformers/block.md.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scalelab.core.errors import LabError
from scalelab.lab.records import study_json, study_runs

STUDY = "transformers/block"
FIRST_SEED = 0  # every rate was tried with this one; those near the best, with all seeds

# Student's t: between minus and plus this lie 95 % for 1, 2, … degrees of freedom; tests hold it to scipy's.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds with its 95 % interval.

    Attributes:
        mean, low, high: in the values' unit. n: how many seeds.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        """From the mean to either end."""
        return self.high - self.mean

    @property
    def is_null(self) -> bool:
        """Whether zero lies inside: no difference was found."""
        return self.low <= 0 <= self.high


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of a few values, by Student's t.

    Raises:
        LabError: fewer than two values, or more than ten.
    """
    if not 2 <= len(values) <= len(T_95) + 1:
        raise LabError(f"an interval needs from 2 to {len(T_95) + 1} values, got {len(values)}")
    mean = statistics.fmean(values)
    if not math.isfinite(mean):  # a run diverged
        return Interval(mean, -math.inf, math.inf, len(values))
    half = T_95[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, len(values))


def by_rate(arm: str) -> dict[float, dict[int, float]]:
    """Bits per byte of every run of an arm, by learning rate and seed; infinite where the run diverged.

    Raises:
        LabError: the study has no such arm.
    """
    bits: dict[float, dict[int, float]] = {}
    for run in study_runs(STUDY, arm):
        bits.setdefault(run.learning_rate, {})[run.seed] = run.bits_per_byte
    for row in _diverged(arm):
        bits.setdefault(row["learning_rate"], {})[row["seed"]] = math.inf
    return {rate: dict(sorted(bits[rate].items())) for rate in sorted(bits)}


def rates_tried(arm: str) -> dict[float, float]:
    """Bits per byte by learning rate, with the first seed."""
    return {rate: bits[FIRST_SEED] for rate, bits in by_rate(arm).items() if FIRST_SEED in bits}


def chosen_rate(arm: str) -> float:
    """The learning rate at which an arm is judged: of those repeated with all seeds, the lowest mean."""
    bits = by_rate(arm)
    most = max(len(seeds) for seeds in bits.values())
    repeated = [rate for rate, seeds in bits.items() if len(seeds) == most]
    return min(repeated, key=lambda rate: statistics.fmean(bits[rate].values()))


def judged(arm: str) -> dict[int, float]:
    """Bits per byte by seed, at the arm's own rate; infinite where the run diverged."""
    return by_rate(arm)[chosen_rate(arm)]


def cost_of(arm: str, against: str = "baseline") -> Interval:
    """How many bits per byte an arm is worse than another one, paired by seed; negative: it is better.

    Raises:
        LabError: an unknown arm, or fewer than two seeds in common.
    """
    ours, theirs = judged(arm), judged(against)
    return interval([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def _diverged(arm: str) -> list[dict[str, Any]]:
    try:
        rows: Any = study_json(STUDY, "diverged")
    except FileNotFoundError:  # none did
        return []
    return [row for row in rows if row["arm"] == arm]
