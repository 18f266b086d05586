"""Figures in one style: few marks, direct labels, colours that everyone can tell apart.

Figures are made without pyplot, so nothing is shown twice and no style is set globally. The background
is white paper, in dark pages too, and text is large enough for half a page's width. A figure's title
says what it shows ("Loss falls below gzip after 20 s"), not what its axes are.

Source: palette of Okabe & Ito 2008 ("Color Universal Design"), as given by Wong 2011, Nature Methods 8, 441.
"""

from __future__ import annotations

import base64
import io
import itertools
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scalelab.core.errors import LabError
from scalelab.lab.predictions import show as show_number

# Without yellow, which is too pale for lines and labels on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
INK, GREY = "#222222", "#595959"  # grey still has 7:1 contrast on white
DPI = 192  # twice a screen's 96: crisp where one pixel is two

STYLE: Mapping[str, Any] = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same on every machine
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.linewidth": 2.0,
    "lines.markersize": 5,
}

Side = Literal["left", "right"]
Points = tuple[Sequence[float], Sequence[float]]


def new(
    title: str,
    xlabel: str,
    ylabel: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    width: float = 7.0,
    height: float = 3.8,
) -> tuple[Figure, Axes]:
    """An empty figure in the course's style.

    Args:
        title: the finding. xlabel, ylabel: quantities with their units. width, height: inches.
    """
    with _style():
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        _label(axes, title, xlabel, ylabel)
        if log_x:
            axes.set_xscale("log")
        if log_y:
            axes.set_yscale("log")
    return figure, axes


def curve(
    lines: Mapping[str, Points],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    references: Mapping[str, float] | None = None,
    references_at: Side = "right",
    marks: Mapping[str, tuple[float, float]] | None = None,
    log_x: bool = False,
    log_y: bool = False,
) -> tuple[Figure, Axes]:
    """Curves, each named at its right end, with level lines and marked points.

    Args:
        lines: name → (x values, y values); values that are not finite leave a gap (a diverged run).
        references: name → height of a horizontal line ("gzip" → 2.61).
        references_at: the end of those lines where their names stand; curves end at the right.
        marks: name → (x, y) of a point worth naming.

    Raises:
        LabError: no line, or x and y of different lengths.
    """
    if not lines:
        raise LabError("curve needs at least one line: {'name': (x values, y values)}")
    figure, axes = new(title, xlabel, ylabel, log_x=log_x, log_y=log_y)
    ends: list[tuple[str, float, float, str]] = []
    with _style():
        for index, (name, (x, y)) in enumerate(lines.items()):
            xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
            if xs.shape != ys.shape or xs.ndim != 1:
                raise LabError(
                    f"line {name!r} has x of shape {xs.shape} and y of shape {ys.shape}; they must match"
                )
            colour = COLOURS[index % len(COLOURS)]
            axes.plot(xs, ys, color=colour, marker="o" if len(xs) <= 30 else "")
            finite = np.flatnonzero(np.isfinite(xs) & np.isfinite(ys))
            if len(finite):
                ends.append((name, float(xs[finite[-1]]), float(ys[finite[-1]]), colour))
        for name, level in (references or {}).items():
            reference(axes, level, name, at=references_at)
        for name, (x_mark, y_mark) in (marks or {}).items():
            mark(axes, x_mark, y_mark, name)
        _name_ends(axes, ends)
    return figure, axes


