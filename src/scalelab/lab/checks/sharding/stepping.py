"""A step of ZeRO-1 on one vector: sum and cut, update, hand round; and the ways to do too much or too little.

Source: Rajbhandari et al. 2019, arXiv:1910.02054, section 5.1. Taught in book/parallelism/sharding.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scalelab.lab.checks.answers import Numbers, Rejected, check_signature
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import case_of
from scalelab.lab.checks.ranks import WAITING, on_ranks
from scalelab.parallel.scratch.collectives import (
    piece_of,
    ring_all_gather,
    ring_all_reduce,
    ring_reduce_scatter,
)
from scalelab.parallel.scratch.group import Group

Update = Callable[[Tensor, Tensor], None]
RATE = 0.1


def cut_step(weights: Tensor, gradient: Tensor, update: Update, group: Group) -> None:
    """One step of ZeRO-1: each rank updates its piece of the weights, and all end with all of them.

    Args:
        weights: [n], the same on every rank; changed in place.
        gradient: [n], of this rank's share of the loss; the whole loss is the shares' sum.
        update: `update(piece, gradient)` changes a piece of the weights in place; it keeps the optimiser's
            state for as many numbers as it is given.
    """
    own = ring_reduce_scatter(gradient, group)  # [n/p], complete
    piece = piece_of(weights, group)  # a view: what is written there is written to the weights
    update(piece, own)
    weights.copy_(ring_all_gather(piece, group, weights.numel()))


def _build(
    *,
    summed: str = "once",
    divided: bool = False,
    piece_from: str = "own",
    gathers: str = "all",
    whole: bool = False,
) -> Answer:
    """A step with the given faults; without any, the right one."""

    def answer(weights: Tensor, gradient: Tensor, update: Update, group: Group) -> None:
        gradient = gradient.clone()
        if summed in ("twice", "by all-reduce") or whole:
            ring_all_reduce(gradient, group)
        if whole:  # the update of a replica
            update(weights, gradient / group.size if divided else gradient)
            return
        own = (
            piece_of(gradient, group)
            if summed in ("never", "by all-reduce")
            else ring_reduce_scatter(gradient, group)
        )
        own = own / group.size if divided else own
        pieces = weights.tensor_split(group.size)
        piece = pieces[group.rank]
        if piece_from == "first":
            piece = weights[: own.numel()]
        if piece_from == "copy":
            update(piece.clone(), own)
        else:
            update(piece, own)
        enters = {
            "all": True,
            "none": False,
            "rank 0": group.rank == 0,
            "who owns something": piece.numel() > 0,
        }
        if enters[gathers]:
            weights.copy_(ring_all_gather(pieces[group.rank].clone(), group, weights.numel()))

    return answer


MISTAKES = (
    Mistake(
        name="divided by the ranks",
        faults={"divided": True},
        message="Each rank's loss is its sum divided by the whole batch's count already, so gradients are "
        "to be added. Dividing by the number of ranks takes the mean twice. (With Adam one hardly sees "
        "it: its step does not depend on the gradient's size.)",
    ),
    Mistake(
        name="gradients never summed",
        faults={"summed": "never"},
        message="The piece is updated by this rank's own gradient alone: replicas have seen other data. "
        "ring_reduce_scatter sums and cuts; it returns this rank's piece of the sum and leaves the gradient "
        "that it is given as it is.",
    ),
    Mistake(
        name="gradients summed twice",
        faults={"summed": "twice"},
        message="A gradient that has been all-reduced is reduce-scattered once more: it comes out p times "
        "as large.",
    ),
    Mistake(
        name="an all-reduce where a reduce-scatter would do",
        faults={"summed": "by all-reduce"},
        message="The numbers are right, but half of them are sent for nothing: each rank gets the sum of "
        "all pieces and uses its own. With the all-gather at the end that is 3 Ψ instead of 2 Ψ.",
    ),
    Mistake(
        name="every rank updates everything",
        faults={"whole": True},
        message="`update` gets the whole vector on every rank, so each keeps the optimiser's state of all "
        "of it: that is data parallelism. Give it this rank's piece.",
    ),
    Mistake(
        name="a copy is updated",
        faults={"piece_from": "copy"},
        message="`update` has been called, and the weights are as before: what it was given first is no part "
        "of their memory. piece_of(weights, group) is a view of them; its .clone() is not, and the gradient "
        "comes second.",
    ),
    Mistake(
        name="the first piece on every rank",
        faults={"piece_from": "first"},
        message="Every rank updates the beginning of the vector. Rank r owns piece r.",
    ),
    Mistake(
        name="weights not handed round",
        faults={"gathers": "none"},
        message="Each rank has its own piece updated and everybody else's old: replicas drift apart. "
        "End with an all-gather of the pieces, in place: weights.copy_(…) changes the vector, weights = … "
        "only a name.",
    ),
    Mistake(
        name="only rank 0 gathers",
        faults={"gathers": "rank 0"},
        message="Rank 0 enters the all-gather and the others do not, so it waits for ever. A collective "
        "is called by all ranks or by none.",
    ),
    Mistake(
        name="ranks that own nothing stay away",
        faults={"gathers": "who owns something"},
        message="With fewer weights than ranks a piece is empty, and its rank leaves before the all-gather. "
        "It needs the others' pieces like everybody, and around a ring they travel through it.",
    ),
)

HINTS = (
    "Three strokes: sum the gradients so that each rank gets its piece of the sum; update that piece of "
    "the weights; gather the pieces.",
    "ring_reduce_scatter(gradient, group) gives this rank's piece of the sum, piece_of(weights, group) a "
    "view of the same piece of the weights.",
    "own = ring_reduce_scatter(gradient, group); piece = piece_of(weights, group); update(piece, own); "
    "weights.copy_(ring_all_gather(piece, group, weights.numel())).",
)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    cases = []
    for size, n in ((2, 2 * int(rng.integers(3, 7))), (3, 3 * int(rng.integers(2, 5)) + 1), (4, 3)):
        weights = torch.from_numpy(rng.standard_normal(n)).float()
        gradients = torch.from_numpy(rng.standard_normal((2, size, n))).float()
        cases.append(case_of(f"{size} ranks, {n} weights, 2 steps", size, weights, gradients))
    return tuple(cases)


def _observe(answer: Answer, case: Case) -> Observation:
    (size, weights, gradients), _ = case.make()
    check_signature(answer, (weights, weights, None, None), {})
    copies = [weights.clone() for _ in range(size)]
    optimizers = [_Momentum() for _ in range(size)]
    memory = [copy.data_ptr() for copy in copies]  # whose views the model's parameters are, in the lab
    sent = np.zeros(size)
    least = 2 * (size - 1) * weights.numel()  # of a reduce-scatter and an all-gather, by all ranks together

    def step(number: int, group: Group) -> None:
        rank = group.rank
        answer(copies[rank], gradients[number, rank].clone(), optimizers[rank].update, group)
        sent[rank] += group.traffic.n_bytes / weights.element_size()

    def read(_: list[Any]) -> Observation:
        if [copy.data_ptr() for copy in copies] != memory:
            raise Rejected(_OTHER_MEMORY, name="weights in other memory")
        given = np.array([float(optimizer.most_numbers) for optimizer in optimizers])
        extra = max(0.0, float(sent.sum()) - least)
        sent[:] = 0
        return {
            "weights (a row for each rank)": Numbers(torch.stack(copies).double().numpy()),
            "numbers that a rank's update gets": Numbers(given, "rank"),
            "numbers sent beyond what is needed, by all ranks": Numbers(np.array(extra)),
        }

    first = on_ranks(partial(step, 0), size, lambda group: (group,), read)
    if first[WAITING].values.any():  # each step by itself: nobody goes on while another waits
        return first
    return on_ranks(partial(step, 1), size, lambda group: (group,), read)


_OTHER_MEMORY = (
    "gave the weights other memory (weights.data = …): whoever has a view of them, as a model's parameters "
    "may, is left with the old ones. weights.copy_(…) changes the numbers where they are"
)


class _Momentum:
    """An optimiser whose second step needs what its first one kept, for each number that it is given."""

    def __init__(self) -> None:
        self.most_numbers = 0
        self._kept: dict[int, Tensor] = {}

    def update(self, piece: Tensor, gradient: Tensor) -> None:
        self.most_numbers = max(self.most_numbers, piece.numel())
        kept = self._kept.get(piece.numel(), torch.zeros_like(gradient))
        self._kept[piece.numel()] = 0.9 * kept + gradient
        with torch.no_grad():
            piece -= RATE * self._kept[piece.numel()]


EXERCISE = Exercise(
    name="cut_step",
    reference=cut_step,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
)
