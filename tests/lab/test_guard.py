"""An answer neither holds the lab for ever, nor ends it, nor leaves its settings changed."""

from __future__ import annotations

import random
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from scalelab.lab.checks import Exercise, answers, exercises, guard, judge

EXERCISES = exercises("transformers/training")


@pytest.fixture(params=list(EXERCISES))
def exercise(request: pytest.FixtureRequest) -> Exercise:
    return EXERCISES[request.param]


needs_alarm = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="a time limit needs POSIX timers")


def endless(*args: Any, **kwargs: Any) -> Any:
    n = 1
    while True:
        try:
            n = -n
        except Exception:  # swallows whatever is an Exception
            continue


@needs_alarm
def test_an_endless_answer_is_stopped_and_told_with_its_line(
    exercise: Exercise, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "LIMIT_S", 0.2)
    verdict = judge(exercise, endless, exercise.cases(0))
    assert verdict.outcome == "broken"
    assert not verdict.ran
    assert verdict.mistakes == ("did not come to an end",)
    assert "did not come to an end within 0 s, in line " in verdict.message
    assert "raise" not in verdict.message, "the line is the learner's, not the alarm's"
    assert verdict.message.endswith("?")
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_the_limit_is_generous() -> None:
    assert guard.LIMIT_S == answers.LIMIT_S == 20


@pytest.fixture
def others_alarm() -> Iterator[list[float]]:
    """A timer that somebody else has set, for 0.4 s: when it rang."""
    rang: list[float] = []
    before = signal.signal(signal.SIGALRM, lambda *a: rang.append(time.monotonic()))
    signal.setitimer(signal.ITIMER_REAL, 0.4)
    yield rang
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@needs_alarm
@pytest.mark.parametrize("takes_s", [0.0, 0.6])
def test_another_timer_and_its_handler_are_put_back(others_alarm: list[float], takes_s: float) -> None:
    handler, begun = signal.getsignal(signal.SIGALRM), time.monotonic()
    with guard.time_limit(5):
        time.sleep(takes_s)
    assert signal.getsignal(signal.SIGALRM) is handler
    while not others_alarm and time.monotonic() < begun + 5:
        time.sleep(0.01)
    assert others_alarm[0] - begun >= 0.39, "not before its time, and at once where that had passed"


@needs_alarm
def test_a_time_limit_ends_what_runs_inside_and_nothing_after_it() -> None:
    begun = time.monotonic()
    with pytest.raises(guard.TookTooLong), guard.time_limit(0.1):
        time.sleep(5)
    assert time.monotonic() - begun < 2
    with guard.time_limit(0.1):
        pass
    time.sleep(0.2)  # no alarm rings


def test_other_threads_are_checked_without_a_limit() -> None:
    adamw, found = EXERCISES["adamw_step"], []
    thread = threading.Thread(target=lambda: found.append(judge(adamw, adamw.reference, adamw.cases(0))))
    thread.start()
    thread.join()
    assert found[0].right


def test_an_answer_changes_no_setting_of_the_process(exercise: Exercise) -> None:
    def vandal(*args: Any, **kwargs: Any) -> Any:
        result = exercise.reference(*args, **kwargs)
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        warnings.simplefilter("error")
        return result

    def settings() -> list[str]:
        numpy = np.random.get_state()[1].tolist()  # type: ignore[union-attr]
        torch_state = torch.get_rng_state().tolist()
        switches = (torch.get_default_dtype(), torch.is_grad_enabled(), warnings.filters)
        return [repr(part) for part in (random.getstate(), numpy, torch_state, *switches)]

    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    before = settings()
    assert judge(exercise, vandal, exercise.cases(0)).right
    assert settings() == before


def test_an_answer_that_calls_exit_is_told_so(exercise: Exercise) -> None:
    def leave(*args: Any, **kwargs: Any) -> Any:
        raise SystemExit(3)

    verdict = judge(exercise, leave, exercise.cases(0))
    assert verdict.mistakes == ("raised SystemExit",)
    assert "raised SystemExit: 3" in verdict.message


@pytest.mark.parametrize(
    ("value", "called"),
    [
        (torch.ones(2, 2).to_sparse(), "a sparse coo tensor"),
        (torch.ones(2, device="meta"), "a tensor of shape [2] without numbers"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged), "a nested tensor"),
    ],
)
def test_tensors_that_hold_no_plain_numbers_are_refused(value: torch.Tensor, called: str) -> None:
    loss = EXERCISES["next_token_loss"]
    verdict = judge(loss, lambda *a, **k: value, loss.cases(0))
    assert verdict.outcome == "broken"
    assert called in verdict.message


def test_ctrl_c_goes_through_a_check(exercise: Exercise) -> None:
    def stop(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(exercise, stop, exercise.cases(0))
