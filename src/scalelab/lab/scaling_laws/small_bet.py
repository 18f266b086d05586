"""The bet in small, live: which runs on `markov` are shown, and which one is bet on, ten times as dear.

Five sizes, each trained once to 204,800 tokens with three earlier ends (a trunk and its branches), are the
20 runs that are shown. Taught in book/scaling-laws/planning.md.
"""

from scalelab.lab.scaling_laws.markov_sweep import exact_loss, train_on_markov
from scalelab.lab.scaling_laws.recorded_bets import (
    LARGE,
    SHOWN_TOKENS,
    SHOWN_WIDTHS,
    recorded_bet,
    recorded_small,
)

__all__ = [
    "LARGE",
    "SHOWN_TOKENS",
    "SHOWN_WIDTHS",
    "exact_loss",
    "recorded_bet",
    "recorded_small",
    "train_on_markov",
]
