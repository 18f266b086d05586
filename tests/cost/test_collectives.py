"""What collectives send: each algorithm is run step by step on numbers, and every message is counted."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from scalelab.core.errors import ConfigError
from scalelab.cost import (
    Collective,
    Link,
    all_gather,
    all_reduce,
    all_to_all,
    broadcast,
    point_to_point,
    reduce,
    reduce_scatter,
    split_sizes,
)

Vector = list[int]


class Wires:
    """Ranks that hold vectors and send slices of them, counted; a step delivers all messages at once."""

    def __init__(self, n: int, p: int) -> None:
        draw = random.Random(100 * n + p)
        self.held = [[draw.randrange(1000) for _ in range(n)] for _ in range(p)]
        self.summed = [sum(column) for column in zip(*self.held, strict=True)]
        self.sent, self.messages = [0] * p, [0] * p
        self.steps = self.critical = 0
        self.ends = [0]
        for size in split_sizes(n, p):
            self.ends.append(self.ends[-1] + size)

    def piece(self, index: int) -> slice:
        index %= len(self.held)
        return slice(self.ends[index], self.ends[index + 1])

    def step(self, messages: list[tuple[int, int, slice, bool]]) -> None:
        """Each message: from, to, which elements, and whether they are added to what is there."""
        going = [(source, to, where, add, self.held[source][where]) for source, to, where, add in messages]
        for source, to, where, add, values in going:
            self.sent[source] += len(values)
            self.messages[source] += 1
            here = self.held[to][where]
            self.held[to][where] = [a + b for a, b in zip(here, values, strict=True)] if add else values
        self.steps += 1
        self.critical += max((len(values) for *_, values in going), default=0)

    def counted(self, bytes_per_element: int) -> Collective:
        return Collective(
            steps=self.steps,
            critical_bytes=bytes_per_element * self.critical,
            sent_bytes=tuple(bytes_per_element * sent for sent in self.sent),
            messages=tuple(self.messages),
        )


def _ring_scatter(wires: Wires, p: int) -> None:
    for s in range(p - 1):
        wires.step([(r, (r + 1) % p, wires.piece(r - 1 - s), True) for r in range(p)])


def _ring_gather(wires: Wires, p: int) -> None:
    for s in range(p - 1):
        wires.step([(r, (r + 1) % p, wires.piece(r - s), False) for r in range(p)])


def _ring(wires: Wires, p: int) -> None:
    _ring_scatter(wires, p)
    _ring_gather(wires, p)


def _distances(p: int) -> list[int]:
    return [1 << k for k in range((p - 1).bit_length())]


def _tree_up(wires: Wires, p: int, root: int) -> None:
    whole = slice(None)
    for distance in _distances(p):
        senders = [place for place in range(p) if place % (2 * distance) == distance]
        wires.step([((v + root) % p, (v - distance + root) % p, whole, True) for v in senders])


def _tree_down(wires: Wires, p: int, root: int) -> None:
    whole = slice(None)
    for distance in reversed(_distances(p)):
        senders = [place for place in range(0, p, 2 * distance) if place + distance < p]
        wires.step([((v + root) % p, (v + distance + root) % p, whole, False) for v in senders])


def _tree(wires: Wires, p: int) -> None:
    _tree_up(wires, p, 0)
    _tree_down(wires, p, 0)


def _all_to_all(wires: Wires, p: int) -> None:
    mine = [list(vector) for vector in wires.held]
    for s in range(1, p):
        gathered = [list(vector) for vector in wires.held]
        wires.held = [list(vector) for vector in mine]  # each sends what it had, and adds up what comes
        wires.step([(r, (r + s) % p, slice(None), False) for r in range(p)])
        wires.held = [
            [a + b for a, b in zip(g, w, strict=True)] for g, w in zip(gathered, wires.held, strict=True)
        ]


def _server(wires: Wires, p: int) -> None:
    for r in range(1, p):
        wires.step([(r, 0, slice(None), True)])
    for r in range(1, p):
        wires.step([(0, r, slice(None), False)])


def _halving_doubling(wires: Wires, p: int) -> None:
    core = 1 << (p.bit_length() - 1)
    extra = p - core
    places = [2 * j + 1 if j < extra else j + extra for j in range(core)]
    n = len(wires.held[0])
    ends = [0]
    for size in split_sizes(n, core):
        ends.append(ends[-1] + size)
    if extra:
        wires.step([(2 * j, 2 * j + 1, slice(None), True) for j in range(extra)])
    distances = [core >> k for k in range(1, core.bit_length())]
    for distance in distances:
        messages = []
        for j in range(core):
            there = (j ^ distance) // distance * distance
            messages.append(
                (places[j], places[j ^ distance], slice(ends[there], ends[there + distance]), True)
            )
        wires.step(messages)
    for distance in reversed(distances):
        messages = []
        for j in range(core):
            here = j // distance * distance
            messages.append(
                (places[j], places[j ^ distance], slice(ends[here], ends[here + distance]), False)
            )
        wires.step(messages)
    if extra:
        wires.step([(2 * j + 1, 2 * j, slice(None), False) for j in range(extra)])


ALGORITHMS: dict[str, Callable[[Wires, int], None]] = {
    "ring": _ring,
    "tree": _tree,
    "all_to_all": _all_to_all,
    "parameter_server": _server,
    "halving_doubling": _halving_doubling,
}
SIZES = [(0, 3), (1, 4), (3, 4), (10, 4), (12, 4), (37, 5), (64, 7), (1, 1), (50, 8), (53, 13), (29, 2)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("n", "p"), SIZES)
def test_an_all_reduce_that_is_run_step_by_step_sums_and_sends_what_is_counted(
    algorithm: str, n: int, p: int
) -> None:
    wires = Wires(n, p)
    ALGORITHMS[algorithm](wires, p)
    assert wires.held == [wires.summed] * p
    assert all_reduce(n, p, algorithm=algorithm, bytes_per_element=2) == wires.counted(2)


@pytest.mark.parametrize(("n", "p"), SIZES)
def test_a_ring_reduce_scatter_leaves_each_rank_its_own_piece_and_sends_what_is_counted(
    n: int, p: int
) -> None:
    wires = Wires(n, p)
    _ring_scatter(wires, p)
    assert all(wires.held[r][wires.piece(r)] == wires.summed[wires.piece(r)] for r in range(p))
    assert reduce_scatter(n, p) == wires.counted(4)


@pytest.mark.parametrize(("n", "p"), SIZES)
def test_a_ring_all_gather_brings_every_piece_everywhere_and_sends_what_is_counted(n: int, p: int) -> None:
    wires = Wires(n, p)
    whole = [wires.held[r][i] for r in range(p) for i in range(*wires.piece(r).indices(n))]
    _ring_gather(wires, p)
    assert wires.held == [whole] * p
    assert all_gather(n, p) == wires.counted(4)


@pytest.mark.parametrize("root", [0, 2])
@pytest.mark.parametrize(("n", "p"), [(7, 3), (5, 6), (9, 8), (4, 11)])
def test_trees_that_are_run_step_by_step_send_what_is_counted_from_any_root(
    n: int, p: int, root: int
) -> None:
    up, down = Wires(n, p), Wires(n, p)
    _tree_up(up, p, root)
    assert up.held[root] == up.summed
    assert reduce(n, p, root=root) == up.counted(4)
    _tree_down(down, p, root)
    assert down.held == [down.held[root]] * p
    assert broadcast(n, p, root=root) == down.counted(4)


def test_an_all_to_all_sends_every_piece_but_ones_own() -> None:
    assert all_to_all(10, 4, bytes_per_element=1).sent_bytes == (7, 7, 8, 8)


def test_a_message_between_two_ranks_is_sent_by_one() -> None:
    found = point_to_point(5, bytes_per_element=2)
    assert found == Collective(steps=1, critical_bytes=10, sent_bytes=(10, 0), messages=(1, 0))


@pytest.mark.parametrize(("n", "parts"), [(0, 3), (2, 5), (10, 4), (17, 17), (100, 7)])
def test_pieces_are_those_of_torch_tensor_split(n: int, parts: int) -> None:
    assert split_sizes(n, parts) == tuple(len(piece) for piece in torch.arange(n).tensor_split(parts))


@pytest.mark.parametrize("p", [2, 3, 8, 100])
def test_an_even_ring_all_reduce_sends_twice_the_tensor_but_two_pieces_from_every_rank(p: int) -> None:
    # Patarasuk & Yuan 2009: no all-reduce can send less than 2 (p-1)/p n from the busiest rank.
    found = all_reduce(6_000 * p, p, bytes_per_element=1)
    assert set(found.sent_bytes) == {2 * (p - 1) * 6_000}
    assert found.steps == 2 * (p - 1)
    assert found.critical_bytes == found.max_sent_bytes
    for other in ALGORITHMS:
        assert all_reduce(6_000 * p, p, algorithm=other, bytes_per_element=1).max_sent_bytes >= (
            found.max_sent_bytes
        )


def test_seconds_are_latency_times_steps_and_the_longest_messages_over_bandwidth() -> None:
    link = Link(latency_s=1e-3, bytes_per_s=1e6)
    found = all_reduce(1_000, 4, algorithm="tree")
    assert found.seconds(link) == pytest.approx(4 * 1e-3 + 4 * 4_000 / 1e6)


def test_a_tree_wins_on_short_tensors_and_a_ring_on_long_ones() -> None:
    link = Link(latency_s=5e-6, bytes_per_s=10e9)

    def seconds(n: int, algorithm: str) -> float:
        return all_reduce(n, 64, algorithm=algorithm).seconds(link)

    assert seconds(100, "tree") < seconds(100, "ring")
    assert seconds(10_000_000, "ring") < seconds(10_000_000, "tree") / 4
    assert seconds(10_000_000, "halving_doubling") < seconds(10_000_000, "ring")  # fewer steps, as many bytes


def test_collectives_add_up_one_after_the_other_in_groups_of_one_size_only() -> None:
    one, other = all_reduce(10, 4), broadcast(3, 4)
    assert (one + other).sent_bytes == tuple(
        a + b for a, b in zip(one.sent_bytes, other.sent_bytes, strict=True)
    )
    assert one.times(3) == one + one + one
    assert one.times(0).total_bytes == 0
    assert (one.ranks, one.total_bytes) == (4, sum(one.sent_bytes))
    with pytest.raises(ConfigError, match="4 ranks cannot be followed by one of 5"):
        one + all_reduce(10, 5)


def test_sizes_ranks_roots_and_ways_that_are_none_are_refused_with_the_value() -> None:
    with pytest.raises(ConfigError, match="n_elements must be a whole number of at least 0, got -1"):
        all_reduce(-1, 4)
    with pytest.raises(ConfigError, match="ranks must be a whole number of at least 1, got 0"):
        all_gather(4, 0)
    with pytest.raises(ConfigError, match=r"bytes_per_element must be .* at least 1, got 0\.5"):
        reduce_scatter(4, 2, bytes_per_element=0.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"algorithm must be one of ring, tree.*got 'star'"):
        all_reduce(4, 2, algorithm="star")
    with pytest.raises(ConfigError, match="root=3 is no rank: there are ranks 0 to 2"):
        broadcast(4, 3, root=3)
    with pytest.raises(ConfigError, match="count must be a whole number"):
        all_reduce(4, 2).times(-1)
