"""When a process fails, who says so? What all say alike is said once; what one alone met, that one says.

Before it leaves, each process writes its error into the store where they met, and looks what the others
wrote. One that fails alone leaves the others waiting in a collective; they end when its connections close,
and what they see then is a consequence, not a cause. One that hangs says nothing: the others wait until their
time is up, and tell who has not spoken since. Ctrl-C is nobody's failure, wherever it found them.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Mapping
from enum import Enum, auto
from pathlib import Path

import torch.distributed as dist

from scalelab.core.errors import ScalelabError
from scalelab.parallel.engine.launch import Launch

PACKAGE = Path(__file__).parents[2]
PATIENCE_S = 2.0  # what all meet, they meet at the same place; a signal may find them a step apart
PATIENCE_WITH_HANGS_S = 5.0  # those that wait for one that hangs began to wait a step's length apart
PATIENCE_WITH_MISTAKES_S = 3.0  # rank 0 alone reads, writes and measures: it may come later to what all meet
POLL_S = 0.05
_LOST = (  # what gloo, NCCL and the store say of a process that is gone
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "connection refused",
    "remote process exited",
    "application timeout caused pair closure",  # another one's wait was in vain
    "watchdog caught collective operation timeout",
)
_TIMED_OUT = ("timed out waiting", "wait timeout", "operation timed out")  # and of one that does not answer
_INTERRUPTED, _READER_GONE, _TOLD = "KeyboardInterrupt", "BrokenPipeError", "ending/told"


class Ending(Enum):
    """How a process's error stands to the others'.

    COMMON: all met the same. OWN: this process met something that the others did not. CONSEQUENCE: another
    failed first, or is gone. TIMED_OUT: it waited for another one in vain. INTERRUPTED: Ctrl-C, here or at
    another process. READER_GONE: nobody reads what rank 0 prints.
    """

    COMMON = auto()
    OWN = auto()
    CONSEQUENCE = auto()
    TIMED_OUT = auto()
    INTERRUPTED = auto()
    READER_GONE = auto()


def announce(error: BaseException, launch: Launch, store: dist.Store) -> None:
    """Tell the others of an error before anything that takes long, so that they need not guess."""
    # The store is kept by one of the processes where torchrun does not keep it: it may be gone by now.
    with contextlib.suppress(RuntimeError):
        store.set(_key(launch.rank), _words(error))


def compare_endings(
    error: BaseException, launch: Launch, store: dist.Store, *, patience_s: float | None = None
) -> Ending:
    """Tell the others of an error, and find out whether they met the same.

    Args:
        patience_s: how long to wait for the others to say anything; None: as long as the kind of error takes.
    """
    own = _words(error)
    if patience_s is None:
        patience_s = PATIENCE_WITH_MISTAKES_S if isinstance(error, ScalelabError) else PATIENCE_S
        patience_s = PATIENCE_WITH_HANGS_S if is_timeout(error) else patience_s
    before: Mapping[int, str] = {}
    found = {launch.rank: own}
    with contextlib.suppress(RuntimeError):
        before = _written(store, launch)
        store.set(_key(launch.rank), own)
        waits = own not in (_INTERRUPTED, _READER_GONE) and not set(before.values()) - {own}
        if waits or is_timeout(error):
            _wait_for([_key(rank) for rank in range(launch.n_processes)], store, patience_s)
            found |= _written(store, launch)
    said = {*before.values(), *found.values()}
    if _INTERRUPTED in said:
        return Ending.INTERRUPTED
    if _READER_GONE in said:
        return Ending.READER_GONE
    if is_timeout(error) and all(_says(words, (*_LOST, *_TIMED_OUT)) for words in said):
        return Ending.TIMED_OUT
    if is_loss(error) or is_timeout(error) or set(before.values()) - {own}:
        return Ending.CONSEQUENCE
    return Ending.COMMON if len(found) == launch.n_processes and len(said) == 1 else Ending.OWN


def is_loss(error: BaseException) -> bool:
    """Whether an error only says that another process is gone."""
    return isinstance(error, RuntimeError) and _says(str(error), _LOST)


def is_timeout(error: BaseException) -> bool:
    """Whether an error says that another process did not answer in time."""
    return isinstance(error, RuntimeError) and _says(str(error), _TIMED_OUT)


def waited_in(error: BaseException) -> str:
    """What a process waited in when its time was up: torch's call, and ours that made it."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(PACKAGE)]
    calls = [
        frame.name
        for frame in frames
        if "distributed" in Path(frame.filename).parts and frame.name not in ("wrapper", "wait")
    ]
    call = (
        calls[-1] if calls else "backward" if any(f.name == "backward" for f in frames) else frames[-1].name
    )
    if not ours:
        return call
    place = Path(ours[-1].filename).relative_to(PACKAGE.parent)
    return f"{call} ({ours[-1].name}, {place}:{ours[-1].lineno})"


def silent(launch: Launch, store: dist.Store) -> list[int]:
    """Ranks of which nothing has been heard, neither an error nor an end; all but this one if none can be."""
    with contextlib.suppress(RuntimeError):
        spoken = _written(store, launch)
        return [rank for rank in range(launch.n_processes) if rank not in spoken]
    return [rank for rank in range(launch.n_processes) if rank != launch.rank]


def say_told(store: dist.Store) -> None:
    """Rank 0 has told what all met: the others may leave."""
    with contextlib.suppress(RuntimeError):
        store.set(_TOLD, "")


def wait_until_told(store: dist.Store, at_most_s: float) -> None:
    """Stay until rank 0 has told what all met: a launcher ends all processes as soon as one has failed."""
    with contextlib.suppress(RuntimeError):
        _wait_for([_TOLD], store, at_most_s)


def _says(words: str, signs: tuple[str, ...]) -> bool:
    return any(sign in words.lower() for sign in signs)


def _wait_for(keys: list[str], store: dist.Store, at_most_s: float) -> None:
    """Poll: a wait inside the store would hear no signal."""
    deadline = time.monotonic() + at_most_s
    while not store.check(keys) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _written(store: dist.Store, launch: Launch) -> Mapping[int, str]:
    """What processes have said so far, by rank."""
    there = [rank for rank in range(launch.n_processes) if store.check([_key(rank)])]
    return {rank: store.get(_key(rank)).decode() for rank in there}


def _words(error: BaseException) -> str:
    """An error as the others compare it; where Ctrl-C found a process is no difference."""
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return _READER_GONE
    return f"{type(error).__name__}: {error}"


def _key(rank: int) -> str:
    return f"ending/{rank}"
