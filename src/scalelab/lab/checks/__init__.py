"""Checks of answers: for each lab its exercises, found by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from scalelab.core.errors import LabError
from scalelab.lab.checks.framework import Exercise, Mistake, Verdict, judge


def lab_names() -> tuple[str, ...]:
    """The labs that have exercises, as `part/name`."""
    return tuple(_registry())


def exercises(lab: str) -> Mapping[str, Exercise]:
    """A lab's exercises by name, in the order in which they come.

    Raises:
        LabError: no lab of this name.
    """
    registry = _registry()
    if lab not in registry:
        raise LabError(f"no lab is called {lab!r}; {_known(lab, tuple(registry))}")
    return {exercise.name: exercise for exercise in registry[lab]}


def find_exercise(lab: str, name: str) -> Exercise:
    """One exercise of a lab.

    Raises:
        LabError: no lab, or no exercise, of this name.
    """
    known = exercises(lab)
    if name not in known:
        raise LabError(f"{lab} has no exercise {name!r}; {_known(name, tuple(known))}")
    return known[name]


def _registry() -> dict[str, tuple[Exercise, ...]]:
    # Imported here: one lab's checks need torch, and the next lab's may need more.
    from scalelab.lab.checks import (
        architectures,
        attention,
        basics,
        block,
        capability,
        compute_optimal,
        data_parallel,
        inference,
        pipeline,
        planning,
        power_laws,
        sharding,
        tensor_parallel,
        tokens,
        training,
    )

    return {
        "parallelism/data-parallel": data_parallel.EXERCISES,
        "parallelism/tensor-parallel": tensor_parallel.EXERCISES,
        "parallelism/pipeline": pipeline.EXERCISES,
        "parallelism/sharding": sharding.EXERCISES,
        "scaling-laws/capability": capability.EXERCISES,
        "scaling-laws/compute-optimal": compute_optimal.EXERCISES,
        "scaling-laws/planning": planning.EXERCISES,
        "scaling-laws/power-laws": power_laws.EXERCISES,
        "transformers/architectures": architectures.EXERCISES,
        "transformers/attention": attention.EXERCISES,
        "transformers/basics": basics.EXERCISES,
        "transformers/block": block.EXERCISES,
        "transformers/inference": inference.EXERCISES,
        "transformers/tokens": tokens.EXERCISES,
        "transformers/training": training.EXERCISES,
    }


def _known(name: str, names: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return f"{guess}known: {', '.join(names)}"


__all__ = ["Exercise", "Mistake", "Verdict", "exercises", "find_exercise", "judge", "lab_names"]
