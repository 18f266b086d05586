"""Exercises of labs/scaling-laws/compute-optimal.ipynb, in the order of the lab."""

from scalelab.lab.checks.compute_optimal import counting, interval, objective, optimum, valley
from scalelab.lab.checks.framework import Exercise

EXERCISES: tuple[Exercise, ...] = (
    optimum.EXERCISE,
    valley.EXERCISE,
    objective.EXERCISE,
    interval.EXERCISE,
    counting.EXERCISE,
)

__all__ = ["EXERCISES"]
