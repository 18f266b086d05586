"""What each process of test_torch_group.py does: `torch_group_jobs.py RANK SIZE FOLDER` prints it as JSON."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from scalelab.core.errors import ParallelError
from scalelab.lab.ranks.board import FileBoard
from scalelab.parallel.scratch.group import Group
from scalelab.parallel.scratch.torch_group import TorchGroup


def around(group: Group) -> list[float]:
    """What has come from each rank after a full turn of the ring."""
    own, seen = torch.full((3,), float(group.rank)), []
    for _ in range(group.size - 1):
        into = torch.empty(3)
        group.exchange(own, group.next, into, group.previous)
        own = into
        seen.append(float(own[0]))
    return seen


def tags(group: Group) -> list[float]:
    """Six messages from rank 0, received by rank 1 in another order."""
    if group.rank == 0:
        for pending in [group.isend(torch.tensor([float(n)]), 1, tag=n % 2) for n in range(6)]:
            pending.wait()
    into = torch.zeros(6)
    if group.rank == 1:
        for place, tag in enumerate([1, 1, 0, 1, 0, 0]):
            group.recv(into[place : place + 1], 0, tag=tag)
    return into.tolist()


def counted(group: Group) -> list[int]:
    """Messages and bytes of a turn of the ring and a barrier."""
    with group.counted() as sent:
        around(group)
        group.barrier()
    return [sent.traffic.messages, sent.traffic.n_bytes]


def among_some(group: Group) -> list[float] | None:
    """The ring of ranks 2 and 0."""
    return around(group.subgroup([2, 0])) if group.rank != 1 else None


def beside(group: Group) -> list[float]:
    """Two exchanges at once, one of them in a thread, with tags of their own."""
    one, other = torch.zeros(2), torch.zeros(2)
    own = torch.full((2,), float(group.rank))
    pending = group.background(lambda: group.exchange(own, group.previous, one, group.next, tag=7))
    group.exchange(own, group.next, other, group.previous)
    pending.wait()
    return [float(one[0]), float(other[0])]


def refused(group: Group) -> list[str]:
    """What is said of messages that cannot be."""
    said = []
    for tensor, to in ((torch.zeros(2), group.rank), (torch.zeros(2), 9), (torch.zeros(4, 4).T, group.next)):
        try:
            group.send(tensor, to)
        except ParallelError as error:
            said.append(str(error))
    return said


def in_vain(group: Group) -> str:
    """Rank 0 waits for rank 1, which waits for rank 2, which waits for none."""
    try:
        if group.rank < 2:
            group.recv(torch.zeros(5), group.rank + 1)
    except ParallelError as error:
        return str(error)
    time.sleep(1)  # or its connections would be closed before the others' limit
    return ""


def interrupted(group: Group) -> float:
    """Seconds after which a signal was heard in a wait, rank 2's; the others sleep meanwhile."""
    begun = time.monotonic()
    if group.rank == 2:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            group.recv(torch.zeros(1), 0)
        except KeyboardInterrupt:
            return time.monotonic() - begun
    time.sleep(1)
    return 0.0


def main(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    board = FileBoard(folder / "board", size)
    answers: dict[str, Any] = {}

    def do(meeting: str, jobs: list[Callable[[Group], Any]], **options: Any) -> None:
        where = f"file://{folder}/{meeting}"
        limit = timedelta(seconds=60)
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=size, timeout=limit)
        dist.barrier()
        group = TorchGroup(board=board, **options)
        for job in jobs:
            answers[f"{job.__name__} {meeting}"] = job(group)
        dist.destroy_process_group()

    do("first", [around, tags, counted, among_some, beside, refused], limit_s=30)
    do("second", [in_vain], limit_s=0.5)
    board.write(rank, "")
    do("third", [around, interrupted], interruptible=True)
    do("fourth", [around])
    sys.stdout.write(json.dumps(answers))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
