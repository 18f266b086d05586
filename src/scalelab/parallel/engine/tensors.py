"""A tensor that is cut over processes, put together again and cut anew; torch's name for one is DTensor.

Shapes of such tensors are those of the whole. Putting one together takes all processes that hold a part.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from scalelab.train.state import on_its_device, whole_tensor


def is_cut(tensor: Tensor) -> bool:
    """Whether processes hold parts of it, or copies that torch keeps count of."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of it, as a view."""
    cut: Any = tensor
    part: Tensor = cut.to_local() if is_cut(tensor) else tensor
    return part


def whole_of(tensor: Tensor, *, kept: bool) -> Tensor:
    """The whole tensor on the CPU where it is kept; nothing elsewhere, but all holders must ask."""
    cut: Any = tensor
    with _without_advice():
        full: Tensor = cut.full_tensor() if is_cut(tensor) else tensor
    return whole_tensor(full.cpu()) if kept else torch.empty(0)


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """What is cut twice along one axis is gathered in two steps, which torch logs as slow."""
    logger = logging.getLogger("torch.distributed.tensor._redistribute")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def part_of(stored: Tensor, own: Tensor) -> Tensor:
    """This process's part of a stored tensor, cut as `own` is; whole where nothing is cut (step counts)."""
    from torch.distributed.tensor import distribute_tensor

    if not is_cut(own) or stored.ndim == 0:
        return on_its_device(stored, own)
    whole = on_its_device(stored, own)
    cut: Any = own
    return distribute_tensor(whole, cut.device_mesh, cut.placements, src_data_rank=None)


def copies_of(tensor: Tensor) -> int:
    """How many processes of the tensor's mesh hold the same part."""
    if not is_cut(tensor):
        return 1
    cut: Any = tensor
    sizes = zip(cut.device_mesh.shape, cut.placements, strict=True)
    n_copies = 1
    for size, placement in sizes:
        n_copies *= size if placement.is_replicate() else 1
    return n_copies


def broadcast_model(model: nn.Module, group: dist.ProcessGroup) -> None:
    """Rank 0's values in every process's model: the one that is trained."""
    for tensor in model.state_dict().values():
        values = tensor.detach()
        if values.is_contiguous():
            dist.broadcast(values, group=group, group_src=0)
        else:
            copy = values.contiguous()
            dist.broadcast(copy, group=group, group_src=0)
            values.copy_(copy)
