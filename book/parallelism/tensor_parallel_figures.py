"""Figures of the chapter `tensor-parallel`: from the cost model, a config, and a published measurement.

Numbers are those of `tensor_parallel_counts`, tables those of `tensor_parallel_tables`. No torch is needed.
"""

from __future__ import annotations

import io
from typing import Any

import matplotlib
import tensor_parallel_counts as counts
import tensor_parallel_tables as tables
from data_parallel_common import NETWORK, NVLINK, TITLE
from IPython.display import HTML, display
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from scalelab.cost import StepTime
from scalelab.lab import plots

PALE = ("#BFDCEF", "#F6CDB2", "#B5E3D5", "#F1D9E8")  # of four ranks, for text upon them
SHARED, EMPTY = "#E3E3E3", "#FFFFFF"
SUM = plots.COLOURS[1]
RANKS = 4


def numbers() -> dict[str, str]:
    """Every number that the chapter's prose takes."""
    return counts.numbers()


def table_kept() -> HTML:
    """What a layer keeps on each of eight ranks."""
    return tables.table_kept()


def table_weak() -> HTML:
    """Narayanan et al.'s table 1."""
    return tables.table_weak()


def table_recomputed() -> HTML:
    """Korthikanti et al.'s table 5."""
    return tables.table_recomputed()


# --- drawing ---


def box(axes: Any, left: float, low: float, width: float, height: float, colour: str, text: str = "",
        size: float = 8, edge: str = "#8A8A8A") -> None:  # fmt: skip
    """A rectangle with its name in the middle."""
    axes.add_patch(Rectangle((left, low), width, height, facecolor=colour, edgecolor=edge, linewidth=0.7))
    if text:
        axes.text(left + width / 2, low + height / 2, text, ha="center", va="center", fontsize=size)


def strips(axes: Any, left: float, middle: float, width: float, height: float, *, upright: bool) -> None:
    """A matrix cut in four, side by side or one above the other; a number says which rank has a part."""
    for rank in range(RANKS):
        wide, high = (width / RANKS, height) if upright else (width, height / RANKS)
        x = left + rank * wide if upright else left
        y = middle - height / 2 if upright else middle + height / 2 - (rank + 1) * high
        box(axes, x, y, wide, high, PALE[rank], str(rank))


def parts(axes: Any, left: float, middle: float, width: float, height: float) -> None:
    """Four whole-sized matrices that are to be added up, one behind the other."""
    for rank in reversed(range(RANKS)):
        shift = 0.13 * (rank - 1.5)
        box(axes, left + shift, middle - height / 2 - shift, width, height, PALE[rank])


def word(axes: Any, x: float, y: float, text: str, **how: Any) -> None:
    """A word in the middle of its place."""
    axes.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": 9, **how})


def bare(axes: Any, wide: float, low: float, high: float) -> None:
    """No axes, equal scales."""
    axes.set_axis_off()
    axes.set_xlim(-0.2, wide)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")


def figure_cuts() -> None:
    """A product cut by columns and the next by rows, beside the other way round."""
    with matplotlib.rc_context({**plots.STYLE, "axes.grid": False}):
        figure = Figure(figsize=(7.4, 4.6), layout="constrained")
        figure.suptitle("Columns, then rows: one sum, at the end", **TITLE)
        panels = [figure.add_subplot(2, 1, place) for place in (1, 2)]
    good, bad = panels
    for axes in panels:
        bare(axes, 18.9, -2.0, 2.3)
    # x · A = H, GELU, H · B = parts of y
    box(good, 0, -1, 1.7, 2, SHARED, "x", 10)
    word(good, 2.1, 0, "·")
    strips(good, 2.5, 0, 3.6, 1.7, upright=True)
    word(good, 4.3, 1.3, "A, by columns")
    word(good, 6.6, 0, "=")
    strips(good, 7.1, 0, 3.6, 2, upright=True)
    word(good, 8.9, 1.45, "its own columns of xA")
    word(good, 8.9, -1.45, "GELU on each, apart", color=plots.GREY)
    word(good, 11.1, 0, "·")
    strips(good, 11.5, 0, 1.7, 3.6, upright=False)
    word(good, 12.35, 2.05, "B, by rows")
    word(good, 13.7, 0, "=")
    parts(good, 14.4, 0, 1.7, 2)
    word(good, 15.25, 1.6, "4 parts")
    sum_here(good, 16.45, 17.55)
    box(good, 17.6, -1, 0.8, 2, SHARED, "y", 10)
    # x cut, A by rows = parts of H: the sum comes before GELU
    strips(bad, 0, 0, 1.7, 2, upright=True)
    word(bad, 0.85, 1.45, "x, cut")
    word(bad, 2.1, 0, "·")
    strips(bad, 2.5, 0, 3.6, 1.7, upright=False)
    word(bad, 4.3, 1.3, "A, by rows")
    word(bad, 6.6, 0, "=")
    parts(bad, 7.3, 0, 3.6, 2)
    word(bad, 9.1, 1.6, "4 parts of all of xA")
    sum_here(bad, 11.3, 12.5)
    box(bad, 12.6, -1, 3.6, 2, SHARED, "xA", 10)
    word(bad, 14.4, -1.45, "GELU only now: it bends", color=plots.GREY)
    word(bad, 17.2, 0, "…")
    show(figure, "A product of matrices cut over four ranks in two ways.")


