"""The best size for a budget, read off the course's sweep: runs by budget, curves by arm, and Kaplan's chain.

An arm is one way of training all sizes. Its curves hold the loss on the way; at a constant learning rate a
point on the way is what a run of that length would have reached, so a curve serves every budget that it
passes. At each budget a parabola in ln N through the sizes near the lowest loss gives the best size, and the
slope of ln N over ln C is the exponent a.

Arms are compared on the same draws: each size's residuals, at all budgets and in all arms, are multiplied
by one random number (a wild bootstrap by clusters), because a size's luck (its initial weights, its order of
data) is the same in all of them.

Source: Porian et al. 2024, arXiv:2406.19146 (the causes); Liu 1988, doi:10.1214/aos/1176351062 (the wild
bootstrap). Taught in book/scaling-laws/compute-optimal.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.interpolate import PchipInterpolator

from scalelab.core.errors import LabError
from scalelab.lab.scaling_laws.recorded_sweeps import packages_runs
from scalelab.laws import Interval, percentile_interval

Count = Literal["all", "non-embedding"]
FLOPS_PER_PARAM_TOKEN = 6.0
BUDGETS = (1e11, 3.2e11, 1e12, 3.2e12, 1e13, 3.2e13)  # of the grid `isoflop` in studies/scaling-laws
NEAR = 4.0  # sizes within this factor of the lowest loss are taken for the parabola
FEWEST_SIZES = 4


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SweepRuns:
    """Finished runs of one grid, R each: n_params, n_params_non_embedding, n_tokens, loss (nats), seed."""

    n_params: np.ndarray
    n_params_non_embedding: np.ndarray
    n_tokens: np.ndarray
    loss: np.ndarray
    seed: np.ndarray

    @property
    def flops(self) -> np.ndarray:
        """6 N D, with all parameters."""
        return np.asarray(FLOPS_PER_PARAM_TOKEN * self.n_params * self.n_tokens)

    def budgets(self) -> np.ndarray:
        """The planned budgets that at least one run spent."""
        planned = np.array(BUDGETS)
        return planned[[bool(np.any(np.abs(self.flops / budget - 1) < 0.1)) for budget in planned]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Curve:
    """One size's held-out loss on the way: n_params, n_params_non_embedding, tokens and loss by point."""

    n_params: int
    n_params_non_embedding: int
    tokens: np.ndarray
    loss: np.ndarray

    def size(self, count: Count) -> int:
        """The parameters that this way of counting sees."""
        return self.n_params if count == "all" else self.n_params_non_embedding


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One way of training and counting in the chain that leads from Kaplan's to today's.

    Attributes:
        name: what it changed. arm: grids that it reads. count: which parameters make N and C.
    """

    name: str
    arm: str
    count: Count


CHAIN = (
    Step(name="as Kaplan ran", arm="one-rate-long-warmup", count="non-embedding"),
    Step(name="head and tables counted", arm="one-rate-long-warmup", count="all"),
    Step(name="short warm-up", arm="one-rate", count="all"),
    Step(name="a rate for each size", arm="stable", count="all"),
    Step(name="the rate decays", arm="isoflop", count="all"),
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frontier:
    """The best size at each budget for one step of the chain.

    Attributes:
        step: which. flops, n_opt, loss: K budgets that are bracketed. a: slope of ln N over ln C.
        draws: S slopes of resampled noise; the same draw of every step belongs together.
        valleys: for each budget (sizes, losses, whether the parabola used them).
    """

    step: Step
    flops: np.ndarray
    n_opt: np.ndarray
    loss: np.ndarray
    a: float
    draws: np.ndarray
    valleys: Mapping[float, tuple[np.ndarray, np.ndarray, np.ndarray]]

    def interval(self, level: float = 0.9) -> Interval:
        """Of a."""
        return percentile_interval(self.draws, level)


def sweep_runs(arm: str = "isoflop") -> SweepRuns:
    """Finished runs of an arm as columns."""
    records = sorted(packages_runs(arm), key=lambda run: (run.n_params * run.n_tokens, run.n_params))
    return SweepRuns(
        n_params=np.array([run.n_params for run in records], dtype=float),
        n_params_non_embedding=np.array([run.n_params_non_embedding for run in records], dtype=float),
        n_tokens=np.array([run.n_tokens for run in records], dtype=float),
        loss=np.array([run.loss_nats for run in records]),
        seed=np.array([run.seed for run in records]),
    )


def arm_curves(arm: str) -> list[Curve]:
    """One curve for each size of an arm, its small sizes included; of `isoflop`, the ends of its runs.

    With several seeds the curve is their mean. The last point of a curve is the run's final loss.
    """
    if arm == "isoflop":
        return _ends(sweep_runs(arm))
    found: dict[tuple[int, int], list[dict[int, float]]] = {}
    for run in packages_runs(arm):
        points = dict(run.curve) | {run.n_tokens: run.loss_nats}
        found.setdefault((run.n_params, run.n_params_non_embedding), []).append(points)
    return [_mean_curve(sizes, points) for sizes, points in sorted(found.items())]


def _mean_curve(sizes: tuple[int, int], points: Sequence[Mapping[int, float]]) -> Curve:
    shared = sorted(set.intersection(*(set(seed) for seed in points)))
    return Curve(
        n_params=sizes[0],
        n_params_non_embedding=sizes[1],
        tokens=np.array(shared, dtype=float),
        loss=np.array([np.mean([seed[tokens] for seed in points]) for tokens in shared]),
    )


def _ends(runs: SweepRuns) -> list[Curve]:
    """Final losses of one size at its budgets: points that are each the end of a schedule."""
    curves = []
    for size in np.unique(runs.n_params):
        mine = runs.n_params == size
        tokens = np.unique(runs.n_tokens[mine])
        loss = [runs.loss[mine & (runs.n_tokens == each)].mean() for each in tokens]
        other = int(runs.n_params_non_embedding[mine][0])
        curves.append(
            Curve(n_params=int(size), n_params_non_embedding=other, tokens=tokens, loss=np.array(loss))
        )
    return curves


def losses_at(curves: Sequence[Curve], flops: float, count: Count, *, ends: bool) -> np.ndarray:
    """Each curve's loss where it has spent a budget, nan where it does not get there.

    Args:
        ends: the curves are ends of runs, which count only where they lie (within a tenth of the budget).
    """
    found = np.full(len(curves), np.nan)
    for i, curve in enumerate(curves):
        tokens = flops / (FLOPS_PER_PARAM_TOKEN * curve.size(count))
        if ends:
            near = np.abs(curve.tokens / tokens - 1) < 0.1
            found[i] = curve.loss[near][0] if near.any() else np.nan
        elif curve.tokens[0] <= tokens <= curve.tokens[-1] * 1.02:
            shape = PchipInterpolator(np.log(curve.tokens), np.log(curve.loss), extrapolate=True)
            found[i] = math.exp(float(shape(math.log(tokens))))
    return found


def chain(
    steps: Sequence[Step] = CHAIN,
    *,
    n_draws: int = 2000,
    seed: int = 0,
    budgets: Sequence[float] | None = None,
) -> list[Frontier]:
    """Each step's frontier, on the same draws of noise, so that differences have intervals of their own.

    Args:
        budgets: FLOPs, as the step counts them; by default five to a decade from the grid's smallest to where
            the curves end, and the grid's own for `isoflop`.
    """
    weights = _Weights(n_draws, seed)
    return [_frontier(step, weights, budgets) for step in steps]


def difference(first: Frontier, second: Frontier, level: float = 0.9) -> tuple[float, Interval]:
    """second.a - first.a with its joint interval."""
    return second.a - first.a, percentile_interval(second.draws - first.draws, level)


class _Weights:
    """One standard normal number for each size and draw: what all budgets and arms of a size share."""

    def __init__(self, n_draws: int, seed: int) -> None:
        self.n_draws = n_draws
        self._seed = seed
        self._found: dict[int, np.ndarray] = {}

    def of(self, n_params: int) -> np.ndarray:
        if n_params not in self._found:
            rng = np.random.default_rng([self._seed, n_params])
            self._found[n_params] = rng.standard_normal(self.n_draws)
        return self._found[n_params]


def _frontier(step: Step, weights: _Weights, budgets: Sequence[float] | None) -> Frontier:
    curves, ends = arm_curves(step.arm), step.arm == "isoflop"
    sizes = np.array([curve.size(step.count) for curve in curves], dtype=float)
    luck = np.stack([weights.of(curve.n_params) for curve in curves])
    at = [budget for budget in BUDGETS if budget <= 3.3e12] if ends else _spread(curves, step.count)
    flops, log_n, losses, draws, valleys = [], [], [], [], {}
    for budget in budgets or at:
        loss = losses_at(curves, budget, step.count, ends=ends)
        used = _window(sizes, loss)
        if used is None:
            continue
        x = np.log(sizes[used])
        centre = x.mean()
        solve = np.linalg.pinv(np.vander(x - centre, 3))  # coefficients of the square, the line and the level
        fitted = solve @ loss[used]
        vertex = centre - fitted[1] / (2 * fitted[0]) if fitted[0] > 0 else math.nan
        if not x[0] < vertex < x[-1]:
            continue
        spare = max(len(x) - 3, 1)
        residual = (loss[used] - np.vander(x - centre, 3) @ fitted) * math.sqrt(len(x) / spare)
        moved = fitted[:, None] + solve @ (residual[:, None] * luck[used])  # [3, S]
        drawn = centre - moved[1] / (2 * np.where(moved[0] > 0, moved[0], math.nan))
        # A draw without a valley falls to one side: it then counts as a bottom beyond the sizes.
        drawn = np.where(moved[0] > 0, drawn, np.where(moved[1] < 0, np.inf, -np.inf))
        flops.append(budget)
        log_n.append(vertex)
        losses.append(fitted[2] - fitted[1] ** 2 / (4 * fitted[0]))
        draws.append(np.clip(drawn, x[0] - 1, x[-1] + 1))
        valleys[float(budget)] = (sizes, loss, used)
    if len(flops) < 2:
        raise LabError(f"{step.name}: {len(flops)} budgets with a bracketed best size, and a slope needs two")
    log_c = np.log(flops)
    slope = (log_c - log_c.mean()) / np.sum((log_c - log_c.mean()) ** 2)
    return Frontier(
        step=step,
        flops=np.array(flops),
        n_opt=np.exp(log_n),
        loss=np.array(losses),
        a=float(slope @ np.array(log_n)),
        draws=slope @ np.array(draws),
        valleys=valleys,
    )


def _spread(curves: Sequence[Curve], count: Count) -> list[float]:
    """Budgets, five to a decade, from the grid's smallest, as the step counts it, to where the largest size
    ends."""
    share = np.median([curve.size(count) / curve.n_params for curve in curves])
    high = FLOPS_PER_PARAM_TOKEN * curves[-1].size(count) * curves[-1].tokens[-1]
    n = 1 + int(5 * math.log10(high / (share * BUDGETS[0])))
    return [float(v) for v in high / 10 ** (np.arange(n)[::-1] / 5)]


def _window(sizes: np.ndarray, loss: np.ndarray) -> np.ndarray | None:
    """Which sizes the parabola uses: those near the lowest loss, which must not be an outermost one."""
    there = np.flatnonzero(np.isfinite(loss))
    if len(there) < FEWEST_SIZES:
        return None
    best = there[np.argmin(loss[there])]
    if best in (there[0], there[-1]):
        return None
    near = np.abs(np.log(sizes / sizes[best])) <= math.log(NEAR)
    used = np.flatnonzero(near & np.isfinite(loss))
    return used if len(used) >= FEWEST_SIZES else None
