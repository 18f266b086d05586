"""FSDP: every process keeps a part of each weight, its gradient and its optimiser state.

A block's weights are gathered just before they are needed and dropped after; gradients are summed and cut
in the same stroke (reduce-scatter). Sharding happens per block, then once for what is left: tables, last
norm, head.

Source: Rajbhandari et al. 2019, arXiv:1910.02054 (ZeRO, stage 3); Zhao et al. 2023, arXiv:2304.11277.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from scalelab.core.errors import TrainingError
from scalelab.parallel.engine.data_parallel import Announce, DataParallel, SummedLoss
from scalelab.parallel.engine.layout import Layout
from scalelab.parallel.engine.tensors import broadcast_model, part_of, whole_of
from scalelab.train.state import (
    load_model_tensors,
    load_optimizer_tensors,
    model_tensors,
    optimizer_tensors,
)

NEEDED = "2.8"  # the first torch whose fully_shard can be told to sum


class Sharded(DataParallel):
    """`scalelab.train.Strategy` by torch's `fully_shard`.

    Args:
        layout, group, device, announce: as for `DataParallel`.
        mesh: the layout's processes by axis: [dp_shard], or [dp_replicate, dp_shard] for hybrid sharding.

    Raises:
        TrainingError: this torch is too old.
    """

    def __init__(
        self,
        layout: Layout,
        group: dist.ProcessGroup,
        device: torch.device,
        *,
        mesh: DeviceMesh,
        announce: Announce | None = None,
    ) -> None:
        super().__init__(layout, group, device, announce=announce)
        _check_torch()
        self._mesh = mesh

    def place(self, model: nn.Module) -> nn.Module:
        broadcast_model(model, self._group)  # as DDP does: rank 0's model is the one that is trained
        engine = SummedLoss(model)
        shard(engine, model, self._mesh)
        engine.to(self.device)  # buffers
        self._engine = engine
        return model

    def clip(self, model: nn.Module, max_norm: float) -> Tensor:
        norm: Any = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        whole: Tensor = norm.full_tensor()
        return whole

    def weights(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
        cut_again(self._engine)
        # By parameter, not by memory: an empty part lies nowhere, and processes must gather the same names.
        known = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}

        def identity(name: str, tensor: Tensor) -> Hashable:
            return known.get(name, name)

        tensors, aliases = model_tensors(model, whole=self._whole, identity=identity)
        return (tensors, aliases) if self.rank == 0 else ({}, {})

    def optimizer_state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        cut_again(self._engine)
        tensors = optimizer_tensors(model, optimizer, whole=self._whole)
        return tensors if self.rank == 0 else {}

    def load(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        weights: tuple[Mapping[str, Tensor], Mapping[str, str]],
        optimizer_state: Mapping[str, Tensor],
    ) -> None:
        cut_again(self._engine)
        load_model_tensors(model, *weights, fitting=part_of)
        load_optimizer_tensors(model, optimizer, optimizer_state, fitting=part_of)

    def _whole(self, tensor: Tensor) -> Tensor:
        """A tensor put together on every process, since gathering takes all; kept by rank 0 alone."""
        return whole_of(tensor, kept=self.rank == 0)


def shard(engine: nn.Module, model: nn.Module, mesh: DeviceMesh) -> None:
    """Cut a model's parameters in place: its blocks one by one, then what is left of the engine around it.

    Gradients are summed, not averaged. Every micro-batch's are reduced: waiting for the last would keep them
    whole until then, and a model that must be cut has no room for that.
    """
    from torch.distributed.fsdp import fully_shard

    for block in _blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(engine, mesh=mesh)
    for part in _fsdp_modules(engine):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)


def cut_again(engine: nn.Module | None) -> None:
    """Drop gathered weights: after an evaluation those of the outermost module still stand whole."""
    for part in _fsdp_modules(engine):
        part.reshard()


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """What is sharded on its own: the members of the outermost lists, as decoders keep their blocks."""
    for module in model.children():
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            yield from module.children()
        else:
            yield from _blocks(module)


def _fsdp_modules(engine: nn.Module | None) -> Iterator[Any]:
    from torch.distributed.fsdp import FSDPModule

    assert engine is not None, "a model is placed before it is asked for"
    return (module for module in engine.modules() if isinstance(module, FSDPModule))


def _check_torch() -> None:
    try:
        from torch.distributed.fsdp import FSDPModule
    except ImportError:
        found = False
    else:
        found = hasattr(FSDPModule, "set_force_sum_reduction_for_comms")
    if not found:
        raise TrainingError(
            f"dp_shard needs torch {NEEDED} or newer, this is {torch.__version__}: update it, or use "
            "--parallel ddp"
        )
