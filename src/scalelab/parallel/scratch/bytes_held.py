"""Bytes that are really there: of storages, each counted once, whatever views of it exist.

A formula says what a rank should hold; these count what it does hold. Between steps weights, gradients and
optimiser state are walked; what a forward pass keeps for backward is caught as autograd keeps it.
Taught in book/parallelism/sharding.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def storage_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the memory behind these tensors; what several share counts once."""
    storages = [tensor.untyped_storage() for tensor in tensors if tensor is not None]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}.values())


class Kept:
    """What autograd keeps for backward; made by `kept_for_backward`.

    Attributes:
        tensors: one for each storage, in the order in which they were first kept.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []  # holding them keeps their addresses from being used again

    @property
    def n_bytes(self) -> int:
        """Of all of them."""
        return storage_bytes(self.tensors)


@contextlib.contextmanager
def kept_for_backward(leaving_out: Iterable[Tensor] = ()) -> Iterator[Kept]:
    """What a forward pass inside the block keeps: `with kept_for_backward(model.parameters()) as kept: …`.

    Args:
        leaving_out: tensors that are there anyway: parameters.
    """
    seen = {tensor.untyped_storage().data_ptr() for tensor in leaving_out}
    kept = Kept()

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in seen:
            seen.add(place)
            kept.tensors.append(tensor.detach())
        return tensor.detach()  # the tensor itself would keep its own graph alive

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
