"""Steps against examples: what a larger batch buys, read from runs to a given loss, and the law fitted to it.

A run to a target loss takes S steps of B tokens and so E = S B examples. With the best learning rate at each
B, (S / S_min - 1) (E / E_min - 1) = 1: so S = S_min (1 + B_crit / B) and E = E_min (1 + B / B_crit), where
B_crit = E_min / S_min. At B_crit a run takes twice the least steps and twice the least tokens.
No torch here.
Source: McCandlish et al. 2018, arXiv:1812.06162, section 2. Taught in book/parallelism/data-parallel.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scalelab.core.errors import FitError
from scalelab.core.records import RunRecord
from scalelab.lab.records import study_json, study_runs

STUDY, ARM = "parallelism/data-parallel", "critical-batch"
TARGETS = (0.18, 0.09)  # nats per symbol above the language's entropy
LOWEST_EXCESS = TARGETS[-1]
WINDOW = 5  # held-out losses that are averaged: a run of small batches goes up and down on its way


def recorded_batches() -> list[RunRecord]:
    """All runs of the study of batch sizes.

    Raises:
        LabError: it has not been recorded.
    """
    return study_runs(STUDY, ARM)


def recorded_entropy() -> float:
    """What no model can go below on the text that judged the record, nats per symbol."""
    return float(study_json(STUDY, "provenance")["exact_loss_nats"])


def smoothed(losses: Sequence[float], floor: float) -> npt.NDArray[np.float64]:
    """Logarithms of the excess over a floor, averaged over five neighbours; two at each end are lost."""
    excess = np.log(np.maximum(np.asarray(losses, dtype=np.float64) - floor, 1e-9))
    if len(excess) < WINDOW:
        return np.zeros(0)
    return np.convolve(excess, np.full(WINDOW, 1 / WINDOW), mode="valid")


def steps_to(run: RunRecord, excess: float, floor: float) -> float:
    """Steps after which a run's held-out loss is so little above the floor; nan if it never is.

    Between held-out losses, straight lines in the logarithms of both.
    """
    means = smoothed([loss for _, loss in run.curve], floor)
    steps = np.array([tokens / run.batch_tokens for tokens, _ in run.curve])
    middle = WINDOW // 2
    steps = np.log(steps[middle : middle + len(means)])
    below = np.nonzero(means <= math.log(excess))[0]
    if not len(below):
        return math.nan
    place = int(below[0])
    if place == 0:
        return math.nan if len(means) < 2 else float(np.exp(steps[0]))
    high, low = means[place - 1], means[place]
    share = (high - math.log(excess)) / (high - low)
    return float(np.exp(steps[place - 1] + share * (steps[place] - steps[place - 1])))


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPoint:
    """What the best learning rate makes of a batch size.

    Attributes:
        batch_tokens: B. learning_rate: the one that took the fewest steps, of those tried with seed 0.
        steps: S, the geometric mean over seeds. all_steps: of each seed.
        rates: the learning rates tried and the steps that each took with seed 0; nan: never got there.
    """

    batch_tokens: int
    learning_rate: float
    steps: float
    all_steps: tuple[float, ...]
    rates: tuple[tuple[float, float], ...]

    @property
    def tokens(self) -> float:
        """E, examples counted in tokens."""
        return self.steps * self.batch_tokens


def batch_points(runs: Sequence[RunRecord], excess: float, floor: float) -> list[BatchPoint]:
    """A point for each batch size that reached the target, from the smallest."""
    points = []
    for batch in sorted({run.batch_tokens for run in runs}):
        taken = {
            (run.learning_rate, run.seed): steps_to(run, excess, floor)
            for run in runs
            if run.batch_tokens == batch
        }
        rates = tuple(sorted((rate, steps) for (rate, seed), steps in taken.items() if seed == 0))
        reached = [(steps, rate) for rate, steps in rates if math.isfinite(steps)]
        if not reached:
            continue
        best = min(reached)[1]
        # Of the best rate all seeds; a rate that is best for another target has but one here.
        every = tuple(steps for (rate, _), steps in sorted(taken.items()) if rate == best)
        steps = float(np.exp(np.mean(np.log(every))))
        points.append(
            BatchPoint(batch_tokens=batch, learning_rate=best, steps=steps, all_steps=every, rates=rates)
        )
    return points


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchLaw:
    """S = S_min (1 + B_crit / B).

    Attributes:
        min_steps: S_min, of a batch without end. critical_tokens: B_crit.
        scatter: root mean square of what is left of ln S.
    """

    min_steps: float
    critical_tokens: float
    scatter: float

    @property
    def min_tokens(self) -> float:
        """E_min, of a batch of next to nothing."""
        return self.min_steps * self.critical_tokens

    def steps(self, batch_tokens: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Steps at a batch size."""
        return np.asarray(
            self.min_steps * (1 + self.critical_tokens / np.asarray(batch_tokens, dtype=np.float64))
        )

    def tokens(self, batch_tokens: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Tokens at a batch size."""
        return np.asarray(self.steps(batch_tokens) * np.asarray(batch_tokens, dtype=np.float64))


def fit_batch_law(batch_tokens: Sequence[float], steps: Sequence[float]) -> BatchLaw:
    """The law that comes nearest in ln S, by least squares.

    For a given B_crit the best S_min is known, so the search has one dimension: a grid, then finer ones.

    Raises:
        FitError: fewer than three batch sizes, or a value that is not finite and above 0.
    """
    sizes, taken = np.asarray(batch_tokens, dtype=np.float64), np.asarray(steps, dtype=np.float64)
    if len(set(sizes.tolist())) < 3 or sizes.shape != taken.shape:
        raise FitError(f"the law needs at least 3 batch sizes with their steps, got {sizes} and {taken}")
    if not (np.isfinite(taken).all() and (taken > 0).all() and (sizes > 0).all()):
        raise FitError(f"batch sizes and steps must be finite and above 0, got {sizes} and {taken}")
    low, high = math.log(sizes.min()) - 7, math.log(sizes.max()) + 7
    best = low
    for _ in range(6):
        grid = np.linspace(low, high, 201)
        left = np.log(taken) - np.log1p(np.exp(grid[:, None]) / sizes)  # [201, points]: ln S_min by each
        best = float(grid[left.var(axis=1).argmin()])
        low, high = best - 2 * (grid[1] - grid[0]), best + 2 * (grid[1] - grid[0])
    left = np.log(taken) - np.log1p(math.exp(best) / sizes)
    return BatchLaw(
        min_steps=float(np.exp(left.mean())),
        critical_tokens=math.exp(best),
        scatter=float(left.std() * math.sqrt(len(left) / max(len(left) - 2, 1))),
    )


def law_interval(
    points: Sequence[BatchPoint], *, level: float = 0.95, n_draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """A bootstrap interval of B_crit, tokens: batch sizes drawn anew, and of each a seed.

    Draws with fewer than three different sizes are drawn again.

    Raises:
        FitError: fewer than three points.
    """
    if len(points) < 3:
        raise FitError(f"the law needs at least 3 batch sizes, got {len(points)}")
    draw = np.random.default_rng(seed)
    found: list[float] = []
    while len(found) < n_draws:
        chosen = draw.integers(len(points), size=len(points))
        if len(set(chosen.tolist())) < 3:
            continue
        sizes = [points[i].batch_tokens for i in chosen]
        taken = [points[i].all_steps[draw.integers(len(points[i].all_steps))] for i in chosen]
        found.append(fit_batch_law(sizes, taken).critical_tokens)
    edge = 100 * (1 - level) / 2
    low, high = np.percentile(found, [edge, 100 - edge])
    return float(low), float(high)