def sum_here(axes: Any, left: float, right: float) -> None:
    """An arrow on which all ranks add up."""
    axes.add_patch(
        FancyArrowPatch((left, 0), (right, 0), arrowstyle="-|>", mutation_scale=11, color=SUM, linewidth=1.8)
    )
    word(axes, (left + right) / 2, 0.42, "sum", color=SUM, fontweight="bold", fontsize=8.5)


# --- a layer ---

_REGIONS = (("norm", 1.5, False), ("attention", 2.6, True), ("+ norm", 1.7, False),
            ("feed-forward", 2.6, True), ("+", 1.1, False))  # fmt: skip
_GAP = 1.15


def figure_layer() -> None:
    """A layer on four ranks, whole stream and cut along time: what is where, and what travels."""
    with matplotlib.rc_context({**plots.STYLE, "axes.grid": False}):
        figure = Figure(figsize=(7.4, 5.2), layout="constrained")
        figure.suptitle("The same bytes; between the cut regions, a quarter of the stream", **TITLE)
        panels = [figure.add_subplot(2, 1, place) for place in (1, 2)]
    ways = (
        ("tensor parallel: the stream is whole on every rank",
         (("f", "–", "sum"), ("g", "sum", "–"))),
        ("sequence parallel too: each rank has the stream of its own tokens",
         (("g", "gather", "scatter"), ("ḡ", "scatter", "gather"))),
    )  # fmt: skip
    for axes, (title, borders), in_time in zip(panels, ways, (False, True), strict=True):
        axes.set_axis_off()
        axes.set_xlim(-1.0, 15.3)
        axes.set_ylim(-2.0, 4.9)
        axes.set_title(title, fontsize=9.5, fontweight="normal", loc="left", pad=2)
        _layer(axes, borders, in_time)
    show(figure, "A layer on four ranks, with the stream whole and with it cut along time.")


def _layer(axes: Any, borders: Any, in_time: bool) -> None:
    """Lanes of four ranks through the regions of a layer; under each border what it sends, both ways."""
    left = 0.3
    for rank in range(RANKS):
        word(axes, 0.0, 3.45 - rank, str(rank), color=plots.GREY, fontsize=8)
    word(axes, -0.1, -0.8, "forward", fontsize=8, color=plots.GREY)
    word(axes, -0.1, -1.5, "back", fontsize=8, color=plots.GREY)
    for number, (name, width, is_cut) in enumerate(_REGIONS):
        word(axes, left + width / 2, 4.35, name, fontsize=8.5)
        for rank in range(RANKS):
            _lane(axes, left, 3 - rank, width, rank, is_cut, in_time)
        left += width
        if number < len(_REGIONS) - 1:
            letter, forward, back = borders[number % 2]
            x = left + _GAP / 2
            word(axes, x, 2, letter, fontsize=12, fontweight="bold", fontstyle="italic")
            for y, text in ((-0.8, forward), (-1.5, back)):
                colour = plots.GREY if text == "–" else SUM
                word(
                    axes, x, y, text, fontsize=8, color=colour, fontweight="bold" if text != "–" else "normal"
                )
            left += _GAP


