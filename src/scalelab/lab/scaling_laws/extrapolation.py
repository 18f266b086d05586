"""How far may one extrapolate? Ways to foretell a larger run, each tried on budgets that it was not shown.

A *way* is shown runs of IsoFLOP budgets and names a loss for one larger run. `try_ways` cuts the record below
each budget in turn and keeps every error, ln(foretold / measured). `foretell` takes the way whose errors were
smallest, with the wider of two intervals: what a bootstrap of the fit says, and what the errors say. `play`
does so with less than is known, so that the bet can be scored at once.

No torch here. Taught in book/scaling-laws/planning.md.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from scalelab.core.errors import FitError, LabError
from scalelab.core.records import RunRecord
from scalelab.core.units import FLOPS_PER_PARAM_TOKEN
from scalelab.laws import IsoflopFit, fit_chinchilla, fit_floor_line, fit_isoflop, fit_power_line

HORIZON = 12.0  # as far as errors are counted: a budget ten times the cut, with room for whole steps
SAME_BUDGET = 1.05
LEVEL = 0.9
SAME_SIZE = "same size, power in D"


@dataclass(frozen=True, slots=True, eq=False)
class Budgets:
    """Runs of IsoFLOP budgets; C is 6 n_params n_tokens throughout.

    Attributes:
        n_params, n_tokens, loss: [R] of each run. budget: [R] FLOPs its budget has, the mean of its runs'.
    """

    n_params: np.ndarray
    n_tokens: np.ndarray
    loss: np.ndarray
    budget: np.ndarray

    @property
    def values(self) -> list[float]:
        """The budgets, smallest first."""
        return [float(value) for value in np.unique(self.budget)]

    def where(self, keep: np.ndarray) -> Budgets:
        """Those runs that a mask keeps."""
        return Budgets(self.n_params[keep], self.n_tokens[keep], self.loss[keep], self.budget[keep])

    def up_to(self, cut: float) -> Budgets:
        """Runs of budgets up to a cut."""
        return self.where(self.budget <= SAME_BUDGET * cut)

    def valleys(self) -> IsoflopFit:
        """Approach 2 on these runs."""
        return fit_isoflop(self.n_params, self.n_tokens, self.loss, self.budget)


def budgets_of(runs: Sequence[RunRecord]) -> Budgets:
    """Runs sorted into budgets: each begins where the next run spends more than 5 % above the last."""
    ordered = sorted(runs, key=lambda run: run.n_params * run.n_tokens)
    if not ordered:
        raise LabError("no runs to sort into budgets")
    flops = np.array([FLOPS_PER_PARAM_TOKEN * run.n_params * run.n_tokens for run in ordered])
    group = np.concatenate([[0], np.cumsum(flops[1:] > SAME_BUDGET * flops[:-1])])
    centre = np.array([np.exp(np.log(flops[group == g]).mean()) for g in range(group[-1] + 1)])
    return Budgets(
        n_params=np.array([run.n_params for run in ordered], dtype=float),
        n_tokens=np.array([run.n_tokens for run in ordered], dtype=float),
        loss=np.array([run.loss_nats for run in ordered]),
        budget=centre[group],
    )


def fingerprint(runs: Sequence[RunRecord]) -> str:
    """SHA-256 of the runs' names and losses, in order of name: which record a prediction was made from."""
    lines = sorted(f"{run.run_id} {run.loss_nats!r}" for run in runs)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


Foreteller = Callable[[float, float], float]
Way = Callable[[Budgets], Foreteller]


def _six_nd(n: float, d: float) -> float:
    return FLOPS_PER_PARAM_TOKEN * n * d


def _through_valleys(form: str) -> Way:
    def way(shown: Budgets) -> Foreteller:
        bottoms = [v for v in shown.valleys().vertices if v.bracketed]
        return _curve([v.flops for v in bottoms], [v.loss for v in bottoms], form)

    return way


def _best_runs(shown: Budgets) -> Foreteller:
    return _curve(shown.values, [shown.loss[shown.budget == value].min() for value in shown.values], "power")


def _curve(flops: Sequence[float], loss: Sequence[float], form: str) -> Foreteller:
    """Loss over 6ND by least squares: "power" a line of logarithms, "power_floor", "log" a line over ln C."""
    if form == "log":
        slope, level = np.polyfit(np.log(flops), loss, 1)
        return lambda n, d: float(level + slope * math.log(_six_nd(n, d)))
    if form == "power_floor":
        if len(flops) < 3:
            raise FitError("a floor shows only as a bend: three budgets at least")
        floored = fit_floor_line(flops, loss)
        return lambda n, d: float(floored(_six_nd(n, d)))
    line = fit_power_line(flops, loss)
    return lambda n, d: float(line(_six_nd(n, d)))


