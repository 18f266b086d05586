"""DDP: every process holds the whole model and takes its rows; gradients are summed on the way back.

torch averages them; the loop's losses are divided by the whole batch's count already, so what it needs is
the sum. Each bucket of gradients travels as soon as it is full, while the backward pass goes on.

Source: Li et al. 2020, arXiv:2006.15704. Taught in book/transformers/training.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scalelab.parallel.engine.data_parallel import Announce, DataParallel, SummedLoss
from scalelab.parallel.engine.layout import Layout
from scalelab.train.state import load_model_tensors, load_optimizer_tensors, model_tensors, optimizer_tensors


class Replicated(DataParallel):
    """`scalelab.train.Strategy` by torch's DistributedDataParallel.

    The placed model is the module itself, with its own names: DDP wraps it from outside.
    """

    def __init__(
        self,
        layout: Layout,
        group: dist.ProcessGroup,
        device: torch.device,
        *,
        announce: Announce | None = None,
    ) -> None:
        assert layout.n_parts == 1, "other strategies take layouts that cut the model"
        super().__init__(layout, group, device, announce=announce)

    def place(self, model: nn.Module) -> nn.Module:
        model = model.to(self.device)
        engine = DistributedDataParallel(
            SummedLoss(model),
            device_ids=[self.device] if self.device.type == "cuda" else None,
            process_group=self._group,
            gradient_as_bucket_view=True,  # or gradients would be held twice
        )
        # By a lambda: torch holds a hook's annotations against its types, and here they are texts.
        engine.register_comm_hook(self._group, lambda group, bucket: _sum_of_gradients(group, bucket))
        _settle_buckets(engine, self.device)
        self._engine = engine
        return model

    def _micro_batch(self, last: bool) -> AbstractContextManager[object]:
        engine = self._engine
        assert isinstance(engine, DistributedDataParallel)
        return contextlib.nullcontext() if last else engine.no_sync()

    def clip(self, model: nn.Module, max_norm: float) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)

    def weights(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
        return model_tensors(model) if self.rank == 0 else ({}, {})

    def optimizer_state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        return optimizer_tensors(model, optimizer) if self.rank == 0 else {}

    def load(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        weights: tuple[Mapping[str, Tensor], Mapping[str, str]],
        optimizer_state: Mapping[str, Tensor],
    ) -> None:
        load_model_tensors(model, *weights)
        load_optimizer_tensors(model, optimizer, optimizer_state)


def _settle_buckets(engine: nn.Module, device: torch.device) -> None:
    """One pass forward and back on nothing, so that no later step arranges the buckets of gradients anew.

    DDP does so after the first backward pass, and where a gradient lies in its bucket decides in which order
    three processes or more add it up: a resumed run's first step would differ in its last bits.
    """
    nothing = torch.zeros(1, 1, dtype=torch.int64, device=device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        engine(nothing, nothing).backward()
    engine.zero_grad()


def _sum_of_gradients(group: dist.ProcessGroup, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """A bucket's gradients, added over the processes; with a hook in place torch does not divide."""
    work = dist.all_reduce(bucket.buffer(), op=dist.ReduceOp.SUM, group=group, async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])  # type: ignore[no-any-return]
