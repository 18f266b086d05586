"""When a process fails, who says so? What all say alike is said once; what one alone met, that one says.

Before it leaves, each process writes its error into the store where they met, and looks what the others
wrote. One that fails alone leaves the others waiting in a collective; they end when its connections close,
and what they see then is a consequence, not a cause.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from enum import Enum, auto

import torch.distributed as dist

from scalelab.parallel.engine.launch import Launch

PATIENCE_S = 2.0  # what all meet, they meet at the same place; a signal may find them a step apart
POLL_S = 0.02
_CLOSED = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


class Ending(Enum):
    """How a process's error stands to the others'.

    COMMON: all met the same. OWN: this process met something that the others did not. CONSEQUENCE: another
    failed first, or is gone.
    """

    COMMON = auto()
    OWN = auto()
    CONSEQUENCE = auto()


def compare_endings(
    error: BaseException, launch: Launch, store: dist.Store, *, patience_s: float = PATIENCE_S
) -> Ending:
    """Tell the others of an error, and find out whether they met the same.

    Args:
        patience_s: how long to wait for the others to say anything.
    """
    own = f"{type(error).__name__}: {error}"
    lost = isinstance(error, RuntimeError) and any(sign in own for sign in _CLOSED)
    # The store is kept by one of the processes where torchrun does not keep it: it may be gone by now.
    with contextlib.suppress(RuntimeError):
        before = _written(store, launch)
        store.set(_key(launch.rank), own)
        if any(text != own for text in before.values()):
            return Ending.CONSEQUENCE
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            found = _written(store, launch)
            if len(found) == launch.n_processes:
                alike = set(found.values()) == {own}
                return Ending.CONSEQUENCE if lost else Ending.COMMON if alike else Ending.OWN
            time.sleep(POLL_S)
    return Ending.CONSEQUENCE if lost else Ending.OWN


def _written(store: dist.Store, launch: Launch) -> Mapping[int, str]:
    """What processes have said so far, by rank."""
    there = [rank for rank in range(launch.n_processes) if store.check([_key(rank)])]
    return {rank: store.get(_key(rank)).decode() for rank in there}


def _key(rank: int) -> str:
    return f"ending/{rank}"
