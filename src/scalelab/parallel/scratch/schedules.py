"""A schedule is an order: for each rank, which passes on which micro-batch it does, one after the other.

GPipe does all forward passes, then all backward ones, and holds every micro-batch in between. 1F1B goes back
as soon as it can and holds one for each stage still ahead. Interleaved gives each rank v chunks of layers,
p stages apart: the pipeline fills in passes that are v times shorter. ZB-H1 splits the backward pass, since
only the gradient of the input is waited for; the weights' gradients fill what would be idle.

All compute the same gradients, added up in another order. When an operation may begin follows from the data
alone: a forward pass from the stage before, a backward one from the stage after (`needs`).
Source: Huang et al. 2018, arXiv:1811.06965 (GPipe); Narayanan et al. 2019, doi:10.1145/3341301.3359646
(1F1B), and 2021, arXiv:2104.04473, section 2.2 (with a flush; interleaved); Qi et al. 2023, arXiv:2401.10241,
section 2 (ZB-H1). Taught in book/parallelism/pipeline.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from scalelab.core.checks import check_choice, check_positive_int
from scalelab.core.errors import ConfigError, ParallelError

Kind = Literal["F", "B", "I", "W"]
NAMES = ("gpipe", "1f1b", "interleaved", "zero-bubble")


class Operation(NamedTuple):
    """One pass of one micro-batch through one chunk of a rank's layers.

    Attributes:
        kind: F forward, B backward; or backward in two: I for the input's gradient, W for the weights'.
        micro_batch: which, from 0.
        chunk: which of the rank's pieces of the model, from 0.
    """

    kind: Kind
    micro_batch: int
    chunk: int = 0

    def __str__(self) -> str:
        return f"{self.kind}{self.micro_batch}" + (f" of chunk {self.chunk}" if self.chunk else "")


Order = tuple[Operation, ...]  # what one rank does
Schedule = tuple[Order, ...]  # by rank


def stage_of(rank: int, chunk: int, pp: int) -> int:
    """Which stage of the whole model a rank's chunk is: chunks are dealt out like cards, p stages apart."""
    return chunk * pp + rank


def gpipe(pp: int, n_micro_batches: int) -> Schedule:
    """All forward, then all backward; the last micro-batch, whose activations are freshest, goes back first.

    Raises:
        ConfigError: a size that is no whole number of at least 1.
    """
    _check(pp, n_micro_batches)
    forward = [Operation("F", i) for i in range(n_micro_batches)]
    backward = [Operation("B", i) for i in reversed(range(n_micro_batches))]
    return tuple(tuple(forward + backward) for _ in range(pp))


def one_f_one_b(pp: int, n_micro_batches: int) -> Schedule:
    """One forward, one backward, after as many forward passes as there are stages behind this one.

    Raises:
        ConfigError: as `gpipe`.
    """
    _check(pp, n_micro_batches)
    forward = [Operation("F", i) for i in range(n_micro_batches)]
    backward = [Operation("B", i) for i in range(n_micro_batches)]
    return tuple(_alternate(forward, backward, pp - 1 - rank) for rank in range(pp))


