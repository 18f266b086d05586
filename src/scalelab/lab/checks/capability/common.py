"""What the exercises of this lab share: a case of plain values, and parts to compare by name."""

from __future__ import annotations

import copy
from typing import Any

from scalelab.lab.checks.answers import as_numbers, as_tuple, call
from scalelab.lab.checks.framework import Answer, Case, Observation


def case_of(about: str, *values: Any) -> Case:
    """A case whose arguments are these values, copied each time."""

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(copy.deepcopy(value) for value in values), {}

    return Case(about=about, make=make)


def observe_parts(answer: Answer, case: Case, names: tuple[str, ...]) -> Observation:
    """The numbers of an answer that returns so many."""
    args, _ = case.make()
    parts = as_tuple(call(answer, *args), names)
    return {name: as_numbers(part, name) for name, part in zip(names, parts, strict=True)}
