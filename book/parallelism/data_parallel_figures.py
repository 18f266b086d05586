"""Tables and figures of the chapter `data-parallel`: from the cost model, published rows and recorded runs.

Times of GPUs are the cost model's on the links that `data_parallel_links` names. Ring states are simulated
message by message. No torch is needed.
"""

from __future__ import annotations

import io
import math
from functools import lru_cache
from typing import Any

import data_parallel_batches as batches
import data_parallel_buckets as buckets
import matplotlib
import numpy as np
from data_parallel_common import NETWORK, NVLINK, RATE, TITLE, config, ms, percent, reduce_s, size, table
from data_parallel_times import time_numbers
from IPython.display import HTML, display
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from scalelab.cost import Link, StepTime, all_reduce, contradictions, data_parallel_step, flops, largest_dp
from scalelab.cost.published_training import LLAMA_3
from scalelab.lab import plots
from scalelab.lab.scaling_laws.published import MODELS

RANKS = 64  # of the worked examples
BATCHES = (2**19, 2**22, 2**24)  # tokens, of figure_efficiency
ALGORITHMS = {
    "everyone to everyone": "all_to_all",
    "parameter server": "parameter_server",
    "tree": "tree",
    "ring": "ring",
    "halving and doubling": "halving_doubling",
}
SIZES = (4, 64, 1024)


def numbers() -> dict[str, str]:
    """Every number that the chapter's prose takes from a formula, a config, a table or the record."""
    return {
        **opening_numbers(),
        **axis_numbers(),
        **collective_numbers(),
        **buckets.bucket_numbers(),
        **paying_numbers(),
        **llama_numbers(),
        **kaplan_numbers(),
        **batches.record_numbers(),
        **time_numbers(),
    }


def opening_numbers() -> dict[str, str]:
    """How long one GPU would take, and how much one step has to move."""
    llama = next(model for model in MODELS if model.name == "Llama 3 405B")
    hours = llama.device_hours or 0.0
    gradient = 4 * size("gpt2")
    few = all_reduce(size("gpt2"), 4).max_sent_bytes
    many = all_reduce(size("gpt2"), 1024).max_sent_bytes
    return {
        "one_gpu_years": f"{hours / 24 / 365.25:,.0f}",
        "llama_state": f"{16 * llama.n_params / 1e12:.1f} TB",
        "llama_state_gpus": f"{math.ceil(16 * llama.n_params / 80e9)}",
        "gpt2_gradient": f"{gradient / 1e6:.0f} MB",
        "gpt2_sent_4": f"{few / 1e6:.0f} MB",
        "gpt2_sent_1024": f"{many / 1e6:.0f} MB",
    }


def axis_numbers() -> dict[str, str]:
    """A layer of four parts: their sum is the layer, their mean is not; nor is a mean of four models."""
    draw = np.random.default_rng(0)
    x, up, down = (draw.standard_normal(shape) for shape in ((16, 64), (64, 256), (256, 64)))
    whole = hidden(x @ up) @ down
    parts = [hidden(x @ up[:, k : k + 64]) @ down[k : k + 64] for k in range(0, 256, 64)]

    def off(values: np.ndarray) -> float:
        return float(np.linalg.norm(values - whole) / np.linalg.norm(whole))

    return {"parts_sum": power(off(sum(parts))), "parts_mean": percent(off(sum(parts) / 4))}


def hidden(x: np.ndarray) -> np.ndarray:
    """GELU in its tanh form."""
    bent: np.ndarray = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return bent


def collective_numbers() -> dict[str, str]:
    """What messages and collectives cost on the named links."""
    gradient = 4 * size("gpt2")
    found = {
        "alpha_net": f"{1e6 * NETWORK.latency_s:.0f} µs",
        "alpha_nvlink": f"{1e6 * NVLINK.latency_s:.1f} µs",
        "half_net": f"{NETWORK.half_bandwidth_bytes / 1e3:.0f} kB",
        "half_nvlink": f"{NVLINK.half_bandwidth_bytes / 1e6:.1f} MB",
        "crossover": f"{crossover_bytes(RANKS) / 1e6:.1f} MB",
        "crossover_1024": f"{crossover_bytes(1024) / 1e6:.0f} MB",
    }
    ratio = reduce_s(gradient, RANKS, algorithm="tree") / reduce_s(gradient, RANKS)
    found["tree_over_ring_64"] = f"{ratio:.1f}"
    norm = 4 * config("gpt2").d_model
    found["norm_bytes"] = f"{norm / 1e3:.1f} kB"
    found["norm_ring"] = ms(reduce_s(norm, RANKS))
    found["norm_tree"] = ms(reduce_s(norm, RANKS, algorithm="tree"))
    return found


