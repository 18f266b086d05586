"""Exercises of the lab `transformers/block`, in the order in which they come.

Taught in book/transformers/block.md.
"""

from scalelab.lab.checks.block import counting, gated, norms, residual
from scalelab.lab.checks.framework import Exercise

EXERCISES: tuple[Exercise, ...] = (
    norms.LAYER_NORM,
    norms.RMS_NORM,
    gated.EXERCISE,
    residual.EXERCISE,
    counting.EXERCISE,
)

__all__ = ["EXERCISES"]
