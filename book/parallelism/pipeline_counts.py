"""Counts of the chapter `pipeline`: published runs by our formulas, messages, uneven stages.

Idle shares are formulas or the simulator's, with stages equally long unless it is said; times of messages are
the cost model's on the links that `data_parallel_common` names. Nothing here was timed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from data_parallel_common import NETWORK, RATE, config, ms, percent, size, table
from IPython.display import HTML
from sharding_memory import CONTEXT, gb

from scalelab.cost import (
    bubble_fraction,
    in_flight,
    memory,
    params,
    pipeline_traffic,
    point_to_point,
    split_sizes,
)
from scalelab.cost.published_training import LLAMA_3, RECOMPUTATION, WEAK_SCALING, LlamaRow
from scalelab.parallel.scratch.schedules import Kind, Operation, Schedule, make_schedule
from scalelab.parallel.scratch.simulation import simulate
from scalelab.parallel.scratch.trace import step_seconds

BIG, SMALL = "llama-3.1-405b", "llama-3.1-8b"
LLAMA_STAGES, LLAMA_TP = 16, 8
LLAMA_V = 8  # (126 + 2 removed layers) / 16: see the text
PASS: Mapping[Kind, float] = {"F": 1.0, "B": 2.0, "I": 1.0, "W": 1.0}


@lru_cache(maxsize=4)
def layer_params(name: str) -> int:
    """Parameters of one layer."""
    c = config(name)
    tables = c.vocab_size * c.d_model * (1 if c.tie_embeddings else 2)
    return (params(c).total - tables) // c.n_layers


def head_params(name: str) -> int:
    """Parameters of the head, which multiplies each token as a layer's do."""
    return config(name).vocab_size * config(name).d_model


def counts() -> dict[str, str]:
    """All numbers of this file."""
    return {
        **llama_numbers(),
        **published_numbers(),
        **memory_numbers(),
        **message_numbers(),
        **uneven_numbers(),
    }


def llama_row(n_gpus: int) -> LlamaRow:
    """Llama 3's layout for short contexts on so many GPUs."""
    return next(row for row in LLAMA_3 if row.n_gpus == n_gpus and row.cp == 1)


def llama_numbers() -> dict[str, str]:
    """The bubble of Llama 3's two layouts, and what of a loss of speed it explains."""
    few, many = llama_row(8192), llama_row(16384)
    work = [1 - bubble_fraction(row.pp, row.sequences_per_dp, v=LLAMA_V) for row in (few, many)]
    rates = [row.teraflops_per_gpu.value for row in (few, many)]
    v_1 = bubble_fraction(many.pp, many.sequences_per_dp)
    v_8 = bubble_fraction(many.pp, many.sequences_per_dp, v=LLAMA_V)
    return {
        "llama_gpus": f"{many.n_gpus:,}",
        "llama_m": str(many.sequences_per_dp),
        "llama_one": percent(bubble_fraction(many.pp, 1)),
        "llama_plain": percent(v_1),
        "llama_plain_ideal": percent(bubble_fraction(many.pp, many.sequences_per_dp, of="ideal")),
        "llama_lost": f"{round(v_1 * many.n_gpus, -2):,.0f}",
        "llama_inter": percent(v_8, 1),
        "llama_few": percent(1 - work[0], 1),
        "llama_slower": percent(1 - rates[1] / rates[0], 1),
        "llama_explained": percent(1 - work[1] / work[0], 1),
        "llama_rates": f"{rates[0]:.0f} and {rates[1]:.0f} TFLOP/s",
    }


