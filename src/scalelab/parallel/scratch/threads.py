"""Ranks as threads of one process: nothing to start, and who waits for whom is known at every moment.

A message is a copy from one tensor into another. A send ends only when the other rank receives, as on a real
network with large messages, so whatever would hang there hangs here; but here it is noticed at once: when
every rank waits and none of their messages can pair, nobody is left to help them.
Taught in book/parallelism/data-parallel.md.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from scalelab.core.checks import check_positive_int
from scalelab.core.errors import ParallelError
from scalelab.parallel.scratch.group import Group, Pending, n_bytes

T = TypeVar("T")
LIMIT_S = 60.0
POLL_S = 0.05


def run_threads(size: int, function: Callable[..., T], *args: Any, limit_s: float = LIMIT_S) -> list[T]:
    """Run `function(group, *args)` on so many ranks at the same time.

    Torch's random state is one for all threads: draw from generators of your own. Tensors are on the CPU: on
    a GPU torch goes backward in one thread for all ranks. A rank's further threads are `group.background`'s.

    Args:
        args: the same objects for every rank: what a rank changes in them, the others see.
        limit_s: how long it may take.

    Returns:
        What each rank returned, by rank.

    Raises:
        Deadlock: the ranks wait for each other in vain; the message says who for whom.
        OutOfTime: the limit has passed.
        Whatever a rank raises; a note says which rank it was.
    """
    check_positive_int("size", size)
    hub = _Hub(size)
    answers: dict[int, T] = {}

    def serve(rank: int) -> None:
        try:
            answers[rank] = function(ThreadGroup(hub, rank), *args)
        except BaseException as error:
            hub.fail(rank, error)
        finally:
            hub.leave(rank, threading.current_thread())

    threads = [
        threading.Thread(target=serve, args=(rank,), daemon=True, name=f"rank {rank}") for rank in range(size)
    ]
    for rank, thread in enumerate(threads):
        hub.join(rank, thread)
    for thread in threads:
        thread.start()
    try:
        hub.wait_for_all(limit_s)
    except BaseException as error:  # Ctrl-C and alarms too: no rank is to go on when this has ended
        hub.fail(None, error)
        for thread in hub.at_work():
            _stop(thread)
        raise
    return [answers[rank] for rank in range(size)]


class ThreadGroup(Group):
    """A rank that is a thread. Made by `run_threads`."""

    def __init__(self, hub: _Hub, rank: int) -> None:
        super().__init__()
        self._hub = hub
        self.rank = rank
        self.size = hub.size

    def background(self, work: Callable[[], None]) -> Pending:
        return _Helper(self._hub, self.rank, work)

    def _isend(self, tensor: Tensor, to: int, tag: int) -> Pending:
        words = f"to send {n_bytes(tensor):,} bytes to rank {to}"
        return self._hub.post(_Message(self._hub, self.rank, tensor, words), (self.rank, to, tag), sends=True)

    def _irecv(self, tensor: Tensor, source: int, tag: int) -> Pending:
        words = f"to receive {n_bytes(tensor):,} bytes from rank {source}"
        return self._hub.post(
            _Message(self._hub, self.rank, tensor, words), (source, self.rank, tag), sends=False
        )


Route = tuple[int, int, int]  # from, to, tag


class _Hub:
    """Where messages meet. All its state is guarded by `changed`."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.changed = threading.Condition()
        self._sent: defaultdict[Route, deque[_Message]] = defaultdict(deque)
        self._wanted: defaultdict[Route, deque[_Message]] = defaultdict(deque)
        self._at_work: list[set[threading.Thread]] = [set() for _ in range(size)]  # by rank, until they end
        self._waits: list[_Waiting] = []
        self._untold: dict[BaseException, int] = {}  # of a rank's background, not yet waited for
        self._failure: BaseException | None = None

    def post(self, message: _Message, route: Route, *, sends: bool) -> Pending:
        """Pair a message with its other half, or leave it for that to come."""
        own, others = (self._sent, self._wanted) if sends else (self._wanted, self._sent)
        with self.changed:
            if not others[route]:
                own[route].append(message)
                return message
            other = others[route].popleft()
            sent, wanted = (message, other) if sends else (other, message)
            _check_fit(sent, wanted)
            wanted.tensor.view(-1).copy_(sent.tensor.view(-1))
            message.is_done = other.is_done = True
            self.changed.notify_all()
        return message

    def block(self, rank: int, words: str, is_done: Callable[[], bool]) -> None:
        """Wait until something is done.

        Raises:
            ParallelError: it never will be.
        """
        with self.changed:
            waiting = _Waiting(rank, words, is_done)
            self._waits.append(waiting)
            self._look_for_deadlock()
            while not is_done() and self._failure is None:
                self.changed.wait()
            self._waits.remove(waiting)
            if not is_done():
                raise Stopped(f"rank {rank} waited {words}: {self._failure}")

    def join(self, rank: int, thread: threading.Thread) -> None:
        """One more thread of a rank will begin."""
        with self.changed:
            self._at_work[rank].add(thread)

    def leave(self, rank: int, thread: threading.Thread, error: BaseException | None = None) -> None:
        """A thread of a rank has ended; work in the background, perhaps by an error."""
        with self.changed:
            self._at_work[rank].discard(thread)
            if error is not None:
                self._untold[error] = rank
            self._look_for_deadlock()
            self.changed.notify_all()

    def tell(self, error: BaseException) -> None:
        """Somebody has waited for the work in the background that ended by this error."""
        with self.changed:
            self._untold.pop(error, None)

    def at_work(self) -> list[threading.Thread]:
        """Threads that have not ended."""
        with self.changed:
            return [thread for threads in self._at_work for thread in threads]

    def fail(self, rank: int | None, error: BaseException) -> None:
        """A rank has raised (None: whoever waits for them); the first to do so is whose error is told."""
        with self.changed:
            if self._failure is None:
                if rank is not None:
                    error.add_note(f"raised on rank {rank} of {self.size}")
                self._failure = error
            self.changed.notify_all()

    def wait_for_all(self, limit_s: float) -> None:
        """Return when all threads have ended; short waits, so that Ctrl-C is heard."""
        deadline = time.monotonic() + limit_s
        with self.changed:
            while any(self._at_work) and time.monotonic() < deadline:
                self.changed.wait(POLL_S)
            if any(self._at_work) and self._failure is None:
                self._failure = OutOfTime(f"after {limit_s:g} s, {self._standing()}")
                self.changed.notify_all()
        if self._failure is not None:
            raise self._failure

    def _look_for_deadlock(self) -> None:
        stuck = [waiting for waiting in self._waits if not waiting.is_done()]
        if stuck and len(stuck) == sum(map(len, self._at_work)) and self._failure is None:
            ranks = tuple(sorted({waiting.rank for waiting in stuck}))
            words = f"ranks wait for each other for ever: {self._standing()}"
            self._failure = Deadlock(words, ranks)
            if self._untold:  # what failed in the background is why nobody answers
                self._failure, rank = next(iter(self._untold.items()))
                self._failure.add_note(f"raised in the background on rank {rank} of {self.size}: {words}")
            self.changed.notify_all()

    def _standing(self) -> str:
        """What each rank does now, in words."""
        words = []
        for rank in range(self.size):
            waits = [waiting.words for waiting in self._waits if waiting.rank == rank]
            if waits:
                words.append(f"rank {rank} waits {' and '.join(waits)}")
            else:
                words.append(f"rank {rank} {'is at work' if self._at_work[rank] else 'has finished'}")
        return "; ".join(words)


