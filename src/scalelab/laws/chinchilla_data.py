"""Can these runs tell the five parameters of Chinchilla's law apart at all? Checked before any fit.

The law adds a function of N to a function of D, so each needs three values of its own argument: a level
(which goes into E), a coefficient and an exponent. And N and D must not move together: if D = k N^c in every
run, A/N^alpha and B/D^beta are two powers of the same number, and may change places.

Taught in book/scaling-laws/compute-optimal.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from scalelab.core.errors import FitError

N_PARAMETERS = 5
FEWEST_LEVELS = 3  # of n_params, and of n_tokens
SAME = 1e-6  # relative: sizes closer than this are one size
TOGETHER = 1e-6  # share of the variance of log D that log N leaves unexplained, below which they move as one
NEARLY_TOGETHER = 1e-3  # and below which a fit should say so


def check_runs_for_chinchilla(
    n_params: ArrayLike, n_tokens: ArrayLike, loss: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three columns as float64, R each.

    Raises:
        FitError: columns of unequal length or not numbers; an entry that is not finite and positive (with its
            place, counted from 0); or runs that cannot determine the law (with what is missing).
    """
    named = {"n_params": n_params, "n_tokens": n_tokens, "loss": loss}
    n, d, losses = columns = [_column(name, values) for name, values in named.items()]
    if len({len(column) for column in columns}) > 1:
        lengths = ", ".join(f"{len(column)} {name}" for name, column in zip(named, columns, strict=True))
        raise FitError(f"every run needs n_params, n_tokens and loss, but there are {lengths}")
    for name, column in zip(named, columns, strict=True):
        bad = np.flatnonzero(~(np.isfinite(column) & (column > 0)))
        if len(bad):
            more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
            raise FitError(
                f"run {bad[0]} (from 0) has {name}={column[bad[0]]:g}{more}: "
                "every entry must be finite and above 0"
            )
    _check_spread(n, d, losses)
    return n, d, losses


def _column(name: str, values: ArrayLike) -> np.ndarray:
    try:
        column = np.asarray(values)
        if column.dtype.kind not in "iufO":
            raise TypeError
        column = column.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        raise FitError(f"{name} must be a column of numbers, got {_shown(values)}") from None
    if column.ndim != 1:
        raise FitError(f"{name} must be one column of numbers, got an array of shape {column.shape}")
    return column


def _shown(values: object) -> str:
    text = repr(values)
    return text if len(text) <= 60 else f"{text[:57]}..."


def growing_together(n_params: np.ndarray, n_tokens: np.ndarray) -> tuple[float, float]:
    """Slope of log D over log N, and the share of log D's variance that the line leaves over."""
    x, y = np.log(n_params) - np.log(n_params).mean(), np.log(n_tokens) - np.log(n_tokens).mean()
    slope = float(x @ y / (x @ x))
    return slope, float(np.sum((y - slope * x) ** 2) / np.sum(y * y))


def together_warning(n_params: np.ndarray, n_tokens: np.ndarray) -> tuple[str, ...]:
    """What to say of runs that lie almost on one line of log D over log N."""
    slope, share = growing_together(n_params, n_tokens)
    if slope <= 0 or share >= NEARLY_TOGETHER:
        return ()
    return (
        "n_params and n_tokens nearly move together in all runs: what is due to which is told by little but "
        "the law's form; add runs with more and with fewer tokens per parameter.",
    )


def _check_spread(n: np.ndarray, d: np.ndarray, losses: np.ndarray) -> None:
    if len(n) <= N_PARAMETERS:
        raise FitError(
            f"{len(n)} runs cannot determine 5 parameters and leave something to judge them by: at least "
            f"{N_PARAMETERS + 1} runs are needed, and some dozens to trust the result"
        )
    for name, column, coefficient, exponent in (("n_params", n, "A", "alpha"), ("n_tokens", d, "B", "beta")):
        levels = count_levels(column)
        if levels < FEWEST_LEVELS:
            which = f"the same {name}" if levels == 1 else f"one of two values of {name}"
            raise FitError(
                f"all runs have {which} ({_levels_shown(column)}): {coefficient} and {exponent} cannot be "
                f"told from E; at least {FEWEST_LEVELS} different {name} are needed"
            )
    if np.ptp(np.log(losses)) < SAME:
        raise FitError(f"all runs have the same loss ({losses[0]:g}): there is nothing to fit")
    slope, share = growing_together(n, d)
    if slope > 0 and share < TOGETHER:
        power = f"n_tokens as n_params^{slope:.2f}"
        how = "are proportional" if abs(slope - 1) < 0.01 else f"move together ({power})"
        raise FitError(
            f"n_params and n_tokens {how} in all runs: A/N^alpha and B/D^beta cannot be told apart; "
            "add runs with more and with fewer tokens per parameter"
        )


def count_levels(column: np.ndarray) -> int:
    """How many different values there are, those within rounding counted as one."""
    logs = np.sort(np.log(column))
    return 1 + int(np.count_nonzero(np.diff(logs) > SAME))


def _levels_shown(column: np.ndarray) -> str:
    values: Sequence[float] = sorted({float(f"{value:.6g}") for value in column})
    return " and ".join(f"{value:g}" for value in values)
