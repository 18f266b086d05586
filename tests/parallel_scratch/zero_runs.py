"""A model trained by one of ZeRO's stages, on ranks and alone: what its tests hold against each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from equality import (
    CONFIG,
    Batch,
    Found,
    make_batch,
    make_batches,
    make_model,
    summed_loss,
    weights_of,
)
from torch import Tensor

from scalelab.parallel.scratch import cut_optimizer
from scalelab.parallel.scratch.fully_sharded import FullySharded
from scalelab.parallel.scratch.group import Group
from scalelab.parallel.scratch.threads import run_threads
from scalelab.parallel.scratch.zero import ZeroOne, ZeroTwo
from scalelab.train.optimizer import parameter_groups

STAGES: dict[int, Any] = {1: ZeroOne, 2: ZeroTwo, 3: FullySharded}
TIED = dataclasses.replace(CONFIG, tie_embeddings=True, positions="learned")
SETTINGS = {"learning_rate": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.95)}


def own_pieces(group: Group, batch: Batch, micro_batches: int) -> list[Batch]:
    return batch.cut(group.size)[group.rank].cut(micro_batches)


def backward(model: Any, pieces: Sequence[Batch], n_targets: int) -> float:
    """Gradients of this rank's micro-batches, and its share of the loss."""
    total = 0.0
    for piece in pieces:
        loss = summed_loss(model, piece) / n_targets
        loss.backward()
        total += loss.item()
    return total


def gradients_on_ranks(
    size: int, stage: int, *, micro_batches: int = 1, config: Any = CONFIG, batch: Batch | None = None
) -> list[Found]:
    batch = batch or make_batch()

    def work(group: Group) -> Found:
        zero = STAGES[stage](make_model(seed=3 + group.rank, config=config), group)  # rank 0's weights count
        loss = torch.tensor(
            backward(zero.model, own_pieces(group, batch, micro_batches), batch.n_targets)
        ).double()
        zero.reduce()
        cut_optimizer.ring_all_reduce(loss, group)
        return Found(float(loss), zero.whole_gradients())

    return run_threads(size, work)


def trained(
    size: int, stage: int, *, clip: float | None = None, micro_batches: int = 1, config: Any = CONFIG
) -> list[dict[str, Tensor]]:
    batches = make_batches()

    def work(group: Group) -> dict[str, Tensor]:
        zero = STAGES[stage](make_model(double=True, config=config), group, **SETTINGS)
        for batch in batches:
            backward(zero.model, own_pieces(group, batch, micro_batches), batch.n_targets)
            zero.step(clip)
        return zero.whole_weights()

    return run_threads(size, work)


def trained_alone(*, clip: float | None = None, config: Any = CONFIG) -> dict[str, Tensor]:
    model = make_model(double=True, config=config)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-2, betas=(0.9, 0.95))
    for batch in make_batches():
        optimizer.zero_grad()
        (summed_loss(model, batch) / batch.n_targets).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return weights_of(model)
