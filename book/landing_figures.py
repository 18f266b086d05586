"""The landing page's figure: the loss of the lab's run as it reads, and what the model writes on the way.

All of it comes from the recorded study behind book/transformers/training.md. The figure is SVG that takes its
colours from the page, so it follows the reader's light or dark. It is drawn twice, and the stylesheet
shows the one whose text is legible at the window's width.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from IPython.display import HTML

from scalelab.core.records import RunRecord
from scalelab.core.units import format_count
from scalelab.lab.records import study_json, study_runs

STUDY = "transformers/training"
LINES_SHOWN = 9  # of each text; the record has them all

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """From tokens and bits per byte to the pixels of one drawing.

    Attributes:
        width, height: of the whole, in pixels.
        left, right, top, bottom: what the axes' labels and the names at the lines' ends take.
        tokens, bits: the ranges shown; tokens on a logarithmic axis.
    """

    width: int
    height: int
    left: int = 40
    right: int = 96
    top: int = 34
    bottom: int = 44
    tokens: tuple[float, float] = (9e3, 3.5e6)
    bits: tuple[float, float] = (1.3, 3.7)

    def x(self, n_tokens: float) -> float:
        """Pixels from the left."""
        low, high = (math.log10(end) for end in self.tokens)
        share = (math.log10(n_tokens) - low) / (high - low)
        return self.left + share * (self.width - self.left - self.right)

    def y(self, bits_per_byte: float) -> float:
        """Pixels from the top."""
        low, high = self.bits
        share = (high - bits_per_byte) / (high - low)
        return self.top + share * (self.height - self.top - self.bottom)


def figure() -> HTML:
    """Curve, compressors, and the texts written at the numbered points."""
    compressors = study_json(STUDY, "measurements")["compressors_bits_per_byte"]
    lab_run, larger = study_runs(STUDY, "minute")[0], study_runs(STUDY, "larger")[0]
    stages = [stage for stage in study_json(STUDY, "samples")["stages"] if stage["n_tokens"]]
    last = stages[-1]
    alt = (
        f"Held-out loss of a model of {lab_run.n_params:,} parameters over the tokens it has read: from "
        f"{stages[0]['bits_per_byte']:.2f} bits per byte after {stages[0]['n_tokens']:,} tokens down to "
        f"{last['bits_per_byte']:.2f} after {last['n_tokens'] / 1e6:.1f} million, below the line of gzip at "
        f"{compressors['gzip']:.2f}; a larger model ends at {larger.bits_per_byte:.2f}, below that of xz at "
        f"{compressors['xz']:.2f}."
    )
    drawings = "".join(
        _drawing(frame, kind, alt, lab_run, larger, compressors, stages)
        for kind, frame in (("wide", Frame(width=700, height=300)), ("narrow", Frame(width=360, height=270)))
    )
    caption = (
        f"<strong>After {lab_run.seconds:.0f} seconds on two processor cores, a small model compresses "
        "Python source better than gzip.</strong> Grey: a larger model, "
        f"{larger.seconds / 60:.0f} minutes. Below: what the small one writes after <code>def</code> at the "
        "three points; one draw each, the first."
    )
    texts = "".join(_text(number, stage) for number, stage in enumerate(stages, 1))
    return HTML(
        f'<figure class="landing-figure">{drawings}<figcaption>{caption}</figcaption></figure>'
        f'<ol class="landing-texts">{texts}</ol>'
    )


def curve(run: RunRecord) -> list[Point]:
    """Tokens read and bits per byte; the same held-out tokens throughout, so one factor converts the nats."""
    scale = run.bits_per_byte / run.loss_nats
    return [(n_tokens, loss * scale) for n_tokens, loss in run.curve]


def _drawing(
    frame: Frame,
    kind: str,
    alt: str,
    lab_run: RunRecord,
    larger: RunRecord,
    compressors: dict[str, float],
    stages: Sequence[dict[str, float]],
) -> str:
    parts = [
        _axes(frame),
        *(_level(frame, name, compressors[name]) for name in ("gzip", "xz")),
        _line(frame, curve(larger), "larger"),
        _line(frame, curve(lab_run), "run"),
        _name_run(frame, lab_run, compressors["gzip"]),
        _name_larger(frame, larger),
        *(
            _number(frame, number, (stage["n_tokens"], stage["bits_per_byte"]))
            for number, stage in enumerate(stages, 1)
        ),
    ]
    return (
        f'<svg class="{kind}" viewBox="0 0 {frame.width} {frame.height}" role="img" '
        f'aria-label="{html.escape(alt)}">{"".join(parts)}</svg>'
    )


def _axes(frame: Frame) -> str:
    bottom, left = frame.height - frame.bottom, frame.left
    end = frame.width - frame.right
    marks = [f'<line class="axis" x1="{left}" y1="{bottom}" x2="{end}" y2="{bottom}"/>']
    for n_tokens, name in ((1e4, "10 k"), (1e5, "100 k"), (1e6, "1 M")):
        x = frame.x(n_tokens)
        marks.append(f'<line class="axis" x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 4}"/>')
        marks.append(_words(name, x, bottom + 17, "tick", "middle"))
    for bits in (1.5, 2.0, 2.5, 3.0, 3.5):
        y = frame.y(bits)
        marks.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{end}" y2="{y:.1f}"/>')
        marks.append(_words(f"{bits:.1f}", left - 7, y + 4, "tick", "end"))
    marks.append(_words("held-out loss, bits per byte", 2, 14, "title", "start"))
    marks.append(_words("tokens read", end, frame.height - 6, "title", "end"))
    return "".join(marks)


def _level(frame: Frame, name: str, bits: float) -> str:
    y, end = frame.y(bits), frame.width - frame.right
    line = f'<line class="level" x1="{frame.left}" y1="{y:.1f}" x2="{end}" y2="{y:.1f}"/>'
    return line + _words(f"{name} {bits:.2f}", frame.left + 4, y - 5, "level-name", "start")


def _line(frame: Frame, points: Sequence[Point], kind: str) -> str:
    path = " ".join(f"{frame.x(n):.1f},{frame.y(bits):.1f}" for n, bits in points)
    return f'<polyline class="{kind}" points="{path}"/>'


def _name_run(frame: Frame, run: RunRecord, gzip: float) -> str:
    """Above the line of gzip, where nothing else is drawn."""
    x, y = frame.x(run.n_tokens) + 8, frame.y(gzip) - 7
    return (
        _words(f"{run.n_params / 1e6:.1f} M", x, y - 27, "run-name", "start")
        + _words("parameters", x, y - 14, "run-name", "start")
        + _words(f"{run.bits_per_byte:.2f}", x, y, "run-end", "start")
    )


def _name_larger(frame: Frame, run: RunRecord) -> str:
    x, y = frame.x(run.n_tokens) + 8, frame.y(run.bits_per_byte) + 5
    return (
        _words(f"{run.n_params / 1e6:.0f} M", x, y - 28, "larger-name", "start")
        + _words("parameters", x, y - 15, "larger-name", "start")
        + _words(f"{run.bits_per_byte:.2f}", x, y, "larger-end", "start")
    )


def _number(frame: Frame, number: int, point: Point) -> str:
    x, y = frame.x(point[0]), frame.y(point[1])
    return f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="10"/>' + _words(
        str(number), x, y + 4.2, "point-number", "middle"
    )


def _words(text: str, x: float, y: float, kind: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _text(number: int, stage: dict[str, float | str]) -> str:
    lines = str(stage["text"]).split("\n")[:LINES_SHOWN]
    written = "".join(f"<span>{html.escape(line.rstrip()) or ' '}</span>" for line in lines)
    return (
        f'<li><p><span class="point-number" aria-hidden="true">{number}</span> '
        f"{format_count(stage['n_tokens'])} tokens<br>{stage['bits_per_byte']:.2f} bits per byte</p>"
        f"<pre>{written}</pre></li>"
    )
