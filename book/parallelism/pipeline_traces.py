"""Pictures of steps, and what the recorded study saw: four schedules on four real processes.

In the study every pass computes and then waits until it has lasted its length: one beat forward, two back. So
order, messages and waiting are real, and the ratio of the lengths is imposed. Taught in the chapter
`pipeline`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import matplotlib
from data_parallel_common import TITLE, percent
from matplotlib.figure import Figure

from scalelab.cost import bubble_fraction
from scalelab.lab import plots
from scalelab.lab.parallelism import timelines
from scalelab.lab.records import study_json
from scalelab.parallel.scratch.schedules import Operation, make_schedule
from scalelab.parallel.scratch.simulation import simulate
from scalelab.parallel.scratch.trace import Span, bubble, in_flight

P, M = 4, 8  # of what is drawn
BEAT_S = 0.04  # a stage's forward pass in the study
NAMES: Mapping[str, str] = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved": "interleaved, v = 2",
    "zero-bubble": "ZB-H1",
}


@lru_cache(maxsize=1)
def runs() -> dict[tuple[str, int], dict[str, Any]]:
    """The recorded rows by (schedule, micro-batches)."""
    rows = study_json("parallelism/pipeline", "traces")["runs"]
    return {(row["schedule"], row["micro_batches"]): row for row in rows}


def idle(name: str, m: int = M) -> float:
    """The recorded bubble: the median of the steps that kept the beat, or of all where none did."""
    row = runs()[name, m]
    kept = [step[1] for step, good in zip(row["on_beat"], row["kept_the_beat"], strict=True) if good]
    return statistics.median(kept or [step[1] for step in row["on_beat"]])


def travelled(name: str, m: int = M) -> float:
    """The recorded share of time in which something was made and on its way."""
    row = runs()[name, m]
    kept = [step[2] for step, good in zip(row["on_beat"], row["kept_the_beat"], strict=True) if good]
    return statistics.median(kept or [step[2] for step in row["on_beat"]])


def recorded(name: str) -> list[Span]:
    """The spans of the recorded step with eight micro-batches."""
    return [
        Span(rank, Operation(kind, i, chunk), start, end)
        for rank, kind, i, chunk, start, end in runs()[name, M]["spans"]
    ]


def trace_numbers() -> dict[str, str]:
    """What clocks saw, beside the formulas."""
    found = {"beat": f"{1e3 * BEAT_S:.0f} ms"}
    for name in NAMES:
        key = name.replace("-", "_")
        found[f"seen_{key}"] = percent(idle(name), 1)
        found[f"formula_{key}"] = percent(runs()[name, M]["formula"], 1)
        if runs()[name, M]["v"] == 1 and name != "zero-bubble":
            found[f"travel_{key}"] = percent(travelled(name), 1)
    longest = max(s for row in runs().values() for kind, s in row["unpadded_s"].items() if kind in "FB")
    found["unpadded"] = f"{1e3 * longest:.1f} ms"
    found["off_by"] = power_of_ten(max(row["off_by"] for row in runs().values()))
    held = runs()["gpipe", M]["most_bytes"], runs()["1f1b", M]["most_bytes"]
    found["kib_last"] = f"{held[0][-1] / 2**20:.2f} MiB"
    found["kib_last_1f1b"] = f"{held[1][-1] / 2**20:.2f} MiB"
    return found


def power_of_ten(value: float) -> str:
    """The next power of ten above, as in "off by less than"."""
    exponent = 0
    while 10.0 ** (exponent - 1) > value:
        exponent -= 1
    return "10" + "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(c)] if c.isdigit() else "⁻" for c in str(exponent))


def figure_pieces() -> Figure:
    """One batch through four stages: in one piece, in two, in four. Simulated."""
    traces = {}
    for m, words in ((1, "in one piece"), (2, "in two"), (4, "in four")):
        spans = simulate(make_schedule("gpipe", P, m), {"F": 4 / m, "B": 8 / m})
        share = percent(bubble_fraction(P, m))
        assert abs(bubble(spans) - bubble_fraction(P, m)) < 1e-9
        traces[f"the batch {words}: {share} idle"] = spans
    return timelines.draw(
        traces, title="The same work on four ranks, in smaller and smaller pieces",
        unit="in forward passes of a quarter of the batch",
    )  # fmt: skip


def figure_seen(names: tuple[str, ...], title: str) -> Figure:
    """Recorded steps of eight micro-batches, on a common axis."""
    traces = {f"{NAMES[name]}: bubble {percent(bubble(recorded(name)), 1)} by the clock": recorded(name)
              for name in names}  # fmt: skip
    return timelines.draw(traces, title=title, unit_s=BEAT_S, unit="in forward passes of a stage")


def figure_held() -> Figure:
    """Bytes that each rank held at most, under four schedules."""
    with matplotlib.rc_context({**plots.STYLE}):
        figure = Figure(figsize=(7.4, 2.9), layout="constrained")
        figure.suptitle("What each rank held at most, and of how many passes", **TITLE)
        panels = figure.subplots(1, len(NAMES), sharey=True)
    for axes, (index, (name, title)) in zip(panels, enumerate(NAMES.items()), strict=True):
        row = runs()[name, M]
        orders = make_schedule(name, P, M, v=row["v"])
        heights = [n_bytes / 2**20 for n_bytes in row["most_bytes"]]
        axes.bar(range(P), heights, color=plots.COLOURS[index], width=0.72)
        for rank, height in enumerate(heights):
            passes = in_flight(orders[rank])
            axes.text(rank, height + 0.08, str(passes), ha="center", va="bottom", fontsize=8.5)
        axes.set_title(title, fontsize=9, fontweight="normal", pad=4)
        axes.set_xticks(range(P))
        axes.tick_params(labelsize=8, length=0)
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("rank", fontsize=8.5)
    panels[0].set_ylabel("MiB of activations", fontsize=9)
    panels[0].set_ylim(0, 1.12 * max(runs()["gpipe", M]["most_bytes"]) / 2**20)
    return figure
