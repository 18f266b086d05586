"""Jobs of a pool that run our ZeRO, and torch's, on real processes."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn import Sequential

from scalelab.core.config import DecoderConfig
from scalelab.lab.parallelism.counting import Collectives
from scalelab.lab.parallelism.gpt_layer import GPTLayer
from scalelab.parallel.scratch.bytes_held import storage_bytes
from scalelab.parallel.scratch.collectives import ring_all_reduce
from scalelab.parallel.scratch.fully_sharded import FullySharded
from scalelab.parallel.scratch.torch_group import TorchGroup
from scalelab.parallel.scratch.zero import ZeroOne, ZeroTwo
from scalelab.train.optimizer import parameter_groups

sys.path.insert(0, str(Path(__file__).parents[1] / "parallel_scratch"))

from equality import Batch, Found, make_batch, make_batches, make_model, summed_loss, weights_of

STAGES: dict[int, Any] = {1: ZeroOne, 2: ZeroTwo, 3: FullySharded}
CLIP = 0.3


def own(group: dist.ProcessGroup, batch: Batch) -> Batch:
    return batch.cut(group.size())[group.rank()]


def gradients(group: dist.ProcessGroup, *, stage: int, config: DecoderConfig) -> tuple[Found, Any, int]:
    """Loss and gradients, bytes held after a step's backward, and bytes sent in it."""
    ranks, batch = TorchGroup(group), make_batch()
    zero = STAGES[stage](make_model(seed=3 + ranks.rank, config=config), ranks)
    with ranks.counted() as sent:
        loss = summed_loss(zero.model, own(group, batch)) / batch.n_targets
        loss.backward()
        held = zero.held()
        zero.reduce()
    found = zero.whole_gradients()
    total = loss.detach().clone()
    ring_all_reduce(total, ranks)
    return Found(total.item(), found), held, sent.traffic.n_bytes


def trained(group: dist.ProcessGroup, *, stage: int, config: DecoderConfig) -> dict[str, Tensor]:
    zero = STAGES[stage](make_model(double=True, config=config), TorchGroup(group), learning_rate=1e-2)
    for batch in make_batches():
        (summed_loss(zero.model, own(group, batch)) / batch.n_targets).backward()
        zero.step(CLIP)
    weights: dict[str, Tensor] = zero.whole_weights()
    return weights


def adamw(model: Any, **changes: Any) -> dict[str, Any]:
    return {"params": parameter_groups(model, 0.1), "lr": 1e-2, "betas": (0.9, 0.95), **changes}


def trained_by_fsdp(group: dist.ProcessGroup, *, config: DecoderConfig) -> dict[str, Any]:
    """Weights after ten steps of torch's fully_shard, its collectives, and bytes of weights held."""
    model = make_model(double=True, config=config)
    for part in [*model.blocks, model]:
        fully_shard(part)
        part.set_gradient_divide_factor(1.0)  # gradients are to be summed
        part.set_force_sum_reduction_for_comms(True)
    optimizer = torch.optim.AdamW(**adamw(model))
    counted, held = Collectives(), 0
    for step, batch in enumerate(make_batches()):
        piece = own(group, batch)
        with counted if step == 0 else nullcontext():
            logits = model(piece.tokens).flatten(0, 1)
            loss = F.cross_entropy(logits, piece.targets.flatten(), reduction="sum")
            (loss / batch.n_targets).backward()
        held = storage_bytes(p.to_local() for p in model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
    weights = {name: p.full_tensor().detach().clone() for name, p in model.named_parameters()}
    return {"weights": weights, "counts": dict(counted.counts), "held": held}


def collectives_of_fsdp(group: dist.ProcessGroup) -> dict[str, int]:
    """By torch's own count, of four layers inside of a fifth module that has weights as well."""
    model = Sequential(torch.nn.Linear(16, 16), *(GPTLayer(16, 4) for _ in range(4)))
    for part in [*model[1:], model]:
        fully_shard(part)
    with CommDebugMode() as counted:
        model(torch.randn(2, 5, 16)).sum().backward()
    return {str(kind).rsplit(".", 1)[-1]: n for kind, n in counted.get_comm_counts().items()}


def trained_by_zero_redundancy_optimizer(
    group: dist.ProcessGroup, *, config: DecoderConfig
) -> dict[str, Tensor]:
    ranks, model = TorchGroup(group), make_model(double=True, config=config)
    settings = adamw(model)
    optimizer = ZeroRedundancyOptimizer(settings.pop("params"), torch.optim.AdamW, **settings)
    for batch in make_batches():
        optimizer.zero_grad()
        (summed_loss(model, own(group, batch)) / batch.n_targets).backward()
        for p in model.parameters():
            assert p.grad is not None
            ring_all_reduce(p.grad, ranks)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    return weights_of(model)
