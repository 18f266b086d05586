"""Figures of the best size for a budget, which chapter and lab share.

Taught in book/scaling-laws/compute-optimal.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from scalelab.lab import plots
from scalelab.lab.scaling_laws.frontier import Frontier, SweepRuns
from scalelab.laws import Interval, IsoflopFit

Estimate = tuple[str, float, Interval]


def draw_valleys(runs: SweepRuns, fit: IsoflopFit, *, title: str) -> tuple[Figure, Axes]:
    """Loss over size, a valley for each budget, with the bottoms that are bracketed."""
    figure, axes = plots.new(title, "parameters, N", "held-out loss, nats a token", log_x=True)
    for index, vertex in enumerate(fit.vertices):
        colour = plots.COLOURS[index % len(plots.COLOURS)]
        mine = np.abs(runs.flops / vertex.flops - 1) < 0.15
        n, loss = runs.n_params[mine], runs.loss[mine]
        axes.plot(n, loss, "o", color=colour)
        if vertex.bracketed:
            x = np.linspace(np.log(n.min()), np.log(n.max()), 60)
            curve = vertex.loss + vertex.curvature / 2 * (x - np.log(vertex.n_params)) ** 2
            axes.plot(np.exp(x), curve, color=colour, alpha=0.6)
            axes.plot([vertex.n_params], [vertex.loss], "*", color=plots.INK, markersize=11, zorder=3)
        last = int(np.argmax(n))
        axes.annotate(
            f"{budget_text(vertex.flops)} FLOPs", (n[last], loss[last]), xytext=(6, 0),
            textcoords="offset points", va="center", fontsize=9, color=colour, fontweight="bold",
        )  # fmt: skip
    axes.set_xlim(None, 2.6 * runs.n_params.max())  # room for the names
    return figure, axes


def budget_text(flops: float) -> str:
    """A budget with its power of ten written out, such as 3.2·10¹²."""
    mantissa, exponent = f"{flops:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if mantissa == "1.0" else f"{mantissa}·10{raised}"


def draw_estimates(
    rows: Sequence[Estimate], *, title: str, xlabel: str, marks: Mapping[str, float] | None = None
) -> tuple[Figure, Axes]:
    """Values with their intervals, one row each, from the top down; marks are published values."""
    figure, axes = plots.new(title, xlabel, "", height=1.1 + 0.42 * len(rows))
    for index, (_, value, interval) in enumerate(rows):
        y = len(rows) - 1 - index
        axes.plot([interval.low, interval.high], [y, y], color=plots.COLOURS[0], linewidth=3, alpha=0.5)
        axes.plot([value], [y], "o", color=plots.COLOURS[0], markersize=7)
        axes.annotate(f"{value:.2f}", (value, y), xytext=(0, 7), textcoords="offset points", ha="center",
                      fontsize=9)  # fmt: skip
    for name, value in (marks or {}).items():
        axes.axvline(value, color=plots.GREY, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
        axes.annotate(name, (value, 1.0), xycoords=axes.get_xaxis_transform(), xytext=(3, -2),
                      textcoords="offset points", va="top", fontsize=9, color=plots.GREY)  # fmt: skip
    axes.set_yticks(range(len(rows)), [name for name, _, _ in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.1)
    right = max([interval.high for _, _, interval in rows] + list((marks or {}).values()))
    axes.set_xlim(None, right + 0.08)
    return figure, axes


def draw_landscape(record: Mapping[str, Any], stops: Mapping[str, Any], *, title: str) -> tuple[Figure, Axes]:
    """The lowest objective at each pair of exponents, and where published and stopped fits lie."""
    valley, lowest = record["valley"], record["minimum"]["objective"]
    figure, axes = plots.new(title, "β, exponent of data", "α, exponent of size", height=4.6)
    share = 100 * (np.array(valley["objective"]) / lowest - 1)
    levels = [1, 2, 5, 10, 20, 50, 100]
    lines = axes.contour(
        valley["beta"], valley["alpha"], share, levels=levels, colors=plots.GREY, linewidths=1
    )
    axes.clabel(lines, fmt="+%g %%", fontsize=8)
    axes.grid(visible=False)
    mean = [
        end for end in stops["mean"]["lowest"] if 0.24 < end["beta"] < 0.44 and 0.28 < end["alpha"] < 0.44
    ]
    axes.plot([end["beta"] for end in mean], [end["alpha"] for end in mean], ".", color=plots.COLOURS[1])
    points = {
        "the minimum": (record["minimum"], plots.COLOURS[2], (8, -12)),
        "printed": (record["published"]["Hoffmann, printed"], plots.COLOURS[0], (-8, 8)),
        "in the paper's source": (record["published"]["Hoffmann's source"], plots.COLOURS[0], (8, -12)),
    }
    for name, (law, colour, offset) in points.items():
        axes.plot([law["beta"]], [law["alpha"]], "o", color=colour, markersize=8)
        axes.annotate(name, (law["beta"], law["alpha"]), xytext=offset, textcoords="offset points",
                      fontsize=9, fontweight="bold", color=colour,
                      ha="right" if offset[0] < 0 else "left")  # fmt: skip
    if mean:
        best = mean[0]
        axes.annotate("stopped on the mean", (best["beta"], best["alpha"]), xytext=(-6, 10),
                      textcoords="offset points", ha="right", fontsize=9, fontweight="bold",
                      color=plots.COLOURS[1])  # fmt: skip
    return figure, axes


def draw_chain(steps: Sequence[Frontier], *, title: str) -> tuple[Figure, Axes]:
    """Tokens per parameter at the best size over budget, for each step as it counts them, with its line.

    D/N = C / (6 N^2) goes as C^(1 - 2a): level where a is one half, falling where it is more.
    """
    figure, axes = plots.new(
        title, "budget, FLOPs as the step counts them", "tokens per parameter at the best size",
        log_x=True, log_y=True, height=4.2,
    )  # fmt: skip
    for index, step in enumerate(steps):
        colour = plots.COLOURS[index % len(plots.COLOURS)]
        axes.plot(step.flops, step.flops / 6 / step.n_opt**2, "o", color=colour)
        line = np.array([step.size_at(flops) for flops in step.flops])
        axes.plot(step.flops, step.flops / 6 / line**2, color=colour, alpha=0.7,
                  label=f"{step.step.name}: {step.a:.2f}")  # fmt: skip
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, fontsize=9, title="exponent a", title_fontsize=9)
    return figure, axes