def _lane(axes: Any, left: float, low: float, width: float, rank: int, is_cut: bool, in_time: bool) -> None:
    """One rank in one region: its share of heads or columns, the whole stream, or its own tokens of it."""
    if is_cut:
        box(axes, left, low + 0.08, width, 0.84, PALE[rank], "own heads" if left < 6 else "own columns", 7.5)
    elif in_time:
        box(axes, left, low + 0.08, width, 0.84, EMPTY, edge="#CFCFCF")
        box(axes, left + rank * width / RANKS, low + 0.08, width / RANKS, 0.84, PALE[rank])
    else:
        box(axes, left, low + 0.08, width, 0.84, SHARED, "all", 7.5)


# --- heads ---


def figure_heads() -> None:
    """Query heads and key/value heads of Llama-3.1-8B on 4, 8 and 16 ranks."""
    c = counts.config(counts.MODELS["8b"])
    with matplotlib.rc_context({**plots.STYLE, "axes.grid": False}):
        figure = Figure(figsize=(7.4, 2.9), layout="constrained")
        figure.suptitle("Eight key/value heads: beyond eight ranks, only copies", **TITLE)
        axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_xlim(-8.2, 33)
    axes.set_ylim(-0.4, 9.4)
    for row, ranks in enumerate((4, 8, 16)):
        low = 6.6 - 3.2 * row
        word(axes, -8.0, low + 1.0, f"t = {ranks}", ha="left", fontweight="bold")
        word(axes, -0.4, low + 1.5, "queries", ha="right", fontsize=8, color=plots.GREY)
        word(axes, -0.4, low + 0.5, "keys, values", ha="right", fontsize=8, color=plots.GREY)
        for head in range(c.n_heads):
            rank = head * ranks // c.n_heads
            box(axes, head, low + 1.1, 1, 0.9, PALE[rank % 4])
        copies = max(1, ranks // c.kv_heads)
        width = c.n_heads / c.kv_heads / copies
        for place in range(c.kv_heads * copies):
            rank = place * ranks // (c.kv_heads * copies)
            name = str(place // copies) + ("" if copies == 1 else "′" if place % copies else "")
            box(axes, place * width, low, width, 0.9, PALE[rank % 4], name, 7.5)
    show(figure, "Heads of Llama-3.1-8B on 4, 8 and 16 ranks.")


# --- bars ---


def figure_memory() -> None:
    """What a layer of GPT-3 keeps on each of eight ranks, in units of sbh bytes, six ways."""
    figure, axes = plots.new(
        "Tokens cut, scores made again: 4.25 for 23",
        "bytes kept for backward on each of 8 ranks / sbh", "",
    )  # fmt: skip
    colours = (plots.COLOURS[3], plots.COLOURS[0], plots.COLOURS[4])
    for index, (_name, in_time, again, _) in enumerate(tables.WAYS):
        pieces = _pieces(in_time, again)
        left = 0.0
        for value, colour in zip(pieces, colours, strict=True):
            axes.barh(5 - index, value, left=left, height=0.66, color=colour, linewidth=0)
            left += value
        assert abs(left - counts.units(counts.RANKS, sequence_parallel=in_time, recompute=again)) < 1e-9
        axes.text(left + 0.3, 5 - index, f"{left:g}", va="center", fontsize=9)
    axes.set_yticks(range(6), [way[0] for way in reversed(tables.WAYS)])
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 26)
    names = ("outside of the cut regions", "inside", "scores of attention")
    for line, (name, colour) in enumerate(zip(names, colours, strict=True)):
        axes.text(25.8, 2.45 - 0.62 * line, name, color=colour, fontsize=9, fontweight="bold", ha="right")
    show(figure, "Bytes that a layer keeps on each of eight ranks, six ways.")


def _pieces(in_time: bool, again: str) -> tuple[float, float, float]:
    """Outside of the cut regions, inside of them, scores: in units of sbh on each of eight ranks."""
    t, scores = counts.RANKS, 5 * counts.GPT3["n_heads"] * counts.GPT3["seq_len"] / counts.GPT3["d_model"]
    over = t if in_time else 1
    if again == "full":
        return 2 / over, 0.0, 0.0
    return 10 / over, 24 / t, scores / t if again == "none" else 0.0


def figure_step() -> None:
    """One sequence through two models on 1 to 8 GPUs: products and sums, on two links."""
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(7.4, 3.9), layout="constrained")
        figure.suptitle("Products shrink with the ranks, sums do not", **TITLE)
        panels = [figure.add_subplot(1, 2, place) for place in (1, 2)]
    for axes, name, title in zip(
        panels, counts.MODELS.values(), ("Llama-3.1-8B", "Llama-3.1-70B"), strict=True
    ):
        one = counts.step(name, 1, NVLINK).total_s
        axes.bar(0, 1, width=0.72, color=plots.COLOURS[0])
        for place, ranks in enumerate((2, 4, 8), start=1):
            for shift, link in ((-0.2, NVLINK), (0.2, NETWORK)):
                _bar(axes, place + shift, counts.step(name, ranks, link), one, hatched=link is NETWORK)
            axes.plot([place - 0.42, place + 0.42], [1 / ranks] * 2, color=plots.INK, linewidth=1,
                      linestyle=(0, (4, 2)))  # fmt: skip
        axes.text(0, 1.015, "1×", ha="center", fontsize=8)
        axes.set_xticks(range(4), ["1", "2", "4", "8"])
        axes.set_xlabel("GPUs: left NVLink, right one a server")
        axes.set_ylim(0, 1.1)
        axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
        axes.grid(axis="x", visible=False)
        axes.set_title(title, fontsize=10, fontweight="normal", loc="left")
    panels[0].set_ylabel("time of a step, one GPU = 100 %")
    for line, (name, colour) in enumerate(
        (("products", plots.COLOURS[0]), ("sums", SUM), ("dashed: 1/t", plots.INK))
    ):
        panels[1].text(
            3.55, 1.02 - 0.075 * line, name, color=colour, fontsize=9, fontweight="bold", ha="right"
        )
    show(figure, "Time of a step on 1 to 8 GPUs, in products and sums, on two links.")


