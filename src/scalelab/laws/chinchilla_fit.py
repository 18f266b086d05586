"""Chinchilla's law fitted to runs: every start solved at once, and what the data cannot tell said aloud.

The published parameters (E 1.69, A 406.4, B 410.7, alpha 0.34, beta 0.28) are no minimum of this objective.
The re-analysis (version 2) names two causes: the exponents were rounded in print, and Huber's loss was
averaged over runs instead of summed, as Hoffmann's authors confirmed, so that L-BFGS stopped too early: the
mean's gradient is so small that it passes for zero. On the points reconstructed from the paper's figure the
minimum has alpha 0.347, beta 0.367.

Source: Hoffmann et al. 2022, arXiv:2203.15556, eq. 3 and section D.2; Besiroglu et al. 2024, arXiv:2404.10102
(the re-analysis). Taught in book/scaling-laws/compute-optimal.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from scalelab.core.checks import check_choice, check_positive
from scalelab.core.errors import ConfigError, FitError
from scalelab.laws.batched import ALPHA, BETA, Columns, columns
from scalelab.laws.chinchilla import Allocation, ChinchillaLaw
from scalelab.laws.chinchilla_data import check_runs_for_chinchilla, together_warning
from scalelab.laws.descent import TOLERANCE, Descent, search
from scalelab.laws.profile import Profile, condition_number, profile, warnings_of

if TYPE_CHECKING:
    from scalelab.laws.bootstrap import ChinchillaBootstrap

DELTA = 1e-3  # Hoffmann et al. 2022, section D.2
# Hoffmann et al. 2022, section D.2: the grid of starts, 5 x 5 x 5 x 6 x 6 = 4,500.
GRID: Mapping[str, Sequence[float]] = {
    "e": (-1.0, -0.5, 0.0, 0.5, 1.0),
    "a": (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    "b": (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    "alpha": (0.0, 0.5, 1.0, 1.5, 2.0),
    "beta": (0.0, 0.5, 1.0, 1.5, 2.0),
}
EXPONENTS_TRIED = (0.1, 0.2, 0.35, 0.5, 0.8, 1.2)  # by the starts that are made from the data
STARTS = ("grid", "quick")
IDLE = 1e-7  # share of E: a term below it all along is none
LARGEST_START = 1e6  # an entry beyond it would overflow


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ChinchillaFit:
    """Chinchilla's law as the runs have it.

    Attributes:
        E, A, B, alpha, beta: the law's parameters (see ChinchillaLaw), nats per token.
        objective: sum over runs of Huber(log predicted - log observed loss), at the minimum.
        n_runs: runs fitted.
        status: "converged", or sentences that say what is wrong.
        warnings: those sentences one by one: what the data leave open.
        delta: where Huber's loss turns from a parabola into a line, in log loss.
        condition: condition number of the curvature, each parameter in its own unit: 1 is round, 1e6 a flat
            valley.
        n_starts: starts tried. minima: objectives of all distinct minima found, lowest first.
        n_params, n_tokens, observed: the runs, R each, read-only.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    objective: float
    n_runs: int
    status: str
    warnings: tuple[str, ...]
    delta: float
    condition: float
    n_starts: int
    minima: tuple[float, ...]
    n_params: np.ndarray = field(repr=False)
    n_tokens: np.ndarray = field(repr=False)
    observed: np.ndarray = field(repr=False)

    @property
    def law(self) -> ChinchillaLaw:
        """The law without the runs it came from."""
        return ChinchillaLaw(E=self.E, A=self.A, B=self.B, alpha=self.alpha, beta=self.beta)

    @property
    def a(self) -> float:
        """Exponent of the best N over compute."""
        return self.law.a

    @property
    def b(self) -> float:
        """Exponent of the best D over compute."""
        return self.law.b

    @property
    def theta(self) -> np.ndarray:
        """log E, log A, log B, alpha, beta."""
        return np.array([math.log(self.E), math.log(self.A), math.log(self.B), self.alpha, self.beta])

    @property
    def residuals(self) -> np.ndarray:
        """log predicted - log observed loss of each run, R: positive where a run did better than the law."""
        found: np.ndarray = np.log(self.loss(self.n_params, self.n_tokens)) - np.log(self.observed)
        return found

    def loss(self, n_params: ArrayLike, n_tokens: ArrayLike) -> np.ndarray:
        """Predicted loss, nats per token: `ChinchillaLaw.loss`."""
        return self.law.loss(n_params, n_tokens)

    def optimal(self, flops: float) -> Allocation:
        """Best N and D for a budget: `ChinchillaLaw.optimal`."""
        return self.law.optimal(flops)

    def flops_for(self, loss: float) -> float:
        """Least FLOPs for a loss: `ChinchillaLaw.flops_for`."""
        return self.law.flops_for(loss)

    def tokens_for(self, n_params: float, loss: float) -> float:
        """Tokens that bring a size to a loss: `ChinchillaLaw.tokens_for`."""
        return self.law.tokens_for(n_params, loss)

    def bootstrap(
        self, n_resamples: int = 4000, seed: int = 0, *, groups: ArrayLike | None = None
    ) -> ChinchillaBootstrap:
        """Refit to resampled runs: see `scalelab.laws.bootstrap.bootstrap_chinchilla`."""
        from scalelab.laws.bootstrap import bootstrap_chinchilla

        return bootstrap_chinchilla(self, n_resamples, seed, groups=groups)

    def profile(self, name: str, *, level: float = 0.9, n_points: int = 41) -> Profile:
        """The objective along one parameter, all others refitted at each of its values.

        Args:
            name: "E", "alpha" or "beta".
            level: of the interval in which the objective stays close to its minimum.
            n_points: values of the parameter.

        Raises:
            ConfigError: an unknown name, a level that is no share, or fewer than 5 points.
        """
        return profile(
            columns(self.n_params, self.n_tokens, self.observed),
            self.theta,
            self.delta,
            name,
            level=level,
            n_points=n_points,
        )


