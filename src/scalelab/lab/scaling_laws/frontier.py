"""The best size for a budget, read off the course's sweep: runs by budget, curves by arm, and Kaplan's chain.

An arm is one way of training all sizes. At a constant learning rate a point on the way is what a run of that
length would have reached, so one curve serves every budget that it passes; where the rate decays, only the
ends of runs count. At each budget a parabola in ln N through the sizes near the lowest loss gives the best
size, and the slope of ln N over ln C is the exponent a.

Its interval comes from what the sizes stray from their parabolas. A size that lies above one lies above the
next, because its curve is one run; so each draw gives each size one error, for all budgets. A part of it is
common to all arms (same shape, same initial weights, same order of data), the rest is the arm's own; how
much, the correlation between the arms' residuals says. On planted sweeps of these sizes such 90 % intervals
hold the slope about nine times in ten; a test repeats it.

Source: Porian et al. 2024, arXiv:2406.19146 (the causes). Taught in book/scaling-laws/compute-optimal.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.interpolate import PchipInterpolator

from scalelab.core.errors import LabError
from scalelab.core.units import FLOPS_PER_PARAM_TOKEN
from scalelab.lab.scaling_laws.recorded_sweeps import packages_runs
from scalelab.laws import Interval, percentile_interval

Count = Literal["all", "non-embedding"]
BUDGETS = (1e11, 3.2e11, 1e12, 3.2e12, 1e13, 3.2e13)  # of the grid `isoflop` in studies/scaling-laws
LARGEST_OF_ALL = 3.2e12  # no arm but `isoflop` goes further, so steps are compared up to here
DECAYED = ("isoflop", "one-rate-decay")  # a run for each budget: only ends of runs count
NEAR = 6.0  # sizes within this factor of the lowest loss are taken for the parabola
FEWEST_SIZES = 4
IN_COMMON = 0.4  # of a size's variance, what all arms share: the mean correlation of their residuals


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
    Step(name="the rate decays", arm="one-rate-decay", count="all"),
    Step(name="a rate for each size", arm="isoflop", count="all"),
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frontier:
    """The best size at each budget for one step of the chain.

    Attributes:
        step: which. flops, n_opt, loss: K budgets that are bracketed. a: slope of ln N over ln C.
        noise: standard deviation of losses about the parabolas, nats.
        draws: S slopes of sizes with other errors; the same draw of every step belongs together.
        valleys: for each budget (sizes, losses, whether the parabola used them).
    """

    step: Step
    flops: np.ndarray
    n_opt: np.ndarray
    loss: np.ndarray
    a: float
    noise: float
    draws: np.ndarray
    valleys: Mapping[float, tuple[np.ndarray, np.ndarray, np.ndarray]]

    def interval(self, level: float = 0.9) -> Interval:
        """Of a."""
        return percentile_interval(self.draws, level)

    def size_at(self, flops: float) -> float:
        """The best size at a budget by the line through all bottoms."""
        level = np.log(self.n_opt).mean() - self.a * np.log(self.flops).mean()
        return math.exp(float(level) + self.a * math.log(flops))

    def loss_at(self, flops: float) -> float:
        """The lowest loss at a budget, nats, between those of the bottoms."""
        return float(np.interp(math.log(flops), np.log(self.flops), self.loss))


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
    """One curve for each size of an arm, its small sizes included; of runs that decay, their ends.

    With several seeds the curve is their mean. The last point of a curve is the run's final loss.
    """
    if arm in DECAYED:
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
    """Each step's frontier, on the same draws of errors, so that differences have intervals of their own.

    Args:
        budgets: FLOPs of all parameters; by default those of `isoflop` that every arm has, and for curves,
            which have no budgets of their own, two more between each pair. A step that counts otherwise takes
            the same models at these budgets, and their FLOPs as it counts them.

    Raises:
        LabError: a step has fewer than two budgets with a bracketed best size.
    """
    luck = _Luck(n_draws, seed)
    return [_frontier(step, luck, budgets) for step in steps]


def difference(first: Frontier, second: Frontier, level: float = 0.9) -> tuple[float, Interval]:
    """second.a - first.a with its joint interval."""
    return second.a - first.a, percentile_interval(second.draws - first.draws, level)


class _Luck:
    """Errors of sizes, S draws of standard deviation about 1: what all budgets of a size share."""

    def __init__(self, n_draws: int, seed: int) -> None:
        self._n_draws, self._seed = n_draws, seed

    def of(self, n_params: int, arm: str) -> np.ndarray:
        """Of one size in one arm, S."""
        common, own = (
            np.random.default_rng([self._seed, n_params, *which.encode()]).standard_normal(self._n_draws)
            for which in ("", arm)
        )
        return np.asarray(math.sqrt(IN_COMMON) * common + math.sqrt(1 - IN_COMMON) * own)

    def scale(self, n_sizes: int) -> np.ndarray:
        """How far the noise itself may be from its estimate, S: with it the errors follow Student's law."""
        spare = max(n_sizes - 3, 1)
        rng = np.random.default_rng([self._seed, 0])
        return np.asarray(np.sqrt(spare / rng.chisquare(spare, self._n_draws)))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Valley:
    """A parabola through the n sizes near the lowest loss of one budget.

    Attributes:
        flops: the budget. loss: of all curves, nan where they do not get there. used: which were.
        x: ln N of those, n, from their mean, which is `centre`. solve: losses to coefficients, [3, n].
    """

    flops: float
    loss: np.ndarray
    used: np.ndarray
    x: np.ndarray
    centre: float
    solve: np.ndarray

    @property
    def fitted(self) -> np.ndarray:
        """Coefficients of the square, the line and the level."""
        return np.asarray(self.solve @ self.loss[self.used])

    @property
    def residuals(self) -> np.ndarray:
        """Losses above the parabola, n, nats."""
        return np.asarray(self.loss[self.used] - np.vander(self.x, 3) @ self.fitted)

    @property
    def vertex(self) -> float:
        """ln N at the bottom; nan where it is none."""
        square, line, _ = self.fitted
        return self.centre - line / (2 * square) if square > 0 else math.nan

    @property
    def depth(self) -> float:
        """Loss at the bottom, nats."""
        square, line, level = self.fitted
        return float(level - line**2 / (4 * square))

    def bracketed(self) -> bool:
        """Whether sizes lie on both sides of the bottom."""
        return bool(self.x[0] < self.vertex - self.centre < self.x[-1])

    def drawn(self, errors: np.ndarray) -> np.ndarray:
        """Bottoms with other errors, S, given those of all sizes, [sizes, S]."""
        square, line, _ = self.fitted[:, None] + self.solve @ errors[self.used]
        at = -line / (2 * np.where(square > 0, square, math.nan))
        # A draw without a valley falls to one side: it then counts as a bottom beyond the sizes.
        at = np.where(square > 0, at, np.where(line < 0, np.inf, -np.inf))
        return np.asarray(self.centre + np.clip(at, self.x[0] - 1, self.x[-1] + 1))


