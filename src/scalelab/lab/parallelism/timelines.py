"""A pipeline's step as a picture: a row for each rank, a bar for each pass, gaps where it had nothing to do.

Taught in book/parallelism/pipeline.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from scalelab.core.errors import LabError
from scalelab.lab import plots
from scalelab.parallel.scratch.schedules import Kind
from scalelab.parallel.scratch.trace import Span, bubble, kept_the_beat, shares

# By kind, light for the first chunk and darker for the next: told apart in grey as well.
FILLS: Mapping[str, Sequence[str]] = {
    "F": ("#CFE5F5", "#8FC1E3", "#5FA4D3"),
    "B": ("#F7D5BE", "#EDA877", "#DD7F3F"),
    "I": ("#F0DCE8", "#DDAFC9", "#CC79A7"),
    "W": ("#C5E8DB", "#84CDB2", "#47B08B"),
}
KINDS = {"F": "forward", "B": "backward", "I": "backward: input", "W": "backward: weights"}


def draw(
    traces: Mapping[str, Sequence[Span]], *, title: str, unit_s: float = 1.0, unit: str = "forward passes"
) -> Figure:
    """Traces below each other on one time axis, each pass with its micro-batch's number.

    Args:
        traces: name → spans of all ranks.
        title: what is seen. unit_s: seconds of one unit of the axis. unit: what that is called.

    Raises:
        LabError: nothing to draw.
    """
    if not traces or not all(traces.values()):
        raise LabError("draw needs at least one trace with spans: {'1F1B': spans}")
    height = 0.55 + sum(0.24 * _n_ranks(spans) + 0.42 for spans in traces.values())
    settings: Any = dict(plots.STYLE)
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(8.0, height), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        rows = [_n_ranks(spans) for spans in traces.values()]
        panels = figure.subplots(len(traces), 1, sharex=True, squeeze=False, height_ratios=rows)[:, 0]
        for axes, (name, spans) in zip(panels, traces.items(), strict=True):
            _row_by_row(axes, name, spans, unit_s)
        panels[-1].set_xlabel(f"time, {unit}")
        kinds = [k for k in KINDS if any(s.operation.kind == k for spans in traces.values() for s in spans)]
        edge: dict[str, Any] = {"edgecolor": plots.INK, "linewidth": 0.4}
        handles = [Patch(facecolor=FILLS[k][0], label=KINDS[k], **edge) for k in kinds]
        figure.legend(handles=handles, loc="outside lower right", ncols=len(kinds), frameon=False, fontsize=8)
    return figure


def describe(spans: Sequence[Span]) -> str:
    """Each rank's order in words, for a figure's alternative text."""
    words = []
    for rank in range(_n_ranks(spans)):
        own = sorted((span for span in spans if span.rank == rank), key=lambda span: span.start_s)
        words.append(f"rank {rank}: {' '.join(str(span.operation) for span in own)}")
    return "; ".join(words)


def steady_step(
    take: Callable[[float], Sequence[Span]],
    beat_s: float,
    lasts_beats: Mapping[Kind, float],
    *,
    n_steps: int = 3,
) -> tuple[Sequence[Span], float]:
    """Of some traced steps that kept the beat the one with the middle bubble, and its beat.

    A step that lost the beat, since the machine had too much else to do, is taken again; where none of
    `n_steps` kept it, the beat is doubled, twice at most. Should none keep that either, the step in which
    messages took the smallest share is what there is, and a line says so.

    Args:
        take: traces a step at a beat of so many seconds, all ranks' spans.
        beat_s: to begin with. lasts_beats: kind → beats that an operation lasts.
    """
    kept: list[Sequence[Span]] = []
    lost: list[tuple[float, Sequence[Span], float]] = []
    for attempt in range(3 * n_steps):
        if attempt and attempt % n_steps == 0 and not kept:
            beat_s *= 2
        spans = take(beat_s)
        if kept_the_beat(spans, {kind: n * beat_s for kind, n in lasts_beats.items()}, beat_s):
            kept.append(spans)
        else:
            lost.append((shares(spans).messages, spans, beat_s))
        if len(kept) == n_steps:
            break
    if kept:
        return sorted(kept, key=bubble)[len(kept) // 2], beat_s
    print(
        f"no step kept a beat of {1e3 * beat_s:.0f} ms, since this machine is too busy: the calmest is taken"
    )
    _, spans, beat_s = min(lost, key=lambda one: one[0])
    return spans, beat_s


def _row_by_row(axes: Axes, name: str, spans: Sequence[Span], unit_s: float) -> None:
    begun = min(span.start_s for span in spans)
    n_ranks = _n_ranks(spans)
    for span in spans:
        kind, number, chunk = span.operation
        start, length = (span.start_s - begun) / unit_s, span.seconds / unit_s
        fills = FILLS[kind]
        axes.barh(
            span.rank, length, left=start, height=0.86, color=fills[min(chunk, len(fills) - 1)],
            edgecolor=plots.INK, linewidth=0.4,
        )  # fmt: skip
        axes.text(start + length / 2, span.rank, str(number), ha="center", va="center", fontsize=6.5)
    axes.set_ylim(n_ranks - 0.45, -0.55)  # rank 0 above
    axes.set_yticks(range(n_ranks), [f"rank {rank}" for rank in range(n_ranks)], fontsize=8)
    axes.set_title(name, fontsize=9, fontweight="normal", pad=2)
    axes.grid(visible=False)


def _n_ranks(spans: Sequence[Span]) -> int:
    return 1 + max(span.rank for span in spans)
