"""The numbers that an answer hands back together, whether as a tuple, a list or an array."""

from __future__ import annotations

from typing import Any

import numpy as np

from scalelab.lab.checks.answers import Numbers, as_numbers, as_tuple


def numbers_of(value: Any, names: tuple[str, ...]) -> dict[str, Numbers]:
    """Each number by its name; `a, b = answer(...)` takes an array as well, so an array is right too.

    Raises:
        Rejected: as many parts as names are not there, or one is no number.
    """
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = list(value)
    parts = as_tuple(value, names)
    return {name: as_numbers(part, name) for name, part in zip(names, parts, strict=True)}
