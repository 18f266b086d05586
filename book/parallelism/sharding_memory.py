"""Bytes of the chapter `sharding`: training state of each stage, what a layer keeps, what fits on 80 GiB.

All are counts, by `scalelab.cost`. No torch is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from data_parallel_common import config, percent, table
from IPython.display import HTML
from sharding_step import MODEL, parts_of

from scalelab.core.presets import preset
from scalelab.cost import (
    States,
    chunk_sizes,
    contradictions,
    hardware_flops,
    layer_activation_bytes,
    layer_activation_parts,
    memory,
    model_flops,
    params,
    printed_hardware_flops,
    rank_memory,
    require_accelerator,
    zero_memory,
    zero_traffic,
)
from scalelab.cost.published_training import LAYER_TIMES, RECOMPUTATION, ZERO_MEMORY

RANKS = 8
CONTEXT = 8192
GPU_BYTES = require_accelerator("h100").memory_bytes
GPT3: dict[str, int] = {"seq_len": 2048, "batch_size": 1, "d_model": 12288, "n_heads": 96}
LAYERS_GPT3 = 96
STAGES = ("replicas", "ZeRO-1", "ZeRO-2", "ZeRO-3")
# Why backward needs what a layer keeps, in the order of the cost model's parts.
WHY = {
    "norm inputs": "two norms' inputs",
    "attention input": "input of Q, K and V",
    "queries and keys": "Q and K, for QKᵀ",
    "values": "V, for the mixture",
    "softmax output": "the softmax",
    "softmax dropout mask": "its dropout's mask",
    "softmax dropout output": "what is left of it",
    "attention projection input": "input of the output map",
    "attention dropout mask": "dropout's mask",
    "feed-forward input": "input of the first map",
    "activation function input": "input of the GELU",
    "activation function output": "input of the second map",
    "feed-forward dropout mask": "dropout's mask",
}


def gb(n_bytes: float, digits: int = 1) -> str:
    """Bytes in GB, 10⁹."""
    return f"{n_bytes / 1e9:,.{digits}f} GB"


@lru_cache(maxsize=2)
def size(name: str = MODEL) -> int:
    """All parameters."""
    return params(config(name)).total


def states(stage: int, ranks: int = RANKS, name: str = MODEL) -> States:
    """Training state of one rank in mixed precision."""
    return zero_memory(size(name), stage=stage, dp=ranks, precision="mixed")


# --- what fits ---


@dataclass(frozen=True, slots=True)
class Activations:
    """What a micro-batch keeps: bytes a token, and bytes that are there whatever the tokens.

    Attributes:
        kept: between forward and backward, each token, over all layers.
        working: of the layer that is being made again, each token.
        head: logits' log-probabilities and their two gradients, each token.
    """

    kept: float
    working: float
    head: float

    @property
    def per_token(self) -> float:
        """At the worst moment: backward begins with the head, and remakes a layer after that is gone."""
        return self.kept + max(self.working, self.head)


@lru_cache(maxsize=2)
def activations(recompute: bool) -> Activations:
    """Of Llama-3.1-8B as this package trains it: bf16 products, fused attention, an fp32 residual stream."""
    c = config(MODEL)
    parts = memory(c, batch_size=1, seq_len=CONTEXT, precision="bf16").activation_parts
    head = 3 * parts["log-probabilities"] / CONTEXT  # and the gradients of these and of the logits
    layers = sum(parts[name] for name in ("residual stream", "norms", "attention", "feed-forward")) / CONTEXT
    if not recompute:
        return Activations(kept=layers, working=0.0, head=head)
    return Activations(kept=4 * c.d_model * c.n_layers, working=layers / c.n_layers, head=head)


def temporary_bytes(stage: int) -> int:
    """What is whole for a moment: gradients of one unit from stage 2 on, weights of two from stage 3 on."""
    *_, layer, head = parts_of()
    whole = 2 * head.n_params if stage >= 2 else 0
    return whole + (2 * (layer.n_params + head.n_params) if stage >= 3 else 0)


def left_bytes(stage: int) -> float:
    """Of an 80 GiB GPU's memory, beside state and what is whole for a moment; negative where it lacks."""
    return GPU_BYTES - states(stage).total_bytes - temporary_bytes(stage)


def table_fits() -> HTML:
    """State, room and tokens of Llama-3.1-8B on eight GPUs, stage by stage."""
    rows = []
    for stage, name in enumerate(STAGES):
        left = left_bytes(stage)
        rows.append([name, f"{states(stage).total_bytes / 1e9:.1f}", f"{left / 1e9:.1f}".replace("-", "−")])
        rows[-1] += [
            f"{max(0, math.floor(left / activations(way).per_token)):,}" if left > 0 else "–"
            for way in (False, True)
        ]
    return table(["8 ranks", "state, GB", "room, GB", "tokens, all kept", "tokens, layers remade"], rows)


