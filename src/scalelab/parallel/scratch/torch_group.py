"""Ranks as processes, their messages carried by torch: gloo between CPUs, NCCL between GPUs.

On a CPU a wait can be given a limit, and each rank can write on a board what it waits for, so that a wait in
vain ends with who waits for whom. A group that has timed out is of no use any more: gloo closes its
connections. Taught in book/parallelism/data-parallel.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from scalelab.core.errors import ParallelError
from scalelab.parallel.scratch.group import Group, Pending, n_bytes


class Board(Protocol):
    """Where ranks write what they wait for, and read what the others do."""

    def write(self, rank: int, words: str) -> None:
        """What a rank waits for now; "" when it waits for nothing."""
        ...

    def read(self) -> Sequence[str]:
        """What each rank wrote last, by rank."""
        ...


class TorchGroup(Group):
    """A rank that is a process.

    Attributes:
        limit_s: how long a wait may last; None: as long as the process group's own limit (gloo only).

    Args:
        process_group: torch's; None: the default one, of all processes.
        device: where the tensors live that are sent; None: this process's GPU for NCCL, else the CPU.
        board: where to write what this rank waits for; None: nowhere.
        interruptible: wait in another thread, so that Ctrl-C is heard at once; some 50 µs a message. (A lab's
            ranks do without: there the connections are shut, which also ends torch's own collectives.)

    Raises:
        ParallelError: torch.distributed has not been initialised.
    """

    def __init__(
        self,
        process_group: dist.ProcessGroup | None = None,
        *,
        device: torch.device | None = None,
        limit_s: float | None = None,
        board: Board | None = None,
        interruptible: bool = False,
    ) -> None:
        super().__init__()
        found = process_group or dist.group.WORLD
        if found is None:
            raise ParallelError("call torch.distributed.init_process_group first, or start it by torchrun")
        self.process_group = found
        self.rank = found.rank()
        self.size = found.size()
        self._place = device or torch.device("cuda" if dist.get_backend(found) == "nccl" else "cpu")
        self._is_nccl = self._place.type == "cuda"  # a group can have both: gloo for CPU tensors
        self.limit_s = limit_s
        self._board = board
        self._interruptible = interruptible
        self._waits: list[str] = []  # of this thread and of those in the background
        self._writing = threading.Lock()

    def _device(self) -> torch.device:
        return self._place

    def _isend(self, tensor: Tensor, to: int, tag: int) -> Pending:
        work = dist.isend(tensor, group=self.process_group, group_dst=to, tag=tag)
        return self._watched(work, tensor, f"to send {n_bytes(tensor):,} bytes to rank {to}")

    def _irecv(self, tensor: Tensor, source: int, tag: int) -> Pending:
        work = dist.irecv(tensor, group=self.process_group, group_src=source, tag=tag)
        return self._watched(work, tensor, f"to receive {n_bytes(tensor):,} bytes from rank {source}")

    def _exchange(self, outgoing: Tensor, to: int, incoming: Tensor, source: int, tag: int) -> None:
        if not self._is_nccl:
            super()._exchange(outgoing, to, incoming, source, tag)
            return
        # One kernel for both: two in a row would wait for each other on every rank.
        group = self.process_group
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, outgoing, group=group, group_peer=to, tag=tag),
                dist.P2POp(dist.irecv, incoming, group=group, group_peer=source, tag=tag),
            ]
        )
        for work in works:
            work.wait()

    def _watched(self, work: dist.Work | None, tensor: Tensor, words: str) -> Pending:
        assert work is not None, "this rank is in the group"
        return _Message(self, work, tensor, words)

    def finish(self, work: dist.Work, words: str) -> None:
        """Wait for a message, for so long as may be, with a word on the board.

        Raises:
            ParallelError: it did not come; the message says what each rank waits for.
        """
        self._note(words, begins=True)
        try:
            if self._interruptible:
                _in_a_thread(lambda: self._wait(work))
            else:
                self._wait(work)
        except RuntimeError as error:
            raise ParallelError(f"rank {self.rank} waited {words}: {self._told(error)}") from error
        self._note(words, begins=False)

    def _note(self, words: str, *, begins: bool) -> None:
        """A wait begins or has ended: write on the board what this rank waits for now."""
        if self._board is None:
            return
        with self._writing:
            (self._waits.append if begins else self._waits.remove)(words)
            self._board.write(self.rank, " and ".join(self._waits))

    def _wait(self, work: dist.Work) -> None:
        if self.limit_s is None or self._is_nccl:
            work.wait()
        else:
            work.wait(timedelta(seconds=self.limit_s))

    def _told(self, error: RuntimeError) -> str:
        """What happened, and what each rank waits for if there is a board."""
        words = str(error).split("] ", 1)[-1].splitlines()[0]
        if self._board is None:
            return words
        standing = [
            f"rank {rank} {f'waits {said}' if said else 'waits for no message'}"
            for rank, said in enumerate(self._board.read())
        ]
        return f"{words}: {'; '.join(standing)}"


class _Message:
    """A message on its way; keeps its tensor alive until it has arrived."""

    def __init__(self, group: TorchGroup, work: dist.Work, tensor: Tensor, words: str) -> None:
        self._group, self._work, self._tensor, self._words = group, work, tensor, words

    def wait(self) -> None:
        self._group.finish(self._work, self._words)


def _in_a_thread(action: Callable[[], None]) -> None:
    """Do it in another thread: this one hears signals meanwhile, which no wait inside of torch does."""
    done = threading.Event()
    errors: list[BaseException] = []

    def do() -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=do, daemon=True).start()
    done.wait()
    if errors:
        raise errors[0]
