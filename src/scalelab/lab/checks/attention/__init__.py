"""The exercises of the lab transformers/attention.

Each has its own file: the right answer, the usual wrong ones, and the inputs that tell them apart.
Taught in book/transformers/attention.md.
"""

from scalelab.lab.checks.attention import alibi, heads, lookup, rope, tiles

EXERCISES = (
    lookup.EXERCISE,
    heads.EXERCISE,
    rope.EXERCISE,
    alibi.EXERCISE,
    tiles.EXERCISE,
)
