"""Tables and figures of the chapter `sharding`: from the cost model and published rows.

Bytes are counts. Times of GPUs are the cost model's on the links that `data_parallel_common` and
`sharding_step` name, or a published table's. No torch is needed.
"""

from __future__ import annotations

import io
from typing import Any

import matplotlib
import sharding_memory as held
import sharding_step as step
from data_parallel_common import NETWORK, NVLINK, RATE, TITLE, ms
from IPython.display import HTML, display
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from scalelab.cost import interconnect
from scalelab.cost.published_training import LAYER_TIMES
from scalelab.lab import plots

WEIGHTS, GRADIENTS, OPTIMIZER, KEPT = plots.COLOURS[0], plots.COLOURS[1], plots.COLOURS[2], plots.COLOURS[3]
KINDS = (("weights", 2, WEIGHTS), ("gradients", 2, GRADIENTS), ("optimiser", 12, OPTIMIZER))
PALE = "#ECECEC"
PCIE_SHARE = 0.8  # of the peak: on PCIe 4, 24.8 GB/s of 31.5 were seen between a host and an A100


def numbers() -> dict[str, str]:
    """Every number that the chapter's prose takes from a formula, a config or a published table."""
    return {**held.memory_numbers(), **hiding_numbers(), **offload_numbers()}


def hiding_numbers() -> dict[str, str]:
    """From how many tokens a rank on gathers hide, and what they cost where they do not."""
    few, many = 2048, 8192
    layer_net = step.layer_s(NETWORK, 64)[0]
    layer = step.parts_of()[1]
    return {
        "rate": f"{RATE / 1e12:.0f} TFLOP/s",
        "hide_nvlink": f"{step.tokens_to_hide(NVLINK):,.0f}",
        "hide_net": f"{step.tokens_to_hide(NETWORK):,.0f}",
        "hide_net_32": f"{1.5 * step.tokens_to_hide(NETWORK):,.0f}",
        "layer_params": f"{layer.n_params / 1e6:.0f} million",
        "layer_net": ms(layer_net),
        "layer_forward": ms(layer.forward_s(few)),
        "gpt2_layer": f"{12 * 768**2 + 13 * 768:,}",
        "few": f"{few:,}",
        "many": f"{many:,}",
        "few_net_3": share(step.zero_3(few, 64, NETWORK)),
        "few_net_0": share(step.replicas(few, 64, NETWORK)),
        "few_servers_3": share(step.zero_3(few, 64, step.SERVERS)),
        "twice_net_3": share(step.zero_3(2 * many, 64, NETWORK)),
        "end_net": ms(step.zero_3(2 * many, 64, NETWORK).exposed_s),
        "hybrid_gb": held.gb(2 * 2 * held.size() / 8 * (8 - 1) / 8),
        "hybrid_ms": ms(2 * 2 * held.size() / 8 * (8 - 1) / 8 / NETWORK.bytes_per_s),
    }


def share(found: step.Step) -> str:
    """The share that computes, per cent."""
    return f"{100 * found.efficiency:.0f}\u00a0%"


def offload_numbers() -> dict[str, str]:
    """What PCIe takes of Llama-3.1-8B's numbers."""
    wire = interconnect("pcie-5")
    link = wire.link(latency_s=0.0, share=PCIE_SHARE)
    n, tokens = held.size(), held.CONTEXT
    return {
        "pcie_peak": f"{wire.bytes_per_s / 1e9:.1f} GB/s",
        "pcie": f"{link.bytes_per_s / 1e9:.0f} GB/s",
        "off_way": f"{2 * n / link.bytes_per_s:.2f} s",
        "off_way_8": f"{2 * n / 8 / link.bytes_per_s:.2f} s",
        "off_compute": f"{8 * n * tokens / RATE:.1f} s",
        "off_adam": f"{2.57 * n / 10e9:.1f} s",
        "off_tokens": f"{step.tokens_to_hide(link):,.0f}",
        "off_tokens_8": f"{step.tokens_to_hide(link) / 8:,.0f}",
    }


