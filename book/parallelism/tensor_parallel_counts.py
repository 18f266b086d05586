"""Counts and times of the chapter `tensor-parallel`, by the cost model on links of `data_parallel_common`.

Nothing here was timed by us: seconds are the model's, and tokens a second a published measurement. No torch
is needed.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from data_parallel_common import NETWORK, NVLINK, RATE, config, ms, percent, size

from scalelab.cost import (
    Link,
    StepTime,
    Traffic,
    all_gather,
    all_reduce,
    data_parallel_traffic,
    held_params,
    interconnect,
    layer_activation_bytes,
    tensor_parallel_step,
    tensor_parallel_traffic,
    training_seconds,
)
from scalelab.cost.published_training import LAYER_TIMES, RECOMPUTATION, WEAK_SCALING

CONTEXT = 8192
RANKS = 8
MODELS = {"8b": "llama-3.1-8b", "70b": "llama-3.1-70b"}
SERVERS_BYTES_PER_S = 8 * NETWORK.bytes_per_s  # of whole servers: eight rings, each through its own port
MULTIPROCESSORS, TILE = 132, (128, 256)  # of an H100 (SXM); rows and columns of the product's usual tile
# Tokens a second on each GPU, ranks of tensor parallelism → rate: the playbook's `tp_scaling` figure.
MEASURED = {2: 13_923.18, 4: 12_420.76, 8: 10_903.32, 16: 6_245.6, 32: 2_146.44}
REPLICAS = {8: 40_149.94, 32: 35_367.61}  # of data parallelism: its `dp_scaling` figure
GPT3: dict[str, Any] = {"seq_len": 2048, "batch_size": 1, "d_model": 12_288, "n_heads": 96}


def numbers() -> dict[str, str]:
    """Every number that the chapter's prose takes from a formula, a config or a published table."""
    return {
        **measured_numbers(),
        **held_numbers(),
        **loss_numbers(),
        **memory_numbers(),
        **paying_numbers(),
        **small_numbers(),
        **published_numbers(),
    }


def together(ranks: int) -> float:
    """Tokens a second of the whole group in the published measurement."""
    return ranks * MEASURED[ranks]


def measured_numbers() -> dict[str, str]:
    """What the playbook's figure makes of 8, 16 and 32 GPUs."""
    return {
        "seen_8": f"{together(8):,.0f}",
        "seen_16_gain": percent(together(16) / together(8) - 1),
        "seen_32_share": percent(together(32) / together(8)),
        "seen_16_each": percent(1 - MEASURED[16] / MEASURED[8]),
        "seen_replicas": percent(REPLICAS[32] / REPLICAS[8]),
        "seen_16_times": f"{together(16) / together(8):.2f}",
    }


@lru_cache(maxsize=64)
def step(name: str, ranks: int, link: Link, tokens: int = CONTEXT) -> StepTime:
    """One sequence through a preset, forward and backward."""
    return tensor_parallel_step(
        config(name), ranks, batch_size=1, seq_len=tokens, flops_per_s=RATE, link=link
    )


def speedup(name: str, ranks: int, link: Link) -> float:
    """How many times as fast as one rank."""
    return step(name, 1, link).total_s / step(name, ranks, link).total_s


@lru_cache(maxsize=8)
def traffic(name: str, ranks: int = RANKS, tokens: int = CONTEXT) -> Traffic:
    """What one sequence sends, in 16 bits."""
    return tensor_parallel_traffic(config(name), ranks, batch_size=1, seq_len=tokens, bytes_per_element=2)


def held_numbers() -> dict[str, str]:
    """Parameters on each rank, and what travels for one sequence."""
    c = config(MODELS["8b"])
    whole, part = size(MODELS["8b"]), held_params(c, tp=RANKS).total
    stream = 2 * CONTEXT * c.d_model
    one = all_reduce(CONTEXT * c.d_model, RANKS, bytes_per_element=2)
    gradients = data_parallel_traffic(whole, RANKS, bytes_per_element=2)
    sent = traffic(MODELS["8b"])
    return {
        "whole_8b": f"{whole / 1e9:.2f} billion",
        "held_8b": f"{part / 1e9:.3f} billion",
        "held_more": f"{part - whole // RANKS:,}",
        "context": f"{CONTEXT:,}",
        "stream_mb": f"{stream / 1e6:.0f} MB",
        "one_sum_mb": f"{one.max_sent_bytes / 1e6:.0f} MB",
        "sums_8b": f"{4 * c.n_layers + 2}",
        "sent_8b": f"{max(sent.sent_bytes) / 1e9:.1f} GB",
        "gradients_8b": f"{max(gradients.sent_bytes) / 1e9:.1f} GB",
        "rate": f"{RATE / 1e12:.0f} TFLOP/s",
    }


