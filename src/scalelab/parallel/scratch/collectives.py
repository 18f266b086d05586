"""Collectives out of messages between two ranks: all ranks call one together, and each gets its result.

An all-reduce gives every rank the sum of all ranks' tensors. Around a ring each rank sends 2 (p-1)/p of the
tensor, however many ranks there are, in 2 (p-1) steps; along a tree there are only 2 ⌈log2 p⌉ steps, each
with the whole tensor. What every function here sends equals its namesake in `scalelab.cost`, to the byte.

Condition: every rank calls the same collectives in the same order, on tensors of one size and type. A rank
that stays away leaves the others waiting. Sums are taken in an order that depends on the way, so two ways
differ in their last bits; within one, all ranks end with the same bits, or replicas would drift apart.
Source: Thakur, Rabenseifner & Gropp 2005, doi:10.1177/1094342005051521, sections 3 and 4; Patarasuk & Yuan
2009, doi:10.1016/j.jpdc.2008.09.002 (the ring). Taught in book/parallelism/data-parallel.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from scalelab.core.errors import ParallelError
from scalelab.parallel.scratch.group import Group

# --- around a ring ----------------------------------------------------------------------------------------


def ring_reduce_scatter(tensor: Tensor, group: Group, *, tag: int = 0) -> Tensor:
    """This rank's piece of the sum of all ranks' tensors.

    A piece sets out on the rank after its owner's, and every rank that it passes adds its own to it; after
    p-1 steps it comes home, complete.

    Args:
        tensor: of n elements, any shape; it stays as it is.

    Returns:
        [n / p]: piece `rank` of `torch.tensor_split(tensor.flatten(), p)`, of which the first n mod p are one
            longer.
    """
    piece = sum_pieces(tensor.detach().reshape(-1).tensor_split(group.size), group, tag=tag)
    return piece.clone() if group.size == 1 else piece


def ring_all_gather(piece: Tensor, group: Group, n: int, *, tag: int = 0) -> Tensor:
    """All ranks' pieces, one after the other: the reverse of cutting a tensor with `torch.tensor_split`.

    Each rank passes on what it got last; after p-1 steps every piece has been everywhere.

    Args:
        piece: [n / p], as `ring_reduce_scatter` gives it. n: elements of all pieces together.

    Returns:
        [n], the same bits on every rank.

    Raises:
        ParallelError: a piece that is not as long as `torch.tensor_split` would cut it.
    """
    whole = piece.detach().new_empty(n)
    pieces = whole.tensor_split(group.size)
    if piece.numel() != pieces[group.rank].numel():
        raise ParallelError(
            f"rank {group.rank} has a piece of {piece.numel():,} elements, but of {n:,} over {group.size} "
            f"ranks its own has {pieces[group.rank].numel():,}"
        )
    pieces[group.rank].copy_(piece.detach().reshape(-1))
    pass_around(pieces, group, tag=tag)
    return whole


def ring_all_reduce(tensor: Tensor, group: Group, *, tag: int = 0) -> None:
    """Put the sum of all ranks' tensors in place of this one: a reduce-scatter, then an all-gather.

    Each rank sends all pieces but its own, then all but the next rank's: 2 (p-1)/p of the tensor.

    Raises:
        ParallelError: a tensor that does not lie in one piece.
    """
    flat = _flat(tensor)
    pieces = flat.tensor_split(group.size)
    pieces[group.rank].copy_(ring_reduce_scatter(flat, group, tag=tag))
    pass_around(pieces, group, tag=tag)


def sum_pieces(pieces: Sequence[Tensor], group: Group, *, tag: int = 0) -> Tensor:
    """The sum over ranks of this rank's piece, of any shape; with one rank that piece itself."""
    going = pieces[group.previous]
    for step in range(group.size - 1):
        own = pieces[(group.rank - 2 - step) % group.size]
        coming = torch.empty_like(own)
        group.exchange(going, group.next, coming, group.previous, tag=tag)
        going = coming.add_(own)
    return going


def pass_around(pieces: Sequence[Tensor], group: Group, *, tag: int = 0) -> None:
    """Fill every rank's pieces, of any shapes, of which each has its own."""
    for step in range(group.size - 1):
        known = pieces[(group.rank - step) % group.size]
        missing = pieces[(group.rank - step - 1) % group.size]
        group.exchange(known, group.next, missing, group.previous, tag=tag)


# --- along a tree -----------------------------------------------------------------------------------------


def tree_reduce(tensor: Tensor, root: int, group: Group, *, tag: int = 0) -> None:
    """Put the sum of all ranks' tensors in place of the root's; other ranks' are left half-summed.

    Places are counted from the root. At distance 1 every odd place hands its tensor to the one before, at 2
    every second of those left, and so on: ⌈log2 p⌉ steps.

    Raises:
        ParallelError: as `ring_all_reduce`, or a root that is no rank.
    """
    flat = _flat(tensor)
    place = _place(root, group)
    coming = torch.empty_like(flat)
    for distance in _doubling(group.size):
        if place & distance:
            group.send(flat, (group.rank - distance) % group.size, tag=tag)
            return
        if place + distance < group.size:
            group.recv(coming, (group.rank + distance) % group.size, tag=tag)
            flat += coming