def _bar(axes: Any, place: float, found: StepTime, one: float, *, hatched: bool) -> None:
    """Products and sums of a step, as shares of one GPU's time, and how many times as fast it is."""
    products, sums = found.compute_s / one, found.communication_s / one
    axes.bar(place, products, width=0.36, color=plots.COLOURS[0])
    axes.bar(place, sums, bottom=products, width=0.36, color=SUM, hatch="////" if hatched else None,
             edgecolor="white", linewidth=0)  # fmt: skip
    top = products + sums
    axes.text(place, top + 0.015, f"{1 / top:.1f}×", ha="center", fontsize=8)


def figure_seen() -> None:
    """Tokens a second of a group of 2 to 32 GPUs, as published."""
    figure, axes = plots.new(
        "Thirty-two GPUs train slower than eight", "GPUs that share each product",
        "thousand tokens a second, all together", height=3.5,
    )  # fmt: skip
    ranks = list(counts.MEASURED)
    rates = [counts.together(t) / 1e3 for t in ranks]
    colours = [plots.COLOURS[0] if t <= 8 else SUM for t in ranks]
    axes.bar(range(len(ranks)), rates, width=0.62, color=colours)
    for place, (t, rate) in enumerate(zip(ranks, rates, strict=True)):
        axes.text(place, rate + 2, f"{rate:.0f}", ha="center", fontsize=9.5, fontweight="bold")
        axes.text(place, 4, f"{counts.MEASURED[t] / 1e3:.1f} each", ha="center", fontsize=8.5, color="white")
    axes.set_xticks(range(len(ranks)), [f"{t}" for t in ranks])
    axes.text(1, 114, "in one server", ha="center", fontsize=9.5, color=plots.COLOURS[0], fontweight="bold")
    axes.text(3.5, 114, "over two and four servers", ha="center", fontsize=9.5, color=SUM, fontweight="bold")
    axes.set_ylim(0, 122)
    axes.grid(axis="x", visible=False)
    show(figure, "Tokens a second of 2 to 32 GPUs that share each product, as published.")


def show(figure: Figure, alt: str) -> None:
    """A figure as SVG: sharp at any size, the same bytes on each build."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "tensor-parallel", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    display({"image/svg+xml": file.getvalue(), "text/plain": f"[Figure: {alt}]"}, raw=True)
