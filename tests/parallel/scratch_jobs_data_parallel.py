"""Jobs of a pool that run our data parallelism, and torch's DDP, on real processes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from scalelab.parallel.engine.data_parallel import SummedLoss
from scalelab.parallel.scratch.collectives import ALL_REDUCE, all_to_all, ring_all_gather, ring_reduce_scatter
from scalelab.parallel.scratch.data_parallel import Overlapped, count_targets, own_rows
from scalelab.parallel.scratch.torch_group import TorchGroup

sys.path.insert(0, str(Path(__file__).parents[1] / "parallel_scratch"))

from equality import (
    Batch,
    gradients_of,
    make_adamw,
    make_batch,
    make_batches,
    make_model,
    summed_loss,
    weights_of,
)


def ours(group: dist.ProcessGroup, *, n_rows: int, pieces: int, all_reduce: str = "ring") -> Any:
    """Loss and gradients of a batch by `Overlapped`, and what each rank has sent for them."""
    ranks = TorchGroup(group)
    model = make_model(seed=3 + ranks.rank)
    overlapped = Overlapped(model, ranks, bucket_bytes=4_000, all_reduce=ALL_REDUCE[all_reduce])
    batch = make_batch(n_rows)
    own = Batch(own_rows(batch.tokens, ranks), own_rows(batch.targets, ranks))
    n_targets = count_targets(own.targets, ranks)
    total = torch.zeros(())
    with ranks.counted() as count:
        for number, part in enumerate(own.cut(pieces)):
            with overlapped.micro_batch(last=number == pieces - 1):
                loss = summed_loss(model, part) / n_targets
                loss.backward()
            total += loss.detach()
    dist.all_reduce(total)
    sizes = [bucket.flat.numel() for bucket in overlapped.buckets]
    return total.item(), gradients_of(model), count.traffic, sizes


def torchs(group: dist.ProcessGroup, *, n_rows: int) -> dict[str, Tensor]:
    """DDP's gradients: it takes means over the ranks, so each rank's share counts so many times."""
    ranks = TorchGroup(group)
    model = make_model(seed=3 + ranks.rank)
    engine = DistributedDataParallel(SummedLoss(model))
    batch = make_batch(n_rows)
    own = Batch(own_rows(batch.tokens, ranks), own_rows(batch.targets, ranks))
    (engine(own.tokens, own.targets) * ranks.size / batch.n_targets).backward()
    return gradients_of(model)


def training(group: dist.ProcessGroup) -> dict[str, Tensor]:
    """Weights in fp64 after ten steps."""
    ranks = TorchGroup(group)
    model = make_model(double=True, seed=3 + ranks.rank)
    overlapped = Overlapped(model, ranks, bucket_bytes=8_000)
    optimizer = make_adamw(model.parameters())
    for batch in make_batches():
        own = Batch(own_rows(batch.tokens, ranks), own_rows(batch.targets, ranks))
        n_targets = count_targets(own.targets, ranks)
        optimizer.zero_grad()
        with overlapped.micro_batch(last=True):
            (summed_loss(model, own) / n_targets).backward()
        optimizer.step()
    return weights_of(model)


def collectives(group: dist.ProcessGroup, *, n: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Each of our collectives beside torch's."""
    ranks = TorchGroup(group)
    own = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(ranks.rank))
    expected = own.clone()
    dist.all_reduce(expected)
    found = {}
    for name, method in ALL_REDUCE.items():
        summed = own.clone()
        method(summed, ranks)
        found[name] = (summed, expected)
    piece = ring_reduce_scatter(own, ranks)
    found["reduce-scatter"] = (piece, expected.tensor_split(ranks.size)[ranks.rank])
    found["all-gather"] = (ring_all_gather(piece, ranks, n), expected)
    rows = [torch.full((1 + (ranks.rank + k) % 2,), float(ranks.rank)) for k in range(ranks.size)]
    sizes = [1 + (ranks.rank + k) % 2 for k in range(ranks.size)]
    expected = torch.cat([torch.full((sizes[k],), float(k)) for k in range(ranks.size)])
    found["all-to-all"] = (torch.cat(all_to_all(rows, ranks, sizes=sizes)), expected)
    return found
