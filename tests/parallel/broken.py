"""`scalelab` with something that happens at a chosen moment in one process: BROKEN is its rank, and what.

In step 4: bug, mistake, killed, stopped (by SIGSTOP), sleeps. late: rank 0 takes long to close its logger,
after a loss that is no number everywhere. meets, reads: it waits before it meets the others, or while it
makes the tokenizer. The file named by FLAG is there from the moment that a process hangs or waits.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import scalelab.cli.train as command
from scalelab.cli import main
from scalelab.core.errors import DataError, TrainingError
from scalelab.train import JsonlLogger, Trainer

rank, way = os.environ["BROKEN"].split(":")
is_here = os.environ["RANK"] == rank
advance, close = Trainer._advance, JsonlLogger.close


def and_then(self: Trainer) -> None:
    if self.step_count == 3 and way == "late":
        raise TrainingError("the loss is nan, everywhere")
    if self.step_count == 3 and is_here and way in ("stopped", "sleeps"):
        Path(os.environ["FLAG"]).touch()
        if way == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(600)
    if self.step_count == 3 and is_here and way in ("bug", "mistake", "killed"):
        if way == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise {"bug": KeyError, "mistake": DataError}[way]("something that only this process met")
    advance(self)


def slowly(self: JsonlLogger) -> None:
    if way == "late":
        time.sleep(5)
    close(self)


def waiting(function: Any) -> Any:
    """The same function, much later."""

    def later(*words: Any, **named: Any) -> Any:
        if is_here:
            Path(os.environ["FLAG"]).touch()
            time.sleep(60)
        return function(*words, **named)

    return later


Trainer._advance = and_then
JsonlLogger.close = slowly
if way == "reads":
    command._make_tokenizer = waiting(command._make_tokenizer)
if way == "meets":
    attach = command.attach_to_launcher

    def and_wait() -> None:
        attach()
        import scalelab.parallel.engine.processes as processes

        processes.rendezvous = waiting(processes.rendezvous)

    command.attach_to_launcher = and_wait
sys.exit(main())
