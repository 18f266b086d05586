"""An answer that ranks run together is observed like any other; a wait in vain is an observation too."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from scalelab.lab.checks import answers, ranks
from scalelab.lab.checks.answers import NotWritten, Rejected, as_numbers
from scalelab.lab.checks.framework import Case, Exercise, Mistake, judge
from scalelab.lab.checks.parts import case_of
from scalelab.lab.checks.ranks import WAITING, on_ranks
from scalelab.parallel.scratch.group import Group

Work = Callable[[Group, torch.Tensor], torch.Tensor]


def build(*, sends_first: bool = False, twice: bool = False) -> Work:
    def from_before(group: Group, tensor: torch.Tensor) -> torch.Tensor:
        into = torch.empty_like(tensor)
        if sends_first:
            group.send(tensor, group.next)
            group.recv(into, group.previous)
        else:
            group.exchange(tensor, group.next, into, group.previous)
        return into * 2 if twice else into

    return from_before


def observe(answer: Any, case: Case) -> Any:
    (size,), _ = case.make()

    def read(found: list[Any]) -> Any:
        return {f"rank {rank}'s": as_numbers(value, "the tensor") for rank, value in enumerate(found)}

    return on_ranks(answer, size, lambda group: (group, torch.full((2,), 1.0 + group.rank)), read)


EXERCISE = Exercise(
    name="from_before",
    reference=build(),
    build=build,
    mistakes=(
        Mistake(name="all send first", message="Nobody receives.", faults={"sends_first": True}),
        Mistake(name="twice", message="Twice.", faults={"twice": True}),
    ),
    hints=("a", "b", "c"),
    draw_cases=lambda rng: (case_of("3 ranks", 3), case_of("2 ranks", 2)),
    observe=observe,
)


def verdict(answer: Any) -> Any:
    return judge(EXERCISE, answer, EXERCISE.cases(0))


def test_right_answers_and_mistakes_are_told_and_who_waits_for_whom() -> None:
    assert verdict(build()).right
    assert verdict(build(twice=True)).mistakes == ("twice",)
    found = verdict(build(sends_first=True))
    assert found.mistakes == ("all send first",)
    assert "Ranks wait for each other for ever: rank 0 waits to send 8 bytes to rank 1;" in found.message


def test_a_wait_in_vain_is_observed_rank_by_rank() -> None:
    def one_waits(group: Group, tensor: torch.Tensor) -> torch.Tensor:
        if group.rank == 2:
            group.recv(tensor, 0)
        return tensor

    seen = observe(one_waits, case_of("", 3))
    assert list(seen) == [WAITING]
    assert seen[WAITING].values.tolist() == [0, 0, 1]
    assert verdict(one_waits).outcome == "unknown mistake"
    assert "rank 0 has finished" in verdict(one_waits).message


def test_what_a_rank_raises_is_told_with_its_line() -> None:
    def falls(group: Group, tensor: torch.Tensor) -> torch.Tensor:
        if group.rank == 1:
            raise ZeroDivisionError("mine")
        group.barrier()
        return tensor

    def sends_too_far(group: Group, tensor: torch.Tensor) -> torch.Tensor:
        group.send(tensor, group.rank + 1)
        return tensor

    assert "raised ZeroDivisionError: mine, in line" in verdict(falls).message
    assert 'raise ZeroDivisionError("mine")' in verdict(falls).message
    far = verdict(sends_too_far)
    assert "group.send(tensor, group.rank + 1)" in far.message or far.mistakes == ("a mistake of its own",)


def test_unwritten_and_wrongly_made_answers_are_told() -> None:
    def unwritten(group: Group, tensor: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    with pytest.raises(NotWritten):
        observe(unwritten, case_of("", 2))
    with pytest.raises(Rejected, match="cannot be called with 2 positional arguments"):
        observe(lambda group: group, case_of("", 2))


def test_torchs_own_calls_are_told_from_the_groups() -> None:
    def by_torch(group: Group, tensor: torch.Tensor) -> torch.Tensor:
        torch.distributed.all_reduce(tensor)
        return tensor

    assert verdict(by_torch).mistakes == ("torch.distributed in place of group",)
    assert "Use `group`" in verdict(by_torch).message


def test_ranks_that_work_for_too_long_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "LIMIT_S", 0.3)

    def slow(group: Group, tensor: torch.Tensor) -> torch.Tensor:
        time.sleep(1.5 * group.rank)
        return tensor

    found = verdict(slow)
    assert found.mistakes == ("did not come to an end",)
    assert "rank 0 has finished; rank 1 is at work" in found.message


def test_ranks_that_never_end_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(group: Group, tensor: torch.Tensor) -> torch.Tensor:
        while True:
            tensor = tensor + 1

    monkeypatch.setattr(answers, "LIMIT_S", 0.3)
    assert verdict(endless).mistakes == ("did not come to an end",)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(t.name.startswith("rank ") for t in threading.enumerate()):
        time.sleep(0.05)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rank ")]


def test_observations_are_numbers() -> None:
    seen = observe(build(), case_of("", 3))
    assert np.array_equal(seen["rank 0's"].values, [3, 3])
    assert not seen[WAITING].values.any()
