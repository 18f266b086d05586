"""A command in several processes speaks with one voice, and no process outlives another's failure.

Rank 0 alone prints. A mistake that all of them met is told once, and so is Ctrl-C; what one of them met alone
comes with its rank and traceback, and that process leaves at once, without waiting for others that wait for
it.
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
from datetime import timedelta
from typing import NoReturn

from scalelab.cli.codes import FAILED, INTERRUPTED, READER_GONE, USER_MISTAKE
from scalelab.cli.explain import explained
from scalelab.core.errors import ScalelabError
from scalelab.parallel.engine.ending import (
    Ending,
    compare_endings,
    is_timeout,
    say_told,
    silent,
    wait_until_told,
    waited_in,
)
from scalelab.parallel.engine.launch import Launch
from scalelab.parallel.engine.processes import TIMEOUT, World, joined
from scalelab.train.interrupt import Stopped

LIMIT_S = 8  # from an error to the end, whatever hangs on the way
AFTERMATH_S = 3.0
CLOSING_S = 600.0  # rank 0 may have to send a logger's last figures over a network


def run_together(
    launch: Launch, command: Callable[[World], int], *, timeout: timedelta = TIMEOUT
) -> NoReturn:
    """Run a command in this process of several, and end the process with its exit code.

    Args:
        timeout: how long a process waits for another.

    It ends here and not where Python would end it: threads of torch's groups may still be at work when the
    interpreter takes itself apart, and abort it.
    """
    world, code = None, FAILED
    with _quiet(launch.rank != 0):
        try:
            try:
                # Processes meet and part in waits of torch's that hear no handler: there, SIGINT ends them.
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                with joined(launch, timeout=timeout) as world:
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                    code = _finished(command, world)
                    signal.signal(signal.SIGINT, signal.SIG_DFL)
            except Exception as error:
                if world is None:
                    raise
                _end(error, launch, world)
        except KeyboardInterrupt as stop:  # also where it finds an error being looked at
            assert world is not None, "only then is there a handler that raises it"
            _end(stop, launch, world)
    _exit(code)


def _finished(command: Callable[[World], int], world: World) -> int:
    """The command's exit code, with all it printed on its way."""
    try:
        code = command(world)
    except SystemExit as done:  # argparse leaves this way after it has printed a command's help
        code = int(done.code or 0)
    sys.stdout.flush()
    return code


def _end(error: BaseException, launch: Launch, world: World) -> NoReturn:
    """Say what is this process's to say, and end it.

    Nobody parts by a collective here: processes that failed may be at different ones.
    """
    _watch_the_clock()
    if is_timeout(error):  # at once: the place where processes tell each other may hang as well
        _say(f"process {launch.rank} of {launch.n_processes} waited in vain in {waited_in(error)}")
    if launch.rank == 0 and isinstance(error, KeyboardInterrupt):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another process heard first, and this one speaks
    ending = compare_endings(error, launch, world.store)
    if ending is Ending.TIMED_OUT:
        _tell_of_silence(error, launch, world)
    if ending in (Ending.OWN, Ending.CONSEQUENCE):
        _leave(error, ending, launch)
    if ending is Ending.INTERRUPTED and not isinstance(error, KeyboardInterrupt):
        error = KeyboardInterrupt()
    if launch.rank == 0:
        code = _told(error) if ending is not Ending.READER_GONE else READER_GONE
        say_told(world.store)
        _exit(code)
    if ending is Ending.COMMON or isinstance(error, Stopped):
        _watch_the_clock(limit_s=0)
        wait_until_told(world.store, CLOSING_S)
    _exit(READER_GONE if ending is Ending.READER_GONE else _code(error))


def _tell_of_silence(error: BaseException, launch: Launch, world: World) -> NoReturn:
    """The first of those that still speak says who does not, and ends last."""
    missing, n_processes = silent(launch, world.store), launch.n_processes
    speaks = min(set(range(n_processes)) - set(missing), default=launch.rank)
    if launch.rank == speaks and len(missing) == 1:
        told = f"process {missing[0]} of {n_processes} did not answer within --timeout"
        _say(f"error: {told}: it hangs, or its machine is gone")
    elif launch.rank == speaks and missing:
        told = f"processes {' and '.join(map(str, missing))} of {n_processes} did not answer within --timeout"
        _say(f"error: {told}: they hang, or their machines are gone")
    elif launch.rank == speaks:
        _say(f"error: all {n_processes} processes waited for each other until --timeout: in different places")
    _exit(FAILED)


def _say(line: str) -> None:
    print(f"scalelab: {line}", file=sys.stderr, flush=True)


def _told(error: BaseException) -> int:
    """Tell what all processes met; its exit code."""

    def again() -> int:
        raise error

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


def _watch_the_clock(limit_s: int = LIMIT_S) -> None:
    """From here on a signal's echo is ignored, and the system ends what hangs; a limit of 0 takes it away."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(limit_s)


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
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # who read it is gone
            stream.flush()
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