def _frontier(step: Step, luck: _Luck, budgets: Sequence[float] | None) -> Frontier:
    curves, ends = arm_curves(step.arm), step.arm in DECAYED
    at = list(budgets) if budgets is not None else _budgets(ends=ends)
    if step.count != "all":
        at = _counted(curves, at, step.count, ends=ends)
    found = _valleys(curves, at, step.count, ends=ends)
    if len(found) < 2:
        raise LabError(f"{step.name}: {len(found)} budgets with a bracketed best size, and a slope needs two")
    spare = sum(len(valley.x) - 3 for valley in found)
    noise = math.sqrt(sum(float(np.sum(valley.residuals**2)) for valley in found) / spare)
    errors = np.stack([luck.of(curve.n_params, step.arm) for curve in curves])  # [sizes, S]
    errors = noise * luck.scale(len(curves)) * errors
    log_c = np.log([valley.flops for valley in found])
    slope = (log_c - log_c.mean()) / np.sum((log_c - log_c.mean()) ** 2)
    sizes = np.array([curve.size(step.count) for curve in curves], dtype=float)
    log_n = np.array([valley.vertex for valley in found])
    return Frontier(
        step=step,
        flops=np.exp(log_c),
        n_opt=np.exp(log_n),
        loss=np.array([valley.depth for valley in found]),
        a=float(slope @ log_n),
        noise=noise,
        draws=slope @ np.stack([valley.drawn(errors) for valley in found]),
        valleys={valley.flops: (sizes, valley.loss, valley.used) for valley in found},
    )


def _valleys(curves: Sequence[Curve], budgets: Sequence[float], count: Count, *, ends: bool) -> list[_Valley]:
    """The valleys of these budgets that have a bracketed bottom."""
    sizes = np.array([curve.size(count) for curve in curves], dtype=float)
    found = []
    for budget in budgets:
        loss = losses_at(curves, budget, count, ends=ends)
        used = _window(sizes, loss)
        if used is None:
            continue
        x = np.log(sizes[used])
        valley = _Valley(
            flops=float(budget), loss=loss, used=used, x=x - x.mean(), centre=float(x.mean()),
            solve=np.linalg.pinv(np.vander(x - x.mean(), 3)),
        )  # fmt: skip
        if valley.bracketed():
            found.append(valley)
    return found


def _budgets(*, ends: bool) -> list[float]:
    """Those of `isoflop` that every arm has; for curves two more between each pair."""
    planned = [budget for budget in BUDGETS if budget <= LARGEST_OF_ALL]
    if ends:
        return planned
    n = 3 * (len(planned) - 1) + 1
    return [float(flops) for flops in np.geomspace(planned[0], planned[-1], n)]


def _counted(curves: Sequence[Curve], budgets: Sequence[float], count: Count, *, ends: bool) -> list[float]:
    """The FLOPs that a way of counting sees in the best models at these budgets."""
    log_n = np.log([curve.n_params for curve in curves])
    share = [curve.size(count) / curve.n_params for curve in curves]
    return [
        valley.flops * float(np.interp(valley.vertex, log_n, share))
        for valley in _valleys(curves, budgets, "all", ends=ends)
    ]


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
