from __future__ import annotations

import os
import signal
import time

import pytest

from scalelab.train.interrupt import Interruption

pytestmark = pytest.mark.skipif(os.name != "posix", reason="os.kill")


def press(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def press_twice(echo_s: float, apart_s: float = 0.0) -> None:
    with Interruption(echo_s) as interruption:
        press()
        assert interruption.asked
        time.sleep(apart_s)
        press()


def test_one_press_asks_and_a_second_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        press_twice(echo_s=0)


def test_an_echo_of_the_first_press_asks_for_nothing_more() -> None:
    with Interruption(echo_s=60) as interruption:
        press()
        press()
        press()
        assert interruption.asked
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_who_presses_again_after_the_echo_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt):
        press_twice(echo_s=0.01, apart_s=0.05)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigterm_asks_as_ctrl_c_does_and_either_may_follow_the_other() -> None:
    with Interruption() as interruption:
        press(signal.SIGTERM)
        assert interruption.asked
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "a second one ends the process"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_among_several_processes_sigterm_never_does_more_than_ask() -> None:
    with Interruption(echo_s=0.01) as interruption:
        press()
        time.sleep(0.05)
        press(signal.SIGTERM)
        press(signal.SIGTERM)
        assert interruption.asked
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
