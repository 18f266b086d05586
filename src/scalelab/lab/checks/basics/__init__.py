"""The exercises of the lab transformers/basics.

Each has its own file: the right answer, the usual wrong ones, and the inputs that tell them apart.
Taught in book/transformers/basics.md.
"""

from scalelab.lab.checks.basics import backward, counting, descent, softmax

EXERCISES = (
    softmax.EXERCISE,
    counting.EXERCISE,
    descent.EXERCISE,
    backward.EXERCISE,
)