def loss_numbers() -> dict[str, str]:
    """Gathering logits against three sums of one number a token."""
    c = config(MODELS["8b"])
    gathered = all_gather(CONTEXT * c.vocab_size, RANKS, bytes_per_element=2).max_sent_bytes
    three = traffic(MODELS["8b"]).parts["loss"].max_sent_bytes
    return {
        "logits_gb": f"{gathered / 1e9:.1f} GB",
        "loss_kb": f"{three / 1e3:.0f} kB",
        "loss_times": f"{gathered / three:,.0f}",
        "logits_held": f"{4 * CONTEXT * c.vocab_size / RANKS / 1e9:.2f} GB",
        "logits_whole": f"{4 * CONTEXT * c.vocab_size / 1e9:.1f} GB",
    }


def units(tp: int, *, sequence_parallel: bool = False, recompute: str = "none") -> float:
    """What a layer of GPT-3 keeps on each rank, in units of sbh bytes."""
    kept = layer_activation_bytes(**GPT3, tp=tp, sequence_parallel=sequence_parallel, recompute=recompute)
    return kept / (GPT3["seq_len"] * GPT3["d_model"])


def memory_numbers() -> dict[str, str]:
    """The paper's six ways at eight ranks."""
    base = units(RANKS)
    both = units(RANKS, sequence_parallel=True, recompute="selective")
    return {
        "kept_base": f"{base:g}",
        "kept_sequence": f"{units(RANKS, sequence_parallel=True):g}",
        "kept_selective": f"{units(RANKS, recompute='selective'):g}",
        "kept_both": f"{both:g}",
        "kept_ratio": f"{base / both:.1f}",
        "kept_whole_share": percent(10 / units(RANKS, recompute="selective")),
    }


# --- when it pays ---


def ratio(width: int, ranks: int, bytes_per_s: float) -> float:
    """Sums over products of a GPT layer, latency left out: 2 (t-1) F / (9 h W)."""
    return 2 * (ranks - 1) * RATE / (9 * width * bytes_per_s)


def ranks_at_half(width: int, bytes_per_s: float) -> float:
    """Ranks at which sums take as long as products: 1 + 4.5 h W / F."""
    return 1 + 4.5 * width * bytes_per_s / RATE


def paying_numbers() -> dict[str, str]:
    """The rule's numbers, and the cost model's for two models on two links."""
    found = {
        "fw_nvlink": f"{RATE / NVLINK.bytes_per_s:,.0f}",
        "fw_net": f"{RATE / NETWORK.bytes_per_s:,.0f}",
        "half_nvlink": f"{ranks_at_half(4096, NVLINK.bytes_per_s):.0f}",
        "half_net": f"{ranks_at_half(4096, NETWORK.bytes_per_s):.1f}",
        "half_net_16k": f"{ranks_at_half(16_384, NETWORK.bytes_per_s):.0f}",
    }
    for short, name in MODELS.items():
        for where, link in (("nvlink", NVLINK), ("net", NETWORK)):
            for ranks in (2, 4, 8):
                found[f"times_{short}_{where}_{ranks}"] = f"{speedup(name, ranks, link):.1f}"
            found[f"share_{short}_{where}"] = percent(1 - step(name, RANKS, link).efficiency)
    one = step(MODELS["8b"], RANKS, NVLINK)
    waits = traffic(MODELS["8b"]).total.steps * NVLINK.latency_s
    two_servers = speed_by_rule(4096, 16, SERVERS_BYTES_PER_S) / speed_by_rule(4096, 8, NVLINK.bytes_per_s)
    return found | {
        "net_8_over_4": percent(speedup(MODELS["8b"], 8, NETWORK) / speedup(MODELS["8b"], 4, NETWORK) - 1),
        "compute_8b": ms(one.compute_s),
        "sums_ms_8b": ms(one.communication_s),
        "waits_8b": ms(waits),
        "short_waits": percent(waits / step(MODELS["8b"], RANKS, NVLINK, tokens=256).communication_s),
        "rule_16": f"{two_servers:.1f}",
        **generation_numbers(),
    }


