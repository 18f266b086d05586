"""What a machine really does: how fast it multiplies matrices, how many bytes a piece of work held at most.

Taught in book/transformers/training.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def matmul_flops_per_s(
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype | None = None,
    size: int = 2048,
    seconds: float = 0.5,
) -> float:
    """The best rate at which this device multiplied two square matrices, FLOP/s.

    Args:
        dtype: of the matrices; torch.float32 when None.
        size: rows and columns of each; one product is 2·size³ FLOPs.
        seconds: how long to try; the fastest single product counts, since others may use the machine too.
    """
    import torch

    from scalelab.train import measure_peak_flops

    return measure_peak_flops(torch.device(device), dtype or torch.float32, side=size, seconds=seconds)


def peak_bytes(work: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """The most bytes of tensors that `work` held at once, beyond what was held before it began.

    On a CPU torch's profiler records every allocation and release; on a GPU the allocator keeps the peak.
    Bytes of tensors only: the interpreter, the libraries and their work space come on top.
    """
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler writes a line to stderr at every start
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    held = most = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most
