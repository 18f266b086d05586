"""What the exercises of this lab share: a case of plain values."""

from __future__ import annotations

import copy
from typing import Any

from scalelab.lab.checks.framework import Case


def case_of(about: str, *values: Any) -> Case:
    """A case whose arguments are these values, copied each time."""

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(copy.deepcopy(value) for value in values), {}

    return Case(about=about, make=make)
