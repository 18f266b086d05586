"""`scalelab` with a process that fails in the middle of the run: BROKEN says which, and how."""

from __future__ import annotations

import os
import signal
import sys

from scalelab.cli import main
from scalelab.core.errors import DataError
from scalelab.train import Trainer

rank, way = os.environ["BROKEN"].split(":")
advance = Trainer._advance


def and_then(self: Trainer) -> None:
    if self.step_count == 3 and self.strategy.rank == int(rank):
        if way == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise {"bug": KeyError, "mistake": DataError}[way]("something that only this process met")
    advance(self)


Trainer._advance = and_then
sys.exit(main())
