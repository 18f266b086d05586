"""Orders of a pipeline: complete, free of deadlock, as long and as heavy as the formulas say, as torch's."""

from __future__ import annotations

from typing import Any

import pytest

from scalelab.core.errors import ConfigError, ParallelError
from scalelab.cost.pipeline import bubble_fraction, pipeline_seconds
from scalelab.cost.pipeline import in_flight as in_flight_by_formula
from scalelab.parallel.scratch.messages import Message, with_messages
from scalelab.parallel.scratch.schedules import (
    NAMES,
    Operation,
    Schedule,
    check_schedule,
    gpipe,
    interleaved,
    make_schedule,
    one_f_one_b,
    zero_bubble,
)
from scalelab.parallel.scratch.simulation import simulate
from scalelab.parallel.scratch.trace import Trace, bubble, in_flight, kept_the_beat, shares, step_seconds

SIZES = [(p, m) for p in (1, 2, 3, 4, 6) for m in (1, 2, 3, 4, 5, 8, 11, 12)]


def all_schedules(p: int, m: int) -> list[tuple[str, int, Schedule]]:
    plain = [(name, 1, make_schedule(name, p, m)) for name in NAMES if name != "interleaved"]
    return plain + [("interleaved", v, interleaved(p, m, v)) for v in (1, 2, 3)]


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_every_schedule_is_complete_and_runs_to_its_end(p: int, m: int) -> None:
    for name, v, schedule in all_schedules(p, m):
        check_schedule(schedule, m)
        spans = simulate(schedule)
        kinds = 3 if name == "zero-bubble" else 2
        assert len(spans) == p * m * v * kinds


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_bubbles_are_what_the_formula_says(p: int, m: int) -> None:
    for name, v, schedule in all_schedules(p, m):
        lasts = {"F": 1 / v, "B": 2 / v, "I": 1.0, "W": 1.0}
        spans = simulate(schedule, lasts)
        if name == "zero-bubble":
            if m >= p:  # (p - 1)(F + I - W) beside m (F + I + W)
                assert bubble(spans) == pytest.approx((p - 1) / (3 * m + p - 1))
        elif name != "interleaved" or m % p == 0:
            assert bubble(spans) == pytest.approx(bubble_fraction(p, m, v=v))
            seconds = pipeline_seconds(p, m, forward_s=1, backward_s=2, v=v)
            assert step_seconds(spans) == pytest.approx(seconds)


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_ranks_hold_as_many_micro_batches_as_the_formula_says(p: int, m: int) -> None:
    for name, v, schedule in all_schedules(p, m):
        held = [in_flight(order) for order in schedule]
        if name == "zero-bubble":
            assert held == [min(p, m)] * p, "as many on every rank as 1F1B's first"
        elif name != "interleaved" or m % p == 0:
            formula = [in_flight_by_formula(p, m, rank, schedule=name, v=v) for rank in range(p)]
            assert held == formula


def test_the_ratio_of_backward_to_forward_leaves_the_bubbles_share_as_it_is() -> None:
    for ratio in (0.5, 1.0, 2.0, 3.0):
        for schedule in (gpipe(4, 8), one_f_one_b(4, 8)):
            spans = simulate(schedule, {"F": 1.0, "B": ratio})
            assert bubble(spans) == pytest.approx(bubble_fraction(4, 8))


def test_one_slow_stage_sets_the_pace_of_all() -> None:
    """Of a stage twice as long: its m passes of 6, and 5 that it waits or is waited for."""

    def lasts(rank: int, operation: Operation) -> float:
        return (2.0 if rank == 1 else 1.0) * (2 if operation.kind == "B" else 1)

    spans = simulate(one_f_one_b(4, 8), lasts)
    assert step_seconds(spans) == pytest.approx(8 * 6 + 5)


def test_messages_that_take_time_lengthen_the_step() -> None:
    for schedule in (gpipe(4, 8), one_f_one_b(4, 8), interleaved(4, 8, 2)):
        assert step_seconds(simulate(schedule, message_s=0.1)) > step_seconds(simulate(schedule))


def test_a_schedule_by_its_own_words() -> None:
    assert " ".join(map(str, gpipe(2, 3)[1])) == "F0 F1 F2 B2 B1 B0"
    assert " ".join(map(str, one_f_one_b(3, 4)[1])) == "F0 F1 B0 F2 B1 F3 B2 B3"
    assert " ".join(map(str, one_f_one_b(3, 4)[2])) == "F0 B0 F1 B1 F2 B2 F3 B3"
    assert " ".join(map(str, zero_bubble(3, 3)[1])) == "F0 F1 I0 F2 I1 W0 I2 W1 W2"
    first = interleaved(2, 2, 2)[1]
    assert [(o.kind, o.micro_batch, o.chunk) for o in first] == [
        ("F", 0, 0), ("F", 1, 0), ("F", 0, 1), ("B", 0, 1),
        ("F", 1, 1), ("B", 1, 1), ("B", 0, 0), ("B", 1, 0),
    ]  # fmt: skip


