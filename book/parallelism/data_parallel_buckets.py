"""A data-parallel step of GPT-2, event by event: which gradients leave when, and what of it sticks out.

The backward pass makes gradients ready one after the other, and the network carries one bucket at a time.
Times are the model's. Taught in the chapter `data-parallel`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import matplotlib
from data_parallel_common import NETWORK, RATE, TITLE, config, ms, percent, reduce_s, size
from matplotlib.figure import Figure

from scalelab.lab import plots

RANKS = 16  # of the timelines
SEQUENCES, CONTEXT = 16, 1024  # a rank's share of the batch
MIB = 2**20
DEFAULT_BUCKET, FIRST_BUCKET = 25 * MIB, MIB  # torch's, bytes
SHOWN_MS = 65.0  # of the common axis of time


@dataclass(frozen=True, slots=True)
class Tensor:
    """A parameter, as the backward pass meets it: bytes of its gradient, seconds that it takes."""

    n_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Step:
    """One rank's step: how long it computes, and each message (start, end, bytes)."""

    forward_s: float
    backward_s: float
    sent: tuple[tuple[float, float, int], ...]

    @property
    def compute_s(self) -> float:
        """Forward and backward."""
        return self.forward_s + self.backward_s

    @property
    def total_s(self) -> float:
        """From the first product to the last sum."""
        return max(self.compute_s, self.sent[-1][1])

    @property
    def exposed_s(self) -> float:
        """Communication after the backward pass."""
        return self.total_s - self.compute_s


@lru_cache(maxsize=1)
def gpt2_backward() -> tuple[Tensor, ...]:
    """GPT-2's gradients in the order in which they are ready; the tied table comes last of all."""
    c = config("gpt2")
    d, f, tokens = c.d_model, c.d_ff, SEQUENCES * CONTEXT
    # Each weight takes 4 operations a token on the way back, attention's own products 8 T D a layer.
    scores = 8 * CONTEXT * d * tokens

    def matrix(rows: int, columns: int, extra: int = 0) -> Tensor:
        return Tensor(4 * rows * columns, (4 * rows * columns * tokens + extra) / RATE)

    def vector(length: int) -> Tensor:
        return Tensor(4 * length, 0.0)

    order = [Tensor(0, 4 * c.vocab_size * d * tokens / RATE)]  # the head's products: nothing is ready yet
    order += [vector(d)] * 2  # the last norm
    for _ in range(c.n_layers):
        order += [vector(d), matrix(f, d), vector(f), matrix(d, f), vector(d), vector(d)]
        order += [vector(d), matrix(d, d), vector(3 * d), matrix(d, 3 * d, scores), vector(d), vector(d)]
    order += [Tensor(4 * c.seq_len * d, 0.0), Tensor(4 * c.vocab_size * d, 0.0)]
    assert sum(tensor.n_bytes for tensor in order) == 4 * size("gpt2")
    return tuple(order)


def run_step(bucket_bytes: float, *, ranks: int = RANKS, overlap: bool = True) -> Step:
    """A step whose gradients leave in buckets, one at a time, as they fill.

    Args:
        bucket_bytes: a bucket is closed when it holds so many (the first at 1 MiB); 0 sends each tensor by
            itself, inf all at once.
        overlap: whether buckets leave during the backward pass or after it.
    """
    order = gpt2_backward()
    backward = sum(tensor.seconds for tensor in order)
    forward = backward / 2
    ready: list[tuple[float, int]] = []
    now, held = forward, 0
    for index, tensor in enumerate(order):
        now += tensor.seconds
        held += tensor.n_bytes
        limit = min(bucket_bytes, FIRST_BUCKET) if not ready and math.isfinite(bucket_bytes) else bucket_bytes
        if held and (held >= limit or index == len(order) - 1):
            ready.append((now if overlap else forward + backward, held))
            held = 0
    sent, free = [], 0.0
    for since, n_bytes in ready:
        start = max(since, free)
        free = start + reduce_s(n_bytes, ranks)
        sent.append((start, free, n_bytes))
    return Step(forward, backward, tuple(sent))


def timelines() -> dict[str, Step]:
    """The four ways of the figure."""
    return {
        "each tensor by itself, after the backward pass": run_step(0, overlap=False),
        "all at once, after it": run_step(math.inf, overlap=False),
        "buckets of 25 MiB, during it": run_step(DEFAULT_BUCKET),
        "buckets of 1 MiB, during it": run_step(FIRST_BUCKET),
    }