def table_fits() -> HTML:
    """What of Llama-3.1-8B fits on eight GPUs."""
    return held.table_fits()


def table_zero() -> HTML:
    """ZeRO's table 1, and ours where it differs."""
    return held.table_zero()


def table_traffic() -> HTML:
    """What each rank sends in a step."""
    return held.table_traffic()


def table_layer() -> HTML:
    """What a layer keeps, part by part."""
    return held.table_layer()


# --- figures ---


def figure_stages() -> None:
    """Who holds which of the 16 bytes, four ranks, four stages."""
    with matplotlib.rc_context({**plots.STYLE, "axes.grid": False}):
        figure = Figure(figsize=(7.4, 4.4), layout="constrained")
        figure.suptitle("Four ranks: what each holds of 16 bytes a parameter", **TITLE)
        panels = [figure.add_subplot(2, 2, place) for place in range(1, 5)]
    for stage, axes in enumerate(panels):
        left, total = 0.0, 0.0
        for index, (name, width, colour) in enumerate(KINDS):
            is_cut = stage >= 3 - index  # the optimiser's state first, then gradients, then weights
            for rank in range(4):
                begin, wide = (left + rank * width / 4, width / 4) if is_cut else (left, width)
                axes.add_patch(Rectangle((left, 3 - rank), width, 0.72, facecolor=PALE, linewidth=0))
                axes.add_patch(Rectangle((begin, 3 - rank), wide, 0.72, facecolor=colour, linewidth=0))
            total += width / 4 if is_cut else width
            if stage == 0:
                at = {"weights": -0.1, "gradients": 2.55, "optimiser": 8.6}[name]
                axes.text(at, 3.98, name, color=colour, fontsize=7.5, fontweight="bold")
            left += width + 0.25
        for rank in range(4):
            axes.text(-0.35, 3.36 - rank, str(rank), ha="right", va="center", fontsize=8, color=plots.GREY)
        axes.set_xlim(-0.9, 16.8)
        axes.set_ylim(-0.15, 4.6 if stage < 2 else 4.0)
        axes.set_axis_off()
        axes.set_title(f"{held.STAGES[stage]}: {total:g} bytes a parameter on each", fontsize=9.5,
                       fontweight="normal", loc="left", pad=3)  # fmt: skip
    show(figure, "What each of four ranks holds under four stages.")


# (title, gathers before forward, gathers before backward, reduces in backward, gathers after the step)
_WAYS = (
    ("replicas: sum in backward", False, False, 2, False),
    ("ZeRO-1 and -2: sum to the owner, updated weights back", False, False, 1, True),
    ("ZeRO-3: weights borrowed twice", True, True, 1, False),
    ("ZeRO-3, weights kept until backward", True, False, 1, False),
)
_LAYERS = 4


def figure_when() -> None:
    """When weights and gradients travel, in four ways, for four layers."""
    with matplotlib.rc_context({**plots.STYLE, "axes.grid": False}):
        figure = Figure(figsize=(7.4, 5.0), layout="constrained")
        figure.suptitle("What travels when: each coloured box is one layer, sent once", **TITLE)
        panels = [figure.add_subplot(4, 1, place) for place in range(1, 5)]
    for axes, (title, forward, backward, reduces, after) in zip(panels, _WAYS, strict=True):
        boxes = _lanes(axes, forward, backward, reduces, after)
        axes.set_title(f"{title}: {boxes} boxes, {boxes // _LAYERS}Ψ", fontsize=9, fontweight="normal",
                       loc="left", pad=3)  # fmt: skip
    show(figure, "What each of four ways sends during one step.")


