"""Ranks as threads: messages arrive in order, traffic is counted, and a wait in vain is told at once."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from scalelab.core.errors import ConfigError, ParallelError
from scalelab.parallel.scratch import threads
from scalelab.parallel.scratch.group import Group, Traffic
from scalelab.parallel.scratch.threads import OutOfTime, run_threads


def around(group: Group) -> list[float]:
    """What has come from each rank after a full turn of the ring."""
    own, seen = torch.full((3,), float(group.rank)), []
    for _ in range(group.size - 1):
        into = torch.empty(3)
        group.exchange(own, group.next, into, group.previous)
        own = into
        seen.append(float(own[0]))
    return seen


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_ring_of_exchanges_brings_every_ranks_tensor(size: int) -> None:
    found = run_threads(size, around)
    assert found == [[(rank - step) % size for step in range(1, size)] for rank in range(size)]


def test_messages_of_one_tag_arrive_in_order_and_tags_keep_them_apart() -> None:
    def work(group: Group) -> list[float]:
        if group.rank == 0:
            sends = [group.isend(torch.tensor([float(n)]), 1, tag=n % 2) for n in range(6)]
            for pending in sends:
                pending.wait()
            return []
        into = torch.empty(6)
        for place, tag in enumerate([1, 1, 0, 1, 0, 0]):
            group.recv(into[place : place + 1], 0, tag=tag)
        return into.tolist()

    assert run_threads(2, work)[1] == [1, 3, 0, 5, 2, 4]


def test_a_send_ends_only_when_the_other_rank_receives() -> None:
    def work(group: Group) -> float:
        start = time.monotonic()
        if group.rank == 0:
            group.send(torch.zeros(1), 1)
        else:
            time.sleep(0.3)
            group.recv(torch.zeros(1), 0)
        return time.monotonic() - start

    assert run_threads(2, work)[0] >= 0.25


def test_what_a_rank_sends_is_counted_and_barriers_are_not() -> None:
    def work(group: Group) -> tuple[Traffic, Traffic]:
        group.barrier()
        with group.counted() as sent:
            group.exchange(torch.zeros(5), group.next, torch.empty(5), group.previous)
            group.exchange(torch.zeros(2).double(), group.next, torch.empty(2).double(), group.previous)
        group.barrier()
        return sent.traffic, group.traffic

    assert run_threads(3, work) == [(Traffic(2, 36), Traffic(2, 36))] * 3


def test_subgroups_number_their_ranks_anew_and_count_for_the_whole() -> None:
    def work(group: Group) -> tuple[int, list[float], Traffic, Traffic]:
        row = group.subgroup([group.rank // 2 * 2, group.rank // 2 * 2 + 1])
        column = group.subgroup([group.rank % 2, group.rank % 2 + 2])
        seen = around(row) + around(column)
        row.barrier()
        return row.rank, seen, row.traffic, group.traffic

    found = run_threads(4, work)
    assert [rank for rank, _, _, _ in found] == [0, 1, 0, 1]
    assert [seen for _, seen, _, _ in found] == [[1, 1], [0, 1], [1, 0], [0, 0]]
    assert all(row == Traffic(1, 12) and whole == Traffic(2, 24) for _, _, row, whole in found)


def test_ranks_that_all_send_first_are_told_who_waits_for_whom_at_once() -> None:
    def work(group: Group) -> None:
        group.send(torch.zeros(4), group.next)
        group.recv(torch.zeros(4), group.previous)

    start = time.monotonic()
    with pytest.raises(ParallelError, match="for ever") as caught:
        run_threads(3, work)
    assert time.monotonic() - start < 5
    for rank in range(3):
        assert f"rank {rank} waits to send 16 bytes to rank {(rank + 1) % 3}" in str(caught.value)


def test_a_rank_that_leaves_early_is_named() -> None:
    def work(group: Group) -> None:
        if group.rank != 2:
            group.barrier()

    with pytest.raises(ParallelError, match="rank 2 has finished"):
        run_threads(4, work)


def test_work_in_the_background_is_no_deadlock_and_its_errors_are_told() -> None:
    def work(group: Group, fails: bool) -> float:
        into = torch.empty(1)

        def behind() -> None:
            time.sleep(0.1)
            if fails and group.rank == 1:
                raise ValueError("behind")
            group.exchange(torch.ones(1), group.next, into, group.previous, tag=1)

        pending = group.background(behind)
        around(group)
        pending.wait()
        return float(into)

    assert run_threads(2, work, False) == [1.0, 1.0]
    with pytest.raises(ValueError, match="behind"):
        run_threads(2, work, True)


def test_what_failed_in_the_background_is_told_where_ranks_then_wait_in_vain() -> None:
    def work(group: Group) -> None:
        def behind() -> None:
            if group.rank == 1:
                raise ValueError("behind")
            group.exchange(torch.ones(1), group.next, torch.empty(1), group.previous, tag=1)

        pending = group.background(behind)
        if group.rank == 0:
            pending.wait()  # rank 1 has gone on, and nobody has waited for its error
        else:
            group.recv(torch.empty(1), 0, tag=2)

    with pytest.raises(ValueError, match="behind") as found:
        run_threads(2, work)
    assert any("background on rank 1" in note and "rank 0 waits" in note for note in found.value.__notes__)


def test_threads_that_have_ended_are_not_stopped_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[str] = []
    monkeypatch.setattr(threads, "_stop", lambda thread: stopped.append(thread.name))
    go_on = threading.Event()

    def work(group: Group) -> None:
        if group.rank:
            group.background(lambda: go_on.wait(20)).wait()

    with pytest.raises(OutOfTime):
        run_threads(2, work, limit_s=0.2)
    go_on.set()
    assert sorted(stopped) in (["rank 1", "rank 1, in the background"], ["rank 1, in the background"])


def test_the_first_error_is_told_with_its_rank() -> None:
    def work(group: Group) -> None:
        if group.rank == 1:
            raise KeyError("mine")
        group.barrier()

    with pytest.raises(KeyError) as caught:
        run_threads(3, work)
    assert caught.value.__notes__ == ["raised on rank 1 of 3"]


def test_ranks_at_work_for_too_long_are_given_up() -> None:
    def work(group: Group) -> None:
        if group.rank:
            time.sleep(3)

    with pytest.raises(ParallelError, match="rank 0 has finished; rank 1 is at work"):
        run_threads(2, work, limit_s=0.2)


@pytest.mark.parametrize(
    ("tensor", "to", "says"),
    [
        (torch.zeros(2), 2, "ranks 0 to 1"),
        (torch.zeros(2), -1, "ranks 0 to 1"),
        (torch.zeros(2), 0, "itself"),
        (torch.zeros(2, 3).T, 1, "contiguous"),
    ],
)
def test_impossible_sends_are_refused(tensor: torch.Tensor, to: int, says: str) -> None:
    def work(group: Group) -> None:
        if group.rank == 0:
            group.send(tensor, to)

    with pytest.raises(ParallelError, match=says):
        run_threads(2, work)


@pytest.mark.parametrize("room", [torch.zeros(3), torch.zeros(2, dtype=torch.float64)])
def test_a_message_that_does_not_fit_is_refused(room: torch.Tensor) -> None:
    def work(group: Group) -> None:
        if group.rank == 0:
            group.send(torch.zeros(2), 1)
        else:
            group.recv(room, 0)

    with pytest.raises(ParallelError, match=r"sends 2 numbers of torch.float32"):
        run_threads(2, work)


def test_impossible_groups_are_refused() -> None:
    with pytest.raises(ConfigError, match="size"):
        run_threads(0, around)
    for ranks, says in (([0, 0], "different"), ([0, 9], "different"), ([1], "not among")):
        with pytest.raises(ParallelError, match=says):
            run_threads(2, lambda group, ranks=ranks: group.rank or group.subgroup(ranks))
