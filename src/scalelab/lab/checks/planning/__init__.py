"""The exercises of the lab scaling-laws/planning.

Each has its own file: the right answer, the usual wrong ones, and the inputs that tell them apart.
Taught in book/scaling-laws/planning.md.
"""

from scalelab.lab.checks.planning import backtesting, betting, billing, repeating, serving

EXERCISES = (
    backtesting.EXERCISE,
    betting.EXERCISE,
    billing.EXERCISE,
    serving.EXERCISE,
    repeating.EXERCISE,
)