def fit_chinchilla(
    n_params: ArrayLike,
    n_tokens: ArrayLike,
    loss: ArrayLike,
    *,
    delta: float = DELTA,
    starts: str | ArrayLike = "grid",
) -> ChinchillaFit:
    """Fit L = E + A/N^alpha + B/D^beta to runs, from many starts, to the lowest minimum.

    Args:
        n_params: N of each run, R. Which parameters count is yours to say; Hoffmann's N counts all.
        n_tokens: D of each run, R.
        loss: final loss of each run, nats per token, R.
        delta: of Huber's loss, in log loss. The smaller, the less one bad run matters.
        starts: "grid", Hoffmann's 4,500 and 36 made from the data (half a second for 240 runs); "quick",
            those 36 alone (a few hundredths); or your own, S 5: log E, log A, log B, alpha, beta.

    Raises:
        FitError: the runs cannot determine the law; the message says what is missing.
        ConfigError: delta is not a finite number above 0, or the starts are not of that form.

    Source: Hoffmann et al. 2022, arXiv:2203.15556, section D.2.
    Differs: the sum over runs, as the paper's equation has it, not the mean; Newton's steps on the whole
        batch in place of L-BFGS start by start. On the reconstructed points both end in the same minimum to
        12 digits.
    """
    check_positive("delta", delta)
    n, d, observed = check_runs_for_chinchilla(n_params, n_tokens, loss)
    c = columns(n, d, observed)
    begin = _starts(starts, c)
    found = search(c, c.centred(begin), delta)
    best = found.take(np.array([0]))
    theta = c.uncentred(best.theta)[0]
    law = _law_of(theta)
    _refuse_idle_terms(law, n, d)
    warnings = (
        *_warnings_of_search(best),
        *together_warning(n, d),
        *warnings_of(c, theta, best.theta[0], best.value[0], delta),
    )
    return ChinchillaFit(
        E=law.E,
        A=law.A,
        B=law.B,
        alpha=law.alpha,
        beta=law.beta,
        objective=float(best.value[0]),
        n_runs=len(n),
        status=" ".join(warnings) if warnings else "converged",
        warnings=warnings,
        delta=float(delta),
        condition=condition_number(c, best.theta[0]),
        n_starts=len(begin),
        minima=_distinct(found.value[(found.steepness <= TOLERANCE) | (found.value == best.value)]),
        n_params=_frozen(n),
        n_tokens=_frozen(d),
        observed=_frozen(observed),
    )


def grid_starts() -> np.ndarray:
    """Hoffmann's 4,500 starts, S 5: log E, log A, log B, alpha, beta."""
    return np.array(list(itertools.product(*GRID.values())))


