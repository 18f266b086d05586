"""A ring all-reduce out of exchanges between neighbours, and the ways to stop, cut or add wrongly.

Source: Patarasuk & Yuan 2009, doi:10.1016/j.jpdc.2008.09.002. Taught in book/parallelism/data-parallel.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from scalelab.lab.checks.answers import Numbers, as_numbers
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import case_of
from scalelab.lab.checks.ranks import on_ranks
from scalelab.parallel.scratch.group import Group


def ring_all_reduce(tensor: Tensor, group: Group) -> None:
    """Put the sum of all ranks' tensors in place of this one.

    Args:
        tensor: [n], other numbers on every rank, n the same; n need not be a multiple of the ranks.
    """
    rank, size = group.rank, group.size
    chunks = tensor.tensor_split(size)  # views: what is written there is written to the tensor
    for step in range(size - 1):  # reduce-scatter: at the end chunk `rank` is summed here
        going, coming = chunks[(rank - 1 - step) % size], chunks[(rank - 2 - step) % size]
        received = torch.empty_like(coming)
        group.exchange(going, group.next, received, group.previous)
        coming += received
    for step in range(size - 1):  # all-gather: finished chunks go around
        known, missing = chunks[(rank - step) % size], chunks[(rank - 1 - step) % size]
        group.exchange(known, group.next, missing, group.previous)


def _build(
    *,
    steps: int = 0,
    joins: str = "added",
    gather: str = "right",
    cut: str = "uneven",
    sends: str = "exchange",
    where: str = "in place",
    divides: bool = False,
    whole: bool = False,
) -> Answer:
    """A ring all-reduce with the given faults; without any, the right one."""

    def answer(tensor: Tensor, group: Group) -> None:
        rank, size = group.rank, group.size
        own = tensor if where == "in place" else tensor.clone()
        if whole:
            _whole_tensors(own, group, steps, joins, sends)
        else:
            chunks = _chunks(own, size, cut)
            for step in range(size - 1 + steps):
                going, coming = chunks[(rank - 1 - step) % size], chunks[(rank - 2 - step) % size]
                _join(coming, _swap(going, torch.empty_like(coming), group, sends), joins)
            shift = 1 if gather == "one place off" else 0
            for step in range(0 if gather == "never" else size - 1 + steps):
                known, missing = (
                    chunks[(rank + shift - step) % size],
                    chunks[(rank + shift - 1 - step) % size],
                )
                missing.copy_(_swap(known, torch.empty_like(missing), group, sends))
        if divides:
            own /= size

    return answer


def _whole_tensors(tensor: Tensor, group: Group, steps: int, joins: str, sends: str) -> None:
    going = tensor.clone()
    for _ in range(group.size - 1 + steps):
        going = _swap(going, torch.empty_like(going), group, sends)
        _join(tensor, going, joins)


def _join(into: Tensor, received: Tensor, joins: str) -> None:
    if joins == "added":
        into += received
    else:
        into.copy_(received)


def _chunks(tensor: Tensor, size: int, cut: str) -> list[Tensor]:
    if cut == "uneven":
        return list(tensor.tensor_split(size))
    length = len(tensor) // size
    return [tensor[k * length : (k + 1) * length] for k in range(size)]


def _swap(going: Tensor, received: Tensor, group: Group, sends: str) -> Tensor:
    if sends == "first":
        group.send(going, group.next)
        group.recv(received, group.previous)
    else:
        group.exchange(going, group.next, received, group.previous)
    return received


MISTAKES = (
    Mistake(
        name="all send first",
        faults={"sends": "first"},
        message="Every rank sends before it receives, so nobody is there to take what is sent: "
        "group.exchange does both at once.",
    ),
    Mistake(
        name="one step too few",
        faults={"steps": -1},
        message="A chunk needs size - 1 steps to pass all other ranks; here the loops have one less.",
    ),
    Mistake(
        name="overwritten, not added",
        faults={"joins": "copied"},
        message="What comes in takes the place of the rank's own chunk in the first half: it has to be added "
        "to it. (In the second half it does take its place.)",
    ),
    Mistake(
        name="never gathered",
        faults={"gather": "never"},
        message="Each rank has one finished chunk and keeps it to itself: the second half, in which finished "
        "chunks go around, is missing.",
    ),
    Mistake(
        name="gathered one place off",
        faults={"gather": "one place off"},
        message="The second half begins with a chunk that is not finished on this rank: begin with the one "
        "that the first half has finished here.",
    ),
    Mistake(
        name="remainder left out",
        faults={"cut": "even"},
        message="Chunks of n // size leave the last n % size numbers out: tensor_split makes the first ones "
        "longer instead.",
    ),
    Mistake(
        name="divided by the ranks",
        faults={"divides": True},
        message="This is the mean. An all-reduce sums; whoever wants a mean divides.",
    ),
    Mistake(
        name="whole tensors around the ring",
        faults={"whole": True},
        message="The sum is right, but every step sends the whole tensor and not a chunk: each rank sends "
        "(p-1) n numbers instead of 2 (p-1)/p n, which is all that a ring is for.",
    ),
    Mistake(
        name="summed in a copy",
        faults={"where": "copy"},
        message="The tensor that was given is as before: the sum is in a copy. Write into the views that "
        "tensor_split gives, as += and exchange do.",
    ),
)

HINTS = (
    "Two loops of size - 1 steps each. In the first, what comes in is added to the rank's own chunk; in the "
    "second it takes its place.",
    "chunks = tensor.tensor_split(size) are views. In step s of the first loop send chunk (rank - 1 - s) % "
    "size and receive into an empty tensor like chunk (rank - 2 - s) % size, then add that: after it, chunk "
    "`rank` is finished.",
    "Second loop: group.exchange(chunks[(rank - s) % size], group.next, chunks[(rank - 1 - s) % size], "
    "group.previous).",
)


def _case(size: int, n: int, rng: np.random.Generator) -> Case:
    values = torch.from_numpy(rng.standard_normal((size, n)).astype(np.float32))
    return case_of(f"{size} ranks with {n} numbers each", size, values)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    # The last two have a remainder; with two ranks alone, one step too few is no step.
    return (
        _case(2, 2 * int(rng.integers(2, 6)), rng),
        _case(3, 3 * int(rng.integers(2, 5)) + int(rng.integers(1, 3)), rng),
        _case(int(rng.integers(4, 6)), 11 + int(rng.integers(0, 3)), rng),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    (size, values), _ = case.make()
    tensors = list(values.clone())
    groups: dict[int, Group] = {}

    def arguments(group: Group) -> tuple[Any, ...]:
        groups[group.rank] = group
        return tensors[group.rank], group

    def read(_: list[Any]) -> Observation:
        sent = [group.traffic.n_bytes // values.element_size() for group in groups.values()]
        most = 2 * (size - 1) * -(-values.shape[1] // size)  # chunks of the longer kind
        account = f"The busiest rank sends {max(sent)} numbers, and 2 (p-1) chunks have at most {most}."
        found = {f"rank {rank}'s tensor": as_numbers(t, "the tensor") for rank, t in enumerate(tensors)}
        # Which rank sends how much depends on where chunks set out; a tree sends as much in all, not by rank.
        return found | {
            "numbers sent by all ranks together": Numbers(np.array(sum(sent))),
            "ranks that send more than their share": Numbers(
                np.array(sum(n > most for n in sent)), account=account
            ),
        }

    return on_ranks(answer, size, arguments, read)


EXERCISE = Exercise(
    name="ring_all_reduce",
    reference=ring_all_reduce,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-4,
    atol=1e-5,
)
