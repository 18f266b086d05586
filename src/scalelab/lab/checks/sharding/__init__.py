"""The exercises of the lab parallelism/sharding."""

from scalelab.lab.checks.sharding import again, clipping, counting, layer, stepping

EXERCISES = (counting.EXERCISE, stepping.EXERCISE, clipping.EXERCISE, again.EXERCISE, layer.EXERCISE)

__all__ = ["EXERCISES"]
