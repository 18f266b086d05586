"""What a schedule takes when every pass lasts what it is said to: no model, no messages, no clock.

Each rank does its operations in their order; one begins when the rank is free and what it needs has come.
Where no rank can go on, the schedule can never run on any machine, and the error says who waits for what.
Taught in book/parallelism/pipeline.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from scalelab.core.errors import ParallelError
from scalelab.parallel.scratch.schedules import Kind, Operation, Schedule, n_chunks, needs, operation_name
from scalelab.parallel.scratch.trace import Span

LENGTHS: Mapping[Kind, float] = {"F": 1.0, "B": 2.0, "I": 1.0, "W": 1.0}
Length = Callable[[int, Operation], float]


def simulate(
    schedule: Schedule, lasts: Mapping[Kind, float] | Length = LENGTHS, *, message_s: float = 0.0
) -> list[Span]:
    """Who does what when.

    Args:
        lasts: seconds of an operation by its kind, or of (rank, operation).
        message_s: from the end of a pass on one rank to the moment its result can be used on another.

    Returns:
        Spans in the order of their start; those of one moment by rank.

    Raises:
        ParallelError: the ranks wait for each other for ever.
    """
    length = lasts if callable(lasts) else (lambda rank, operation: lasts[operation.kind])
    pp, v = len(schedule), n_chunks(schedule)
    ended: dict[tuple[int, Operation], float] = {}
    spans: list[Span] = []
    at, free = [0] * pp, [0.0] * pp  # each rank's next operation, and since when it is idle
    while any(at[rank] < len(order) for rank, order in enumerate(schedule)):
        moved = False
        for rank, order in enumerate(schedule):
            while at[rank] < len(order):
                operation = order[at[rank]]
                needed = needs(rank, operation, pp, v)
                if not all(need in ended for need in needed):
                    break
                came = [ended[need] + (message_s if need[0] != rank else 0.0) for need in needed]
                start = max([free[rank], *came])
                free[rank] = ended[rank, operation] = start + length(rank, operation)
                spans.append(Span(rank, operation, start, free[rank]))
                at[rank] += 1
                moved = True
        if not moved:
            raise ParallelError(f"no rank can go on: {_standing(schedule, at, ended)}")
    return sorted(spans, key=lambda span: (span.start_s, span.rank))


def _standing(schedule: Schedule, at: Sequence[int], ended: Mapping[tuple[int, Operation], float]) -> str:
    """What each rank waits for, in words."""
    words = []
    for rank, order in enumerate(schedule):
        if at[rank] == len(order):
            words.append(f"rank {rank} has finished")
            continue
        operation = order[at[rank]]
        missing = next(
            need for need in needs(rank, operation, len(schedule), n_chunks(schedule)) if need not in ended
        )
        words.append(
            f"rank {rank} cannot begin {operation_name(operation)} before rank {missing[0]} has done "
            f"{operation_name(missing[1])}"
        )
    return "; ".join(words)
