"""A command in several processes speaks with one voice, and no process outlives another's failure.

Rank 0 alone prints. A mistake that all of them met is told once; what one of them met alone comes with its
rank and traceback, and that process leaves at once, without waiting for others that wait for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import NoReturn

from scalelab.cli.codes import FAILED, INTERRUPTED, USER_MISTAKE
from scalelab.cli.explain import explained
from scalelab.core.errors import ScalelabError
from scalelab.parallel.engine.ending import Ending, compare_endings
from scalelab.parallel.engine.launch import Launch
from scalelab.parallel.engine.processes import World, joined

LIMIT_S = 8  # from an error to the end, whatever hangs on the way
AFTERMATH_S = 3.0


def run_together(launch: Launch, command: Callable[[World], int]) -> NoReturn:
    """Run a command in this process of several, and end the process with its exit code.

    It ends here and not where Python would end it: threads of torch's groups may still be at work when the
    interpreter takes itself apart, and abort it.
    """
    outcome: int | BaseException
    with _quiet(launch.rank != 0), joined(launch) as world:
        try:
            outcome = command(world)
        except SystemExit as done:  # argparse leaves this way after it has printed a command's help
            outcome = int(done.code or 0)
        except BaseException as error:
            outcome = error
            _watch_the_clock()
            ending = compare_endings(error, launch, world.store)
            if ending is not Ending.COMMON:
                _leave(error, ending, launch)
        code = _told(outcome, launch)  # before parting: torchrun ends all as soon as one has failed
    _exit(code)


def _told(outcome: int | BaseException, launch: Launch) -> int:
    """The exit code; what all processes met is told by rank 0."""

    def again() -> int:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    if launch.rank:
        return outcome if isinstance(outcome, int) else _code(outcome)
    try:
        return explained(again)
    except BaseException:
        traceback.print_exc()
        return FAILED


@contextlib.contextmanager
def _quiet(wanted: bool) -> Iterator[None]:
    """Whatever is printed or warned of is said by rank 0 already."""
    if not wanted:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(nowhere):
            yield


def _watch_the_clock() -> None:
    """From here on nothing may take long: a signal's echo is ignored, and the system ends what hangs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LIMIT_S)


def _leave(error: BaseException, ending: Ending, launch: Launch) -> NoReturn:
    """Say what happened and end this process, skipping what would wait for the others."""
    name = f"process {launch.rank} of {launch.n_processes}"
    if ending is Ending.OWN:
        _note_for_torchrun(error)
        print(f"scalelab: {name} failed, alone:", file=sys.stderr)
        traceback.print_exception(error, file=sys.stderr)
    else:
        print(f"scalelab: {name} stops, since another one ended", file=sys.stderr)
        sys.stderr.flush()
        time.sleep(AFTERMATH_S)  # torchrun ends it sooner, and so names only the one that failed
    _exit(_code(error))


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _note_for_torchrun(error: BaseException) -> None:
    """Where torchrun looks for what to print in its summary."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    if isinstance(error, Exception):
        get_error_handler().record_exception(error)


def _code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return USER_MISTAKE if isinstance(error, ScalelabError | OSError) else FAILED
