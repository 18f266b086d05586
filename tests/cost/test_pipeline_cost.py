"""Bubbles and held activations of a pipeline, against schedules that are played through step by step."""

from __future__ import annotations

import pytest

from scalelab.core.errors import ConfigError
from scalelab.cost import bubble_fraction, in_flight, pipeline_seconds

Pass = tuple[str, int, int]  # "forward" or "backward", micro-batch, piece of layers


def _order(schedule: str, p: int, m: int, rank: int, v: int) -> list[Pass]:
    """What one rank does, one after the other."""
    pieces = [rank + index * p for index in range(v)]

    def nth(kind: str, n: int) -> Pass:
        group, within = divmod(n, p * v)
        index, micro_batch = divmod(within, p)
        return kind, group * p + micro_batch, pieces[index if kind == "forward" else v - 1 - index]

    if schedule != "interleaved":
        forward = [("forward", i, rank) for i in range(m)]
        backward = [("backward", i, rank) for i in range(m)]
        warm = m if schedule == "gpipe" else min(p - rank - 1, m)
    else:
        forward = [nth("forward", n) for n in range(m * v)]
        backward = [nth("backward", n) for n in range(m * v)]
        warm = min(2 * (p - rank - 1) + (v - 1) * p, m * v)
    order = forward[:warm]
    for done in range(len(forward) - warm):
        order += [forward[warm + done], backward[done]]
    return order + backward[len(forward) - warm :]


def _played(
    schedule: str, p: int, m: int, v: int, forward_s: float, backward_s: float
) -> tuple[float, list[int]]:
    """The time of a step, and the most passes that each rank holds."""
    orders = [_order(schedule, p, m, rank, v) for rank in range(p)]
    ended: dict[Pass, float] = {}
    clock, held, most = [0.0] * p, [0] * p, [0] * p
    while any(orders):
        moved = False
        for rank in range(p):
            if not orders[rank]:
                continue
            kind, i, piece = orders[rank][0]
            if kind == "forward":
                needed = [("forward", i, piece - 1)] if piece else []
            else:
                last = piece == p * v - 1
                needed = [("forward", i, piece)] if last else [("backward", i, piece + 1)]
            if all(n in ended for n in needed):
                start = max([clock[rank], *(ended[n] for n in needed)])
                clock[rank] = start + (forward_s if kind == "forward" else backward_s) / v
                ended[orders[rank].pop(0)] = clock[rank]
                held[rank] += 1 if kind == "forward" else -1
                most[rank] = max(most[rank], held[rank])
                moved = True
        assert moved, "deadlock"
    return max(clock), most


CASES = [
    ("gpipe", 4, 8, 1),
    ("gpipe", 3, 1, 1),
    ("1f1b", 4, 8, 1),
    ("1f1b", 4, 2, 1),
    ("1f1b", 7, 9, 1),
    ("1f1b", 1, 3, 1),
    ("interleaved", 4, 8, 2),
    ("interleaved", 2, 6, 3),
    ("interleaved", 4, 4, 2),
    ("interleaved", 8, 16, 4),
]


@pytest.mark.parametrize(("schedule", "p", "m", "v"), CASES)
def test_a_schedule_that_is_played_through_takes_the_formulas_time_and_bubble(
    schedule: str, p: int, m: int, v: int
) -> None:
    took, _ = _played(schedule, p, m, v, 1.0, 2.0)
    assert took == pytest.approx(pipeline_seconds(p, m, forward_s=1.0, backward_s=2.0, v=v))
    assert 1 - m * 3.0 / took == pytest.approx(bubble_fraction(p, m, v=v))


@pytest.mark.parametrize(("schedule", "p", "m", "v"), CASES)
def test_a_schedule_that_is_played_through_holds_as_many_passes_as_the_formula(
    schedule: str, p: int, m: int, v: int
) -> None:
    _, most = _played(schedule, p, m, v, 1.0, 2.0)
    assert most == [in_flight(p, m, rank, schedule=schedule, v=v) for rank in range(p)]


def test_the_papers_two_ways_to_write_the_bubble() -> None:
    # Narayanan et al. 2021, sections 2.2.1 and 2.2.2: (p-1)/m, and v times less.
    assert bubble_fraction(4, 8, of="ideal") == 3 / 8
    assert bubble_fraction(4, 8, v=2, of="ideal") == 3 / 16
    assert bubble_fraction(4, 8) == 3 / 11
    assert bubble_fraction(4, 8, v=2) == 3 / 19
    assert bubble_fraction(1, 8) == 0
    for p, m, v in ((4, 8, 1), (35, 280, 3), (2, 1, 1)):
        ideal, total = (bubble_fraction(p, m, v=v, of=of) for of in ("ideal", "total"))
        assert total == pytest.approx(ideal / (1 + ideal))


def test_a_schedule_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="in groups of pp=4, got 6"):
        in_flight(4, 6, 0, schedule="interleaved", v=2)
    with pytest.raises(ConfigError, match="v=2 pieces a rank need schedule='interleaved', got '1f1b'"):
        in_flight(4, 8, 0, v=2)
    with pytest.raises(ConfigError, match="rank=4 is no rank"):
        in_flight(4, 8, 4)
    with pytest.raises(ConfigError, match="schedule must be one of gpipe, 1f1b, interleaved"):
        in_flight(4, 8, 0, schedule="zigzag")
    with pytest.raises(ConfigError, match="of must be one of total, ideal"):
        bubble_fraction(4, 8, of="all")
    with pytest.raises(ConfigError, match="n_micro_batches must be a whole number of at least 1, got 0"):
        bubble_fraction(4, 0)
    with pytest.raises(ConfigError, match="forward_s must be a finite number above 0"):
        pipeline_seconds(4, 8, forward_s=0, backward_s=1)
