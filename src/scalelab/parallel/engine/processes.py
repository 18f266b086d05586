"""How processes find each other: a store to meet at, one group of all, and a mesh by the layout's axes.

Numbers on the CPU travel by gloo, those on GPUs by NCCL. Taught in book/transformers/training.md.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.rendezvous import rendezvous

from scalelab.core.errors import ConfigError, TrainingError
from scalelab.parallel.engine.data_parallel import Announce
from scalelab.parallel.engine.ending import announce
from scalelab.parallel.engine.launch import TIMEOUT_S, Launch
from scalelab.parallel.engine.layout import AXES, Layout, Order
from scalelab.parallel.engine.replicated import Replicated
from scalelab.parallel.engine.sharded import Sharded
from scalelab.train import SingleProcess, Strategy

TIMEOUT = timedelta(seconds=TIMEOUT_S)


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """The processes that train together, as this one sees them.

    Attributes:
        launch: which of them this is.
        store: keys and values that all of them see.
        group: all of them.
    """

    launch: Launch
    store: dist.Store
    group: dist.ProcessGroup

    def strategy(self, layout: Layout, device: torch.device, *, order: Order = "1f1b") -> Strategy:
        """How these processes train, by their layout and, in a pipeline, the order of micro-batches."""
        return make_strategy(
            layout,
            self.group,
            device,
            announce=lambda error: announce(error, self.launch, self.store),
            order=order,
        )


@contextlib.contextmanager
def joined(launch: Launch, *, timeout: timedelta = TIMEOUT) -> Iterator[World]:
    """Meet the other processes that torchrun started, and part from them in the end.

    When the block raises, nothing is waited for: others may be stuck in what this process will never join.

    Args:
        timeout: how long this process waits for others, here and in every collective.

    Raises:
        TrainingError: not all of them came to the meeting.
    """
    try:
        store = _meet(launch, timeout)
    except RuntimeError as error:
        if not re.search("timed out|timeout", str(error).lower()):
            raise
        raise TrainingError(
            f"process {launch.rank} of {launch.n_processes} waited {timeout.total_seconds():g} s for the "
            f"others to come to {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}, and not all of them "
            f"came: were {launch.n_processes} processes started, and does every machine reach that address?"
        ) from error
    group = dist.group.WORLD
    assert group is not None
    yield World(launch=launch, store=PrefixStore("scalelab", store), group=group)
    # Whoever leaves first would look to the others as if it had died. By the CPU: a barrier would ask a GPU.
    dist.all_reduce(torch.zeros(1), group=group)
    dist.destroy_process_group()


def _meet(launch: Launch, timeout: timedelta) -> dist.Store:
    """Find the others by torchrun's environment, and make a group of all."""
    store, rank, n_processes = next(rendezvous("env://", launch.rank, launch.n_processes, timeout=timeout))
    store.set_timeout(timeout)
    both = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if both else "gloo",
        store=PrefixStore("group", store),
        rank=rank,
        world_size=n_processes,
        timeout=timeout,
    )
    return store


def make_strategy(
    layout: Layout,
    group: dist.ProcessGroup,
    device: torch.device,
    *,
    announce: Announce | None = None,
    order: Order = "1f1b",
) -> Strategy:
    """The strategy of a layout: DDP where each process holds the whole model, FSDP where weights are cut.

    Where layers are dealt out (tp, pp), `Composed` does that, with FSDP's machinery under it.

    Args:
        group: the processes; for all but DDP all that there are, since torch lays its meshes over all.
        announce: as for `DataParallel`.
        order: of a pipeline's micro-batches.

    Raises:
        TrainingError: torch has no means to cut weights over processes on this device.
    """
    if layout.n_processes == 1:
        return SingleProcess(device)
    _check_device(layout, device)
    if layout.n_parts == 1:
        return Replicated(layout, group, device, announce=announce)
    assert group is dist.group.WORLD, "a mesh spans all processes"
    mesh = init_device_mesh(device.type, layout.shape, mesh_dim_names=AXES)
    if layout.tp == layout.pp == 1:
        axes = ("dp_replicate", "dp_shard") if layout.dp_replicate > 1 else ("dp_shard",)
        return Sharded(layout, group, device, mesh=mesh[axes], announce=announce)
    from scalelab.parallel.engine.composed import Composed

    return Composed(layout, group, device, mesh=mesh, order=order, announce=announce)


def _check_device(layout: Layout, device: torch.device) -> None:
    """Refuse what torch cannot do between processes on such a device."""
    if device.type not in ("cpu", "cuda"):
        raise TrainingError(
            f"{layout} needs processes that exchange tensors, and torch's on {device.type!r} do not: use "
            "--device cpu, or one process"
        )
    if device.type == "cuda" and not dist.is_nccl_available() and layout.n_parts > 1:
        raise TrainingError(
            f"{layout} cuts the model over GPUs, which takes NCCL, and this torch is built without: use "
            "dp_replicate alone, or --device cpu"
        )


def device_of(launch: Launch, asked: str | None) -> torch.device:
    """Where this process computes: a GPU of its own by its place on this machine, or the CPU.

    Args:
        asked: "cpu", "cuda", or None for GPUs where there are any.

    Raises:
        ConfigError: a particular GPU, which cannot be every process's.
        TrainingError: no such device, or fewer GPUs than processes.
    """
    kind = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    if launch.n_processes > 1 and ":" in kind:
        raise ConfigError(
            f"--device {kind} is one device, and there are {launch.n_processes} processes: give "
            f"{kind.split(':')[0]}, and each takes its own"
        )
    device = SingleProcess(kind).device
    if device.type != "cuda" or launch.n_processes == 1:
        return device
    n_gpus = torch.cuda.device_count()
    if launch.local_processes > n_gpus:
        raise TrainingError(
            f"{launch.local_processes} processes on a machine with {n_gpus} GPUs: start "
            f"--nproc-per-node {n_gpus}, or use --device cpu"
        )
    device = torch.device("cuda", launch.local_rank)
    torch.cuda.set_device(device)  # where NCCL puts what it needs
    return device
