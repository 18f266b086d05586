"""Faults to plant in the engine, one at a time: tests that pass with one of them in place test nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

ENGINE = "scalelab.parallel.engine"


def _averaged() -> Any:
    """FSDP divides the sum over shares by their number, as it does by default."""
    from scalelab.parallel.engine import composed, sharded

    shard = sharded.shard

    def and_divide(engine: Any, model: Any, mesh: Any) -> None:
        shard(engine, model, mesh)
        for part in sharded._fsdp_modules(engine):
            part.set_gradient_divide_factor(float(mesh.size()))

    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch.object(sharded, "shard", and_divide))
    stack.enter_context(mock.patch.object(composed, "shard", and_divide))
    return stack


def _ddp_averaged() -> Any:
    """DDP divides by the number of processes, as it does by default."""
    from scalelab.parallel.engine import replicated

    summed = replicated._sum_of_gradients

    def mean(group: Any, bucket: Any) -> Any:
        return summed(group, bucket).then(lambda done: done.value() / group.size())

    return mock.patch.object(replicated, "_sum_of_gradients", mean)


def _plain_cut() -> Any:
    """The rows of queries, keys and values are cut as they stand: one process gets queries alone."""
    modules = ("tensor_parallel", "composed")
    return tuple(mock.patch(f"{ENGINE}.{name}.rows_by_rank", _as_they_are) for name in modules)


def _as_they_are(n_heads: int, n_kv_heads: int, d_head: int, tp: int) -> torch.Tensor:
    return torch.arange((n_heads + 2 * n_kv_heads) * d_head)


def _own_half_of_the_table() -> Any:
    """Each end of a pipeline trains its copy of a tied table by what it alone has seen."""
    return mock.patch(f"{ENGINE}.pipeline.Pipeline.swap_ends", lambda self, parts: [0 * p for p in parts])


def _scaled_by_micro_batches() -> Any:
    """The pipeline divides by the number of micro-batches, as torch's schedules do by default."""
    from torch.distributed import pipelining

    def default(stage: Any, n: int, loss_fn: Any, scale_grads: bool) -> Any:
        return pipelining.Schedule1F1B(stage, n, loss_fn=loss_fn)

    return mock.patch(f"{ENGINE}.pipeline.Schedule1F1B", default)


def _all_count() -> Any:
    """Every process's loss is added, also those of processes that work on the same rows."""
    from scalelab.parallel.engine.data_parallel import DataParallel

    return mock.patch(f"{ENGINE}.composed.Composed.total", DataParallel.total)


def _copies_counted() -> Any:
    """The norm adds up every copy of what several processes hold."""
    return mock.patch(f"{ENGINE}.composed._n_parts", return_value=4)


def _same_rows() -> Any:
    """All processes take the first share."""
    return mock.patch(f"{ENGINE}.layout.Layout.share_of", return_value=0)


def _neighbours_rows() -> Any:
    """Shares go by rank, as if no two processes worked on the same rows."""
    return mock.patch(f"{ENGINE}.layout.Layout.share_of", lambda self, rank: rank % self.n_shares)


FAULTS: dict[str, Callable[[], Any]] = {
    "averaged": _averaged,
    "ddp averaged": _ddp_averaged,
    "plain cut": _plain_cut,
    "own half of the table": _own_half_of_the_table,
    "scaled by micro-batches": _scaled_by_micro_batches,
    "all count": _all_count,
    "copies counted": _copies_counted,
    "same rows": _same_rows,
    "neighbours' rows": _neighbours_rows,
}


@contextlib.contextmanager
def planted(fault: str | None) -> Iterator[None]:
    """The engine with a fault in it, or as it is."""
    with contextlib.ExitStack() as stack:
        made = FAULTS[fault]() if fault else ()
        for patch in made if isinstance(made, tuple) else (made,):
            stack.enter_context(patch)
        yield