# --- published ---


def table_zero() -> HTML:
    """Entries of ZeRO's table 1 as printed, marked where ours differ."""
    rows = []
    for row in ZERO_MEMORY:
        if row.dp not in (4, 64, 1024):
            continue
        told = contradictions(row)
        cells = []
        for stage, printed in enumerate((row.stage_1_gb, row.stage_2_gb, row.stage_3_gb), start=1):
            flawed = any(sentence.startswith(f"stage_{stage}_gb") for sentence in told)
            cells.append(printed.text + (" ≠" if flawed else ""))
        rows.append([f"{row.n_params / 1e9:g} B, p = {row.dp:,}", *cells])
    return table(["GB a device", "ZeRO-1", "ZeRO-2", "ZeRO-3"], rows)


def zero_cut() -> str:
    """Which entries of the table do not follow, in words."""
    told = []
    for row in ZERO_MEMORY:
        if row.dp not in (4, 64, 1024):
            continue
        for sentence in contradictions(row):
            stage = int(sentence.split("_")[1])
            printed = (row.stage_1_gb, row.stage_2_gb, row.stage_3_gb)[stage - 1]
            ours = zero_memory(row.n_params, stage=stage, dp=row.dp, precision="mixed").total_bytes / 1e9
            told.append(f"{ours:,.2f} stands as {printed.text}")
    return ", ".join(told) + "."


def table_traffic(ranks: int = 64, many: int = 8) -> HTML:
    """GB that each rank sends in a step, with one and with several micro-batches."""
    ways: dict[str, dict[str, Any]] = {
        "replicas": {"stage": 0},
        "ZeRO-1": {"stage": 1},
        "ZeRO-2": {"stage": 2},
        "ZeRO-3": {"stage": 3},
        "ZeRO-3, weights kept until backward": {"stage": 3, "resharded": False},
    }
    rows = []
    for name, how in ways.items():
        sent = [
            max(
                zero_traffic(
                    size(), ranks, weight_bytes=2, gradient_bytes=2, micro_batches=m, **how
                ).sent_bytes
            )
            for m in (1, many)
        ]
        rows.append([name, f"{sent[0] / 1e9:.1f}", f"{sent[1] / 1e9:,.1f}"])
    return table(["GB from each rank", "1 micro-batch", f"{many} micro-batches"], rows)


def table_layer() -> HTML:
    """The bytes that a GPT layer keeps, part by part: in units of sbh or as²b, and for GPT-3."""
    s, b, h, a = (GPT3[name] for name in ("seq_len", "batch_size", "d_model", "n_heads"))
    rows, units = [], {"sbh": 0, "as²b": 0}
    for name, n_bytes in layer_activation_parts(**GPT3).items():
        unit = "as²b" if name.startswith("softmax") else "sbh"
        count, rest = divmod(n_bytes, a * s * s * b if unit == "as²b" else s * b * h)
        assert rest == 0
        units[unit] += count
        rows.append([WHY[name], f"{count} {unit}", f"{n_bytes / 1e6:,.0f}"])
    assert units == {"sbh": 34, "as²b": 5}
    total = layer_activation_bytes(**GPT3)
    rows.append(["together", "34 sbh + 5 as²b", f"{total / 1e6:,.0f}"])
    return table(["kept for backward", "bytes", "GPT-3, MB"], rows)


# --- numbers ---


def memory_numbers() -> dict[str, str]:
    """Bytes in prose."""
    n = size()
    found = {
        "params": f"{n / 1e9:.2f} billion",
        "weights_16": gb(2 * n, 0),
        "state": gb(16 * n, 0),
        "state_all": f"{RANKS * 16 * n / 1e12:.2f} TB",
        "gpu_gb": gb(GPU_BYTES),
        "gpu_all": gb(RANKS * GPU_BYTES, 0),
        "zero_cut": zero_cut(),
    }
    for stage in (1, 2, 3):
        found[f"stage_{stage}"] = gb(states(stage).total_bytes)
    return found | uneven_numbers() | layer_numbers() | recompute_numbers() | fit_numbers() | llama_numbers()


def uneven_numbers() -> dict[str, str]:
    """FSDP2's rows on many ranks: GPT-2's width on 512."""
    rows = chunk_sizes(768, 512)
    return {
        "rows_most": str(max(rows)),
        "rows_none": str(rows.count(0)),
        "rows_more": percent(max(rows) * 512 / 768 - 1),
    }


