"""Parameters as one vector: cut into one piece a rank whatever their shapes are, sent as one message.

A layer has a dozen tensors, some smaller than the number of ranks. Laid end to end they can be cut anywhere,
in the middle of a row too, because AdamW treats each number by itself. What is cut together is a unit: a
block of the model, and once what is left over.
Source: Rajbhandari et al. 2019, arXiv:1910.02054, section 5 (ZeRO's partitions); Zhao et al. 2023,
arXiv:2304.11277, section 3.2 (FlatParameter). Taught in book/parallelism/sharding.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from scalelab.core.errors import ParallelError
from scalelab.parallel.scratch.collectives import (
    piece_of,
    ring_all_gather,
    ring_reduce_scatter,
    tree_broadcast,
)
from scalelab.parallel.scratch.group import Group


class Unit:
    """Some parameters, from now on views of one vector of which every rank owns a piece.

    Args:
        parameters: of one type; rank 0's values become everyone's.
        mixed: keep the vector in bf16, and this rank's piece of it in fp32 as well, for the optimiser.

    Attributes:
        whole: [n], what the model computes with.
        master: [n/p], this rank's piece as the optimiser updates it: in fp32, or `whole`'s own memory.
        gradient: [n/p], the piece of the gradient summed over ranks and micro-batches; None before the first.

    Raises:
        ParallelError: no parameters, frozen ones, or several types.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], group: Group, *, mixed: bool = False) -> None:
        _check(parameters, mixed)
        self.parameters = list(parameters)
        self.group = group
        flat = torch.cat([p.detach().reshape(-1) for p in parameters])  # [n]
        tree_broadcast(flat, 0, group)
        self.n = flat.numel()
        self.whole = flat.bfloat16() if mixed else flat
        self.master = piece_of(flat, group).clone() if mixed else piece_of(self.whole, group)
        self.gradient: Tensor | None = None
        for parameter, view in zip(self.parameters, self.views(self.whole), strict=True):
            parameter.data = view
            parameter.grad = None

    def views(self, flat: Tensor) -> list[Tensor]:
        """A vector [n] as tensors of the parameters' shapes; no copies."""
        parts = flat.split_with_sizes([p.numel() for p in self.parameters])
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]

    def reduce_gradient(self) -> None:
        """Sum the ranks' gradients, keep this rank's piece, and drop the rest.

        A parameter that was not used has none: zeros stand for it, or the pieces would not fit together.
        """
        flat = torch.cat([_gradient(p).reshape(-1) for p in self.parameters])  # [n]
        for parameter in self.parameters:
            parameter.grad = None
        piece = ring_reduce_scatter(flat, self.group)
        self.gradient = piece if self.gradient is None else self.gradient.add_(piece)

    def watch(self) -> None:
        """From now on reduce the gradient as soon as backward has produced the last of its tensors."""
        for parameter in self.parameters:
            hook = self._reduce_if_complete
            parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def finish_gradient(self) -> None:
        """Reduce what `watch` waits for in vain, since some parameter was not used (on every rank alike)."""
        if self.gradient is None or any(p.grad is not None for p in self.parameters):
            self.reduce_gradient()

    def _reduce_if_complete(self, parameter: Tensor) -> None:
        if all(p.grad is not None for p in self.parameters):
            self.reduce_gradient()

    def spread(self) -> None:
        """Put every rank's updated piece into everyone's `whole`."""
        piece = piece_of(self.whole, self.group)
        if piece.dtype != self.master.dtype:
            piece.copy_(self.master)
        self.whole.copy_(ring_all_gather(piece, self.group, self.n))

    def cut(self) -> Iterator[tuple[nn.Parameter, slice]]:
        """The parameters that this rank owns a share of, each with where that lies in the piece."""
        sizes = [p.numel() for p in self.parameters]
        start = sum(self.piece_sizes()[: self.group.rank])
        stop = start + self.master.numel()
        for parameter, size, end in zip(self.parameters, sizes, accumulate(sizes), strict=True):
            first, last = max(start, end - size), min(stop, end)
            if first < last:
                yield parameter, slice(first - start, last - start)

    def piece_sizes(self) -> list[int]:
        """How many numbers each rank owns."""
        pieces = torch.empty(self.n, device="meta").tensor_split(self.group.size)
        return [piece.numel() for piece in pieces]


def units_of(model: nn.Module) -> list[tuple[nn.Module, list[nn.Parameter]]]:
    """What to cut together: each member of the model's outermost lists (its blocks), and last the rest.

    A parameter that several modules share (a tied table) is in one unit only, the rest's where it has a part.
    """
    blocks = list(_blocks(model))
    inside = {id(p): p for block in blocks for p in block.parameters()}
    direct = [p for p in model.parameters() if id(p) not in inside]
    found: list[tuple[nn.Module, list[nn.Parameter]]] = []
    taken: set[int] = set()
    for block in blocks:
        own = [p for p in block.parameters() if id(p) not in taken]
        taken |= {id(p) for p in own}
        if own:
            found.append((block, own))
    return [*found, (model, direct)] if direct else found


def whole_tensors(
    model: nn.Module, units: Sequence[Unit], pieces: Sequence[Tensor | None]
) -> dict[str, Tensor]:
    """What ranks hold in pieces, one a unit, put together on every rank: by the parameters' names.

    Raises:
        ParallelError: a piece is missing.
    """
    found: dict[int, Tensor] = {}
    for unit, piece in zip(units, pieces, strict=True):
        if piece is None:
            raise ParallelError(
                "there are no gradients: call backward(), then reduce(), and look before step()"
            )
        whole = ring_all_gather(piece, unit.group, unit.n)
        found |= {id(p): view for p, view in zip(unit.parameters, unit.views(whole), strict=True)}
    return {name: found[id(p)] for name, p in model.named_parameters()}


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.children():
        if isinstance(module, nn.ModuleList):
            yield from module
        else:
            yield from _blocks(module)


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _check(parameters: Sequence[nn.Parameter], mixed: bool) -> None:
    if not parameters:
        raise ParallelError("a unit needs at least one parameter")
    frozen = sum(not p.requires_grad for p in parameters)
    if frozen:
        raise ParallelError(
            f"{frozen} of {len(parameters)} parameters are frozen, and AdamW would decay them: "
            "make them trainable, or train the model by scratch.data_parallel, which leaves them as they are"
        )
    types = {p.dtype for p in parameters}
    if len(types) > 1 or (mixed and types != {torch.float32}):
        wanted = "mixed precision begins with fp32 weights" if mixed else "one vector has one type"
        raise ParallelError(f"parameters are of {', '.join(sorted(map(str, types)))}: {wanted}")
