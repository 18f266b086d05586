"""Gradients in buckets, the last parameters first, and the ways to lose some on the way there or back.

Source: Li et al. 2020, arXiv:2006.15704, section 3.2.2. Taught in book/parallelism/data-parallel.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scalelab.lab.checks.answers import Numbers, Rejected, as_numbers, describe
from scalelab.lab.checks.data_parallel.meeting import that_meet
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import case_of
from scalelab.parallel.scratch.collectives import ring_all_reduce
from scalelab.parallel.scratch.group import Group


def reduce_in_buckets(parameters: Sequence[nn.Parameter], limit_bytes: int, group: Group) -> list[int]:
    """Add up gradients over the ranks, several in one all-reduce.

    Args:
        parameters: in the order in which the model has them; on this rank a grad may be None, which counts as
            zeros.
        limit_bytes: parameters are put together, the last first, while they fit into it; a larger one travels
            alone.

    Returns:
        How many numbers each bucket holds, in the order in which they were sent.
    """
    buckets: list[list[nn.Parameter]] = []
    room = 0
    for parameter in reversed(parameters):
        size = parameter.numel() * parameter.element_size()
        if not buckets or size > room:
            buckets.append([])
            room = limit_bytes
        buckets[-1].append(parameter)
        room -= size
    for bucket in buckets:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([grad.flatten() for grad in grads])
        ring_all_reduce(flat, group)
        for parameter, part in zip(bucket, torch.split(flat, [p.numel() for p in bucket]), strict=True):
            parameter.grad = part.view_as(parameter)
    return [sum(p.numel() for p in bucket) for bucket in buckets]


def _build(
    *,
    order: str = "last first",
    fits: str = "bytes",
    last: bool = True,
    back: str = "right",
    missing: str = "zeros",
    divides: bool = False,
) -> Answer:
    """Buckets with the given faults; without any, the right ones."""

    def answer(parameters: Sequence[nn.Parameter], limit_bytes: int, group: Group) -> list[int]:
        ordered = list(parameters) if order == "first first" else list(reversed(parameters))
        if missing == "left out":
            ordered = [p for p in ordered if p.grad is not None]
        buckets = _filled(ordered, limit_bytes, fits)
        for bucket in buckets if last else buckets[:-1]:
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = torch.cat([grad.flatten() for grad in grads])
            ring_all_reduce(flat, group)
            if divides:
                flat /= group.size
            place = 0
            for parameter in bucket:
                part = flat[place : place + parameter.numel()]
                if back == "right":
                    parameter.grad = part.view_as(parameter).clone()
                elif back == "from the beginning":
                    parameter.grad = flat[: parameter.numel()].view_as(parameter).clone()
                place += parameter.numel()
        return [sum(p.numel() for p in bucket) for bucket in buckets]

    return answer


def _filled(ordered: Sequence[nn.Parameter], limit_bytes: int, fits: str) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = []
    room = 0
    for parameter in ordered:
        size = parameter.numel() * (1 if fits == "numbers" else parameter.element_size())
        is_full = room <= 0 if fits == "until it overflows" else size > room
        if not buckets or is_full or fits == "never":
            buckets.append([])
            room = limit_bytes
        buckets[-1].append(parameter)
        room -= size
    return buckets


SIZES = ("the buckets' sizes",)

MISTAKES = (
    Mistake(
        name="first parameters first",
        faults={"order": "first first"},
        message="Backward finds the last parameters' gradients first: a bucket that holds the first ones is "
        "full only at its end, and nothing is left to send behind. Begin with the last parameter.",
    ),
    Mistake(
        name="limit counted in numbers",
        faults={"fits": "numbers"},
        message="limit_bytes is held against a count of numbers: multiply by element_size().",
    ),
    Mistake(
        name="filled until it overflows",
        faults={"fits": "until it overflows"},
        message="The parameter that no longer fits still goes into the bucket: close it before.",
    ),
    Mistake(
        name="a bucket for each parameter",
        faults={"fits": "never"},
        message="Every parameter travels alone, and each pays the latency of an all-reduce.",
    ),
    Mistake(
        name="last bucket never sent",
        faults={"last": False},
        message="A bucket is sent when it is full, and the last one never gets full: send what is left.",
    ),
    Mistake(
        name="sums stay in the bucket",
        faults={"back": "never"},
        message="The sums are in the bucket, and the parameters' grads are still this rank's own: torch.cat "
        "makes a copy, so bring them back.",
    ),
    Mistake(
        name="all read from the beginning",
        faults={"back": "from the beginning"},
        message="Every parameter reads its gradient from the beginning of the bucket: go on by what the ones "
        "before have taken.",
    ),
    Mistake(
        name="a parameter without gradient left out",
        faults={"missing": "left out"},
        message="A parameter whose grad is None on this rank is skipped, so its buckets are other ones than "
        "the other ranks': put zeros there.",
    ),
    Mistake(
        name="divided by the ranks",
        faults={"divides": True},
        message="This is the mean of the gradients, and the sum was asked for.",
    ),
)

HINTS = (
    "Two steps: first make lists of parameters, from the last to the first; then send each as one tensor.",
    "A bucket: torch.cat of the flattened grads, one ring_all_reduce, then flat.split(sizes) back into the "
    "grads with view_as. A grad that is None counts as zeros_like(parameter).",
    "Open a new bucket when there is none yet, or when p.numel() * p.element_size() is more than the room "
    "left in the last one; and send every bucket, the half-empty last one too.",
)


def _case(about: str, rng: np.random.Generator, size: int, limit: int, *, unused: bool = False) -> Case:
    shapes: list[tuple[int, ...]] = [(int(rng.integers(2, 5)), int(rng.integers(3, 6))) for _ in range(5)]
    shapes += [(int(rng.integers(2, 5)),), (9, 7), (3, 4)]
    values = [[torch.from_numpy(rng.standard_normal(shape)).float() for shape in shapes] for _ in range(size)]
    absent = (size - 1, int(rng.integers(1, 4))) if unused else None
    return case_of(f"{size} ranks, buckets of {limit} bytes{about}", values, limit, absent)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    return (
        _case("", rng, 2, 4 * int(rng.integers(28, 36))),
        _case("", rng, 3, 4 * int(rng.integers(24, 28))),
        _case(", a grad that is None on one of them", rng, 2, 4 * int(rng.integers(28, 36)), unused=True),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    (values, limit, absent), _ = case.make()
    ranks: list[list[nn.Parameter]] = []
    for rank, grads in enumerate(values):
        ranks.append([nn.Parameter(torch.zeros_like(grad)) for grad in grads])
        for place, (parameter, grad) in enumerate(zip(ranks[-1], grads, strict=True)):
            parameter.grad = None if (rank, place) == absent else grad

    def read(sizes: list[Any]) -> Observation:
        if not isinstance(sizes[0], list | tuple):
            raise Rejected(
                f"returned {describe(sizes[0])}, where a list of the buckets' sizes should be",
                name="returned the wrong kind of thing",
            )
        observed = {"the buckets' sizes": as_numbers(_as_row(sizes[0]), "the buckets' sizes")}
        for rank, parameters in enumerate(ranks):
            for place, parameter in enumerate(parameters):
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                name = f"rank {rank}'s grad of parameter {place}"
                observed[name] = as_numbers(grad, name)
        return observed

    return that_meet(answer, len(values), lambda group: (ranks[group.rank], limit, group), read)


def _as_row(sizes: Sequence[Any]) -> Numbers | Tensor | np.ndarray:
    try:
        return np.asarray([float(size) for size in sizes])
    except (TypeError, ValueError):
        raise Rejected(
            f"returned a list with {describe(sizes[0])} in it, where counts of numbers should be",
            name="returned the wrong kind of thing",
        ) from None


EXERCISE = Exercise(
    name="reduce_in_buckets",
    reference=reduce_in_buckets,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-4,
    atol=1e-5,
)
