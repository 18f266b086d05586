"""What the exercises of this lab share: a case of plain values, and answers of several numbers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from scalelab.lab.checks.answers import as_numbers, as_tuple
from scalelab.lab.checks.framework import Case, Observation


def case_of(about: str, *values: Any) -> Case:
    """A case whose arguments are these values, copied each time."""

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(copy.deepcopy(value) for value in values), {}

    return Case(about=about, make=make)


def observe_parts(value: Any, names: Sequence[str]) -> Observation:
    """The numbers of an answer by name; an array of them does as well as a tuple.

    Raises:
        Rejected: another number of parts, or parts that are no numbers.
    """
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = tuple(value)
    parts = as_tuple(value, tuple(names))
    return {name: as_numbers(part, name) for name, part in zip(names, parts, strict=True)}
