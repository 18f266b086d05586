"""The exercises of the lab scaling-laws/power-laws.

Each has its own file: the right answer, the usual wrong ones, and the inputs that tell them apart.
Taught in book/scaling-laws/power-laws.md.
"""

from scalelab.lab.checks.power_laws import betting, flooring, holding_out, line, resampling

EXERCISES = (
    line.EXERCISE,
    flooring.EXERCISE,
    holding_out.EXERCISE,
    resampling.EXERCISE,
    betting.EXERCISE,
)
