"""The processes of some ranks as the kernel sees them: started, told to stop waiting, and ended."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scalelab.core.errors import LabError
from scalelab.lab.ranks import nursery
from scalelab.lab.ranks.board import board_file

START_LIMIT_S = 120.0  # on a machine that is busy with other things; by itself it takes some 3 s


class Cluster:
    """A nursery with its children, and an ipyparallel client connected to them.

    Args:
        size: how many ranks. fork: whether they share what their parent has imported.

    Attributes:
        client: ipyparallel's. folder: private, gone with the cluster. pids: of the engines, by rank.

    Raises:
        LabError: the system is not one it works on, or the processes did not start.
    """

    def __init__(self, size: int, *, fork: bool = nursery.CAN_FORK) -> None:
        if sys.platform == "win32":
            raise LabError(
                "ranks need Linux or macOS; on Windows use WSL (wsl --install) or a hosted notebook"
            )
        self.size = size
        self.folder = Path(tempfile.mkdtemp(prefix="scalelab-ranks-"))
        self.pids: dict[int, int] = {}
        self._ended: dict[int, int] = {}
        self._told = threading.Condition()
        with (self.folder / "nursery.log").open("w") as log:
            self._process = subprocess.Popen(
                [*nursery.COMMAND, str(self.folder), str(size), "fork" if fork else "spawn"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(self.folder),
                start_new_session=True,  # a Ctrl-C is passed on by the kernel, to whom it concerns
            )
        # Called at the kernel's exit too.
        self._end = weakref.finalize(self, _end, self._process, self.folder, os.getpid())
        threading.Thread(
            target=_listen, args=(self._process, weakref.ref(self)), daemon=True, name="ranks' nursery"
        ).start()
        try:
            self.client = self._connect()
        except BaseException:
            self._end()
            raise

    def _connect(self) -> Any:
        import ipyparallel

        deadline = time.monotonic() + START_LIMIT_S
        with self._told:
            while not self.pids and self.lives and time.monotonic() < deadline:
                self._told.wait(0.1)
        client = None
        if self.pids:
            information = json.loads(nursery.client_file(self.folder).read_text())
            client = ipyparallel.Client(information, profile_dir=str(self.folder / "profile"))
            while client.ids != list(range(self.size)) and self.lives and time.monotonic() < deadline:
                time.sleep(0.02)
        if client is None or client.ids != list(range(self.size)):
            raise LabError(f"the ranks did not start: {self._last_words()}")
        return client

    @property
    def board(self) -> Path:
        """The file of the ranks' board."""
        return board_file(self.folder)

    @property
    def lives(self) -> bool:
        """Whether nothing of it has ended."""
        return self._end.alive and self._process.poll() is None and not self._ended

    def told_ended(self) -> str:
        """Which ranks have ended by themselves, and how; "" when none has."""
        ended = sorted((rank, code) for rank, code in self._ended.items() if rank != nursery.CONTROLLER)
        words = [f"rank {rank} has ended ({_how(code)})" for rank, code in ended]
        if not words and not self.lives:
            words = ["the ranks have ended"]
        return "; ".join(words)

    def interrupt(self, ranks: Iterable[int]) -> None:
        """Send SIGINT to ranks."""
        self._tell("interrupt", ranks)

    def unblock(self, ranks: Iterable[int]) -> None:
        """Have ranks write down where they stand, and end what they wait for."""
        self._tell("unblock", ranks)

    def stop(self) -> None:
        """End all processes and remove the folder; again does nothing."""
        if self._end.alive:
            with contextlib.suppress(AttributeError, OSError):
                self.client.close(linger=0)
            self._end()

    def _tell(self, word: str, ranks: Iterable[int]) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(OSError):  # it has ended; whoever waits will see that
            pipe.write(f"{word} {' '.join(map(str, ranks))}\n".encode())
            pipe.flush()

    def _hear(self, words: dict[str, Any]) -> None:
        with self._told:
            if "pids" in words:
                self.pids = {int(rank): pid for rank, pid in words["pids"].items()}
            elif "ended" in words:
                self._ended[words["ended"]] = words["code"]
            self._told.notify_all()

    def _last_words(self) -> str:
        """The end of what the processes wrote, for a message."""
        said = [path.read_text(errors="replace").strip() for path in sorted(self.folder.glob("*.log"))]
        lines = [line for text in said for line in text.splitlines()[-3:]]
        return " | ".join(lines) or "they said nothing; is the machine very busy?"


def _listen(process: subprocess.Popen[bytes], cluster: weakref.ref[Cluster]) -> None:
    """Hear what the nursery says, to its end; what it leaves behind when it was killed is ended too."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            heard = cluster()
            if heard is None:
                return
            with contextlib.suppress(ValueError):  # what a package prints while it is imported
                heard._hear(json.loads(line))
            del heard
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # while one of the group lives, the number is the group's


def _end(process: subprocess.Popen[bytes], folder: Path, owner: int) -> None:
    """Kill the nursery's whole group of processes."""
    if os.getpid() != owner:  # a fork of the kernel that ends
        return
    if process.poll() is None:  # as long as it has not been waited for, its number is its own
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _environment(folder: Path) -> dict[str, str]:
    """Variables of the ranks: the kernel's, one thread each, and nothing of the user's own profile."""
    environ = {**os.environ, "IPYTHONDIR": str(folder / "ipython")}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environ[name] = "1"
    # The machine's own name may lead nowhere; gloo would look it up.
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    if loopback in [name for _, name in socket.if_nameindex()]:
        environ["GLOO_SOCKET_IFNAME"] = loopback
    return environ


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"killed by {name}" + (": out of memory?" if name == "SIGKILL" else "")
