"""The exercises of the lab parallelism/data-parallel.

Each has its own file: the right answer, the usual wrong ones, and the inputs that tell them apart.
Taught in book/parallelism/data-parallel.md.
"""

from scalelab.lab.checks.data_parallel import bill, buckets, critical, gradients, ring

EXERCISES = (
    ring.EXERCISE,
    bill.EXERCISE,
    gradients.EXERCISE,
    buckets.EXERCISE,
    critical.EXERCISE,
)
