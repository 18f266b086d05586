"""Whether all ranks come to the same collectives: one that stays away leaves others waiting, or meets others.

Which of the two happens depends on what the rank calls next, and is one mistake: both are observed as one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from scalelab.core.errors import ParallelError
from scalelab.lab.checks.answers import Numbers, Rejected
from scalelab.lab.checks.framework import Answer, Observation
from scalelab.lab.checks.ranks import WAITING, on_ranks, sentence
from scalelab.parallel.scratch.group import Group

TYPES = re.compile(r"torch\.\w+")
APART = "ranks that are in different calls"


def that_meet(
    answer: Answer,
    size: int,
    arguments: Callable[[Group], tuple[Any, ...]],
    read: Callable[[list[Any]], Observation],
) -> Observation:
    """As `on_ranks`; what is observed first is whether ranks are in different calls, 1 or 0.

    Raises:
        Rejected: as `on_ranks`, but for a message that finds room for another.
    """
    try:
        found = on_ranks(answer, size, arguments, read)
    except Rejected as refusal:
        cause = refusal.__cause__
        if not isinstance(cause, ParallelError) or len(set(TYPES.findall(str(cause)))) > 1:
            raise  # a tensor of another type met the right one
        return {APART: Numbers(np.array(1.0), account=f"{sentence(str(cause))}.")}
    if found[WAITING].values.any():
        return {APART: Numbers(np.array(1.0), account=found[WAITING].account)}
    return {APART: Numbers(np.array(0.0)), **{name: part for name, part in found.items() if name != WAITING}}