def test_interleaved_with_one_chunk_idles_as_1f1b_does() -> None:
    for p, m in ((2, 4), (4, 8), (3, 9)):
        assert step_seconds(simulate(interleaved(p, m, 1))) == step_seconds(simulate(one_f_one_b(p, m)))


# --- torch's own orders -------------------------------------------------------------------------------------


def torchs_order(name: str, pp: int, m: int, v: int) -> list[list[tuple[str, int, int]]]:
    """What torch's scheduler has each rank do: (kind, micro-batch, stage), without its waits."""
    from torch.distributed.pipelining import schedules

    maker = (
        schedules.ScheduleInterleavedZeroBubble
        if name == "zero-bubble"
        else schedules.ScheduleInterleaved1F1B
    )
    made = maker.__new__(maker)
    made.pp_group_size, made.n_local_stages, made._n_microbatches = pp, v, m
    made.number_of_rounds = max(1, m // pp)
    made.microbatches_per_round = m // made.number_of_rounds
    letters = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}
    orders = []
    for rank in range(pp):
        actions = [action for action in made._calculate_single_rank_operations(rank) if action is not None]
        orders.append(
            [(letters[a.computation_type.name], a.microbatch_index, a.stage_index) for a in actions]
        )
    return orders


def ours(schedule: Schedule) -> list[list[tuple[str, int, int]]]:
    pp = len(schedule)
    return [
        [(o.kind, o.micro_batch, o.chunk * pp + rank) for o in order] for rank, order in enumerate(schedule)
    ]


@pytest.mark.parametrize(("p", "m", "v"), [(2, 4, 2), (4, 8, 2), (4, 4, 3), (3, 9, 2), (4, 10, 2), (4, 3, 2)])
def test_the_interleaved_order_is_torchs(p: int, m: int, v: int) -> None:
    assert ours(interleaved(p, m, v)) == torchs_order("interleaved", p, m, v)


@pytest.mark.parametrize(("p", "m"), [(2, 4), (4, 8), (4, 10), (3, 9)])
def test_the_zero_bubble_order_is_torchs(p: int, m: int) -> None:
    assert ours(zero_bubble(p, m)) == torchs_order("zero-bubble", p, m, 1)


# --- what is wrong with an order ----------------------------------------------------------------------------