def data_starts(n_params: np.ndarray, n_tokens: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """36 starts made from the data, S 5: for each pair of exponents, the best E, A and B on squares.

    With the exponents given the law is linear in E, A and B. They are what the grid lacks where runs are far
    from those it was made for: other units of loss, models of a thousand parameters.
    """
    c = columns(n_params, n_tokens, loss)
    pairs = np.array(list(itertools.product(EXPONENTS_TRIED, repeat=2)))
    terms = np.stack(
        [
            np.ones((len(pairs), len(c.x))),
            np.exp(-pairs[:, [0]] * c.x),
            np.exp(-pairs[:, [1]] * c.y),
        ],
        axis=2,
    )
    terms = terms / np.exp(c.log_loss)[:, None]  # relative residuals, as those of the logarithm nearly are
    normal = terms.transpose(0, 2, 1) @ terms + 1e-9 * len(c.x) * np.eye(3)
    coefficients = np.linalg.solve(normal, terms.sum(axis=1)[:, :, None])[:, :, 0]
    smallest = 0.02 * float(np.exp(c.log_loss).min())  # a negative one starts as a small one
    return c.uncentred(np.concatenate([np.log(np.maximum(coefficients, smallest)), pairs], axis=1))


def _starts(starts: str | ArrayLike, c: Columns) -> np.ndarray:
    if isinstance(starts, str):
        check_choice("starts", starts, STARTS)
        made = data_starts(np.exp(c.x + c.x_mean), np.exp(c.y + c.y_mean), np.exp(c.log_loss))
        return made if starts == "quick" else np.concatenate([grid_starts(), made])
    try:
        given = np.array(starts, dtype=np.float64, ndmin=2)
    except (TypeError, ValueError):
        raise ConfigError(f"starts must be one of {', '.join(STARTS)}, or rows of five numbers") from None
    if given.ndim != 2 or given.shape[1] != 5 or not len(given) or not (np.abs(given) <= LARGEST_START).all():
        raise ConfigError(
            "starts must be rows of five numbers (log E, log A, log B, alpha, beta), none beyond "
            f"{LARGEST_START:g}; got an array of shape {given.shape}"
        )
    return given


def _law_of(theta: np.ndarray) -> ChinchillaLaw:
    for place, symbol, name in ((ALPHA, "alpha", "n_params"), (BETA, "beta", "n_tokens")):
        if not theta[place] > 0:
            raise FitError(
                f"the loss of these runs does not fall with {name} (best {symbol} = {theta[place]:.3g}): "
                f"check the columns, or add runs over a wider range of {name}"
            )
    with np.errstate(over="ignore"):
        e, a, b = (float(value) for value in np.exp(theta[:3]))
    try:
        return ChinchillaLaw(E=e, A=a, B=b, alpha=float(theta[ALPHA]), beta=float(theta[BETA]))
    except ConfigError as error:
        raise FitError(
            f"the fit ran away ({error}): these runs do not determine the law; add runs over a wider range "
            "of n_params and n_tokens"
        ) from None


def _refuse_idle_terms(law: ChinchillaLaw, n_params: np.ndarray, n_tokens: np.ndarray) -> None:
    """Where losses rise with N or D the best that the form can do is a term of nothing: no law."""
    for name, term in (
        ("n_params", law.A * n_params.min() ** -law.alpha),
        ("n_tokens", law.B * n_tokens.min() ** -law.beta),
    ):
        if term < IDLE * law.E:
            raise FitError(
                f"the loss of these runs does not fall with {name}: in the best fit the term of {name} is "
                f"{term:.1g} of {law.E:.3g} even at the smallest. Is the column of losses one (an accuracy "
                "rises), did the larger runs diverge, or were they trained with rates that do not suit them?"
            )


def _warnings_of_search(best: Descent) -> tuple[str, ...]:
    if best.steepness[0] <= TOLERANCE:
        return ()
    return (f"The lowest point found is not yet at rest (steepness {best.steepness[0]:.1e} of 1).",)


def _distinct(values: np.ndarray) -> tuple[float, ...]:
    kept: list[float] = []
    for value in np.sort(values).tolist():
        if not kept or value > kept[-1] * (1 + 1e-9) + 1e-30:
            kept.append(value)
    return tuple(kept)


def _frozen(column: np.ndarray) -> np.ndarray:
    copy = column.copy()
    copy.setflags(write=False)
    return copy
