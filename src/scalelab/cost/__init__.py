"""Floor 1, no torch: what a model costs in parameters, FLOPs, bytes and seconds, from its config alone."""

from scalelab.cost.footprint import Memory, memory
from scalelab.cost.generation import (
    Pass,
    attainable_flops,
    decode_flops,
    decode_pass,
    kv_cache_bytes,
    prefill_flops,
    prefill_pass,
)
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
    "Pass",
    "accelerator",
    "accelerator_names",
    "attainable_flops",
    "count_params",
    "decode_flops",
    "decode_pass",
    "flops",
    "flops_6nd",
    "kv_cache_bytes",
    "memory",
    "mfu",
    "params",
    "peak_flops",
    "prefill_flops",
    "prefill_pass",
    "require_accelerator",
]