def crossover_bytes(ranks: int, link: Link = NETWORK) -> float:
    """The length from which on a ring is faster than a binomial tree, p a power of two.

    2(p-1)α + 2(p-1)/p nβ = 2 log2 p (α + nβ), solved for n.
    """
    rounds = math.log2(ranks)
    return link.half_bandwidth_bytes * (ranks - 1 - rounds) / (rounds - (ranks - 1) / ranks)


def step_of(
    name: str, batch_tokens: int, ranks: int, *, link: Link = NETWORK, context: int = 1024
) -> StepTime:
    """A data-parallel step of a preset, nothing overlapped."""
    work = batch_flops(name, batch_tokens, context)
    return data_parallel_step(work, size(name), ranks, flops_per_s=RATE, link=link)


@lru_cache(maxsize=32)
def batch_flops(name: str, batch_tokens: int, context: int) -> float:
    """Training FLOPs of a whole batch."""
    sequences = batch_tokens // context
    return float(flops(config(name), batch_size=sequences, seq_len=context, training=True).total)


def tokens_to_pay(link: Link, *, bytes_per_element: int = 4, hidden_by: float = 6.0) -> float:
    """Tokens a rank needs so that an all-reduce takes as long as products of so many FLOPs a parameter.

    2 N b / W = h N t / F, so t = 2 b F / (h W): N drops out. h = 6: the whole step; 4: the backward pass.
    """
    return 2 * bytes_per_element * RATE / (hidden_by * link.bytes_per_s)


def paying_numbers() -> dict[str, str]:
    """From how many tokens a rank on communication is cheap, and how many ranks a batch feeds."""
    found = {
        "pay_net": thousands(tokens_to_pay(NETWORK)),
        "hide_net": thousands(tokens_to_pay(NETWORK, hidden_by=4.0)),
        "hide_net_16": thousands(tokens_to_pay(NETWORK, hidden_by=4.0, bytes_per_element=2)),
        "hide_nvlink": thousands(tokens_to_pay(NVLINK, hidden_by=4.0)),
        "rate": f"{RATE / 1e12:.0f} TFLOP/s",
    }
    for name, short in (("gpt2", "gpt2"), ("llama-3.1-8b", "llama")):
        work = batch_flops(name, BATCHES[0], 1024)
        most = largest_dp(work, size(name), efficiency=0.5, flops_per_s=RATE, link=NETWORK)
        found[f"most_{short}_half"] = f"{most:,}"
    found["gpt2_64_speedup"] = f"{64 * step_of('gpt2', BATCHES[0], 64).efficiency:.0f}"
    found["gpt2_512_speedup"] = f"{512 * step_of('gpt2', BATCHES[0], 512).efficiency:.0f}"
    return found


def llama_numbers() -> dict[str, str]:
    """Llama 3's published layouts, beside the rule."""
    small, large = LLAMA_3[0], LLAMA_3[1]
    replica = large.sequences_per_dp * large.seq_len
    alone = BATCHES[2] / large.n_gpus
    ratio = tokens_to_pay(NETWORK) / replica
    speedup = (large.n_gpus * large.teraflops_per_gpu.value) / (small.n_gpus * small.teraflops_per_gpu.value)
    flawed = next(row for row in LLAMA_3 if row.version == "v1")
    product = flawed.tp * flawed.cp * flawed.pp * flawed.dp
    assert product != flawed.n_gpus
    assert contradictions(large)
    share = large.teraflops_per_gpu.value / 989
    return {
        "llama_replica": f"{replica:,}",
        "llama_replica_gpus": str(large.tp * large.cp * large.pp),
        "llama_ratio": percent(ratio),
        "llama_alone": f"{alone:,.0f}",
        "llama_alone_ratio": f"{tokens_to_pay(NETWORK) / alone:.0f}",
        "llama_alone_batch": f"{tokens_to_pay(NETWORK, hidden_by=4.0) * large.n_gpus / 1e6:.0f} million",
        "llama_speedup": f"{speedup:.2f}",
        "llama_flawed_says": f"The row of the first version has {flawed.tp} · {flawed.cp} · {flawed.pp} · "
        f"{flawed.dp} = {product:,} GPUs by its axes, and {flawed.n_gpus:,} in its first cell.",
        "llama_rounded_says": f"{large.teraflops_per_gpu.text} TFLOP/s are {percent(share, 1)} of the "
        f"peak, which does not round to {large.model_percent.text}\u00a0%.",
    }


