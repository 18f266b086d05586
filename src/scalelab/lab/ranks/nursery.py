"""The parent of all ranks: imports torch once, forks ipyparallel's controller and an engine for each rank.

Forked engines share the pages of what was imported, and start in a fraction of a second. Nothing here
outlives the notebook's kernel: each process watches its parent and, should it be gone, ends the whole group.
Run by `cluster.py` as COMMAND FOLDER SIZE fork|spawn. Told what to do by lines on stdin
("interrupt 0 2", "unblock 0 1"), it says on stdout, as lines of JSON, what has happened.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

LOOK_S = 0.25  # how often a process looks whether its parent lives, and what has ended
CONTROLLER = -1
PR_SET_PDEATHSIG = 1
COMMAND = (sys.executable, "-c", f"import sys; from {__name__} import main; main(sys.argv[1:])")
UNBLOCK = b"u"
CAN_FORK = sys.platform == "linux"  # macOS: not after torch was imported


def main(arguments: list[str]) -> None:
    """Start all and serve until the kernel is gone."""
    if arguments[0] == "child":
        _be(Path(arguments[1]), *map(int, arguments[2:5]))
    folder, size, can_fork = Path(arguments[0]), int(arguments[1]), arguments[2] == "fork"
    kernel = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if can_fork:
        _import_all()
    ends: dict[int, int] = {}
    controller = _start(folder, CONTROLLER, ends, can_fork)
    pids = {controller: CONTROLLER}
    _wait_for_connection_files(folder, kernel, controller)
    for rank in range(size):
        pids[_start(folder, rank, ends, can_fork)] = rank
    _say(pids={rank: pid for pid, rank in pids.items() if rank != CONTROLLER})
    _serve(folder, kernel, pids, ends)


def _serve(folder: Path, kernel: int, pids: dict[int, int], ends: dict[int, int]) -> NoReturn:
    """Do what stdin says, tell which child has ended, and end all with the kernel."""
    buffered = b""
    while os.getppid() == kernel:
        if select.select([0], [], [], LOOK_S)[0]:
            received = os.read(0, 4096)
            if not received:
                break
            *lines, buffered = (buffered + received).split(b"\n")
            for line in lines:
                word, *ranks = line.decode().split()
                _command(word, [int(rank) for rank in ranks], pids, ends)
        while pids:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid in pids:
                _say(ended=pids.pop(pid), code=os.waitstatus_to_exitcode(status))
    shutil.rmtree(folder, ignore_errors=True)
    _end_group()


def _command(word: str, ranks: list[int], pids: dict[int, int], ends: dict[int, int]) -> None:
    if word == "interrupt":
        for pid, rank in pids.items():
            if rank in ranks:
                os.kill(pid, signal.SIGINT)
    elif word == "unblock":
        for rank in set(ranks) & set(pids.values()):
            with contextlib.suppress(OSError):  # it has just ended, which will be told
                os.write(ends[rank], UNBLOCK)


def _say(**words: object) -> None:
    print(json.dumps(words), flush=True)


def _import_all() -> None:
    """Whatever the children need, so that they share it."""
    import ipyparallel.controller.app  # noqa: F401
    import torch

    import scalelab.lab.ranks.engine  # noqa: F401

    with torch.device("meta"):
        torch.nn.Embedding(1, 1)  # the first model of a process imports hundreds of torch's modules


def _start(folder: Path, rank: int, ends: dict[int, int], can_fork: bool) -> int:
    """Start a child; its end of a pipe closes with this process. Returns its id."""
    theirs, ours = os.pipe()
    parent = os.getpid()
    if not can_fork:
        words = ["child", str(folder), str(rank), str(theirs), str(parent)]
        pid = subprocess.Popen([*COMMAND, *words], pass_fds=[theirs]).pid
    else:
        pid = os.fork()
        if pid == 0:
            for end in [ours, *ends.values()]:  # or the pipes would stay open after the parent
                os.close(end)
            _be(folder, rank, theirs, parent)
    os.close(theirs)
    ends[rank] = ours
    return pid


def _be(folder: Path, rank: int, end: int, parent: int) -> NoReturn:
    """Be the controller or an engine, to the end of this process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    code = 1
    try:
        _redirect(folder / f"{'controller' if rank == CONTROLLER else f'rank-{rank}'}.log")
        if rank == CONTROLLER:
            watch(end, parent, lambda: None)
            _control(folder)
        else:
            from scalelab.lab.ranks.engine import unblock

            watch(end, parent, lambda: unblock(folder, rank))
            _work(folder, rank)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _redirect(log: Path) -> None:
    """What this process writes, and what libraries write past Python, goes to a file."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(source, target)


def watch(end: int, parent: int, unblock: Callable[[], None]) -> None:
    """In a thread: unblock when told so; end all processes of the group when the parent is gone."""

    def look() -> None:
        while os.getppid() == parent:
            if select.select([end], [], [], LOOK_S)[0]:
                if not os.read(end, 64):
                    break
                unblock()
        _end_group()

    threading.Thread(target=look, daemon=True, name="parent watch").start()


def _end_group() -> NoReturn:
    os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


COMMON = ("--log-level=ERROR",)


def _control(folder: Path) -> None:
    from ipyparallel.controller.app import IPController

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    IPController.launch_instance(
        argv=[
            f"--profile-dir={folder / 'profile'}",
            "--ip=127.0.0.1",
            "--location=127.0.0.1",  # or it asks the network who this machine is
            "--nodb",
            "--usethreads",  # one process for hub and schedulers instead of seven
            "--ping=200",  # ms; an engine is admitted at its second heartbeat, by default after 6 s
            "--HeartMonitor.max_heartmonitor_misses=1000000",  # the nursery knows better who has ended
            *COMMON,
        ]
    )


def _work(folder: Path, rank: int) -> None:
    from ipyparallel.engine.app import IPEngine

    IPEngine.launch_instance(
        argv=[
            f"--profile-dir={folder / 'profile'}",
            f"--file={engine_file(folder)}",
            f"--IPEngine.id={rank}",
            "--IPEngine.timeout=30",
            "--IPEngine.enable_nanny=False",  # another process for each; here the nursery is the nanny
            "--IPEngine.max_heartbeat_misses=0",
            "--HistoryManager.enabled=False",
            *COMMON,
        ]
    )


def engine_file(folder: Path) -> Path:
    """Where the controller says how engines reach it."""
    return folder / "profile" / "security" / "ipcontroller-engine.json"


def client_file(folder: Path) -> Path:
    """Where the controller says how the notebook reaches it."""
    return folder / "profile" / "security" / "ipcontroller-client.json"


def _wait_for_connection_files(folder: Path, kernel: int, controller: int) -> None:
    """Return when the controller can be reached; its files are not written at one stroke."""
    while os.getppid() == kernel:
        if os.waitpid(controller, os.WNOHANG)[0]:
            sys.exit("the controller has ended")  # and the kernel sees that this process has
        try:
            for path in (client_file(folder), engine_file(folder)):
                json.loads(path.read_text())
            return
        except (OSError, ValueError):
            time.sleep(0.02)
