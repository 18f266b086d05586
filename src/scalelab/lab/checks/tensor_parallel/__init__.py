"""The exercises of the lab parallelism/tensor-parallel.

Each has its own file: the right answer, the usual wrong ones, and the inputs that tell them apart.
Taught in book/parallelism/tensor-parallel.md.
"""

from scalelab.lab.checks.tensor_parallel import bill, feed_forward, norms, operators, vocabulary

EXERCISES = (
    operators.EXERCISE,
    feed_forward.EXERCISE,
    vocabulary.EXERCISE,
    norms.EXERCISE,
    bill.EXERCISE,
)
