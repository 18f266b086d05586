"""A pipeline of p stages idles (p-1)/(m+p-1) of the time on m micro-batches; with v pieces a rank, less.

The first stage waits for the last micro-batch's way out and back, p-1 passes of a stage: against m passes of
work. Written over the work alone this is (p-1)/m, which papers print; over all the time, (p-1)/(m+p-1), which
is what a trace shows. v pieces of layers on each rank make the waiting passes v times shorter.

GPipe and 1F1B idle alike. They differ in what they hold: GPipe all m micro-batches, 1F1B as many as there are
stages ahead. All stages are taken to be equally long and messages to cost nothing (`traffic` counts them).
Source: Huang et al. 2018 (GPipe), arXiv:1811.06965, section 2.3; Narayanan et al. 2021, arXiv:2104.04473,
sections 2.2.1 and 2.2.2. Taught in book/parallelism/pipeline.md.
"""

from __future__ import annotations

from scalelab.core.checks import check_choice, check_positive, check_positive_int
from scalelab.core.errors import ConfigError
from scalelab.cost.sharding import check_rank

SCHEDULES = ("gpipe", "1f1b", "interleaved")


def bubble_fraction(pp: int, n_micro_batches: int, *, v: int = 1, of: str = "total") -> float:
    """The share of time in which a stage idles, from the first micro-batch to the last gradient.

    Args:
        pp: p, stages. n_micro_batches: m. v: pieces of layers on each rank.
        of: "total" divides by all the time, (p-1)/(v m + p - 1); "ideal" by the time without idling,
            (p-1)/(v m), which can exceed 1.

    Raises:
        ConfigError: a size that is no whole number of at least 1, or an unknown `of`.
    """
    check_positive_int("pp", pp)
    check_positive_int("n_micro_batches", n_micro_batches)
    check_positive_int("v", v)
    check_choice("of", of, ("total", "ideal"))
    work = v * n_micro_batches
    return (pp - 1) / (work + pp - 1 if of == "total" else work)


def pipeline_seconds(
    pp: int, n_micro_batches: int, *, forward_s: float, backward_s: float, v: int = 1
) -> float:
    """Seconds from the first micro-batch to the last gradient: (m + (p-1)/v) (forward + backward).

    Args:
        pp: p, stages. n_micro_batches: m. v: pieces of layers on each rank.
        forward_s, backward_s: of all of one rank's layers on one micro-batch.

    Raises:
        ConfigError: a size that is no whole number of at least 1, or a time that is not above 0.
    """
    check_positive("forward_s", forward_s)
    check_positive("backward_s", backward_s)
    idle = bubble_fraction(pp, n_micro_batches, v=v, of="ideal")
    return n_micro_batches * (1 + idle) * (forward_s + backward_s)


def in_flight(pp: int, n_micro_batches: int, rank: int, *, schedule: str = "1f1b", v: int = 1) -> int:
    """The most forward passes whose activations a stage holds at a time.

    A pass is that of one micro-batch through a rank's layers; interleaved, through one of its v pieces.

    Args:
        pp: p, stages. n_micro_batches: m. rank: the stage, from 0.
        schedule: "gpipe" holds all m; "1f1b" one for each stage from this one on, or m; "interleaved" starts
            with 2 (p - rank - 1) + (v - 1) p passes before its first backward one.
        v: pieces of layers on each rank; 1 but for "interleaved".

    Raises:
        ConfigError: a size that is no whole number of at least 1, a rank that is none, an unknown schedule, v
            above 1 for a schedule without pieces, or micro-batches that an interleaved schedule cannot deal
            out in groups of p.

    Source: Narayanan et al. 2021, section 2.2; the interleaved order is Megatron-LM's.
    """
    check_positive_int("n_micro_batches", n_micro_batches)
    check_rank("rank", rank, pp)
    check_positive_int("v", v)
    check_choice("schedule", schedule, SCHEDULES)
    m = n_micro_batches
    if schedule == "interleaved":
        if m % pp:
            raise ConfigError(
                f"an interleaved schedule deals micro-batches out in groups of pp={pp}, got {m}"
            )
        return min(v * m, 2 * (pp - rank - 1) + (v - 1) * pp + 1)
    if v > 1:
        raise ConfigError(f"v={v} pieces a rank need schedule='interleaved', got {schedule!r}")
    return m if schedule == "gpipe" else min(pp - rank, m)
