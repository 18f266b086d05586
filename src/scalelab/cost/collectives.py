"""What a collective sends, to the byte and for each rank, and what that costs on a link.

A ring all-reduce sends 2 (p-1)/p of the tensor from every rank however many there are, in 2 (p-1) steps;
a tree takes 2 log2 p steps, each with the whole tensor; the naive ways send the whole tensor p-1 times. So
rings win on long tensors and trees on short ones.

A tensor of n elements is cut into p pieces as `torch.tensor_split` cuts it: the first n mod p have one more.
Bytes are those of the elements. A step is what every rank does at once; it takes as long as its longest
message, and the next starts when it ends. Adding is taken to cost nothing, and nobody else to use the wires.
Source: Thakur, Rabenseifner & Gropp 2005, doi:10.1177/1094342005051521, sections 3 and 4 (trees, recursive
halving and doubling, ring); Patarasuk & Yuan 2009, doi:10.1016/j.jpdc.2008.09.002 (ring all-reduce, and why
none sends less); Li et al. 2014, OSDI (parameter server). Taught in book/parallelism/data-parallel.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate

from scalelab.core.checks import check_choice, check_count, check_positive_int
from scalelab.core.errors import ConfigError
from scalelab.cost.communication import Link

FULL = 4  # bytes of an fp32 number


@dataclass(frozen=True, kw_only=True, slots=True)
class Collective:
    """What a group sends in one collective, or in several one after the other.

    Attributes:
        steps: rounds, one after the other.
        critical_bytes: the largest message of each round, added up over rounds.
        sent_bytes: what each rank sends.
        messages: how many tensors each rank sends, empty ones too.
    """

    steps: int
    critical_bytes: int
    sent_bytes: tuple[int, ...]
    messages: tuple[int, ...]

    @property
    def ranks(self) -> int:
        """p, the size of the group."""
        return len(self.sent_bytes)

    @property
    def total_bytes(self) -> int:
        """What all ranks send together."""
        return sum(self.sent_bytes)

    @property
    def max_sent_bytes(self) -> int:
        """What the busiest rank sends."""
        return max(self.sent_bytes)

    def seconds(self, link: Link) -> float:
        """alpha * steps + beta * critical_bytes."""
        return link.seconds(self.critical_bytes, messages=self.steps)

    def times(self, count: int) -> Collective:
        """So many of these, one after the other.

        Raises:
            ConfigError: no whole number of at least 0.
        """
        check_count("count", count)
        return Collective(
            steps=count * self.steps,
            critical_bytes=count * self.critical_bytes,
            sent_bytes=tuple(count * sent for sent in self.sent_bytes),
            messages=tuple(count * n for n in self.messages),
        )

    def __add__(self, other: Collective) -> Collective:
        """This one and then the other, in the same group.

        Raises:
            ConfigError: a group of another size.
        """
        if self.ranks != other.ranks:
            raise ConfigError(
                f"a collective of {self.ranks} ranks cannot be followed by one of {other.ranks}"
            )
        return Collective(
            steps=self.steps + other.steps,
            critical_bytes=self.critical_bytes + other.critical_bytes,
            sent_bytes=tuple(map(sum, zip(self.sent_bytes, other.sent_bytes, strict=True))),
            messages=tuple(map(sum, zip(self.messages, other.messages, strict=True))),
        )


def nothing(ranks: int) -> Collective:
    """What a group sends that sends nothing."""
    check_positive_int("ranks", ranks)
    return Collective(steps=0, critical_bytes=0, sent_bytes=(0,) * ranks, messages=(0,) * ranks)


def split_sizes(n: int, parts: int) -> tuple[int, ...]:
    """Sizes of the pieces of n elements: as equal as can be, the first n mod parts one larger.

    Raises:
        ConfigError: n is no whole number of at least 0, or parts none of at least 1.

    Source: torch.tensor_split.
    """
    check_count("n", n)
    check_positive_int("parts", parts)
    size, larger = divmod(n, parts)
    return (size + 1,) * larger + (size,) * (parts - larger)


def all_reduce(
    n_elements: int, ranks: int, *, algorithm: str = "ring", bytes_per_element: int = FULL
) -> Collective:
    """Every rank has a tensor, and gets the sum of all of them.

    Args:
        n_elements: n, of each rank's tensor.
        ranks: p.
        algorithm:
            "ring": reduce-scatter, then all-gather; rank r sends all pieces but two, twice.
            "tree": along a binomial tree to rank 0, and back along it.
            "all_to_all": every rank sends its tensor to every other, one after the other.
            "parameter_server": every rank sends its tensor to rank 0, which sends the sum to every other; it
                has one link, which carries one tensor at a time.
            "halving_doubling": halves are exchanged with the rank p/2 away, then quarters with that p/4 away,
                …, and back. When p is no power of two, of the first 2 (p - 2^k) ranks each even one hands its
                tensor to the next before, and gets the sum from it at the end.
        bytes_per_element: 4 for fp32, 2 for bf16.

    Raises:
        ConfigError: a count that is no whole number, no ranks, an unknown algorithm.
    """
    _check(n_elements, ranks, bytes_per_element)
    check_choice("algorithm", algorithm, tuple(_ALL_REDUCE))
    return _in_bytes(_ALL_REDUCE[algorithm](n_elements, ranks), bytes_per_element)


def reduce_scatter(n_elements: int, ranks: int, *, bytes_per_element: int = FULL) -> Collective:
    """Every rank has a tensor, and gets its own piece of the sum: p-1 steps around a ring.

    In step s rank r sends piece r-1-s to rank r+1, which adds it to its own: at the end rank r has sent every
    piece but its own.

    Args:
        n_elements: n, of each rank's tensor. ranks: p. bytes_per_element: 4 for fp32.

    Raises:
        ConfigError: as `all_reduce`.
    """
    _check(n_elements, ranks, bytes_per_element)
    return _in_bytes(_ring(n_elements, ranks, kept=0), bytes_per_element)


def all_gather(n_elements: int, ranks: int, *, bytes_per_element: int = FULL) -> Collective:
    """Every rank has a piece, and gets all of them: p-1 steps around a ring.

    In step s rank r sends piece r-s to rank r+1: at the end it has sent every piece but the next rank's.

    Args:
        n_elements: n, of all pieces together. ranks: p. bytes_per_element: 4 for fp32.

    Raises:
        ConfigError: as `all_reduce`.
    """
    _check(n_elements, ranks, bytes_per_element)
    return _in_bytes(_ring(n_elements, ranks, kept=1), bytes_per_element)


def all_to_all(n_elements: int, ranks: int, *, bytes_per_element: int = FULL) -> Collective:
    """Every rank has a piece for each rank: in step s rank r sends to rank r+s, and keeps its own piece.

    Args:
        n_elements: n, of each rank's tensor, which is cut into p pieces. ranks: p.
        bytes_per_element: 4 for fp32.

    Raises:
        ConfigError: as `all_reduce`.
    """
    return reduce_scatter(
        n_elements, ranks, bytes_per_element=bytes_per_element
    )  # other pieces, as many bytes


def broadcast(n_elements: int, ranks: int, *, root: int = 0, bytes_per_element: int = FULL) -> Collective:
    """One rank's tensor to all others along a binomial tree: ⌈log2 p⌉ steps, each with the whole tensor.

    Counted from the root, first 0 sends to the largest power of two below p, then 0 and that one to those
    half as far away, and so on down to neighbours.

    Args:
        n_elements: n. ranks: p. root: the rank that has it. bytes_per_element: 4 for fp32.

    Raises:
        ConfigError: as `all_reduce`, or a root that is no rank.
    """
    _check(n_elements, ranks, bytes_per_element)
    _check_root(root, ranks)
    return _in_bytes(_tree_down(n_elements, ranks, root), bytes_per_element)


def reduce(n_elements: int, ranks: int, *, root: int = 0, bytes_per_element: int = FULL) -> Collective:
    """The sum of all ranks' tensors to one of them along a binomial tree: a broadcast backwards.

    Args:
        n_elements: n. ranks: p. root: the rank that gets it. bytes_per_element: 4 for fp32.

    Raises:
        ConfigError: as `broadcast`.
    """
    _check(n_elements, ranks, bytes_per_element)
    _check_root(root, ranks)
    return _in_bytes(_tree_up(n_elements, ranks, root), bytes_per_element)


def point_to_point(n_elements: int, *, bytes_per_element: int = FULL) -> Collective:
    """One tensor from a rank to another: a group of two, the sender first.

    Raises:
        ConfigError: as `all_reduce`.
    """
    _check(n_elements, 2, bytes_per_element)
    return broadcast(n_elements, 2, bytes_per_element=bytes_per_element)


def _ring(n: int, p: int, *, kept: int) -> Collective:
    """p-1 steps in which rank r sends every piece but that of rank r + kept, each piece by some rank."""
    if p == 1:
        return nothing(1)
    pieces = split_sizes(n, p)
    return Collective(
        steps=p - 1,
        critical_bytes=(p - 1) * pieces[0],
        sent_bytes=tuple(n - pieces[(rank + kept) % p] for rank in range(p)),
        messages=(p - 1,) * p,
    )


def _ring_all_reduce(n: int, p: int) -> Collective:
    return _ring(n, p, kept=0) + _ring(n, p, kept=1)


def _tree_down(n: int, p: int, root: int) -> Collective:
    children = _from_root([_children(place, p) for place in range(p)], root)
    depth = (p - 1).bit_length()
    return Collective(
        steps=depth,
        critical_bytes=depth * n,
        sent_bytes=tuple(n * count for count in children),
        messages=tuple(children),
    )


def _tree_up(n: int, p: int, root: int) -> Collective:
    up = _from_root([int(place > 0) for place in range(p)], root)
    depth = (p - 1).bit_length()
    return Collective(
        steps=depth, critical_bytes=depth * n, sent_bytes=tuple(n * one for one in up), messages=tuple(up)
    )


def _children(place: int, p: int) -> int:
    """How many ranks a place of the tree sends to: those at powers of two below its lowest set bit."""
    count, distance = 0, 1
    while place + distance < p and (place & distance) == 0:
        count += 1
        distance *= 2
    return count


def _from_root(by_place: list[int], root: int) -> list[int]:
    """Counts by distance from the root, as counts by rank."""
    p = len(by_place)
    return [by_place[(rank - root) % p] for rank in range(p)]


def _tree_all_reduce(n: int, p: int) -> Collective:
    return _tree_up(n, p, 0) + _tree_down(n, p, 0)


def _naive(n: int, p: int) -> Collective:
    return Collective(
        steps=p - 1, critical_bytes=(p - 1) * n, sent_bytes=((p - 1) * n,) * p, messages=(p - 1,) * p
    )


def _parameter_server(n: int, p: int) -> Collective:
    return Collective(
        steps=2 * (p - 1),
        critical_bytes=2 * (p - 1) * n,
        sent_bytes=((p - 1) * n, *[n] * (p - 1)),
        messages=(p - 1, *[1] * (p - 1)),
    )


def _halving_doubling(n: int, p: int) -> Collective:
    core = 1 << (p.bit_length() - 1)  # the largest power of two within p
    extra = p - core
    ends = (0, *accumulate(split_sizes(n, core)))  # where each of the core's pieces starts, and the last ends
    sent, messages, critical = [0] * core, [0] * core, 0
    distance = core // 2
    while distance:
        # Each rank works on a block of 2 * distance pieces, its own among them. On the way out it sends the
        # half in which its partner's piece lies; on the way back the half in which its own does.
        largest = 0
        for rank in range(core):
            for member in (rank ^ distance, rank):
                start = member - member % distance
                size = ends[start + distance] - ends[start]
                sent[rank] += size
                messages[rank] += 1
                largest = max(largest, size)
        critical += 2 * largest
        distance //= 2
    inner = Collective(
        steps=2 * (core.bit_length() - 1),
        critical_bytes=critical,
        sent_bytes=tuple(sent),
        messages=tuple(messages),
    )
    return inner if extra == 0 else _folded(inner, n, extra)


def _folded(inner: Collective, n: int, extra: int) -> Collective:
    """Of the first 2 * extra ranks each even one hands its tensor to the next, which sends the sum back."""
    sent, messages = [], []
    for place in range(inner.ranks):
        if place < extra:
            sent += [n, inner.sent_bytes[place] + n]
            messages += [1, inner.messages[place] + 1]
        else:
            sent.append(inner.sent_bytes[place])
            messages.append(inner.messages[place])
    return Collective(
        steps=inner.steps + 2,
        critical_bytes=inner.critical_bytes + 2 * n,
        sent_bytes=tuple(sent),
        messages=tuple(messages),
    )


_ALL_REDUCE: Mapping[str, Callable[[int, int], Collective]] = {
    "ring": _ring_all_reduce,
    "tree": _tree_all_reduce,
    "all_to_all": _naive,
    "parameter_server": _parameter_server,
    "halving_doubling": _halving_doubling,
}


def _in_bytes(elements: Collective, size: int) -> Collective:
    """A collective that was counted in elements."""
    return Collective(
        steps=elements.steps,
        critical_bytes=size * elements.critical_bytes,
        sent_bytes=tuple(size * sent for sent in elements.sent_bytes),
        messages=elements.messages,
    )


def _check(n_elements: int, ranks: int, bytes_per_element: int) -> None:
    check_count("n_elements", n_elements)
    check_positive_int("ranks", ranks)
    check_positive_int("bytes_per_element", bytes_per_element)


def _check_root(root: int, ranks: int) -> None:
    check_count("root", root)
    if root >= ranks:
        raise ConfigError(f"root={root} is no rank: there are ranks 0 to {ranks - 1}")
