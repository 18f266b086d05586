"""The exercises of the lab transformers/architectures.

Each has its own file: the right answer, the usual wrong ones, and the inputs that tell them apart.
Taught in book/transformers/architectures.md.
"""

from scalelab.lab.checks.architectures import bayes, masking, shifting, sight, spans

EXERCISES = (
    sight.EXERCISE,
    masking.EXERCISE,
    spans.EXERCISE,
    shifting.EXERCISE,
    bayes.EXERCISE,
)
