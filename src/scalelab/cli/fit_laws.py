"""The laws that `scalelab fit` offers, each brought to one shape: parameters, optimum, intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scalelab.core.errors import ConfigError, FitError
from scalelab.laws.intervals import Interval, percentile_interval
from scalelab.laws.runs import Runs

GRID_LIMIT = 2_000  # runs: beyond, the 4,500 starts take longer than a reader waits, and a few dozen do
OUTLIER_SPREADS, OUTLIER_LEAST = 5.0, 1e-4
RESAMPLES: Mapping[str, int] = {"chinchilla": 1000, "isoflop": 1000, "kaplan": 200}
REFITTED_RUNS = 2_000_000  # resamples times runs: some ten seconds
FEWEST_RESAMPLES = 100
TOGETHER = 0.9999  # correlation of log N and log D
RESAMPLED_RUNS = "refits to resampled runs"
SCALES = ("n_params", "n_tokens", "loss")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FittedLaw:
    """A law as the runs have it, whichever it is.

    Attributes:
        name: what --law calls it. formula: it in symbols.
        fields: the fit's parameters under their own names. meaning: what each is.
        objective, n_runs, status: as the fit has them. warnings: what the fit itself warns of.
        how: how it was made, in a sentence or two. settings: the same as values.
        refits: what the intervals were taken over, in words.
        intervals: of the fields; empty without a bootstrap.
        optimum: FLOPs → best n_params, n_tokens and the loss there.
        spread: FLOPs → intervals of the same three at each; None without a bootstrap.
        outliers: runs far off the law: index and how far, in log loss.
        log_ratios: log of observed over predicted loss, shape R; None where the law predicts no run's.
    """

    name: str
    formula: str
    fields: Mapping[str, float]
    meaning: Mapping[str, str]
    objective: float
    n_runs: int
    status: str
    warnings: tuple[str, ...]
    how: str
    settings: Mapping[str, Any]
    refits: str
    intervals: Mapping[str, Interval]
    optimum: Callable[[float], Mapping[str, float]]
    spread: Callable[[np.ndarray], Mapping[str, Sequence[Interval]]] | None
    outliers: Sequence[tuple[int, float]]
    log_ratios: np.ndarray | None


def fit_law(
    name: str, runs: Runs, *, delta: float | None, n_resamples: int, seed: int, level: float
) -> FittedLaw:
    """Fit one of `LAWS` to runs.

    Args:
        delta: of Huber's loss, where the law has one; its default when None.
        n_resamples: refits for the intervals; 0 for none.
        seed: of the resampling. level: of the intervals.

    Raises:
        FitError: the runs cannot determine the law. ConfigError: a setting that cannot be.
    """
    return LAWS[name](runs, delta, n_resamples, seed, level)


def default_resamples(name: str, n_runs: int) -> int:
    """Refits for the intervals of a law: fewer where the runs are many, since each takes longer."""
    return max(min(RESAMPLES[name], REFITTED_RUNS // n_runs), FEWEST_RESAMPLES)


def _chinchilla(runs: Runs, delta: float | None, n_resamples: int, seed: int, level: float) -> FittedLaw:
    from scalelab.laws.chinchilla_fit import DELTA, fit_chinchilla

    delta = DELTA if delta is None else delta
    starts = "grid" if len(runs) <= GRID_LIMIT else "quick"
    fit = fit_chinchilla(runs.n_params, runs.n_tokens, runs.loss, delta=delta, starts=starts)
    names = ("E", "A", "B", "alpha", "beta", "a", "b")
    intervals: dict[str, Interval] = {}
    spread, trouble = None, list(fit.warnings)
    if n_resamples:
        try:
            draws = fit.bootstrap(n_resamples, seed)
            laws = draws.laws()
        except FitError as error:
            trouble.append(f"No intervals: {error}.")
        else:
            intervals = {name: percentile_interval(draws.values(name), level) for name in names}
            spread = lambda flops: _frontiers(laws, flops, level)  # noqa: E731

    return FittedLaw(
        name="chinchilla",
        formula="L(N, D) = E + A / N^alpha + B / D^beta",
        fields={name: float(getattr(fit, name)) for name in names},
        meaning={
            "E": "floor, nats per token",
            "A": "of the parameter term",
            "B": "of the token term",
            "alpha": "exponent of N",
            "beta": "exponent of D",
            "a": "best N grows as C^a",
            "b": "best D grows as C^b",
        },
        objective=fit.objective,
        n_runs=fit.n_runs,
        status=fit.status,
        warnings=tuple(trouble),
        how=(
            f"the sum of Huber's loss (delta {delta:g}) of log loss, least of {fit.n_starts:,} starts, "
            f"is {fit.objective:.6g}; condition number {fit.condition:.3g}"
        ),
        refits=RESAMPLED_RUNS,
        settings={"delta": fit.delta, "n_starts": fit.n_starts, "condition": fit.condition},
        intervals=intervals,
        optimum=_optimum_of(fit),
        spread=spread,
        outliers=_outliers(-fit.residuals),
        log_ratios=-fit.residuals,
    )


def _frontiers(laws: Sequence[Any], flops: np.ndarray, level: float) -> dict[str, list[Interval]]:
    """Intervals of the optimum over all refits, at each of many budgets."""
    found = np.full((len(laws), 3, len(flops)), np.inf)
    with np.errstate(over="ignore", under="ignore"):
        for i, law in enumerate(laws):
            try:
                found[i] = law.frontier(flops)
            except ConfigError:  # an optimum beyond what a float holds
                continue
    return {
        name: [percentile_interval(found[:, place, j], level) for j in range(len(flops))]
        for place, name in enumerate(SCALES)
    }


def _isoflop(runs: Runs, delta: float | None, n_resamples: int, seed: int, level: float) -> FittedLaw:
    from scalelab.laws.isoflop import fit_isoflop

    if delta is not None:
        raise ConfigError("--delta is a setting of --law chinchilla; isoflop has none")
    fit = fit_isoflop(runs.n_params, runs.n_tokens, runs.loss)  # budgets are 6ND everywhere here
    trouble = [] if fit.status == "converged" else [fit.status]
    intervals: dict[str, Interval] = {}
    spread = None
    if n_resamples:
        try:
            draws = fit.bootstrap(n_resamples, seed)
            intervals = dict(draws.intervals(level))
        except FitError as error:
            trouble.append(f"No intervals: {error}.")
        else:

            def spread(flops: np.ndarray) -> dict[str, list[Interval]]:
                rows = [draws.optimal(float(budget), level) for budget in flops]
                return {name: [row[name] for row in rows] for name in SCALES}

    bracketed = sum(vertex.bracketed for vertex in fit.vertices)
    return FittedLaw(
        name="isoflop",
        formula="best N and D as powers of C, through the bottoms of IsoFLOP valleys",
        fields={"a": fit.a, "b": fit.b},
        meaning={"a": "best N grows as C^a", "b": "best D grows as C^b"},
        objective=fit.objective,
        n_runs=fit.n_runs,
        status=fit.status,
        warnings=tuple(trouble),
        how=(
            f"a parabola in log N for each of {len(fit.vertices)} budgets, {bracketed} with a bracketed "
            f"bottom, then lines through those; {len(fit.left_out)} of {len(runs)} runs belong to no budget"
        ),
        refits="refits to losses redrawn about the parabolas",
        settings={"n_budgets": len(fit.vertices), "n_bracketed": bracketed, "n_left_out": len(fit.left_out)},
        intervals=intervals,
        optimum=_optimum_of(fit),
        spread=spread,
        outliers=[(int(i), float("nan")) for i in fit.stray],
        log_ratios=None,
    )


def _kaplan(runs: Runs, delta: float | None, n_resamples: int, seed: int, level: float) -> FittedLaw:
    from scalelab.laws.kaplan import KaplanLaw, fit_kaplan

    options = {} if delta is None else {"delta": delta}
    fit = fit_kaplan(runs.n_params, runs.n_tokens, runs.loss, **options)
    names = ("N_c", "D_c", "alpha_N", "alpha_D")
    trouble = [] if fit.status == "converged" else [fit.status]
    if abs(float(np.corrcoef(np.log(runs.n_params), np.log(runs.n_tokens))[0, 1])) > TOGETHER:
        trouble.append(
            "n_params and n_tokens move together in all runs: what is due to which is told by the law's form "
            "alone, and the intervals do not know it; add runs with more and with fewer tokens per parameter."
        )
    intervals: dict[str, Interval] = {}
    spread = None
    if n_resamples:
        try:
            draws = fit.bootstrap(n_resamples, seed)
            intervals = dict(draws.intervals(level))
            a = intervals["a"]
            intervals["b"] = Interval(low=1 - a.high, high=1 - a.low, level=level)
        except FitError as error:
            trouble.append(f"No intervals: {error}.")
        else:
            columns = [getattr(draws, name).tolist() for name in names]
            laws = [KaplanLaw(**dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]
            spread = lambda flops: _optima(laws, flops, level)  # noqa: E731

    log_ratios = np.log(runs.loss / fit.loss(runs.n_params, runs.n_tokens))
    return FittedLaw(
        name="kaplan",
        formula="L(N, D) = [(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D",
        fields={name: float(getattr(fit, name)) for name in (*names, "a", "b")},
        meaning={
            "N_c": "scale of N",
            "D_c": "scale of D",
            "alpha_N": "exponent of N, all else ample",
            "alpha_D": "exponent of D, all else ample",
            "a": "best N grows as C^a",
            "b": "best D grows as C^b",
        },
        objective=fit.objective,
        n_runs=fit.n_runs,
        status=fit.status,
        warnings=tuple(trouble),
        how=(
            f"the sum of Huber's loss of log loss is {fit.objective:.6g}; Kaplan's N leaves out embeddings "
            "(--n-params n_params_non_embedding), and the law has no floor"
        ),
        refits=RESAMPLED_RUNS,
        settings=options,
        intervals=intervals,
        optimum=_optimum_of(fit),
        spread=spread,
        outliers=_outliers(log_ratios),
        log_ratios=log_ratios,
    )


def _optimum_of(fit: Any) -> Callable[[float], Mapping[str, float]]:
    def optimum(flops: float) -> Mapping[str, float]:
        best = fit.optimal(flops)
        return {name: float(getattr(best, name)) for name in SCALES}

    return optimum


def _optima(laws: Sequence[Any], flops: np.ndarray, level: float) -> dict[str, list[Interval]]:
    """`_frontiers` for laws that plan one budget at a time."""
    best = [[law.optimal(float(budget)) for budget in flops] for law in laws]
    return {
        name: [percentile_interval([getattr(row[j], name) for row in best], level) for j in range(len(flops))]
        for name in SCALES
    }


def _outliers(log_ratios: np.ndarray) -> list[tuple[int, float]]:
    """Runs whose observed / predicted loss lies beyond five robust standard deviations, farthest first."""
    off = np.abs(log_ratios - np.median(log_ratios))
    spread = 1.4826 * float(np.median(off))  # of a normal distribution, from its median absolute deviation
    far = np.flatnonzero(off > max(OUTLIER_SPREADS * spread, OUTLIER_LEAST))
    return [(int(i), float(log_ratios[i])) for i in far[np.argsort(-off[far])]]


LAWS: Mapping[str, Callable[[Runs, float | None, int, int, float], FittedLaw]] = {
    "chinchilla": _chinchilla,
    "isoflop": _isoflop,
    "kaplan": _kaplan,
}