def bucket_numbers() -> dict[str, str]:
    """Steps of GPT-2 in four ways, and what becomes of the default among more ranks."""
    found = {"gpt2_tensors": str(sum(tensor.n_bytes > 0 for tensor in gpt2_backward()))}
    ways = timelines()
    for short, step in zip(("each", "whole", "buckets", "small"), ways.values(), strict=True):
        found[f"exposed_{short}"] = ms(step.exposed_s)
    some = next(iter(ways.values()))
    table = 4 * config("gpt2").vocab_size * config("gpt2").d_model
    many = 64
    return found | {
        "step_compute": ms(some.compute_s),
        "step_backward": ms(some.backward_s),
        "bucket_latency": ms(2 * (RANKS - 1) * NETWORK.latency_s),
        "gpt2_message": ms(NETWORK.seconds(4 * size("gpt2"))),
        "messages_small": str(len(ways["buckets of 1 MiB, during it"].sent)),
        "table_share": percent(table / (4 * size("gpt2"))),
        "table_ms": ms(reduce_s(table, RANKS)),
        "latency_each": ms(int(found["gpt2_tensors"]) * 2 * (RANKS - 1) * NETWORK.latency_s),
        "best_bucket": f"{best_bucket(RANKS) / 1e6:.0f} MB",
        "best_bucket_64": f"{best_bucket(many) / 1e6:.0f} MB",
        "exposed_whole_64": ms(run_step(math.inf, ranks=many, overlap=False).exposed_s),
        "exposed_buckets_64": ms(run_step(DEFAULT_BUCKET, ranks=many).exposed_s),
        "exposed_large_64": ms(run_step(100 * MIB, ranks=many).exposed_s),
    }


def best_bucket(ranks: int) -> float:
    """n √(2(p-1)α / t_b): where waiting for the first bucket and all latencies together are least, bytes."""
    backward = next(iter(timelines().values())).backward_s
    return 4 * size("gpt2") * math.sqrt(2 * (ranks - 1) * NETWORK.latency_s / backward)


def figure() -> Figure:
    """One step of GPT-2 on one of 16 ranks, in four ways, on a common axis of time."""
    with matplotlib.rc_context({**plots.STYLE, "axes.grid": False}):
        drawn = Figure(figsize=(7.4, 5.0), layout="constrained")
        drawn.suptitle("What overlaps is free; what is left over is not", **TITLE)
        panels = [drawn.add_subplot(4, 1, place) for place in range(1, 5)]
    for axes, (name, step) in zip(panels, timelines().items(), strict=True):
        _lanes(axes, step)
        count = len(step.sent)
        axes.set_title(
            f"{name}: {count} message{'s' if count > 1 else ''}",
            fontsize=9,
            fontweight="normal",
            pad=3,
            loc="left",
        )
        if axes is not panels[-1]:
            axes.set_xticklabels([])
    panels[-1].set_xlabel("milliseconds, by the model")
    return drawn


def _lanes(axes: matplotlib.axes.Axes, step: Step) -> None:
    """What the GPU does above, what the network carries below."""
    forward, backward, total = 1e3 * step.forward_s, 1e3 * step.backward_s, 1e3 * step.total_s
    axes.barh(1, forward, height=0.75, color="#E3E3E3")
    axes.barh(1, backward, left=forward, height=0.75, color="#BDBDBD")
    axes.text(forward / 2, 1, "forward", ha="center", va="center", fontsize=8)
    axes.text(forward + backward / 2, 1, "backward", ha="center", va="center", fontsize=8)
    for number, (start, end, _) in enumerate(step.sent):
        left, right = 1e3 * start, min(1e3 * end, SHOWN_MS)
        if right > left:
            colour = plots.COLOURS[0 if number % 2 else 4]
            axes.barh(0, right - left, left=left, height=0.75, color=colour, linewidth=0)
    axes.axvline(forward + backward, color=plots.GREY, linewidth=1.2, linestyle=(0, (5, 3)))
    if total <= SHOWN_MS:
        axes.annotate(f"{total:.0f} ms", (total, 0), xytext=(5, 0), textcoords="offset points", va="center",
                      fontsize=9, fontweight="bold")  # fmt: skip
    else:
        axes.annotate(f"to {total:.0f} ms →", (SHOWN_MS, 0), xytext=(-4, 0), textcoords="offset points",
                      va="center", ha="right", fontsize=9, fontweight="bold",
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})  # fmt: skip
    axes.set_yticks([0, 1], ["network", "GPU"])
    axes.set_ylim(-0.5, 1.5)
    axes.set_xlim(0, SHOWN_MS)
