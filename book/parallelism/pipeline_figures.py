"""Tables and figures of the chapter `pipeline`: from formulas, a simulator, published and recorded runs.

Idle shares and passes in flight are counts. What a clock measured comes from the recorded study, and its
figures say so. No torch is needed.
"""

from __future__ import annotations

import io

import matplotlib
import pipeline_counts as count
import pipeline_traces as traces
from data_parallel_common import percent
from IPython.display import HTML, display
from matplotlib.figure import Figure

from scalelab.cost import bubble_fraction
from scalelab.lab import plots
from scalelab.parallel.scratch.schedules import make_schedule


def numbers() -> dict[str, str]:
    """Every number that the chapter's prose takes from a formula, a config, a table or the record."""
    shares = {"idle_8": percent(bubble_fraction(4, 8), 1)}
    return {**shares, **count.counts(), **traces.trace_numbers()}


def table_published() -> HTML:
    """Published pipelines by our formula."""
    return count.table_published()


def figure_pieces() -> None:
    """One batch in one, two and four pieces."""
    show(traces.figure_pieces(), "Simulated steps of four stages with one, two and four micro-batches.")


def figure_seen() -> None:
    """GPipe and 1F1B as recorded."""
    title = "Four processes, eight micro-batches: the same gaps, elsewhere"
    show(traces.figure_seen(("gpipe", "1f1b"), title), "Recorded steps of GPipe and 1F1B.")


def figure_held() -> None:
    """What each rank held."""
    show(traces.figure_held(), "Most bytes of activations on each rank under four schedules.")


def figure_shorter() -> None:
    """Interleaved and ZB-H1 as recorded."""
    title = "Shorter passes, or backward passes in two halves"
    show(traces.figure_seen(("interleaved", "zero-bubble"), title), "Recorded steps of two schedules.")


def figure_shares() -> None:
    """Idle time over micro-batches for 16 stages."""
    p, ms = 16, [2**k for k in range(2, 10)]
    lines = {
        "v = 1": [bubble_fraction(p, m) for m in ms],
        "v = 2": [bubble_fraction(p, m, v=2) for m in ms],
        "ZB-H1": [(p - 1) / (3 * m + p - 1) for m in ms],
        "v = 8": [bubble_fraction(p, m, v=8) for m in ms],
    }
    figure, axes = plots.new(
        "Sixteen stages: what m, v and half backward passes are worth", "micro-batches m",
        "share of time idle", log_x=True, height=3.9,
    )  # fmt: skip
    for index, (name, values) in enumerate(lines.items()):
        colour = plots.COLOURS[index]
        axes.plot(ms, values, color=colour, linestyle=(0, (4, 2)) if name == "ZB-H1" else "-")
        axes.annotate(name, (ms[0], values[0]), xytext=(-5, 0), textcoords="offset points", ha="right",
                      va="center", fontsize=9, fontweight="bold", color=colour)  # fmt: skip
    for m, words, place in ((16, "16,384 GPUs", (70, 0.47)), (32, "8,192 GPUs", (110, 0.3))):
        share = bubble_fraction(p, m, v=8)
        axes.plot([m], [share], "o", markersize=8, markerfacecolor="none", markeredgecolor=plots.INK)
        axes.annotate(f"Llama 3, {words}: {percent(share, 1)}", (m, share), xytext=place, fontsize=9,
                      va="center", arrowprops={"arrowstyle": "-", "color": plots.GREY})  # fmt: skip
    axes.set_xlim(2.4, 560)
    axes.set_ylim(0, 0.85)
    axes.set_xticks(ms, [str(m) for m in ms])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    show(figure, "Idle share over micro-batches for four schedules of sixteen stages.")


def figure_messages() -> None:
    """How much longer a step takes when messages do, for five schedules."""
    p, m = 8, 32
    times = [0.05 * k for k in range(9)]
    ways = {
        "1F1B": (make_schedule("1f1b", p, m), 1),
        "interleaved, v = 2": (make_schedule("interleaved", p, m, v=2), 2),
        "ZB-H1": (make_schedule("zero-bubble", p, m), 1),
        "GPipe": (make_schedule("gpipe", p, m), 1),
        "1F1B, twice the lead": (count.ahead_1f1b(p, m), 1),
    }
    figure, axes = plots.new(
        "1F1B pays for every message, GPipe for the first and the last",
        "one message, in forward passes of a stage", "time added to a step",
    )  # fmt: skip
    ends = {"GPipe": "GPipe; 1F1B with\ntwice the lead", "1F1B, twice the lead": ""}
    shift = {"interleaved, v = 2": 5, "ZB-H1": -4, "GPipe": -4}
    for index, (name, (schedule, v)) in enumerate(ways.items()):
        values = [count.slower(schedule, v, t) for t in times]
        axes.plot(
            times,
            values,
            color=plots.COLOURS[index],
            linestyle=(0, (3, 3)) if name in ends and not ends[name] else "-",
        )
        axes.annotate(ends.get(name, name), (times[-1], values[-1]), xytext=(5, shift.get(name, 0)),
                      textcoords="offset points", va="center", fontsize=9, fontweight="bold",
                      color=plots.COLOURS[index], annotation_clip=False)  # fmt: skip
    axes.set_xlim(0, 0.56)
    axes.set_xticks([0, 0.1, 0.2, 0.3, 0.4])
    axes.set_ylim(0, 0.26)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    show(figure, "Lengthening of a step by messages under five schedules.")


def show(figure: Figure, alt: str) -> None:
    """A figure as SVG: sharp at any size, the same bytes on each build."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "pipeline", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    display({"image/svg+xml": file.getvalue(), "text/plain": f"[Figure: {alt}]"}, raw=True)
