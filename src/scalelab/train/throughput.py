"""MFU: the model's own FLOPs per second, over what this device's matrix products can give at best.

The peak is the maker's dense figure for GPUs in the table, and measured by large products elsewhere; every
figure says which. Source: Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from scalelab.core.config import ModelConfig
from scalelab.core.errors import ConfigError
from scalelab.core.units import format_count
from scalelab.cost import mfu, peak_flops
from scalelab.train.config import Precision
from scalelab.train.precision import dtype_of

# Large enough that a product is bound by arithmetic, not by memory.
SIDE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """The ceiling of matrix products on one device.

    Attributes:
        flops_per_s: dense, at the precision in use.
        source: "measured" or the accelerator's name in the table.
    """

    flops_per_s: float
    source: str

    def times(self, n_processes: int) -> Peak:
        """The ceiling of so many processes, each with as much as this one."""
        if n_processes == 1:
            return self
        return Peak(flops_per_s=n_processes * self.flops_per_s, source=f"{n_processes} × {self.source}")

    def describe(self) -> str:
        """As in "312 GFLOP/s (measured)"."""
        return f"{format_count(self.flops_per_s)}FLOP/s ({self.source})"


def find_peak(device: torch.device, precision: Precision) -> Peak:
    """The table's figure for a known GPU, else a measurement of some tenths of a second."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = peak_flops(name, precision)
        if known is not None:
            return Peak(flops_per_s=known, source=name)
    return Peak(flops_per_s=measure_peak_flops(device, dtype_of(precision)), source="measured")


def measure_peak_flops(
    device: torch.device, dtype: torch.dtype, *, side: int | None = None, seconds: float = 0.1
) -> float:
    """FLOP/s of square matrix products, the best of as many as fit in `seconds`, at least two.

    Args:
        dtype: of the matrices.
        side: rows and columns of each, one product being 2·side³ FLOPs; None: large enough for the device.
        seconds: how long to try; the fastest single product counts, since others may use the machine too.
    """
    side = side or SIDE.get(device.type, 2048)
    # Random numbers, since a GPU multiplies ones faster than it does data (fewer bits flip, so the clock
    # stays up); from a generator of their own, since a measurement must not move the caller's.
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    best, spent, repeats = float("inf"), 0.0, 0
    while repeats < 3 or spent < seconds:
        _wait_for(device)
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        _wait_for(device)
        taken = time.perf_counter() - start
        repeats, spent = repeats + 1, spent + taken
        if repeats > 1:  # the first one also sets up the library
            best = min(best, taken)
    return 2 * side**3 / best


def utilisation(tokens_per_s: float, config: ModelConfig, seq_len: int, peak: Peak) -> float | None:
    """MFU as a share, or None for a kind of model whose FLOPs cannot be counted."""
    try:
        return mfu(tokens_per_s, config, seq_len, peak.flops_per_s) if tokens_per_s > 0 else None
    except ConfigError:
        return None


def _wait_for(device: torch.device) -> None:
    """GPUs work in the background; a clock must wait for them."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
