"""A process that a launcher started lives no longer than the launcher; needs no torch, so it comes first.

Loading torch and meeting the others takes seconds, in waits that run no handler of Python's. So until they
have met, Ctrl-C ends the process as the system does.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from scalelab.cli.codes import FAILED

LOOK_S = 1.0
GRACE_S = 30.0  # for a step and a checkpoint, as torchrun grants them before it kills


def attach_to_launcher() -> None:
    """Let Ctrl-C end this process at once, and the launcher's end as well."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # By a thread: the kernel's own notice (PR_SET_PDEATHSIG) is Linux's alone, also comes when only the
    # thread that started us has ended, and wakes no process that waits for another one's gradients.
    threading.Thread(target=_outlive, args=(os.getppid(),), name="launcher-watch", daemon=True).start()


def _outlive(launcher: int) -> None:
    """Wait for the launcher's end, ask this process to stop, and end it if it does not."""
    while os.getppid() == launcher:
        time.sleep(LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)  # in the midst of training: stop after this step, with a checkpoint
    time.sleep(GRACE_S)
    os._exit(FAILED)
