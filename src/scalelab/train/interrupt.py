"""Ctrl-C asks a run to stop between two steps, where its state is whole; a second one stops it at once."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any


class Interruption:
    """While the block runs, SIGINT only sets `asked`.

    Signals belong to Python's main thread; in another one, nothing changes.

    Args:
        echo_s: a signal that follows the first within this time is its echo, and asks for nothing more:
            a launcher such as torchrun passes on to its processes what a terminal has sent them already.
    """

    def __init__(self, echo_s: float = 0.0) -> None:
        self.asked = False
        self._echo_s = echo_s
        self._first: float | None = None
        self._before: Any = None
        self._installed = False

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._on_signal)
            self._installed = True
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
        elif now - self._first > self._echo_s:
            self._restore()
            raise KeyboardInterrupt

    def _restore(self) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._before)
            self._installed = False
