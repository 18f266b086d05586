"""What the chapter `data-parallel` takes from its recorded study: the steps a batch size needs.

Sentences that depend on how the runs came out are chosen here, by the numbers. No torch is needed.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
from data_parallel_common import percent, table
from IPython.display import HTML
from matplotlib.figure import Figure

from scalelab.lab import plots
from scalelab.lab.parallelism.recorded_batches import (
    TARGETS,
    BatchLaw,
    BatchPoint,
    batch_points,
    fit_batch_law,
    law_interval,
    recorded_batches,
    recorded_entropy,
)

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@lru_cache(maxsize=2)
def points(excess: float) -> list[BatchPoint]:
    """Batch sizes and the steps that their best rate takes to a loss so far above the entropy."""
    return batch_points(recorded_batches(), excess, recorded_entropy())


@lru_cache(maxsize=2)
def law(excess: float) -> BatchLaw:
    """The law fitted to them."""
    found = points(excess)
    return fit_batch_law([point.batch_tokens for point in found], [point.steps for point in found])


@lru_cache(maxsize=2)
def interval(excess: float) -> tuple[float, float]:
    """95 % of the critical batch size, tokens."""
    return law_interval(points(excess))


def record_numbers() -> dict[str, str]:
    """The study in sentences, and its numbers."""
    high, low = TARGETS
    found = points(low)
    first, last = found[0], found[-1]
    grown, saved = last.batch_tokens / first.batch_tokens, first.steps / last.steps
    more = last.tokens / min(point.tokens for point in found)
    runs = recorded_batches()
    counts = sorted({len(point.all_steps) for point in found})
    seeds = " or ".join(NUMBERS[count] for count in counts) + (" seeds" if counts[-1] > 1 else " seed")
    return {
        "record_opening": f"in a study of our own, {grown:,.0f} times the batch saved a model only a factor "
        f"of {saved:.0f} in steps, and cost it {more:.1f} times the text.",
        "record_study": f"A decoder of {runs[0].n_params / 1e6:.1f} million parameters learns our synthetic "
        f"language, whose entropy is known, in batches of {first.batch_tokens:,} to {last.batch_tokens:,} "
        f"tokens, until it is {high} and then {low} nats above that entropy: {len(runs)} runs, with learning "
        "rates a factor of two apart at each batch size until the best had a worse one on either side, and "
        f"the best for the lower loss with {seeds}.",
        "record_finding": finding(high, low),
        "record_rates": rates(low),
    }


def finding(high: float, low: float) -> str:
    """What the fitted laws say, and whether the critical batch grew as the loss fell."""
    told = [
        f"{tokens(law(excess).critical_tokens)} tokens ({tokens(interval(excess)[0])} to "
        f"{tokens(interval(excess)[1])})"
        for excess in (high, low)
    ]
    ratio = law(low).critical_tokens / law(high).critical_tokens
    apart = interval(low)[0] > interval(high)[1] or interval(low)[1] < interval(high)[0]
    if ratio > 1:
        compared = f"It grew by a factor of {ratio:.1f} as the loss fell" + (
            ", beyond the intervals." if apart else ", though the intervals overlap."
        )
    else:
        compared = f"It did not grow as the loss fell (a factor of {ratio:.2f})" + (
            ", against what is expected." if apart else "; the intervals overlap."
        )
    worst = max(law(excess).scatter for excess in (high, low))
    return (
        f"The law holds to {percent(worst)} in steps. Its critical batch is {told[0]} on the way to {high} "
        f"nats above the entropy and {told[1]} on the way to {low}; in brackets 95\u00a0% by a bootstrap "
        f"over batch sizes and seeds. {compared} Such batches are tiny, as are the model and its task; "
        "the bend is the same."
    )


def rates(excess: float) -> str:
    """How the best learning rate moved with the batch."""
    found = points(excess)
    below = [point for point in found if point.batch_tokens <= law(excess).critical_tokens]
    used = below if len(below) >= 3 else found
    sizes, best = [point.batch_tokens for point in used], [point.learning_rate for point in used]
    slope = float(np.polyfit(np.log(sizes), np.log(best), 1)[0])
    largest = found[-1]
    where = "below the critical batch" if used is below else "over all batches"
    if largest.learning_rate <= found[0].learning_rate:
        return f"The best learning rate stayed near {found[0].learning_rate:g} at every batch size."
    return (
        f"Learning rates moved too: the best was {found[0].learning_rate:g} at the smallest batch and "
        f"{largest.learning_rate:g} at the largest; {where} it grew about as the batch to the power of "
        f"{slope:.1f}."
    )


def tokens(value: float) -> str:
    """A count of tokens to three digits."""
    unit = 10 ** (math.floor(math.log10(value)) - 2)
    return f"{round(value / unit) * unit:,.0f}"


def table_critical() -> HTML:
    """Steps and tokens over their least, over the batch in units of the critical one."""
    rows = []
    for label in ("1/8", "1/4", "1/2", "1", "2", "4", "8"):
        x = float(Fraction(label))
        again = (1 + 1 / (2 * x)) / (1 + 1 / x)  # steps of twice the batch over this one's
        rows.append(
            [
                label,
                f"{1 + 1 / x:.4g}",
                f"{1 + x:.4g}",
                f"−{percent(1 - again)}",
                f"+{percent(2 * again - 1)}",
            ]
        )
    ratios = (("", "B", "c"), ("steps", "S", "min"), ("tokens", "E", "min"))
    head = [f"{what or '<i>B</i>'} / <i>{letter}</i><sub>{low}</sub>" for what, letter, low in ratios]
    return table([*head, "twice the ranks: time", "and bill"], rows)


def figure() -> Figure:
    """Steps to two losses over the batch size, with the fitted laws."""
    drawn, axes = plots.new(
        "Beyond some batch, more of it saves no steps", "batch, tokens", "steps to the loss",
        log_x=True, log_y=True,
    )  # fmt: skip
    for index, excess in enumerate(TARGETS):
        found, fitted, colour = points(excess), law(excess), plots.COLOURS[index]
        at = np.geomspace(found[0].batch_tokens, found[-1].batch_tokens, 80)
        axes.plot(at, fitted.steps(at), color=colour)
        axes.plot(at, fitted.min_tokens / at, color=colour, linewidth=1.0, linestyle=(0, (4, 3)))
        for point in found:
            at_batch = [point.batch_tokens] * len(point.all_steps)
            axes.plot(at_batch, point.all_steps, "o", color=colour, alpha=0.6)
        critical = fitted.critical_tokens
        axes.plot([critical], fitted.steps([critical]), "D", markersize=9, markerfacecolor="none",
                  markeredgecolor=plots.INK)  # fmt: skip
        axes.annotate(f"{excess} nats above", (at[-1], float(fitted.steps(at[-1]))), xytext=(8, 0),
                      va="center", textcoords="offset points", fontsize=9, fontweight="bold",
                      color=colour, annotation_clip=False)  # fmt: skip
    lowest = law(TARGETS[0])
    end = points(TARGETS[0])[-1].batch_tokens
    axes.set_ylim(bottom=0.5 * lowest.min_steps)
    axes.annotate("dashed: steps fall as the batch grows      ◇ critical batch", (0.02, 0.04), fontsize=9,
                  xycoords="axes fraction", color=plots.GREY)  # fmt: skip
    ticks = [point.batch_tokens for point in points(TARGETS[0])][:: 2 if end > 4000 else 1]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    return drawn