def _lanes(axes: Any, forward: bool, backward: bool, reduces: int, after: bool) -> int:
    """The GPU's boxes above, the link's below; returns how many layers' worth the link carries."""
    boxes, wide = 0, 0.8
    begin = 1.0  # room for a first gather
    ends = [begin + layer for layer in range(_LAYERS + 1)]
    for layer in range(_LAYERS):
        _box(axes, ends[layer], 1, 1.0, "#E3E3E3", f"F{layer + 1}")
        if forward:
            _box(axes, ends[layer] - 0.9, 0, wide, WEIGHTS, f"{layer + 1}", light=True)
            boxes += 1
    now = ends[-1]
    for number, layer in enumerate(reversed(range(_LAYERS))):
        _box(axes, now + 2 * number, 1, 2.0, "#BDBDBD", f"B{layer + 1}")
        if backward:
            _box(axes, now + 2 * number - 0.9 + (0.05 if number else 0.0), 0, wide, WEIGHTS, f"{layer + 1}",
                 light=True)  # fmt: skip
            boxes += 1
        for copy in range(reduces):
            at = now + 2 * (number + 1) + 0.05 + copy * 0.85
            _box(axes, at, 0, wide, WEIGHTS if copy else GRADIENTS, f"{layer + 1}", light=True)
            boxes += 1
    now += 2 * _LAYERS
    update = now + (1.75 if reduces == 2 else 0.9)
    _box(axes, update, 1, 0.9, "#FFFFFF", "step")
    for layer in range(_LAYERS if after else 0):
        _box(axes, update + 0.95 + 0.85 * layer, 0, wide, WEIGHTS, f"{layer + 1}", light=True)
        boxes += 1
    axes.set_yticks([0, 1], ["link", "GPU"])
    axes.set_ylim(-0.5, 1.5)
    axes.set_xlim(0, 18.6)
    axes.set_xticks([])
    for side in ("bottom", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    return boxes


def _box(
    axes: Any, left: float, lane: int, width: float, colour: str, text: str, light: bool = False
) -> None:
    axes.add_patch(
        Rectangle((left, lane - 0.38), width, 0.76, facecolor=colour, edgecolor="#8A8A8A", linewidth=0.6)
    )
    axes.text(left + width / 2, lane, text, ha="center", va="center", fontsize=7.5,
              color="white" if light else plots.INK)  # fmt: skip


def figure_hiding() -> None:
    """Share of a step that computes, over tokens on each rank."""
    figure, axes = plots.new(
        "Gathers hide behind F/W tokens on each rank", "tokens of a micro-batch on each rank",
        "share of the step that computes", log_x=True,
    )  # fmt: skip
    tokens = [2 ** (k / 2) for k in range(16, 33)]
    cases = (
        ("one rank\na server\n(50 GB/s)", NETWORK, (9_000, 0.70), "left"),
        ("whole servers\n(400 GB/s)", step.SERVERS, (1_050, 0.55), "left"),
    )
    for index, (name, link, place, side) in enumerate(cases):
        colour = plots.COLOURS[index]
        for way, style in ((step.zero_3, "-"), (step.replicas, (0, (4, 2)))):
            values = [way(round(t), 64, link).efficiency for t in tokens]
            axes.plot(tokens, values, linestyle=style, color=colour)
        hides = step.tokens_to_hide(link)
        axes.axvline(hides, color=colour, linewidth=1.1, linestyle=(0, (1, 2)), zorder=1)
        axes.annotate(f"F/W = {hides:,.0f}", (hides, 0.02), xytext=(4, 0), textcoords="offset points",
                      fontsize=9, color=colour)  # fmt: skip
        axes.annotate(name, place, ha=side, va="top", fontsize=9, fontweight="bold", color=colour)
    axes.annotate("solid ZeRO-3, dashed replicas", (0.01, 0.93), xycoords="axes fraction", fontsize=9)
    axes.set_xticks([256, 1024, 4096, 16384, 65536], ["256", "1,024", "4,096", "16,384", "65,536"])
    axes.minorticks_off()
    axes.set_ylim(0, 1.08)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    show(figure, "Share of the step that computes over tokens on each rank.")


def figure_layer() -> None:
    """Bytes that a layer keeps against its time, for five ways of a published table."""
    figure, axes = plots.new(
        "Half of the bytes for 7 % of the time, the rest for a third", "time of one layer, ms (published)",
        "kept for backward, MB (our count)",
    )  # fmt: skip
    ways = (("none", False), ("none", True), ("full", False), ("selective", False), ("selective", True))
    names = ("nothing made again", "… tokens shared", "layer made again", "attention's core made again",
             "… tokens shared")  # fmt: skip
    places = ((9, -3, "left"), (9, -3, "left"), (-9, 6, "right"), (9, -3, "left"), (9, -3, "left"))
    for row, way, name, (dx, dy, side) in zip(LAYER_TIMES, ways, names, places, strict=True):
        x, y = row.combined_ms.value, held.layer_bytes(*way) / 1e6
        colour = plots.COLOURS[{"none": 0, "selective": 1, "full": 2}[way[0]]]
        axes.plot([x], [y], "s" if way[1] else "o", color=colour, markersize=8)
        axes.annotate(f"{name}, {y:,.0f} MB", (x, y), xytext=(dx, dy), textcoords="offset points", ha=side,
                      fontsize=9, color=colour)  # fmt: skip
    axes.set_xlim(18, 28.5)
    axes.set_ylim(0, 1_500)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    show(figure, "Bytes that one layer keeps against the time it takes, five ways.")


def figure_fits() -> None:
    """State and activations of Llama-3.1-8B on one of eight GPUs."""
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(7.4, 3.6), layout="constrained")
        figure.suptitle(f"Llama-3.1-8B, eight GPUs, {held.CONTEXT:,} tokens on each", **TITLE)
        panels = [figure.add_subplot(1, 2, place) for place in (1, 2)]
    for axes, remade in zip(panels, (False, True), strict=True):
        for stage in range(len(held.STAGES)):
            state = held.states(stage)
            pieces = [(state.weights_bytes, WEIGHTS), (state.gradients_bytes, GRADIENTS),
                      (state.optimizer_bytes, OPTIMIZER), (held.temporary_bytes(stage), plots.COLOURS[4]),
                      (held.activations(remade).per_token * held.CONTEXT, KEPT)]  # fmt: skip
            left = 0.0
            for n_bytes, colour in pieces:
                axes.barh(3 - stage, n_bytes / 1e9, left=left, height=0.62, color=colour, linewidth=0)
                left += n_bytes / 1e9
            axes.text(left + 3, 3 - stage, f"{left:.0f}", va="center", fontsize=9)
        axes.axvline(held.GPU_BYTES / 1e9, color=plots.INK, linewidth=1.2, linestyle=(0, (5, 3)))
        axes.set_yticks(range(4), reversed(held.STAGES))
        axes.set_xlim(0, 235)
        axes.set_ylim(-0.6, 3.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("GB on one GPU; dashed: 80 GiB")
        axes.set_title("layers made again" if remade else "everything kept", fontsize=10,
                       fontweight="normal", loc="left")  # fmt: skip
    panels[1].set_yticklabels([])
    legend = (("weights", WEIGHTS), ("gradients", GRADIENTS), ("optimiser", OPTIMIZER),
              ("borrowed", plots.COLOURS[4]), ("activations", KEPT))  # fmt: skip
    for number, (name, colour) in enumerate(legend):
        panels[1].text(
            226, 2.75 - 0.42 * number, name, color=colour, fontsize=9, fontweight="bold", ha="right"
        )
    show(figure, "State and activations on one of eight GPUs, stage by stage.")


def show(figure: Figure, alt: str) -> None:
    """A figure as SVG: sharp at any size, the same bytes on each build."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "sharding", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    display({"image/svg+xml": file.getvalue(), "text/plain": f"[Figure: {alt}]"}, raw=True)
