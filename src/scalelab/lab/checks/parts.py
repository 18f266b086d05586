"""What exercises of several labs share: a case of plain values, and an answer of several numbers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from scalelab.lab.checks.answers import Numbers, as_numbers, as_tuple
from scalelab.lab.checks.framework import Case


def case_of(about: str, *values: Any) -> Case:
    """A case whose arguments are these values, copied each time."""

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(copy.deepcopy(value) for value in values), {}

    return Case(about=about, make=make)


def numbers_of(value: Any, names: Sequence[str]) -> dict[str, Numbers]:
    """Each number by its name; `a, b = answer(...)` takes an array as well, so an array is right too.

    Raises:
        Rejected: as many parts as names are not there, or one is no number.
    """
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = tuple(value)
    parts = as_tuple(value, tuple(names))
    return {name: as_numbers(part, name) for name, part in zip(names, parts, strict=True)}
