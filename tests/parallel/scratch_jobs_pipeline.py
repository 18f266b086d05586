"""Jobs of a pool that run our pipeline, and torch's, on real processes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe, ScheduleInterleaved1F1B
from torch.distributed.pipelining import Schedule1F1B as OneFOneB

from scalelab.core.config import DecoderConfig
from scalelab.parallel.scratch.pipeline import Pipeline
from scalelab.parallel.scratch.schedules import make_schedule
from scalelab.parallel.scratch.torch_group import TorchGroup
from scalelab.parallel.scratch.trace import Trace

sys.path.insert(0, str(Path(__file__).parents[1] / "parallel_scratch"))

from equality import make_adamw, make_batch, make_batches, make_model


def gradients_by_name(pipeline: Pipeline) -> dict[str, Tensor]:
    named = pipeline.parameters_by_name().items()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def ours(group: dist.ProcessGroup, *, name: str, m: int, v: int, rows: int, config: DecoderConfig) -> Any:
    """Loss, gradients, bytes sent, and the order in which operations were done."""
    ranks = TorchGroup(group)
    pipeline = Pipeline(make_model(config=config), ranks, v=v)
    schedule, batch, trace = make_schedule(name, ranks.size, m, v=v), make_batch(rows), Trace(ranks.rank)
    loss = pipeline.step(batch.tokens, batch.targets, schedule, m, trace=trace)
    return {
        "loss": None if loss is None else loss.item(),
        "gradients": gradients_by_name(pipeline),
        "bytes": ranks.traffic.n_bytes,
        "spans": trace.spans,
    }


def trained(group: dist.ProcessGroup, *, name: str, m: int, v: int, rows: int, config: DecoderConfig) -> Any:
    """Weights after ten steps in fp64."""
    ranks = TorchGroup(group)
    pipeline = Pipeline(make_model(double=True, config=config), ranks, v=v, loss=loss_in_double)
    optimizer, schedule = make_adamw(pipeline.parameters()), make_schedule(name, ranks.size, m, v=v)
    for batch in make_batches(n_rows=rows):
        optimizer.zero_grad()
        pipeline.step(batch.tokens, batch.targets, schedule, m)
        optimizer.step()
    return {name: p.detach().clone() for name, p in pipeline.parameters_by_name().items()}


def loss_in_double(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def torchs(group: dist.ProcessGroup, *, name: str, m: int, v: int, rows: int, config: DecoderConfig) -> Any:
    """The same stages under torch's own schedule; only micro-batches of one size, and nothing tied."""
    ranks = TorchGroup(group)
    pipeline = Pipeline(make_model(config=config), ranks, v=v)
    batch = make_batch(rows)

    def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
        return pipeline.loss_of(logits, targets) / batch.n_targets

    stages = [
        PipelineStage(chunk, c * ranks.size + ranks.rank, v * ranks.size, torch.device("cpu"), group=group)
        for c, chunk in enumerate(pipeline.chunks)
    ]
    makers: dict[str, Any] = {
        "gpipe": ScheduleGPipe,
        "1f1b": OneFOneB,
        "interleaved": ScheduleInterleaved1F1B,
    }
    given = stages if name == "interleaved" else stages[0]
    schedule = makers[name](given, m, loss_fn=loss_of, scale_grads=False)
    losses: list[Tensor] = []
    arguments = (batch.tokens,) if ranks.rank == 0 else ()
    is_last = ranks.rank == ranks.size - 1
    schedule.step(*arguments, target=batch.targets if is_last else None, losses=losses if is_last else None)
    return {
        "loss": float(sum(losses)) if is_last else None,
        "gradients": gradients_by_name(pipeline),
    }
