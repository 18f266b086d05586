"""The exercises of the lab transformers/training.

Each has its own file: the right answer, the usual wrong ones, and the inputs that tell them apart.
Taught in book/transformers/training.md.
"""

from scalelab.lab.checks.training import accumulation, adamw, bill, loss, schedule

EXERCISES = (
    loss.EXERCISE,
    adamw.EXERCISE,
    schedule.EXERCISE,
    accumulation.EXERCISE,
    bill.EXERCISE,
)