class OutOfTime(ParallelError):
    """Ranks that were still at work when their time was over."""


class Deadlock(ParallelError):
    """Every rank waits for a message that nobody is left to send or to take.

    Attributes:
        ranks: those that wait, in order.
    """

    def __init__(self, message: str, ranks: tuple[int, ...]) -> None:
        super().__init__(message)
        self.ranks = ranks


class Stopped(ParallelError):
    """A rank cannot go on since another failed, or all wait: a consequence, never a cause."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    rank: int
    words: str
    is_done: Callable[[], bool]


class _Message:
    """One half of a message: what is sent, or where it shall go."""

    def __init__(self, hub: _Hub, rank: int, tensor: Tensor, words: str) -> None:
        self.hub = hub
        self.rank = rank
        self.tensor = tensor
        self.words = words
        self.is_done = False

    def wait(self) -> None:
        self.hub.block(self.rank, self.words, lambda: self.is_done)


class _Helper:
    """A rank's work in a thread beside its own, known to the hub."""

    def __init__(self, hub: _Hub, rank: int, work: Callable[[], None]) -> None:
        self._hub, self._rank, self._work = hub, rank, work
        self._is_done = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._do, daemon=True, name=f"rank {rank}, in the background")
        hub.join(rank, self._thread)
        self._thread.start()

    def _do(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error
        finally:
            self._is_done = True
            self._hub.leave(self._rank, self._thread, self._error)

    def wait(self) -> None:
        self._hub.block(self._rank, "for its work in the background", lambda: self._is_done)
        if self._error is not None:
            self._hub.tell(self._error)
            raise self._error


def _stop(thread: threading.Thread) -> None:
    """End a thread that computes and computes; one that waits for a message has been told already."""
    if thread.is_alive() and thread.ident is not None:
        exit_there = ctypes.py_object(SystemExit)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), exit_there)


def _check_fit(sent: _Message, wanted: _Message) -> None:
    """Raises ParallelError, on the rank that came second: types or sizes differ."""
    a, b = sent.tensor, wanted.tensor
    if a.dtype != b.dtype or a.numel() != b.numel():
        raise ParallelError(
            f"rank {sent.rank} sends {a.numel():,} numbers of {a.dtype} to rank {wanted.rank}, which has "
            f"room for {b.numel():,} of {b.dtype}: both must have the same type and number of elements"
        )
