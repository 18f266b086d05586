"""A trace says who did what when; the time in which a rank could do nothing is the bubble.

Times are of one clock that all ranks of a machine share (the monotonic one: its zero is the machine's start),
so that spans of different processes can be laid side by side: when a rank began late, the trace of the rank
that it waited for tells whether there was nothing to begin with yet (the bubble), or the message was on its
way. Spans of a simulation are read alike. Taught in book/parallelism/pipeline.md.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from scalelab.core.errors import ParallelError
from scalelab.parallel.scratch.schedules import Kind, Operation, needs


class Span(NamedTuple):
    """What one rank did for a while.

    Attributes:
        rank: who. operation: what.
        start_s, end_s: when, seconds of one clock for all ranks.
    """

    rank: int
    operation: Operation
    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end_s - self.start_s


class Trace:
    """Records one rank's spans, and can make each as long as it is told to.

    A span ends when its work and its padding have: an operation that takes 5 ms and is to last 30 ms sleeps
    for 25. Sleeping ranks need no core, so four ranks can be watched on two.

    With a beat, padding counts from the last beat, which all ranks' clocks strike together: who begins 2 ms
    late, since a message had to travel or the machine was slow to wake it, still ends in time, and hands no
    lateness on to the next rank.

    Args:
        rank: whose. lasts: kind → seconds that an operation of this kind lasts at least.
        beat_s: seconds between beats, of which each length is a multiple; None: pad from each one's start.
        clock, sleep: for tests.

    Attributes:
        spans: what has been recorded, in order. Work beyond its padded length is not cut off: see
            `kept_the_beat`.
    """

    def __init__(
        self,
        rank: int,
        *,
        lasts: Mapping[Kind, float] | None = None,
        beat_s: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.rank = rank
        self.spans: list[Span] = []
        self._lasts, self._beat_s = lasts or {}, beat_s
        self._clock, self._sleep = clock, sleep

    def wait_for_beat(self) -> None:
        """Sleep until the next beat, so that what begins then lasts its whole length."""
        if self._beat_s is not None:
            self._sleep(self._beat_s - self._clock() % self._beat_s)

    @contextlib.contextmanager
    def span(self, operation: Operation) -> Iterator[None]:
        """The block is one operation."""
        start = self._clock()
        since = start if self._beat_s is None else start // self._beat_s * self._beat_s
        yield
        left = since + self._lasts.get(operation.kind, 0.0) - self._clock()
        if left > 0:
            self._sleep(left)
        self.spans.append(Span(self.rank, operation, start, self._clock()))


class Shares(NamedTuple):
    """What the ranks' time went into; the three sum to one.

    Attributes:
        work: operations, padding included.
        waiting: nothing to begin with, since another rank had not made it yet, or nothing left: the bubble.
        messages: what was needed had been made, and was on its way.
    """

    work: float
    waiting: float
    messages: float


def step_seconds(spans: Sequence[Span]) -> float:
    """From the first start to the last end, over all ranks.

    Raises:
        ParallelError: no span.
    """
    if not spans:
        raise ParallelError("a trace without spans has no length: was anything recorded?")
    return max(span.end_s for span in spans) - min(span.start_s for span in spans)


def shares(spans: Sequence[Span]) -> Shares:
    """How all ranks' time, from the first start to the last end, divides.

    Args:
        spans: of all ranks, one step.

    Raises:
        ParallelError: no span.
    """
    total = (1 + max((span.rank for span in spans), default=0)) * step_seconds(spans)
    work, messages = sum(span.seconds for span in spans), sum(delays(spans))
    return Shares(work / total, 1 - (work + messages) / total, messages / total)


def delays(spans: Sequence[Span]) -> list[float]:
    """For each operation the seconds that it could have begun earlier: its rank was free, its input made."""
    pp = 1 + max((span.rank for span in spans), default=0)
    v = 1 + max((span.operation.chunk for span in spans), default=0)
    ended = {(span.rank, span.operation): span.end_s for span in spans}
    begun = min((span.start_s for span in spans), default=0.0)
    found = []
    for rank in range(pp):
        free = begun
        for span in sorted((span for span in spans if span.rank == rank), key=lambda span: span.start_s):
            made = max((ended[need] for need in needs(rank, span.operation, pp, v)), default=begun)
            found.append(max(0.0, span.start_s - max(free, made)))
            free = span.end_s
    return found


def kept_the_beat(spans: Sequence[Span], lasts: Mapping[Kind, float], beat_s: float) -> bool:
    """Whether padding did what it is for: every pass ended on its beat, and began in time for it.

    On a machine with too much else to do, a rank is woken a beat too late or computes longer than its length:
    then the trace shows that machine, and the step is to be taken again.

    Args:
        lasts, beat_s: as for `Trace`.
    """
    in_time = all(delay < beat_s / 2 for delay in delays(spans))
    return in_time and all(span.seconds < lasts[span.operation.kind] + beat_s / 4 for span in spans)


def bubble(spans: Sequence[Span]) -> float:
    """The share of all ranks' time in which there was nothing to do: `shares(spans).waiting`."""
    return shares(spans).waiting


def in_flight(operations: Iterable[Operation]) -> int:
    """The most micro-batches (chunk passes, where ranks have several) that a rank held at a time.

    A forward pass begins to hold, and the end of its backward pass (of W, where that is split) lets go.

    Args:
        operations: one rank's, in its order.
    """
    held, most = 0, 0
    for operation in operations:
        if operation.kind == "F":
            held += 1
            most = max(most, held)
        elif operation.kind in "BW":
            held -= 1
    return most


def of_rank(spans: Iterable[Span], rank: int) -> list[Operation]:
    """What one rank did, in the order in which it did it."""
    own = sorted((span for span in spans if span.rank == rank), key=lambda span: span.start_s)
    return [span.operation for span in own]
