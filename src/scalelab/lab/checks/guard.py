"""What a stranger's code may not do to the lab: run for ever, or leave settings of the process changed.

A loop that never ends would hold the cell, and a whole class's grading, until somebody notices. A seed, a
default dtype or a switched-off gradient that an answer sets would reach the reference and the cells after it.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import numpy as np
import torch

LIMIT_S = 20.0  # answers take milliseconds: this is for those that never end


class TookTooLong(BaseException):
    """The time is up. No Exception, so that an answer's own `except Exception` does not swallow it."""


@contextlib.contextmanager
def unchanged() -> Iterator[None]:
    """Random states (Python's, numpy's, torch's), torch's default dtype and its gradient mode, as before."""
    python, numpy = random.getstate(), np.random.get_state()
    dtype, gradients = torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TookTooLong in what runs inside once so many seconds have passed.

    Only where a timer can interrupt Python: in the main thread of a POSIX system. Elsewhere there is no
    limit. A timer that somebody else has set is put back after it, with what is left of its time.
    """
    before = signal.getsignal(signal.SIGALRM) if hasattr(signal, "SIGALRM") else None
    # None: no such signal, or a handler that is not Python's and could not be put back.
    if before is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    begun = time.monotonic()
    signal.signal(signal.SIGALRM, _ring)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            overdue_at_once = max(left - (time.monotonic() - begun), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, overdue_at_once, interval)


def _ring(number: int, frame: FrameType | None) -> None:
    raise TookTooLong