def layer_numbers() -> dict[str, str]:
    """What a layer of GPT-3 keeps, and all its layers."""
    s, h, a = GPT3["seq_len"], GPT3["d_model"], GPT3["n_heads"]
    ways = ("none", "selective", "full")
    whole, selective, full = (layer_activation_bytes(**GPT3, recompute=how) for how in ways)
    attention = 5 * a * s // h
    times = whole // full
    best = math.sqrt(2 * LAYERS_GPT3 / (34 + attention))
    return {
        "gpt3_attention": str(attention),
        "gpt3_layer": gb(whole, 2),
        "gpt3_all": gb(LAYERS_GPT3 * whole, 0),
        "gpt3_full": gb(LAYERS_GPT3 * full + whole, 1),
        "gpt3_saved": percent(1 - selective / whole),
        "gpt3_input_times": str(times),
        "gpt3_group": f"{best:.1f}",
        "gpt3_by_one": f"{2 * LAYERS_GPT3 + 34 + attention}",
        "gpt3_by_eight": f"{2 * LAYERS_GPT3 // 8 + 8 * (34 + attention)}",
    }


def recompute_numbers() -> dict[str, str]:
    """What making things again costs: counted, as printed, as timed."""
    small, large = RECOMPUTATION[1], RECOMPUTATION[2]
    found = {}
    for row, short in ((small, "175"), (large, "530")):
        shape = {"batch_size": row.batch_size, "seq_len": row.seq_len, "n_layers": row.n_layers,
                 "d_model": row.d_model, "vocab_size": row.vocab_size}  # fmt: skip
        once = model_flops(**shape)
        found[f"again_{short}"] = percent(hardware_flops(**shape, recompute="selective") / once - 1, 1)
        found[f"again_printed_{short}"] = percent(printed_hardware_flops(**shape) / once - 1, 1)
    base, _, full, selective, _ = LAYER_TIMES
    extra = [row.combined_ms.value / base.combined_ms.value - 1 for row in (full, selective)]
    ratio = 2048 / 6144  # s/h of the model that was timed
    return found | {
        "layer_full_time": percent(extra[0]),
        "layer_selective_time": percent(extra[1]),
        "layer_selective_flops": percent(ratio / (18 + 3 * ratio), 1),
        "layer_full_kept": percent(layer_share("full"), 0),
        "layer_selective_kept": percent(layer_share("selective"), 0),
    }


def layer_bytes(recompute: str, sequence_parallel: bool) -> int:
    """Of the layer that Korthikanti's table 4 times: the 22B model, 4 sequences, 8 tensor ranks."""
    return layer_activation_bytes(
        seq_len=2048, batch_size=4, d_model=6144, n_heads=64, tp=8, recompute=recompute,
        sequence_parallel=sequence_parallel,
    )  # fmt: skip


def layer_share(recompute: str) -> float:
    """What it keeps over what it keeps without recomputation."""
    return layer_bytes(recompute, False) / layer_bytes("none", False)


def fit_numbers() -> dict[str, str]:
    """Activations of Llama-3.1-8B, and what fits."""
    kept, remade = activations(False), activations(True)
    return {
        "context": f"{CONTEXT:,}",
        "act_layers": gb(kept.kept * CONTEXT, 0),
        "act_all": gb(kept.per_token * CONTEXT, 0),
        "act_head_one": gb(remade.head / 3 * CONTEXT),
        "act_saved": gb((kept.per_token - remade.per_token) * CONTEXT, 0),
        "first_saved": gb(states(0).total_bytes - states(1).total_bytes, 0),
        "later_saved": gb(states(1).total_bytes - states(3).total_bytes, 0),
        "temporary_3": gb(temporary_bytes(3)),
        "mb_token": f"{kept.per_token / 1e6:.1f} MB",
        "mb_token_full": f"{remade.per_token / 1e6:.1f} MB",
    }


def llama_numbers() -> dict[str, str]:
    """Llama 3 405B on 16,384 GPUs: state of a rank of a middle stage, sharded and not.

    The paper takes a layer from the first and the last stage: 7 with the table or the head, 8 in between.
    """
    shape: dict[str, int] = {"dp": 128, "tp": 8, "pp": 16, "pp_rank": 1}
    assert preset("llama-3.1-405b") is not None
    whole = rank_memory("llama-3.1-405b", **shape, stage=0)
    cut = rank_memory("llama-3.1-405b", **shape, stage=2)
    return {
        "big_whole": gb(whole.total_bytes, 0),
        "big_weights": gb(cut.weights_bytes),
        "big_rest": gb(cut.total_bytes - cut.weights_bytes),
    }