def test_a_deadlock_is_told_with_who_waits_for_what() -> None:
    """Rank 0 wants a gradient before it has sent what it is a gradient of."""
    schedule = (
        (Operation("F", 0), Operation("B", 1), Operation("F", 1), Operation("B", 0)),
        one_f_one_b(2, 2)[1],
    )
    with pytest.raises(ParallelError) as told:
        simulate(schedule)
    assert (
        "rank 0 cannot begin backward of micro-batch 1 before rank 0 has done forward of micro-batch 1"
        in str(told.value)
    )
    assert "rank 1 cannot begin forward of micro-batch 1 before rank 0 has done" in str(told.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda order: order[:-1], "rank 1's schedule lacks B2"),
        (lambda order: (*order, Operation("F", 3)), "rank 1's schedule of 3 micro-batches has F3"),
        (lambda order: (*order, order[0]), "forward of micro-batch 0 more than once"),
    ],
)
def test_an_order_that_is_not_complete_is_named(change: Any, words: str) -> None:
    whole = one_f_one_b(2, 3)
    with pytest.raises(ParallelError, match=words):
        check_schedule((whole[0], change(whole[1])), 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("gpipe", 0, 4), "pp"), (("1f1b", 2, 0), "n_micro_batches"),
        (("interleaved", 2, 2.5), "n_micro_batches"),
        (("dualpipe", 2, 4), "name must be one of"),
    ],
)  # fmt: skip
def test_sizes_and_names_that_are_none_are_refused(arguments: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_schedule(*arguments)


def test_chunks_are_for_interleaved_schedules_alone() -> None:
    with pytest.raises(ConfigError, match="v=2"):
        make_schedule("1f1b", 2, 4, v=2)
    with pytest.raises(ConfigError, match="v must be"):
        make_schedule("interleaved", 2, 4, v=0)


# --- messages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "m"), [(2, 4), (3, 5), (4, 8), (1, 3)])
def test_every_message_is_between_its_passes_on_both_ranks_and_in_one_order(p: int, m: int) -> None:
    for _, _, schedule in all_schedules(p, m):
        actions = with_messages(schedule)
        for a in range(p):
            for b in range(p):
                between = [x for x in actions[a] if isinstance(x, Message) and {x.source, x.to} == {a, b}]
                there = [x for x in actions[b] if isinstance(x, Message) and {x.source, x.to} == {a, b}]
                assert between == there, "two ranks see their messages in one order"
        for rank, own in enumerate(actions):
            assert tuple(x for x in own if isinstance(x, Operation)) == schedule[rank]
            for place, x in enumerate(own):
                if isinstance(x, Message) and x.source == rank:
                    assert own.index(x.made_by) < place
                elif isinstance(x, Message):
                    assert own.index(x.used_by) > place


@pytest.mark.parametrize(("p", "m"), [(2, 4), (3, 5), (4, 8)])
def test_even_messages_that_block_both_sides_never_stop_a_rank(p: int, m: int) -> None:
    """One rank after the other, each message waited for at once by both: the hardest network there is."""
    for _, _, schedule in all_schedules(p, m):
        actions = [list(own) for own in with_messages(schedule)]
        while any(actions):
            moved = False
            for own in actions:
                while own and isinstance(own[0], Operation):
                    own.pop(0)
                    moved = True
            for own in actions:
                if own and isinstance(own[0], Message):
                    message = own[0]
                    source, to = actions[message.source], actions[message.to]
                    if source and to and source[0] == to[0] == message:
                        source.pop(0)
                        to.pop(0)
                        moved = True
            assert moved, "every rank waits"


# --- traces -------------------------------------------------------------------------------------------------


class FakeClock:
    """A clock that only work and sleep move."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_trace_pads_what_is_short_and_leaves_what_is_long() -> None:
    clock = FakeClock()
    trace = Trace(2, lasts={"F": 3.0, "B": 6.0}, clock=clock, sleep=clock.sleep)
    for kind, work in (("F", 1.0), ("B", 8.0)):
        with trace.span(Operation(kind, 0)):  # type: ignore[arg-type]
            clock.sleep(work)
    assert [span.seconds for span in trace.spans] == [3.0, 8.0]
    assert trace.spans[0][:2] == (2, Operation("F", 0))


def test_with_a_beat_who_begins_late_ends_in_time() -> None:
    clock = FakeClock()
    trace = Trace(0, lasts={"F": 10.0}, beat_s=10.0, clock=clock, sleep=clock.sleep)
    for late in (2.0, 0.0, 9.0):
        clock.sleep(late)
        with trace.span(Operation("F", 0)):
            clock.sleep(0.5)
    assert [(span.start_s, span.end_s) for span in trace.spans] == [(102, 110), (110, 120), (129, 130)]
    with trace.span(Operation("F", 1)):
        clock.sleep(13.0)
    assert trace.spans[-1].seconds == 13.0
    trace.wait_for_beat()
    assert clock.now == 150.0


def test_time_on_the_way_is_told_from_time_with_nothing_to_do() -> None:
    """Two ranks, one micro-batch, messages of half a second: 1 + 0.5 + 1 + 2 + 0.5 + 2 = 7 s."""
    spans = simulate(one_f_one_b(2, 1), message_s=0.5)
    found = shares(spans)
    assert found.work == pytest.approx(6 / 14)
    assert found.messages == pytest.approx(1 / 14)  # rank 1 for F, rank 0 for B
    assert found.waiting == bubble(spans) == pytest.approx(7 / 14)
    assert sum(found) == pytest.approx(1)


@pytest.mark.parametrize("message_s", [0.0, 0.01, 0.2])
def test_shares_sum_to_one_and_without_messages_are_work_and_bubble(message_s: float) -> None:
    for _, v, schedule in all_schedules(3, 5):
        found = shares(simulate(schedule, message_s=message_s))
        assert sum(found) == pytest.approx(1)
        assert min(found) >= 0
        assert (found.messages > 0) == (message_s > 0), v


def test_a_step_that_lost_the_beat_is_told_from_one_that_kept_it() -> None:
    lasts = {"F": 1.0, "B": 2.0}
    spans = simulate(one_f_one_b(2, 3), lasts, message_s=0.1)
    assert kept_the_beat(spans, lasts, 1.0)
    assert not kept_the_beat(simulate(one_f_one_b(2, 3), lasts, message_s=0.6), lasts, 1.0)
    long = [span._replace(end_s=span.end_s + 0.5) for span in spans[-1:]]
    assert not kept_the_beat([*spans[:-1], *long], lasts, 1.0)


def test_a_trace_without_spans_has_no_length() -> None:
    with pytest.raises(ParallelError, match="without spans"):
        bubble([])