def tree_broadcast(tensor: Tensor, root: int, group: Group, *, tag: int = 0) -> None:
    """Put the root's tensor in place of every rank's: `tree_reduce` backwards.

    Raises:
        ParallelError: as `tree_reduce`.
    """
    flat = _flat(tensor)
    place = _place(root, group)
    for distance in reversed(_doubling(group.size)):
        if place % (2 * distance) == distance:
            group.recv(flat, (group.rank - distance) % group.size, tag=tag)
        elif place % (2 * distance) == 0 and place + distance < group.size:
            group.send(flat, (group.rank + distance) % group.size, tag=tag)


def tree_all_reduce(tensor: Tensor, group: Group, *, tag: int = 0) -> None:
    """Put the sum of all ranks' tensors in place of this one: to rank 0 along a tree, and back.

    Raises:
        ParallelError: a tensor that does not lie in one piece.
    """
    tree_reduce(tensor, 0, group, tag=tag)
    tree_broadcast(tensor, 0, group, tag=tag)


def _doubling(size: int) -> list[int]:
    """1, 2, 4, … below the size."""
    return [1 << bit for bit in range((size - 1).bit_length())]


def _place(root: int, group: Group) -> int:
    if not 0 <= root < group.size:
        raise ParallelError(f"root={root} is no rank: there are ranks 0 to {group.size - 1}")
    return (group.rank - root) % group.size


# --- naively ----------------------------------------------------------------------------------------------


def naive_all_reduce(tensor: Tensor, group: Group, *, tag: int = 0) -> None:
    """Put the sum of all ranks' tensors in place of this one: everybody sends everything to everyone.

    Sums go in order of rank, not of arrival: (a + b) + c and a + (b + c) are different floats, and each rank
    adds for itself here.

    Raises:
        ParallelError: a tensor that does not lie in one piece.
    """
    flat = _flat(tensor)
    tensors = {group.rank: flat.clone()}
    for step in range(1, group.size):
        to, source = (group.rank + step) % group.size, (group.rank - step) % group.size
        tensors[source] = torch.empty_like(flat)
        group.exchange(tensors[group.rank], to, tensors[source], source, tag=tag)
    flat.copy_(tensors[0])
    for rank in range(1, group.size):
        flat += tensors[rank]


def gathered_all_reduce(tensor: Tensor, group: Group, *, tag: int = 0) -> None:
    """Put the sum of all ranks' tensors in place of this one: by rank 0, as by a parameter server.

    Every other rank sends but once, and rank 0 p-1 times: its wire is what all wait for.

    Raises:
        ParallelError: a tensor that does not lie in one piece.
    """
    flat = _flat(tensor)
    if group.rank:
        group.send(flat, 0, tag=tag)
        group.recv(flat, 0, tag=tag)
        return
    coming = torch.empty_like(flat)
    for rank in range(1, group.size):
        group.recv(coming, rank, tag=tag)
        flat += coming
    for rank in range(1, group.size):
        group.send(flat, rank, tag=tag)


class AllReduce(Protocol):
    """Puts the sum of all ranks' tensors in place of this one."""

    def __call__(self, tensor: Tensor, group: Group, *, tag: int = 0) -> None: ...


# By the names that `scalelab.cost.all_reduce` gives them (it knows one more, halving and doubling).
ALL_REDUCE: Mapping[str, AllReduce] = {
    "ring": ring_all_reduce,
    "tree": tree_all_reduce,
    "all_to_all": naive_all_reduce,
    "parameter_server": gathered_all_reduce,
}


# --- something else for everyone --------------------------------------------------------------------------


def all_to_all(
    chunks: Sequence[Tensor], group: Group, *, sizes: Sequence[int] | None = None, tag: int = 0
) -> list[Tensor]:
    """Chunk k of every rank to rank k: a transposition, with ranks as rows.

    Args:
        chunks: what goes to each rank, by rank; all of one type, and of shapes that differ at most in their
            first axis.
        sizes: length of the first axis of what comes from each rank, by rank. None: as long as the chunk
            that this rank keeps, which is so where all ranks cut alike.

    Returns:
        What came from each rank, by rank; from this one a copy of its own chunk.

    Raises:
        ParallelError: not one chunk and one size for each rank.
    """
    own = chunks[group.rank] if len(chunks) == group.size else None
    if own is None or (sizes is not None and len(sizes) != group.size):
        told = "" if sizes is None else f" and {len(sizes)} sizes"
        raise ParallelError(f"{group.size} ranks need as many chunks, got {len(chunks)}{told}")
    come = [
        own.detach().new_empty((own.shape[0] if sizes is None else sizes[rank], *own.shape[1:]))
        for rank in range(group.size)
    ]
    come[group.rank] = own.detach().clone()
    for step in range(1, group.size):
        to, source = (group.rank + step) % group.size, (group.rank - step) % group.size
        group.exchange(chunks[to].contiguous(), to, come[source], source, tag=tag)
    return come


def piece_of(tensor: Tensor, group: Group) -> Tensor:
    """This rank's piece of a tensor that all have, flat; a view of it if it lies in one piece."""
    return tensor.detach().reshape(-1).tensor_split(group.size)[group.rank]


def _flat(tensor: Tensor) -> Tensor:
    """The tensor as one row, sharing its memory: what is written there is written to the tensor."""
    if not tensor.is_contiguous():
        raise ParallelError(
            f"a tensor of shape {tuple(tensor.shape)} and strides {tensor.stride()} does not lie in one "
            "piece, so its sum cannot be put in its place: use .contiguous()"
        )
    return tensor.detach().view(-1)