def reference(axes: Axes, level: float, label: str, *, at: Side = "right") -> None:
    """A dashed horizontal line, named on it at its left or right end."""
    axes.axhline(level, color=GREY, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
    axes.annotate(
        label,
        (1.0 if at == "right" else 0.0, level),
        xycoords=axes.get_yaxis_transform(),
        xytext=(-2 if at == "right" else 4, 3),
        textcoords="offset points",
        ha=at,
        va="bottom",
        color=GREY,
        fontsize=9,
    )


def mark(axes: Axes, x: float, y: float, label: str) -> None:
    """A ring round one point, named above it."""
    axes.plot([x], [y], marker="o", markersize=9, markerfacecolor="none", markeredgecolor=INK, linestyle="")
    axes.annotate(
        label, (x, y), xytext=(0, 9), textcoords="offset points", ha="center", va="bottom", fontsize=9
    )


def bars(
    pairs: Mapping[str, tuple[float | None, float]], *, title: str, units: Mapping[str, str] | None = None
) -> tuple[Figure, list[Axes]]:
    """Predicted beside measured: one small panel for each quantity, since their units differ.

    Args:
        pairs: name → (predicted or None, measured). units: name → unit.

    Raises:
        LabError: nothing to draw.
    """
    if not pairs:
        raise LabError("bars needs at least one pair: {'name': (predicted, measured)}")
    with _style():
        figure = Figure(figsize=(max(4.0, 2.2 * len(pairs)), 3.2), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        panels = [figure.add_subplot(1, len(pairs), place) for place in range(1, len(pairs) + 1)]
        for axes, (name, (predicted, measured)) in zip(panels, pairs.items(), strict=True):
            _pair(axes, name, (units or {}).get(name, ""), predicted, measured)
    return figure, panels


def show(figure: Any, *, alt: str) -> None:
    """Show a figure in a notebook as a crisp PNG that carries its alternative text.

    The text goes into the output's metadata (where IPython's own images keep theirs) and into the
    plain-text form, which a terminal shows. The tool that executes labs copies it into the cell's
    metadata, from which the book takes an image's `alt`.

    Raises:
        LabError: no alternative text, or not a matplotlib figure.
    """
    if not isinstance(figure, Figure):
        raise LabError(
            f"show needs a matplotlib Figure, got {type(figure).__name__}; curve and bars return one"
        )
    text = " ".join(alt.split()) if isinstance(alt, str) else ""
    if len(text) < 15:
        raise LabError(f"alt must say in words what the figure shows (at least 15 characters), got {alt!r}")
    png = as_png(figure)
    _close_in_pyplot(figure)
    # A notebook host has IPython; a script that imports a lab's code need not.
    ipython = sys.modules.get("IPython")
    if ipython is None or ipython.get_ipython() is None:
        print(f"[Figure: {text}]")
        return
    width = round(float(figure.get_figwidth()) * 96)  # no height: a narrow page then scales both
    ipython.display.display(
        {"image/png": base64.b64encode(png).decode(), "text/plain": f"[Figure: {text}]"},
        metadata={"image/png": {"alt": text, "width": width}},
        raw=True,
    )


def as_png(figure: Figure) -> bytes:
    """The figure as PNG: the same bytes for the same figure and version of matplotlib."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


def _style() -> AbstractContextManager[None]:
    """The course's style while a figure is made, and the reader's own afterwards."""
    settings: Any = dict(STYLE)
    return matplotlib.rc_context(settings)


def _close_in_pyplot(figure: Figure) -> None:
    """A figure made by pyplot would be shown once more at the end of its cell."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close(figure)


def _label(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)


def _name_ends(axes: Axes, ends: list[tuple[str, float, float, str]]) -> None:
    """Write each line's name to the right of its end, moved apart where they would overlap."""
    if not ends:
        return
    heights = np.array([axes.transData.transform((x, y))[1] for _, x, y, _ in ends])
    order = np.argsort(heights)
    apart = 12 * axes.figure.dpi / 72  # one line of 9-point text, in pixels
    moved = heights.copy()
    for below, above in itertools.pairwise(order):
        moved[above] = max(moved[above], moved[below] + apart)
    moved -= (moved - heights).mean()
    for (name, x, y, colour), shift in zip(ends, (moved - heights) * 72 / axes.figure.dpi, strict=True):
        axes.annotate(
            name,
            (x, y),
            xytext=(8, float(shift)),
            textcoords="offset points",
            ha="left",
            va="center",
            color=colour,
            fontsize=9,
            fontweight="bold",
            annotation_clip=False,
        )


def _pair(axes: Axes, name: str, unit: str, predicted: float | None, measured: float) -> None:
    heights = [0.0 if predicted is None else predicted, measured]
    drawn = axes.bar(["predicted", "measured"], heights, color=[COLOURS[4], COLOURS[0]], width=0.65)
    labels = ["no guess" if predicted is None else show_number(predicted), show_number(measured)]
    axes.bar_label(drawn, labels=labels, padding=2, fontsize=9)
    axes.set_title(f"{name}, {unit}" if unit else name, fontsize=10, fontweight="normal")
    axes.margins(y=0.15)
    axes.grid(visible=False)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
