"""The exercises of the lab transformers/inference.

Each has its own file: the right answer, the usual wrong ones, and the inputs that tell them apart.
Taught in book/transformers/inference.md.
"""

from scalelab.lab.checks.inference import beams, bill, cached, drafts, nucleus

EXERCISES = (
    nucleus.EXERCISE,
    cached.EXERCISE,
    beams.EXERCISE,
    bill.EXERCISE,
    drafts.EXERCISE,
)
