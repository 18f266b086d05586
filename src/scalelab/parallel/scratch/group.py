"""What a rank can do: send a tensor to another rank, receive one, and count what it sent.

Every method of this package is built from these calls alone, so it runs wherever a group of them exists: as
threads of one process (`threads.py`), or as processes on gloo or NCCL (`torch_group.py`).
Source: the calls are those of MPI 4.1, chapter 3 (send, recv, isend, irecv, sendrecv), and of
torch.distributed. Taught in book/parallelism/data-parallel.md.
"""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scalelab.core.errors import ParallelError

BARRIER_TAG = 1 << 20  # far from any tag that a method uses


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one rank has sent.

    Attributes:
        messages: how many tensors.
        n_bytes: of their elements; what a network adds around them is not counted.
    """

    messages: int = 0
    n_bytes: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.messages + other.messages, self.n_bytes + other.n_bytes)

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(self.messages - other.messages, self.n_bytes - other.n_bytes)


class Pending(Protocol):
    """A message on its way."""

    def wait(self) -> None:
        """Return when it has been taken (sent) or is there (received); leave the tensor alone until then.

        Raises:
            ParallelError: it never will be.
        """
        ...


class Group(ABC):
    """Ranks that send each other tensors, as one of them sees it.

    Messages between two ranks with the same tag arrive in the order in which they were sent. A tensor is
    received into one of the same type and number of elements, in place. Both must be contiguous.

    With NCCL "returns when" means that the GPU has been told so: its stream waits, and the host goes on.

    Attributes:
        rank: this one, from 0. size: how many there are.
    """

    rank: int
    size: int

    def __init__(self) -> None:
        self._traffic = Traffic()
        self._counting = threading.Lock()  # a rank may send from `background` as well

    # --- what an implementation gives ---------------------------------------------------------------------

    @abstractmethod
    def _isend(self, tensor: Tensor, to: int, tag: int) -> Pending:
        """`isend` of what has been checked, uncounted."""

    @abstractmethod
    def _irecv(self, tensor: Tensor, source: int, tag: int) -> Pending:
        """`irecv` of what has been checked."""

    def _exchange(self, outgoing: Tensor, to: int, incoming: Tensor, source: int, tag: int) -> None:
        """`exchange` of what has been checked, uncounted."""
        sent = self._isend(outgoing, to, tag)
        self._irecv(incoming, source, tag).wait()
        sent.wait()

    def background(self, work: Callable[[], None]) -> Pending:
        """Do something beside what this rank does, in a thread; `wait` for it raises what it raised.

        Its messages need a tag of their own. With NCCL, which has none, only one of the two may communicate.
        """
        return Background(work)

    # --- what a rank does ---------------------------------------------------------------------------------

    def isend(self, tensor: Tensor, to: int, *, tag: int = 0) -> Pending:
        """Begin to send a tensor to a rank. The tensor must stay as it is until `wait` returns.

        Args:
            tag: keeps messages apart that travel between the same two ranks at the same time. NCCL knows no
                tags and pairs messages by their order.

        Raises:
            ParallelError: no such rank, or this one itself; a tensor that is not contiguous.
        """
        self._check(tensor, to, "send to")
        pending = self._isend(tensor.detach(), to, tag)
        self._count(tensor)
        return pending

    def irecv(self, tensor: Tensor, source: int, *, tag: int = 0) -> Pending:
        """Begin to receive a tensor from a rank into this one, which is overwritten.

        Raises:
            ParallelError: as `isend`.
        """
        self._check(tensor, source, "receive from")
        return self._irecv(tensor.detach(), source, tag)

    def send(self, tensor: Tensor, to: int, *, tag: int = 0) -> None:
        """Send a tensor; returns when the other rank has taken it, which it does only when it receives."""
        self.isend(tensor, to, tag=tag).wait()

    def recv(self, tensor: Tensor, source: int, *, tag: int = 0) -> None:
        """Receive a tensor into this one; returns when it is there."""
        self.irecv(tensor, source, tag=tag).wait()

    def exchange(self, outgoing: Tensor, to: int, incoming: Tensor, source: int, *, tag: int = 0) -> None:
        """Send to one rank while receiving from another (or the same): what a ring's ranks do all at once.

        `send` and then `recv` would not do: were all ranks to send first, none would be there to receive.
        """
        self._check(outgoing, to, "send to")
        self._check(incoming, source, "receive from")
        self._exchange(outgoing.detach(), to, incoming.detach(), source, tag)
        self._count(outgoing)

    def barrier(self) -> None:
        """Return when every rank has called this. Its messages are not counted."""
        if self.size == 1:
            return
        token = torch.zeros(1, dtype=torch.uint8, device=self._device())
        for _ in range(2):  # once around: all have come; twice: all know it
            if self.rank == 0:
                self._isend(token, self.next, BARRIER_TAG).wait()
                self._irecv(token, self.previous, BARRIER_TAG).wait()
            else:
                self._irecv(token, self.previous, BARRIER_TAG).wait()
                self._isend(token, self.next, BARRIER_TAG).wait()

    def subgroup(self, ranks: Sequence[int], *, tag: int = 0) -> Group:
        """Some of the ranks as a group of their own, in this order; this rank must be one of them.

        Needs no message, so ranks may form different groups at the same time. What is sent in it counts for
        this group as well.

        Args:
            tag: added to that of every message: another one for each group that shares two ranks with this.

        Raises:
            ParallelError: a rank that is none, comes twice, or the lack of this one.
        """
        return Subgroup(self, ranks, tag=tag)

    @property
    def next(self) -> int:
        """The rank after this one on a ring."""
        return (self.rank + 1) % self.size

    @property
    def previous(self) -> int:
        """The rank before this one on a ring."""
        return (self.rank - 1) % self.size

    @property
    def traffic(self) -> Traffic:
        """What this rank has sent since the group exists."""
        return self._traffic

    @contextlib.contextmanager
    def counted(self) -> Iterator[Count]:
        """What this rank sends inside the block: `with group.counted() as sent: …`, then `sent.traffic`."""
        before = self.traffic
        count = Count()
        try:
            yield count
        finally:
            count.traffic = self.traffic - before

    def _device(self) -> torch.device:
        """Where tensors of this group live."""
        return torch.device("cpu")

    def _count(self, tensor: Tensor) -> None:
        with self._counting:
            self._traffic += Traffic(1, n_bytes(tensor))

    def _check(self, tensor: Tensor, rank: int, verb: str) -> None:
        if not 0 <= rank < self.size:
            raise ParallelError(
                f"rank {self.rank} would {verb} rank {rank}: there are ranks 0 to {self.size - 1}"
            )
        if rank == self.rank:
            raise ParallelError(f"rank {self.rank} would {verb} itself: copy the tensor instead")
        if not tensor.is_contiguous():
            raise ParallelError(
                f"rank {self.rank} would {verb} rank {rank} with a tensor of shape {tuple(tensor.shape)} and "
                f"strides {tensor.stride()}, which does not lie in one piece: use .contiguous()"
            )


@dataclass(slots=True)
class Count:
    """Filled when a `Group.counted` block ends."""

    traffic: Traffic = Traffic()


class Subgroup(Group):
    """Some ranks of a group, numbered anew from 0. Made by `Group.subgroup`."""

    def __init__(self, parent: Group, ranks: Sequence[int], *, tag: int = 0) -> None:
        super().__init__()
        if len(set(ranks)) != len(ranks) or not all(0 <= rank < parent.size for rank in ranks):
            raise ParallelError(f"ranks must be different ones of 0 to {parent.size - 1}, got {list(ranks)}")
        if parent.rank not in ranks:
            raise ParallelError(
                f"rank {parent.rank} is not among {list(ranks)}: only its members make a subgroup"
            )
        self.parent = parent
        self.ranks = tuple(ranks)
        self.rank = self.ranks.index(parent.rank)
        self.size = len(self.ranks)
        self._tag = tag

    def background(self, work: Callable[[], None]) -> Pending:
        return self.parent.background(work)

    def _isend(self, tensor: Tensor, to: int, tag: int) -> Pending:
        return self.parent._isend(tensor, self.ranks[to], self._tag + tag)

    def _irecv(self, tensor: Tensor, source: int, tag: int) -> Pending:
        return self.parent._irecv(tensor, self.ranks[source], self._tag + tag)

    def _exchange(self, outgoing: Tensor, to: int, incoming: Tensor, source: int, tag: int) -> None:
        self.parent._exchange(outgoing, self.ranks[to], incoming, self.ranks[source], self._tag + tag)

    def _device(self) -> torch.device:
        return self.parent._device()

    def _count(self, tensor: Tensor) -> None:
        super()._count(tensor)
        self.parent._count(tensor)


class Background:
    """A function at work in a thread of its own."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._do, args=(work,), daemon=True)
        self._thread.start()

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # told by `wait`, to the rank whose work it is
            self._error = error

    def wait(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error


def n_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()
