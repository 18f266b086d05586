"""Which messages a schedule needs, and an order of them in which nobody ever waits in vain.

What a pass gives is sent to the stage after (forward) or before (backward). Were each rank to send as soon as
it can and to receive when it must, two ranks might both send first; networks that queue the messages of two
ranks in one line (NCCL does) would then stand still. So all messages are laid on one time axis, that of the
simulated schedule, and every rank begins its own in that order: of any two ranks' waits one is the earlier,
and it ends. The order is the same on both sides of a message, so none needs a tag.
Taught in book/parallelism/pipeline.md.
"""

from __future__ import annotations

from typing import NamedTuple

from scalelab.parallel.scratch.schedules import Operation, Schedule, n_chunks, stage_of
from scalelab.parallel.scratch.simulation import simulate


class Message(NamedTuple):
    """What one pass gives to another, on another rank.

    Attributes:
        source, to: ranks. made_by: the pass whose result it is. used_by: the pass that cannot begin before.
    """

    source: int
    to: int
    made_by: Operation
    used_by: Operation


Action = Operation | Message


def result_of(rank: int, operation: Operation, pp: int, v: int) -> Message | None:
    """Where the result of a pass goes; to the rank itself where that has the neighbouring stage too.

    None for the last stage's forward pass, the first's backward one, and W: nothing waits for those.
    """
    stage = stage_of(rank, operation.chunk, pp)
    there = stage + 1 if operation.kind == "F" else stage - 1
    if operation.kind == "W" or not 0 <= there < v * pp:
        return None
    return Message(rank, there % pp, operation, operation._replace(chunk=there // pp))


def with_messages(schedule: Schedule) -> tuple[tuple[Action, ...], ...]:
    """Each rank's operations, and between them the messages that it begins to send or to receive.

    Raises:
        ParallelError: the schedule cannot run.
    """
    pp, v = len(schedule), n_chunks(schedule)
    # A message stands at the end of the pass that makes it, before the passes that begin at that moment.
    line: list[tuple[float, int, int, Action]] = []
    for span in simulate(schedule):
        line.append((span.start_s, 1, span.rank, span.operation))
        message = result_of(span.rank, span.operation, pp, v)
        if message is not None and message.to != span.rank:
            line.append((span.end_s, 0, span.rank, message))
    actions: list[list[Action]] = [[] for _ in range(pp)]
    for _, _, rank, action in sorted(line, key=lambda entry: entry[:3]):
        actions[rank].append(action)
        if isinstance(action, Message):
            actions[action.to].append(action)
    return tuple(tuple(own) for own in actions)