def kaplan_numbers() -> dict[str, str]:
    """Kaplan's fit of the critical batch size, B*/L^(1/α_B), and how many ranks it feeds."""
    found = {}
    for loss in (3.0, 2.0):
        batch = 2e8 / loss ** (1 / 0.21)
        found[f"kaplan_{loss:.0f}"] = f"{batch / 1e6:.1f} million"
        found[f"kaplan_ranks_{loss:.0f}"] = f"{batch / tokens_to_pay(NETWORK, hidden_by=4.0):,.0f}"
    return found


# --- numbers in words ---


def power(value: float) -> str:
    """2 · 10⁻¹⁶."""
    exponent = math.floor(math.log10(value))
    raised = str(exponent).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
    return f"{value / 10**exponent:.0f} · 10{raised}"


def thousands(value: float) -> str:
    """A count of tokens to two or three digits: 10,700."""
    unit = 10 ** (math.floor(math.log10(value)) - 2)
    return f"{round(value / unit) * unit:,.0f}"


# --- tables ---


def table_algorithms() -> HTML:
    """GPT-2's gradient summed in five ways: rounds, GB that the busiest rank sends, milliseconds."""
    top = "".join(f'<th scope="colgroup" colspan="3">p = {ranks:,}</th>' for ranks in SIZES)
    low = "".join(f'<th scope="col">{what}</th>' for _ in SIZES for what in ("rounds", "GB sent", "ms"))
    body = []
    for name, algorithm in ALGORITHMS.items():
        cells = []
        for ranks in SIZES:
            sent = all_reduce(size("gpt2"), ranks, algorithm=algorithm)
            milliseconds = 1e3 * sent.seconds(NETWORK)
            cells += [f"{sent.steps:,}", giga(sent.max_sent_bytes)]
            cells.append(f"{milliseconds:.1f}" if milliseconds < 100 else f"{milliseconds:,.0f}")
        body.append(
            f'<tr><th scope="row">{name}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        )
    head = f'<tr><td></td>{top}</tr><tr><th scope="col">way</th>{low}</tr>'
    return HTML(f'<table class="numbers"><thead>{head}</thead><tbody>{"".join(body)}</tbody></table>')


def giga(n_bytes: float) -> str:
    """Bytes in GB, three digits."""
    value = n_bytes / 1e9
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def table_llama() -> HTML:
    """The published layouts of Llama 3 405B, as printed, with the tokens of a replica."""
    rows = []
    for row in LLAMA_3:
        name = f"{row.n_gpus:,}" + (" (first version)" if row.version == "v1" else "")
        rows.append(
            [name, str(row.tp), str(row.cp), str(row.pp), str(row.dp),
             f"{row.sequences_per_dp * row.seq_len:,}", row.teraflops_per_gpu.text,
             row.model_percent.text + "\u00a0%"]
        )  # fmt: skip
    return table(["GPUs", "TP", "CP", "PP", "DP", "tokens a replica", "TFLOP/s a GPU", "MFU"], rows)


# --- figures ---

# (title, who holds a cell of the weights, who works on a cell of the batch, what travels); -1 is "all".
_AXES = (
    ("Data", lambda row, column: -1, lambda row, column: row, "gradients, once a step"),
    ("Sharding", lambda row, column: column, lambda row, column: row, "weights and gradients, each layer"),
    ("Tensor", lambda row, column: column, lambda row, column: -1, "activations, each layer"),
    ("Pipeline", lambda row, column: row, lambda row, column: -1, "activations, between stages"),
    ("Context", lambda row, column: -1, lambda row, column: column, "keys and values, each layer"),
    ("Experts", lambda row, column: column if row % 2 else -1, lambda row, column: row,
     "tokens, each expert layer"),
)  # fmt: skip
_PALE = ("#BFDCEF", "#F6CDB2", "#B5E3D5", "#F1D9E8")  # tints of the palette's first four, for text upon them


def figure_axes() -> None:
    """Six ways to share a step among four ranks: who holds what, who works on what, what travels."""
    with matplotlib.rc_context({**plots.STYLE, "axes.grid": False}):
        figure = Figure(figsize=(7.4, 4.0), layout="constrained")
        figure.suptitle("Four ranks share one step in six ways", **TITLE)
        panels = [figure.add_subplot(2, 3, place) for place in range(1, 7)]
    for axes, (name, weights, batch, travels) in zip(panels, _AXES, strict=True):
        axes.set_axis_off()
        axes.set_xlim(-0.2, 10)
        axes.set_ylim(-1.6, 5.1)
        axes.set_aspect("equal")
        _cells(axes, 0, weights)
        _cells(axes, 5.4, batch)
        axes.text(0, 4.45, name, fontsize=10, fontweight="bold")
        axes.text(2, -0.15, "weights", fontsize=8.5, ha="center", va="top", color=plots.GREY)
        axes.text(7.4, -0.15, "batch", fontsize=8.5, ha="center", va="top", color=plots.GREY)
        axes.text(4.7, -0.9, travels, fontsize=8.5, ha="center", va="top")
    show(figure, "Six ways to share a training step among four ranks.")


def _cells(axes: Any, left: float, owner: Any) -> None:
    """A grid of four by four, each cell with the rank that has it; grey cells are everyone's."""
    for row in range(4):
        for column in range(4):
            rank = owner(row, column)
            colour = "#ECECEC" if rank < 0 else _PALE[rank]
            axes.add_patch(Rectangle((left + column, 3 - row), 1, 1, facecolor=colour, edgecolor="white"))
            text = "·" if rank < 0 else str(rank)
            axes.text(left + column + 0.5, 3.5 - row, text, ha="center", va="center", fontsize=8)


def ring_states(ranks: int = 4) -> list[list[list[frozenset[int]]]]:
    """After each step of a ring all-reduce, whose parts each rank's pieces hold.

    Conventions of scalelab.cost: in step s rank r sends piece r-1-s on the way round, and r-s on the second.
    """
    state = [[frozenset([rank]) for _ in range(ranks)] for rank in range(ranks)]
    states = [state]
    for gather in (False, True):
        for s in range(ranks - 1):
            after = [list(row) for row in states[-1]]
            for rank in range(ranks):
                piece = (rank - s if gather else rank - 1 - s) % ranks
                came, to = states[-1][rank][piece], (rank + 1) % ranks
                after[to][piece] = came if gather else after[to][piece] | came
            states.append(after)
    assert all(cell == frozenset(range(ranks)) for row in states[-1] for cell in row)
    return states


def figure_ring() -> None:
    """The seven states of a ring all-reduce among four ranks."""
    states = ring_states()
    shades = ("#FFFFFF", "#CFE3F2", "#8FBFE0", "#0072B2")
    with matplotlib.rc_context({**plots.STYLE, "axes.grid": False}):
        figure = Figure(figsize=(7.4, 4.3), layout="constrained")
        figure.suptitle("Once round to add, once round to tell", **TITLE)
        panels = [figure.add_subplot(2, 4, place) for place in range(1, 9)]
    names = ["start"] + [f"after step {s}" for s in range(1, 7)]
    places = [0, 1, 2, 3, 5, 6, 7]
    for number, (place, state) in enumerate(zip(places, states, strict=True)):
        axes = panels[place]
        _bare(axes, names[number])
        for rank, row in enumerate(state):
            for piece, parts in enumerate(row):
                new = number > 0 and parts != states[number - 1][rank][piece]
                axes.add_patch(
                    Rectangle((piece, 3 - rank), 1, 1, facecolor=shades[len(parts) - 1],
                              edgecolor=plots.COLOURS[1] if new else "#B8B8B8",
                              linewidth=2.4 if new else 0.8, zorder=3 if new else 2)
                )  # fmt: skip
                axes.text(piece + 0.5, 3.5 - rank, "".join(map(str, sorted(parts))), ha="center", va="center",
                          fontsize=7, zorder=4, color="white" if len(parts) == 4 else plots.INK)  # fmt: skip
            axes.text(-0.15, 3.5 - rank, f"{rank}", ha="right", va="center", fontsize=8, color=plots.GREY)
    _draw_ring(panels[4])
    show(figure, "Seven states of a ring all-reduce among four ranks.")


def _bare(axes: Any, title: str) -> None:
    axes.set_axis_off()
    axes.set_xlim(-0.6, 4.1)
    axes.set_ylim(-0.3, 4.7)
    axes.set_aspect("equal")
    axes.text(0, 4.2, title, fontsize=9)


def _draw_ring(axes: Any) -> None:
    """Four ranks and who sends to whom."""
    _bare(axes, "all send at once")
    centre, radius = np.array([1.9, 2.0]), 1.35
    spots = [centre + radius * np.array(to) for to in ((0, 1), (1, 0), (0, -1), (-1, 0))]
    for rank, spot in enumerate(spots):
        axes.text(*spot, str(rank), ha="center", va="center", fontsize=10, fontweight="bold")
        axes.add_patch(
            FancyArrowPatch(spot, spots[(rank + 1) % 4], arrowstyle="-|>", mutation_scale=11, shrinkA=11,
                            shrinkB=11, color=plots.COLOURS[1], connectionstyle="arc3,rad=-0.25")
        )  # fmt: skip


def figure_sizes() -> None:
    """Time of four ways over the length of what is summed."""
    lengths = np.unique(np.geomspace(256, 2e9, 60).astype(int) // 4 * 4)
    lines = {
        name: (lengths, [1e3 * reduce_s(int(n), RANKS, algorithm=ALGORITHMS[name]) for n in lengths])
        for name in ("everyone to everyone", "tree", "ring", "halving and doubling")
    }
    figure, axes = plots.curve(
        lines, title=f"Short messages want few rounds, long ones few bytes (p = {RANKS})",
        xlabel="bytes to sum, each rank", ylabel="time by the model, ms", log_x=True, log_y=True,
    )  # fmt: skip
    crossing = crossover_bytes(RANKS)
    axes.plot([crossing], [1e3 * reduce_s(int(crossing), RANKS)], "o", markersize=9, markerfacecolor="none",
              markeredgecolor=plots.INK)  # fmt: skip
    axes.annotate(f"ring = tree\n{crossing / 1e6:.1f} MB", (crossing, 1e3 * reduce_s(int(crossing), RANKS)),
                  xytext=(-92, -46), textcoords="offset points", ha="center", fontsize=9,
                  arrowprops={"arrowstyle": "-", "color": plots.GREY, "shrinkB": 6})  # fmt: skip
    gradient = 4 * size("gpt2")
    axes.axvline(gradient, color=plots.GREY, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
    axes.annotate("GPT-2's gradient", (gradient, 0.02), xycoords=axes.get_xaxis_transform(), xytext=(-4, 0),
                  textcoords="offset points", ha="right", fontsize=9, color=plots.GREY)  # fmt: skip
    show(figure, "Time of an all-reduce over its length for four algorithms.")


def figure_efficiency() -> None:
    """The share of a step that computes, over ranks, for three batches and two models."""
    figure, axes = plots.new(
        "What counts is tokens a rank, not the model's size", "ranks that share the batch",
        "share of the step that computes", log_x=True,
    )  # fmt: skip
    for index, (batch, name) in enumerate(zip(BATCHES, ("0.5 M tokens", "4 M", "16 M"), strict=True)):
        ranks = [2**k for k in range(1, 15) if 2**k <= batch // 1024]
        for model, style in (("gpt2", "-"), ("llama-3.1-8b", (0, (4, 2)))):
            values = [step_of(model, batch, p).efficiency for p in ranks]
            axes.plot(ranks, values, linestyle=style, color=plots.COLOURS[index])
        share = [step_of("llama-3.1-8b", batch, p).efficiency for p in ranks]
        place = min(range(len(ranks)), key=lambda i: abs(share[i] - 0.62))
        axes.annotate(name, (ranks[place], share[place]), xytext=(9, 4), textcoords="offset points",
                      fontsize=9, fontweight="bold", color=plots.COLOURS[index])  # fmt: skip
    axes.annotate("solid GPT-2, dashed Llama-3.1-8B", (0.02, 0.05), xycoords="axes fraction", fontsize=9)
    axes.set_xticks([2, 8, 32, 128, 512, 2048, 8192], ["2", "8", "32", "128", "512", "2,048", "8,192"])
    axes.minorticks_off()
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    show(figure, "Share of the step that computes over the number of ranks.")


def figure_timeline() -> None:
    """One step of GPT-2 in four ways."""
    show(buckets.figure(), "One step of GPT-2 in four ways on a common axis of time.")


def figure_batches() -> None:
    """Steps to a loss over the batch, with the fitted law."""
    show(batches.figure(), "Steps to two losses over the batch size, with fitted laws.")


def table_critical() -> HTML:
    """Steps, tokens, time and bill over the batch in units of the critical one."""
    return batches.table_critical()


def show(figure: Figure, alt: str) -> None:
    """A figure as SVG: sharp at any size, the same bytes on each build."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "data-parallel", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    display({"image/svg+xml": file.getvalue(), "text/plain": f"[Figure: {alt}]"}, raw=True)
