"""Pictures of pipelines say what was traced; steps that lost the beat are taken again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from scalelab.core.errors import LabError
from scalelab.lab.parallelism import timelines
from scalelab.parallel.scratch.schedules import interleaved, one_f_one_b, zero_bubble
from scalelab.parallel.scratch.simulation import simulate
from scalelab.parallel.scratch.trace import Span

BEATS: Any = {"F": 1.0, "B": 2.0}


def test_every_pass_is_drawn_with_its_number() -> None:
    traces = {"1F1B": simulate(one_f_one_b(3, 4)), "two": simulate(interleaved(3, 3, 2))}
    figure = timelines.draw(traces, title="Two of them", unit="passes")
    for axes, spans in zip(figure.axes, traces.values(), strict=True):
        assert len(axes.patches) == len(spans)
        assert sorted(text.get_text() for text in axes.texts) == sorted(
            str(span.operation.micro_batch) for span in spans
        )
    assert figure.axes[-1].get_xlabel() == "time, passes"


def test_halves_of_backward_passes_have_names_of_their_own() -> None:
    figure = timelines.draw({"ZB-H1": simulate(zero_bubble(2, 2))}, title="Halves")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "forward", "backward: input", "backward: weights",
    ]  # fmt: skip


def test_a_trace_in_words_is_each_ranks_order() -> None:
    words = timelines.describe(simulate(one_f_one_b(2, 2)))
    assert words == "rank 0: F0 F1 B0 B1; rank 1: F0 B0 F1 B1"


@pytest.mark.parametrize("traces", [{}, {"none": []}])
def test_nothing_cannot_be_drawn(traces: dict[str, list[object]]) -> None:
    with pytest.raises(LabError, match="at least one trace"):
        timelines.draw(traces, title="Nothing")  # type: ignore[arg-type]


def steps(*late: float) -> tuple[list[float], Any]:
    """A way to take steps whose messages take so many beats, and where it notes the beats asked for."""
    asked: list[float] = []

    def take(beat_s: float) -> list[Span]:
        asked.append(beat_s)
        lasts = {kind: n * beat_s for kind, n in BEATS.items()}
        return simulate(one_f_one_b(2, 3), lasts, message_s=late[len(asked) - 1] * beat_s)

    return asked, take


def first_start_of_rank_1(spans: Sequence[Span]) -> float:
    return min(span.start_s for span in spans if span.rank == 1)


def test_the_middle_of_the_steps_that_kept_the_beat_is_taken() -> None:
    asked, take = steps(0.8, 0.02, 0.03, 0.9, 0.05)
    spans, beat_s = timelines.steady_step(take, 1.0, BEATS, n_steps=3)
    assert asked == [1.0] * 5
    assert beat_s == 1.0
    assert first_start_of_rank_1(spans) in {1.02, 1.03, 1.05}


def test_where_no_step_keeps_it_the_beat_is_doubled() -> None:
    asked, take = steps(0.8, 0.8, 0.8, 0.1, 0.1, 0.1)
    assert timelines.steady_step(take, 1.0, BEATS, n_steps=3)[1] == 2.0
    assert asked == [1.0] * 3 + [2.0] * 3


def test_on_a_machine_that_keeps_no_beat_the_calmest_step_is_taken(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked, take = steps(0.9, 0.8, 0.9, 0.7, 0.6, 0.9, 0.8, 0.9, 0.8)
    spans, beat_s = timelines.steady_step(take, 1.0, BEATS, n_steps=3)
    assert asked == [1.0] * 3 + [2.0] * 3 + [4.0] * 3
    assert beat_s == 2.0
    assert first_start_of_rank_1(spans) == pytest.approx(2.0 * 1.6)
    assert "no step kept a beat of 4000 ms" in capsys.readouterr().out
