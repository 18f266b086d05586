"""The exercises of the lab scaling-laws/capability.

Each has its own file: the right answer, the usual wrong ones, and the inputs that tell them apart.
Taught in book/scaling-laws/capability.md.
"""

from scalelab.lab.checks.capability import comparing, decontaminating, resolving, scoring, stopping

EXERCISES = (
    scoring.EXERCISE,
    resolving.EXERCISE,
    comparing.EXERCISE,
    stopping.EXERCISE,
    decontaminating.EXERCISE,
)
