"""Collectives give every rank what torch would, send what the cost model says, and do so for any sizes."""

from __future__ import annotations

import pytest
import torch

from scalelab.core.errors import ParallelError
from scalelab.cost import collectives as cost
from scalelab.parallel.scratch.collectives import (
    ALL_REDUCE,
    AllReduce,
    all_to_all,
    gathered_all_reduce,
    naive_all_reduce,
    ring_all_gather,
    ring_all_reduce,
    ring_reduce_scatter,
    tree_all_reduce,
    tree_broadcast,
    tree_reduce,
)
from scalelab.parallel.scratch.group import Group, Traffic
from scalelab.parallel.scratch.threads import run_threads

SIZES = [1, 2, 3, 4, 5, 8]
LENGTHS = [0, 1, 7, 64]


def tensors(size: int, n: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Another tensor for each rank."""
    return list(torch.randn(size, n, dtype=dtype, generator=torch.Generator().manual_seed(n)))


def sent(found: list[tuple[object, Traffic]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(t.n_bytes for _, t in found), tuple(t.messages for _, t in found)


def told(expected: cost.Collective) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return expected.sent_bytes, expected.messages


@pytest.mark.parametrize("name", ALL_REDUCE)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n", LENGTHS)
def test_an_all_reduce_leaves_the_sum_everywhere_and_sends_what_the_model_says(
    name: str, size: int, n: int
) -> None:
    values = tensors(size, n)

    def work(group: Group) -> tuple[torch.Tensor, Traffic]:
        own = values[group.rank].clone()
        with group.counted() as count:
            ALL_REDUCE[name](own, group)
        return own, count.traffic

    found = run_threads(size, work)
    for own, _ in found:
        torch.testing.assert_close(own, sum(values), rtol=1e-12, atol=1e-12)
        assert torch.equal(own, found[0][0]), "replicas must not drift apart"
    assert sent(found) == told(cost.all_reduce(n, size, algorithm=name, bytes_per_element=8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n", LENGTHS)
def test_a_reduce_scatter_leaves_each_rank_its_piece(size: int, n: int) -> None:
    values = tensors(size, n)

    def work(group: Group) -> tuple[torch.Tensor, Traffic]:
        before = values[group.rank].clone()
        with group.counted() as count:
            piece = ring_reduce_scatter(values[group.rank], group)
        assert torch.equal(before, values[group.rank]), "its input stays as it was"
        assert piece.data_ptr() != values[group.rank].data_ptr() or not n
        return piece, count.traffic

    found = run_threads(size, work)
    for (piece, _), wanted in zip(found, sum(values).tensor_split(size), strict=True):
        torch.testing.assert_close(piece, wanted, rtol=1e-12, atol=1e-12)
    assert sent(found) == told(cost.reduce_scatter(n, size, bytes_per_element=8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n", LENGTHS)
def test_an_all_gather_puts_the_pieces_together(size: int, n: int) -> None:
    whole = torch.arange(n)

    def work(group: Group) -> tuple[torch.Tensor, Traffic]:
        with group.counted() as count:
            gathered = ring_all_gather(whole.tensor_split(size)[group.rank], group, n)
        return gathered, count.traffic

    found = run_threads(size, work)
    assert all(torch.equal(gathered, whole) for gathered, _ in found)
    assert sent(found) == told(cost.all_gather(n, size, bytes_per_element=8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("root", [0, 1, 4])
def test_a_broadcast_and_a_reduce_have_any_root(size: int, root: int) -> None:
    if root >= size:
        pytest.skip("no such rank")
    values = tensors(size, 5)

    def work(group: Group) -> tuple[torch.Tensor, torch.Tensor, Traffic, Traffic]:
        own, other = values[group.rank].clone(), values[group.rank].clone()
        with group.counted() as down:
            tree_broadcast(own, root, group)
        with group.counted() as up:
            tree_reduce(other, root, group)
        return own, other, down.traffic, up.traffic

    found = run_threads(size, work)
    assert all(torch.equal(own, values[root]) for own, *_ in found)
    torch.testing.assert_close(found[root][1], sum(values), rtol=1e-12, atol=1e-12)
    for place, expected in ((2, cost.broadcast(5, size, root=root)), (3, cost.reduce(5, size, root=root))):
        counts = [row[place] for row in found]
        assert tuple(count.n_bytes for count in counts) == tuple(2 * sent for sent in expected.sent_bytes)
        assert tuple(count.messages for count in counts) == expected.messages


@pytest.mark.parametrize("size", SIZES)
def test_all_to_all_transposes_uneven_chunks(size: int) -> None:
    def work(group: Group) -> tuple[list[torch.Tensor], Traffic]:
        # To rank k go (rank + k) % 3 rows, each with where it comes from and where it goes.
        chunks = [
            torch.tensor([[group.rank, k]] * ((group.rank + k) % 3), dtype=torch.int64).view(-1, 2)
            for k in range(size)
        ]
        with group.counted() as count:
            came = all_to_all(chunks, group, sizes=[(group.rank + k) % 3 for k in range(size)])
        return came, count.traffic

    for rank, (came, traffic) in enumerate(run_threads(size, work)):
        for source, chunk in enumerate(came):
            assert chunk.tolist() == [[source, rank]] * ((rank + source) % 3)
        assert traffic.n_bytes == 16 * sum((rank + k) % 3 for k in range(size) if k != rank)


@pytest.mark.parametrize("n", [5, 64])
def test_all_to_all_of_alike_cut_tensors_sends_what_the_model_says(n: int) -> None:
    def work(group: Group) -> tuple[torch.Tensor, Traffic]:
        own = torch.full((n,), float(group.rank))
        with group.counted() as count:
            came = all_to_all(own.tensor_split(group.size), group)
        return torch.cat(came), count.traffic

    found = run_threads(4, work)
    for rank, (came, _) in enumerate(found):
        assert came.tolist() == [k for k in range(4) for _ in range(cost.split_sizes(n, 4)[rank])]
    assert sent(found) == told(cost.all_to_all(n, 4))


@pytest.mark.parametrize("name", ALL_REDUCE)
def test_two_all_reduces_at_once_are_kept_apart_by_their_tags(name: str) -> None:
    def work(group: Group) -> tuple[float, float]:
        one, two = torch.ones(9), torch.full((9,), 10.0)
        behind = group.background(lambda: ALL_REDUCE[name](one, group, tag=1))
        ALL_REDUCE[name](two, group, tag=2)
        behind.wait()
        return float(one.sum()), float(two.sum())

    assert run_threads(3, work) == [(27.0, 270.0)] * 3


def test_a_tensor_that_does_not_lie_in_one_piece_is_refused_not_left_as_it_was() -> None:
    def work(group: Group, method: AllReduce) -> None:
        method(torch.ones(3, 2).T, group)

    for method in (ring_all_reduce, tree_all_reduce, naive_all_reduce, gathered_all_reduce):
        with pytest.raises(ParallelError, match=r"use \.contiguous"):
            run_threads(2, work, method)


def test_what_cannot_be_put_together_is_refused() -> None:
    with pytest.raises(ParallelError, match="a piece of 3 elements, but of 5 over 2 ranks its own has 2"):
        run_threads(2, lambda group: ring_all_gather(torch.ones(3), group, 5) if group.rank else None)
    with pytest.raises(ParallelError, match="2 ranks need as many chunks, got 1"):
        run_threads(2, lambda group: all_to_all([torch.ones(1)], group))
    with pytest.raises(ParallelError, match="root=2 is no rank"):
        run_threads(2, lambda group: tree_broadcast(torch.ones(1), 2, group))


def test_a_collective_that_one_rank_stays_away_from_is_told() -> None:
    def work(group: Group) -> None:
        if group.rank != 2:
            ring_all_reduce(torch.ones(4), group)

    with pytest.raises(ParallelError, match=r"rank 1 waits to send 4 bytes to rank 2.*rank 2 has finished"):
        run_threads(4, work)
