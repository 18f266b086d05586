"""Floor 1, no torch: what a model costs in parameters, FLOPs, bytes and seconds, from its config alone."""

from scalelab.cost.collectives import (
    Collective,
    all_gather,
    all_reduce,
    all_to_all,
    broadcast,
    point_to_point,
    reduce,
    reduce_scatter,
    split_sizes,
)
from scalelab.cost.communication import Link, LinkFit, fit_link
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
from scalelab.cost.interconnects import Interconnect, interconnect, interconnect_names
from scalelab.cost.layer_activations import (
    end_activation_bytes,
    layer_activation_bytes,
    layer_activation_parts,
    stage_activation_bytes,
)
from scalelab.cost.megatron import (
    hardware_flops,
    megatron_params,
    model_flops,
    printed_hardware_flops,
    training_seconds,
)
from scalelab.cost.operations import Flops, flops, flops_6nd, mfu
from scalelab.cost.parameters import Params, count_params, params
from scalelab.cost.pipeline import bubble_fraction, in_flight, pipeline_seconds
from scalelab.cost.published_checks import contradictions
from scalelab.cost.scaling import StepTime, data_parallel_step, largest_dp, tensor_parallel_step
from scalelab.cost.sharding import (
    HeldParams,
    States,
    bytes_per_parameter,
    chunk_sizes,
    held_params,
    rank_memory,
    zero_memory,
)
from scalelab.cost.traffic import (
    Traffic,
    data_parallel_traffic,
    pipeline_traffic,
    tensor_parallel_traffic,
    zero_traffic,
)

__all__ = [
    "Accelerator",
    "Collective",
    "Flops",
    "HeldParams",
    "Interconnect",
    "Link",
    "LinkFit",
    "Memory",
    "Params",
    "Pass",
    "States",
    "StepTime",
    "Traffic",
    "accelerator",
    "accelerator_names",
    "all_gather",
    "all_reduce",
    "all_to_all",
    "attainable_flops",
    "broadcast",
    "bubble_fraction",
    "bytes_per_parameter",
    "chunk_sizes",
    "contradictions",
    "count_params",
    "data_parallel_step",
    "data_parallel_traffic",
    "decode_flops",
    "decode_pass",
    "end_activation_bytes",
    "fit_link",
    "flops",
    "flops_6nd",
    "hardware_flops",
    "held_params",
    "in_flight",
    "interconnect",
    "interconnect_names",
    "kv_cache_bytes",
    "largest_dp",
    "layer_activation_bytes",
    "layer_activation_parts",
    "megatron_params",
    "memory",
    "mfu",
    "model_flops",
    "params",
    "peak_flops",
    "pipeline_seconds",
    "pipeline_traffic",
    "point_to_point",
    "prefill_flops",
    "prefill_pass",
    "printed_hardware_flops",
    "rank_memory",
    "reduce",
    "reduce_scatter",
    "require_accelerator",
    "split_sizes",
    "stage_activation_bytes",
    "tensor_parallel_step",
    "tensor_parallel_traffic",
    "training_seconds",
    "zero_memory",
    "zero_traffic",
]
