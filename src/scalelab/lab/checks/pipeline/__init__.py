"""The exercises of the lab parallelism/pipeline.

Each has its own file: the right answer, the usual wrong ones, and the inputs that tell them apart.
Taught in book/parallelism/pipeline.md.
"""

from scalelab.lab.checks.pipeline import dealing, idling, ordering, running

EXERCISES = (
    dealing.EXERCISE,
    ordering.EXERCISE,
    running.EXERCISE,
    idling.EXERCISE,
)