def interleaved(pp: int, n_micro_batches: int, v: int) -> Schedule:
    """1F1B over v chunks a rank: p micro-batches through one chunk, the same through the next.

    Where p does not divide them, they go in n // p rounds that are as equal as can be; fewer than p in one.

    Raises:
        ConfigError: as `gpipe`; v too.
    """
    _check(pp, n_micro_batches)
    check_positive_int("v", v)
    rounds = _rounds(n_micro_batches, max(1, n_micro_batches // pp))
    forward = [Operation("F", i, chunk) for round_ in rounds for chunk in range(v) for i in round_]
    backward = [Operation("B", i, chunk) for round_ in rounds for chunk in reversed(range(v)) for i in round_]
    ahead = (v - 1) * len(rounds[0])  # until a micro-batch has been through all chunks but the last
    return tuple(_alternate(forward, backward, ahead + 2 * (pp - 1 - rank)) for rank in range(pp))


def zero_bubble(pp: int, n_micro_batches: int) -> Schedule:
    """ZB-H1: 1F1B that goes back by the input's gradient alone; rank r owes the weights' of r micro-batches.

    Every rank then holds as many micro-batches as rank 0 does in 1F1B, and the last ones have weights'
    gradients left to compute while the others still go back.

    Raises:
        ConfigError: as `gpipe`.
    """
    _check(pp, n_micro_batches)
    orders = []
    for rank in range(pp):
        order: list[Operation] = []
        for operation in one_f_one_b(pp, n_micro_batches)[rank]:
            order.append(operation if operation.kind == "F" else operation._replace(kind="I"))
            if operation.kind == "B" and operation.micro_batch >= rank:
                order.append(Operation("W", operation.micro_batch - rank))
        owed = range(max(0, n_micro_batches - rank), n_micro_batches)
        orders.append(tuple(order) + tuple(Operation("W", i) for i in owed))
    return tuple(orders)


def make_schedule(name: str, pp: int, n_micro_batches: int, *, v: int = 1) -> Schedule:
    """The schedule of this name: "gpipe", "1f1b", "interleaved" or "zero-bubble".

    Raises:
        ConfigError: another name, a size that is no whole number of at least 1, chunks for a schedule that
            has none.
    """
    check_choice("name", name, NAMES)
    if name == "interleaved":
        return interleaved(pp, n_micro_batches, v)
    if v != 1:
        raise ConfigError(f"v={v!r} chunks a rank need the schedule 'interleaved', got {name!r}")
    makers = {"gpipe": gpipe, "1f1b": one_f_one_b, "zero-bubble": zero_bubble}
    return makers[name](pp, n_micro_batches)


def needs(rank: int, operation: Operation, pp: int, v: int) -> tuple[tuple[int, Operation], ...]:
    """What must have ended before: (rank, operation) of each.

    A backward pass B may need a B or an I of the next stage; it is named by this operation's own kind, and a
    schedule has only one of the two.
    """
    kind, micro_batch, chunk = operation
    stage = stage_of(rank, chunk, pp)
    if kind == "F":
        return () if stage == 0 else (_at(stage - 1, "F", micro_batch, pp),)
    if kind == "W":
        return ((rank, Operation("I", micro_batch, chunk)),)
    own = (rank, Operation("F", micro_batch, chunk))
    return (own,) if stage == v * pp - 1 else (own, _at(stage + 1, kind, micro_batch, pp))


def n_chunks(schedule: Schedule) -> int:
    """v: how many chunks of layers each rank has."""
    return 1 + max((operation.chunk for order in schedule for operation in order), default=0)


def check_schedule(schedule: Schedule, n_micro_batches: int) -> None:
    """Each rank does each micro-batch forward and backward, once, through each of its chunks.

    Raises:
        ParallelError: an operation that is missing or comes twice; the message names it and its rank.
    """
    v = n_chunks(schedule)
    is_split = any(operation.kind in "IW" for order in schedule for operation in order)
    kinds: Iterable[Kind] = ("F", "I", "W") if is_split else ("F", "B")
    wanted = {Operation(kind, i, c) for kind in kinds for i in range(n_micro_batches) for c in range(v)}
    for rank, order in enumerate(schedule):
        for operation in sorted(wanted ^ set(order)):
            verb = "lacks" if operation in wanted else f"of {n_micro_batches} micro-batches has"
            raise ParallelError(f"rank {rank}'s schedule {verb} {operation}")
        if len(order) != len(wanted):
            twice = next(operation for operation in order if order.count(operation) > 1)
            raise ParallelError(f"rank {rank}'s schedule has {operation_name(twice)} more than once")


def operation_name(operation: Operation) -> str:
    """In words, for messages."""
    names = {"F": "forward", "B": "backward", "I": "the input's gradient", "W": "the weights' gradients"}
    where = f" in chunk {operation.chunk}" if operation.chunk else ""
    return f"{names[operation.kind]} of micro-batch {operation.micro_batch}{where}"


def _check(pp: int, n_micro_batches: int) -> None:
    check_positive_int("pp", pp)
    check_positive_int("n_micro_batches", n_micro_batches)


def _rounds(n: int, n_rounds: int) -> list[range]:
    """0 … n-1 in so many runs, the first n mod n_rounds of which are one longer."""
    size, longer = divmod(n, n_rounds)
    starts = [i * size + min(i, longer) for i in range(n_rounds + 1)]
    return [range(a, b) for a, b in itertools.pairwise(starts)]


def _alternate(forward: Sequence[Operation], backward: Sequence[Operation], ahead: int) -> Order:
    """So many forward passes ahead; then one forward, one backward; then the backward ones that are left."""
    ahead = min(ahead, len(forward))
    order = list(forward[:ahead])
    for there, back in zip(forward[ahead:], backward, strict=False):
        order += [there, back]
    return tuple(order + list(backward[len(forward) - ahead :]))


def _at(stage: int, kind: Kind, micro_batch: int, pp: int) -> tuple[int, Operation]:
    return stage % pp, Operation(kind, micro_batch, stage // pp)