def speed_by_rule(width: int, ranks: int, bytes_per_s: float) -> float:
    """Times as fast as one rank, by the rule."""
    return ranks / (1 + ratio(width, ranks, bytes_per_s))


def generation_numbers() -> dict[str, str]:
    """One token at a time: reading weights against waiting for sums."""
    c, memory = config(MODELS["8b"]), 3.35e12
    whole = 2 * size(MODELS["8b"]) / memory
    sums = 2 * c.n_layers
    ring = sums * all_reduce(c.d_model, RANKS, bytes_per_element=2).seconds(NVLINK)
    direct = sums * NVLINK.seconds((RANKS - 1) * 2 * c.d_model)  # to all others at once: one latency
    return {
        "read_1": ms(whole),
        "read_8": ms(whole / RANKS),
        "token_sums": str(sums),
        "token_ring": ms(ring),
        "token_direct": ms(direct),
    }


def filled(rows: int, columns: int) -> float:
    """The share of multiprocessors that have a tile to work on, averaged over waves."""
    tiles = math.ceil(rows / TILE[0]) * math.ceil(columns / TILE[1])
    waves = math.ceil(tiles / MULTIPROCESSORS)
    return tiles / (waves * MULTIPROCESSORS)


def small_numbers() -> dict[str, str]:
    """Tiles of the product for queries, keys and values of Llama-3.1-8B, whole and cut in eight."""
    c = config(MODELS["8b"])
    wide = (c.n_heads + 2 * c.kv_heads) * c.head_width
    found = {"qkv_width": f"{wide:,}", "qkv_eighth": f"{wide // RANKS}"}
    for name, rows in (("long", CONTEXT), ("short", 1024)):
        for ranks in (1, RANKS):
            found[f"fill_{name}_{ranks}"] = percent(filled(rows, wide // ranks))
    tiles = math.ceil(CONTEXT / TILE[0]) * math.ceil(wide // RANKS / TILE[1])
    return found | {"tiles_8": str(tiles), "waves_8": str(math.ceil(tiles / MULTIPROCESSORS))}


# --- published ---


def published_numbers() -> dict[str, str]:
    """What the chapter says of two papers' tables."""
    plain, cut = LAYER_TIMES[0], LAYER_TIMES[1]
    wide, narrow = WEAK_SCALING[-1], WEAK_SCALING[3]
    nvlink_3 = interconnect("nvlink-3").bytes_per_s
    share = 3 * 2 * 7 / 8 * 2 * narrow.d_model * 2 / nvlink_3  # six sums of two bytes, a token and layer
    work = 96 * narrow.d_model**2 / narrow.tp / (narrow.teraflops_per_gpu.value * 1e12)
    gpt3 = training_seconds(175e9, 300e9, n_gpus=1024, flops_per_s=140e12) / 86_400
    large = training_seconds(wide.n_params, 450e9, n_gpus=3072, flops_per_s=163e12) / 86_400
    return {
        "narrow_width": f"{narrow.d_model // narrow.tp:,}",
        "wide_width": f"{wide.d_model // wide.tp:,}",
        "narrow_share": percent(share / work),
        "layer_forward": percent(1 - cut.forward_ms.value / plain.forward_ms.value),
        "layer_plain_ms": plain.combined_ms.text,
        "layer_cut_ms": cut.combined_ms.text,
        "gain_least": min((row.gain_percent for row in RECOMPUTATION), key=lambda p: p.value).text,
        "gain_most": max((row.gain_percent for row in RECOMPUTATION), key=lambda p: p.value).text,
        "days_gpt3": f"{gpt3:.0f}",
        "days_1t": f"{large:.0f}",
    }