def published_numbers() -> dict[str, str]:
    """What follows from Narayanan's and Korthikanti's rows."""
    last = WEAK_SCALING[-1]
    m = last.batch_size // last.dp
    trillion = next(row for row in RECOMPUTATION if row.name == "1T")
    stuck = bubble_fraction(trillion.pp, trillion.batch_size)
    return {
        "weak_idle": percent(bubble_fraction(last.pp, m)),
        "weak_idle_4": percent(bubble_fraction(last.pp, m // 4)),
        "trillion_idle": percent(stuck),
        "trillion_mfu": f"{trillion.model_percent.text}\u00a0%",
        "trillion_working": percent(trillion.model_percent.value / 100 / (1 - stuck)),
        "trillion_v_2": percent(bubble_fraction(trillion.pp, trillion.batch_size, v=2), 1),
        "rule_8": percent(bubble_fraction(8, 32)),
        "rule_64": percent(bubble_fraction(64, 256)),
        "rule_again": percent(7 * 3 / (4 * 32 + 7 * 3)),
        "need_16": str(next(m for m in range(1, 999) if bubble_fraction(16, m) <= 0.1)),
    }


# Chunks, and sequences a micro-batch, by stages: NVIDIA's script for the table, which prints neither.
SCRIPTED = {8: (2, 2), 64: (1, 1)}


def table_published() -> HTML:
    """Published pipelines: stages, micro-batches, idle time by the formula, and what was reached."""
    found: list[tuple[str, int, int, str, int, str]] = []  # model, p, v, its mark, m, share of the peak
    for weak in WEAK_SCALING:
        if weak.pp in SCRIPTED:
            v, rows_at_once = SCRIPTED[weak.pp]
            m, name = weak.batch_size // weak.dp // rows_at_once, f"{weak.n_params / 1e9:,.0f}B"
            found.append((name, weak.pp, v, "*", m, f"{weak.peak_percent.text}\u00a0% h"))
    for row in RECOMPUTATION[1:]:
        m = row.batch_size // row.micro_batch_size
        found.append((row.name, row.pp, row.v, "", m, f"{row.model_percent.text}\u00a0% m"))
    for big in (llama_row(8192), llama_row(16384)):
        name, reached = f"405B, {big.n_gpus // 1024}k", f"{big.model_percent.text}\u00a0% m"
        found.append((name, big.pp, LLAMA_V, "†", big.sequences_per_dp, reached))
    rows = [
        [name, str(p), f"{v}{mark}", str(m), percent(bubble_fraction(p, m, v=v), 1), reached]
        for name, p, v, mark, m, reached in found
    ]
    return table(["model", "p", "v", "m", "idle", "of peak"], rows)


# --- memory ---


def layers_bytes(tokens: int = CONTEXT) -> float:
    """What the layers of Llama-3.1-8B keep of so many tokens: the count of the chapter before."""
    parts = memory(config(SMALL), batch_size=1, seq_len=CONTEXT, precision="bf16").activation_parts
    names = ("residual stream", "norms", "attention", "feed-forward")
    return sum(parts[name] for name in names) / CONTEXT * tokens


def memory_numbers() -> dict[str, str]:
    """What stages of Llama-3.1-8B hold, state and activations."""
    whole, pp, m = layers_bytes(), 4, 32
    return {
        "context": f"{CONTEXT:,}",
        "state_whole": gb(16 * size(SMALL), 0),
        "state_stage": gb(16 * size(SMALL) / pp, 0),
        "kept_whole": gb(whole, 0),
        "kept_first": gb(whole * in_flight(pp, m, 0) / pp, 0),
        "kept_last": gb(whole * in_flight(pp, m, pp - 1) / pp, 0),
        "kept_gpipe": gb(whole * in_flight(pp, m, 0, schedule="gpipe") / pp, 0),
    }


# --- messages ---


def step_s(schedule: Schedule, v: int = 1, message: float = 0.0) -> float:
    """A simulated step in forward passes of a stage; a message in the same unit."""
    return step_seconds(simulate(schedule, {kind: s / v for kind, s in PASS.items()}, message_s=message))


def ahead_1f1b(pp: int, m: int) -> Schedule:
    """1F1B with twice as many forward passes ahead, so that messages have time to travel."""
    orders = []
    for rank in range(pp):
        lead = min(2 * (pp - 1 - rank), m)
        order = [Operation("F", i) for i in range(lead)]
        for i in range(lead, m):
            order += [Operation("F", i), Operation("B", i - lead)]
        orders.append(tuple(order + [Operation("B", i) for i in range(m - lead, m)]))
    return tuple(orders)


def slower(schedule: Schedule, v: int, message: float) -> float:
    """By what share messages lengthen a step."""
    return step_s(schedule, v, message) / step_s(schedule, v) - 1


def message_numbers() -> dict[str, str]:
    """Bytes between stages and how long they take beside a chunk's work."""
    c, tokens = config(BIG), CONTEXT
    whole = point_to_point(tokens * c.d_model, bytes_per_element=2)
    cut = point_to_point(tokens * c.d_model // LLAMA_TP, bytes_per_element=2)
    layer_s = 2 * layer_params(BIG) / LLAMA_TP * tokens / RATE
    step = pipeline_traffic(
        SMALL, 4, n_micro_batches=32, micro_batch_size=1, seq_len=tokens, bytes_per_element=2
    )
    gpt2 = config("gpt2")
    p, m = 8, 32
    return {
        "message_mb": f"{whole.total_bytes / 1e6:.0f} MB",
        "message_cut": f"{cut.total_bytes / 1e6:.1f} MB",
        "message_ms": ms(cut.seconds(NETWORK)),
        "layer_ms": ms(layer_s),
        "message_share": percent(cut.seconds(NETWORK) / layer_s, 1),
        "ratio_405": percent(RATE / (12 * c.d_model * NETWORK.bytes_per_s), 0),
        "ratio_gpt2": percent(RATE / (12 * gpt2.d_model * NETWORK.bytes_per_s), 0),
        "small_sent": gb(max(step.total.sent_bytes)),
        "small_gradients": gb(2 * 2 * size(SMALL) / 4),
        "tied_mb": f"{4 * head_params('gpt2') / 1e6:.0f} MB",
        "late_gpipe": percent(slower(make_schedule("gpipe", p, m), 1, 0.1), 1),
        "late_1f1b": percent(slower(make_schedule("1f1b", p, m), 1, 0.1), 1),
        "late_ahead": percent(slower(ahead_1f1b(p, m), 1, 0.1), 1),
    }


# --- uneven stages ---


def uneven(layers: Sequence[int], m: int, name: str = SMALL) -> float:
    """A step of 1F1B with so many layers on each stage and the head on the last, in passes of one layer."""
    weight = [float(n) for n in layers]
    weight[-1] += head_params(name) / layer_params(name)
    return step_seconds(
        simulate(make_schedule("1f1b", len(layers), m), lambda rank, op: PASS[op.kind] * weight[rank])
    )


def uneven_numbers() -> dict[str, str]:
    """What the head on the last stage costs, and what another cut saves."""
    m, pp = 32, 4
    head = head_params(SMALL) / layer_params(SMALL)
    level = 3 * (m + pp - 1) * (config(SMALL).n_layers + head) / pp
    even = split_sizes(config(SMALL).n_layers, pp)
    return {
        "head_layers": f"{head:.1f}",
        "head_layers_405": f"{head_params(BIG) / layer_params(BIG):.2f}",
        "head_layers_gpt2": f"{head_params('gpt2') / layer_params('gpt2'):.1f}",
        "last_layers": f"{even[-1] + head:.1f}",
        "uneven_slower": percent(uneven(even, m) / level - 1),
        "better_slower": percent(uneven((9, 9, 8, 6), m) / level - 1),
        "uneven_twice": f"{step_seconds(simulate(make_schedule('1f1b', 4, 8), _second_slow)):.0f}",
    }


def _second_slow(rank: int, operation: Operation) -> float:
    """All stages alike but the second, which takes twice as long."""
    return PASS[operation.kind] * (2 if rank == 1 else 1)