def _chinchilla(shown: Budgets) -> Foreteller:
    law = fit_chinchilla(shown.n_params, shown.n_tokens, shown.loss)
    return lambda n, d: float(law.loss(n, d))


def _same_size(shown: Budgets) -> Foreteller:
    def foretell_same(n: float, d: float) -> float:
        mine = shown.n_params == n
        if mine.sum() < 2:
            raise FitError(f"the size {n:.0f} was run at fewer than two of the budgets shown")
        slope, level = np.polyfit(np.log(shown.n_tokens[mine]), np.log(shown.loss[mine]), 1)
        return float(np.exp(level + slope * np.log(d)))

    return foretell_same


WAYS: Mapping[str, Way] = {
    "power law, valleys": _through_valleys("power"),
    "power law, best runs": _best_runs,
    "power + floor, valleys": _through_valleys("power_floor"),
    "logarithm, valleys": _through_valleys("log"),
    "Chinchilla's L(N, D)": _chinchilla,
    SAME_SIZE: _same_size,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Try:
    """One way, shown the budgets up to a cut, on one larger run.

    Attributes:
        way: its name. cut, budget: FLOPs shown and of the run.
        n_params: of the run, the nearest that there is to the size that the shown valleys call for.
        foretold, measured: losses, nats per token.
    """

    way: str
    cut: float
    budget: float
    n_params: float
    foretold: float
    measured: float

    @property
    def factor(self) -> float:
        """How many times the cut the run spent."""
        return self.budget / self.cut

    @property
    def error(self) -> float:
        """ln(foretold / measured)."""
        return math.log(self.foretold / self.measured)


def try_ways(runs: Budgets, *, horizon: float = HORIZON, ways: Mapping[str, Way] = WAYS) -> list[Try]:
    """Every way on every larger budget within the horizon, from each cut that leaves two budgets to fit.

    A way that a cut leaves too little for is left out there.
    """
    found = []
    for cut in runs.values[1:-1]:
        shown = runs.up_to(cut)
        ahead = [budget for budget in runs.values if SAME_BUDGET < budget / cut <= horizon]
        best_size = shown.valleys().n_law
        rows = [_nearest(runs, budget, float(best_size(budget))) for budget in ahead]
        for name, way in ways.items():
            try:
                foretell_one = way(shown)
            except FitError:
                continue
            for budget, row in zip(ahead, rows, strict=True):
                n, d = float(runs.n_params[row]), float(runs.n_tokens[row])
                try:
                    foretold = foretell_one(n, d)
                except FitError:
                    continue
                measured = float(runs.loss[row])
                found.append(
                    Try(way=name, cut=cut, budget=budget, n_params=n, foretold=foretold, measured=measured)
                )
    return found


def _nearest(runs: Budgets, budget: float, n_params: float) -> int:
    """The run of a budget whose size is nearest to one that was called for."""
    rows = np.flatnonzero(runs.budget == budget)
    return int(rows[np.argmin(np.abs(np.log(runs.n_params[rows] / n_params)))])


def rms_error(
    tries: Sequence[Try], way: str, *, low: float = 1.0, high: float = HORIZON
) -> tuple[float, int]:
    """Root mean square of a way's errors between two factors beyond the cut, and how many there are."""
    errors = [one.error for one in tries if one.way == way and low < one.factor <= high]
    return (float(np.sqrt(np.mean(np.square(errors)))) if errors else math.nan), len(errors)


def best_way(tries: Sequence[Try], *, but: Sequence[str] = (SAME_SIZE,)) -> str:
    """The way of the smallest error, among those that were tried as often as any.

    Args:
        but: ways that cannot be used: a size that was never run has no smaller budgets of its own.
    """
    scores = {way: rms_error(tries, way) for way in {one.way for one in tries} - set(but)}
    most = max(count for _, count in scores.values())
    return min((way for way, (_, count) in scores.items() if count == most), key=lambda way: scores[way][0])


@dataclass(frozen=True, kw_only=True, slots=True)
class Foretold:
    """A loss for one run that is not made yet.

    Attributes:
        way: it was foretold by. loss: nats per token. low, high: of the 90 % interval for this one run.
        by_bootstrap, by_errors: the two intervals that it covers.
        rms, n_errors: the errors that the second rests on: their root mean square, and how many.
    """

    way: str
    loss: float
    low: float
    high: float
    by_bootstrap: tuple[float, float]
    by_errors: tuple[float, float]
    rms: float
    n_errors: int


def foretell(
    runs: Budgets, n_params: float, n_tokens: float, *, level: float = LEVEL, n_draws: int = 400
) -> Foretold:
    """The loss of one larger run, by the way that foretold these runs' own larger budgets best.

    Args:
        level: of the interval. n_draws: of the bootstrap.

    Raises:
        FitError: too few budgets to try a way on any.
    """
    tries = try_ways(runs)
    if not tries:
        raise FitError("three budgets are the fewest that a way can be tried on")
    way = best_way(tries)
    loss = WAYS[way](runs)(n_params, n_tokens)
    spread, count = rms_error(tries, way)
    half = float(student.ppf(0.5 + level / 2, count)) * spread
    by_errors = loss * math.exp(-half), loss * math.exp(half)
    by_bootstrap = _bootstrap(runs, way, loss, n_params, n_tokens, level, n_draws)
    return Foretold(
        way=way,
        loss=loss,
        low=min(by_errors[0], by_bootstrap[0]),
        high=max(by_errors[1], by_bootstrap[1]),
        by_bootstrap=by_bootstrap,
        by_errors=by_errors,
        rms=spread,
        n_errors=count,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """The rule with less than is known: shown budgets up to a cut, it bets on a run that is in the record.

    Attributes:
        cut, budget: FLOPs shown and of the run. wanted: parameters that the shown valleys call for there.
        n_params: of the run, the nearest to that. foretold: the bet. measured: nats per token.
    """

    cut: float
    budget: float
    wanted: float
    n_params: float
    foretold: Foretold
    measured: float

    @property
    def inside(self) -> bool:
        """Whether the run lies in the bet's interval."""
        return self.foretold.low <= self.measured <= self.foretold.high

    @property
    def error(self) -> float:
        """ln(foretold / measured)."""
        return math.log(self.foretold.loss / self.measured)


def play(runs: Budgets, cut: float, budget: float, *, n_draws: int = 400) -> Played:
    """`foretell` for the run of a budget, shown only budgets up to a cut; nothing above it is looked at.

    Raises:
        LabError: no such budget among the runs, or it is within the cut.
        FitError: too few budgets up to the cut.
    """
    at = min(runs.values, key=lambda value: abs(math.log(value / budget)))
    if not 1 / SAME_BUDGET < at / budget < SAME_BUDGET or at < SAME_BUDGET * cut:
        raise LabError(f"no runs of {budget:.3g} FLOPs above the cut of {cut:.3g}: there are "
                       + ", ".join(f"{value:.3g}" for value in runs.values))  # fmt: skip
    shown = runs.up_to(cut)
    wanted = float(shown.valleys().n_law(at))
    row = _nearest(runs, at, wanted)
    n_params, n_tokens = float(runs.n_params[row]), float(runs.n_tokens[row])
    return Played(
        cut=cut,
        budget=at,
        wanted=wanted,
        n_params=n_params,
        foretold=foretell(shown, n_params, n_tokens, n_draws=n_draws),
        measured=float(runs.loss[row]),
    )


def _bootstrap(
    runs: Budgets, way: str, loss: float, n_params: float, n_tokens: float, level: float, n_draws: int
) -> tuple[float, float]:
    """Every loss drawn anew about its valley, the way shown the drawn runs, one run's noise added."""
    fit = runs.valleys()
    rng = np.random.default_rng(0)
    centre = _valley_losses(runs, fit)
    draws = []
    for _ in range(n_draws):
        drawn = Budgets(
            runs.n_params, runs.n_tokens, centre + fit.noise * rng.standard_normal(len(centre)), runs.budget
        )
        try:
            draws.append(WAYS[way](drawn)(n_params, n_tokens) + fit.noise * rng.standard_normal())
        except FitError:
            continue
    if len(draws) < 20:
        return loss, loss
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def _valley_losses(runs: Budgets, fit: IsoflopFit) -> np.ndarray:
    """[R] each run's loss on its budget's parabola; its own where that has no bracketed bottom."""
    found = runs.loss.copy()
    for vertex in fit.vertices:
        mine = np.abs(np.log(runs.budget / vertex.flops)) < math.log(SAME_BUDGET)
        if vertex.bracketed:
            away = np.log(runs.n_params[mine] / vertex.n_params)
            found[mine] = vertex.loss + vertex.curvature / 2 * away**2
    return found
