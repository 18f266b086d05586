"""Ctrl-C asks a run to stop between two steps, where its state is whole; a second one stops it at once.

SIGTERM asks as Ctrl-C does: a scheduler sends it before it takes the machine away, and torchrun when it ends
its processes.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

ECHO_S = 2.0  # torchrun passes Ctrl-C on to its processes, which may have had it from the terminal too
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A run ended as it was asked to: between two steps, all processes after the same one, and saved."""


class Interruption:
    """While the block runs, SIGINT and SIGTERM only set `asked`.

    Signals belong to Python's main thread; in another one, nothing changes.

    Args:
        echo_s: a signal that follows the first within this time is its echo, and asks for nothing more:
            a launcher such as torchrun passes on to its processes what a terminal has sent them already.
            Where echoes are expected, SIGTERM never does more than ask: torchrun makes it of a second Ctrl-C.
    """

    def __init__(self, echo_s: float = 0.0) -> None:
        self.asked = False
        self._echo_s = echo_s
        self._first: float | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        now = time.monotonic()
        if self._first is None:
            self._first = now
            if self._echo_s <= 0:
                self._restore()  # whoever presses twice does not want to wait
        elif number == signal.SIGINT and now - self._first > self._echo_s:
            self._restore()
            raise KeyboardInterrupt

    def _restore(self) -> None:
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)
