"""What the exercises of this lab share: an answer tried further on its own rank, and numbers rank by rank."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalelab.lab.checks.answers import Rejected, as_numbers, describe
from scalelab.lab.checks.framework import Answer, Observation
from scalelab.parallel.scratch.collectives import all_to_all
from scalelab.parallel.scratch.group import Group

if TYPE_CHECKING:
    from torch import Tensor


def tried_on_its_rank(answer: Answer, trial: Callable[..., Any]) -> Answer:
    """`trial(answer, *arguments)` in place of `answer(*arguments)`, with the answer's signature."""

    @functools.wraps(answer)
    def wrapper(*arguments: Any) -> Any:
        return trial(answer, *arguments)

    return wrapper


def rank_by_rank(answers: Sequence[dict[str, Any]]) -> Observation:
    """Every output of every rank, as in "rank 2's result".

    Raises:
        Rejected: one is no tensor of real numbers.
    """
    return {
        f"rank {rank}'s {name}": as_numbers(value, f"its {name}")
        for rank, found in enumerate(answers)
        for name, value in found.items()
    }


def need_floats(value: Any, what: str) -> Tensor:
    """The value, if it is a tensor of real numbers.

    Raises:
        Rejected: it is anything else.
    """
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value
    missing = " (is the return missing?)" if value is None else ""
    raise Rejected(
        f"returned {describe(value)}{missing} for {what}, where a tensor of real numbers should be",
        name="returned the wrong kind of thing",
    )


def gradient_of(x: Tensor) -> Tensor:
    """What backward has left at a leaf; zeros where it left nothing."""
    return torch.zeros_like(x) if x.grad is None else x.grad.clone()


def summed(group: Group) -> Callable[[Tensor], Tensor]:
    """The sum over ranks, as a function of a tensor that stays as it is."""
    return lambda tensor: _of_all(tensor, group).sum(0).view(tensor.shape)


def largest(group: Group) -> Callable[[Tensor], Tensor]:
    """The largest over ranks of each number, as a function of a tensor that stays as it is."""
    return lambda tensor: _of_all(tensor, group).amax(0).view(tensor.shape)


def _of_all(tensor: Tensor, group: Group) -> Tensor:
    """Every rank's tensor, flat, by rank: half the steps of a ring, and a check has many to take."""
    return torch.stack(all_to_all([tensor.detach().flatten()] * group.size, group))


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Normal numbers in fp32."""
    return (scale * rng.standard_normal(shape)).astype(np.float32)
