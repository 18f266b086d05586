"""The exercises of the lab transformers/tokens.

Each has its own file: the right answer, the usual wrong ones, and the inputs that tell them apart.
Taught in book/transformers/tokens.md.
"""

from scalelab.lab.checks.tokens import encoding, growth, merging, smoothing, yardstick

EXERCISES = (
    yardstick.EXERCISE,
    merging.EXERCISE,
    encoding.EXERCISE,
    smoothing.EXERCISE,
    growth.EXERCISE,
)
