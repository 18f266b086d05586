"""Floor 1, no torch: what a model costs in parameters, FLOPs, bytes and seconds, from its config alone."""

from scalelab.cost.footprint import Memory, memory
from scalelab.cost.hardware import (
    Accelerator,
    accelerator,
    accelerator_names,
    peak_flops,
    require_accelerator,
)
from scalelab.cost.operations import Flops, flops, flops_6nd, mfu
from scalelab.cost.parameters import Params, count_params, params

__all__ = [
    "Accelerator",
    "Flops",
    "Memory",
    "Params",
    "accelerator",
    "accelerator_names",
    "count_params",
    "flops",
    "flops_6nd",
    "memory",
    "mfu",
    "params",
    "peak_flops",
    "require_accelerator",
]
