"""One task on some ranks, from when it is sent to when all have answered or have been made to."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

from scalelab.lab.ranks import engine
from scalelab.lab.ranks.board import FileBoard
from scalelab.lab.ranks.cluster import Cluster

LOOK_S = 0.05
PLACE_S = 1.0  # for ranks to write down where they stand
OUTPUT_S = 2.0  # for the last of what they printed to arrive

Answers = dict[int, dict[str, Any]]  # rank → what `engine.do` gave


class Gone(Exception):
    """A rank has ended while others were waited for."""


class Work:
    """A task under way.

    Args:
        ranks: which do it. task: of `engine`, with its arguments.

    Attributes:
        waits: rank → ipyparallel's AsyncResult.
    """

    def __init__(
        self, cluster: Cluster, ranks: Iterable[int], task: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> None:
        self._cluster = cluster
        client = cluster.client
        self.waits = {rank: client[rank].apply_async(engine.do, task, *arguments) for rank in ranks}

    @property
    def busy(self) -> list[int]:
        """The ranks that have not answered."""
        return [rank for rank, wait in self.waits.items() if not wait.done()]

    def wait(self, limit_s: float = math.inf, *, after_failure: bool = False) -> bool:
        """Whether all ranks answer within the limit, which may begin with the first failure among them.

        Raises:
            Gone: one of them never will.
        """
        deadline = math.inf if after_failure else time.monotonic() + limit_s
        for wait in self.waits.values():
            while not wait.wait(LOOK_S):
                if not self._cluster.lives:
                    raise Gone
                if deadline == math.inf and any(map(_has_failed, self.waits.values())):
                    deadline = time.monotonic() + limit_s
                if time.monotonic() > deadline:
                    return False
        return True

    def unblock(self) -> dict[int, str]:
        """Make busy ranks give up what they wait for; what each was doing, in words, by rank."""
        busy = self.busy
        said = FileBoard(self._cluster.board, self._cluster.size).read()
        places = {rank: engine.place(self._cluster.folder, rank) for rank in busy}
        for place in places.values():
            place.unlink(missing_ok=True)
        self._cluster.unblock(busy)
        deadline = time.monotonic() + PLACE_S
        while time.monotonic() < deadline and not all(place.exists() for place in places.values()):
            time.sleep(LOOK_S)
        lines = {}
        for rank, place in places.items():
            with contextlib.suppress(OSError, ValueError):
                lines[rank] = json.loads(place.read_text())
        return {rank: _standing(said[rank], lines.get(rank, "")) for rank in busy}

    def answers(self) -> Answers:
        """What each rank answered, its output complete."""
        from ipyparallel.error import RemoteError

        found = {}
        for rank, wait in self.waits.items():
            wait.wait_for_output(OUTPUT_S)
            try:
                found[rank] = wait.get()
            except RemoteError as error:  # an answer that could not be sent, say
                told = {"ename": error.ename, "evalue": error.evalue, "traceback": [str(error.traceback)]}
                found[rank] = {**told, "kinds": [], "sent": 1}
        return found


def _has_failed(wait: Any) -> bool:
    """Whether a rank has answered with an error."""
    return wait.done() and (wait.exception() is not None or "ename" in wait.get())


def _standing(waits: str, line: str) -> str:
    """What a rank does, in words, from its row of the board and the line it is at."""
    return ", ".join(filter(None, [waits and f"waiting {waits}", line and f"in `{line}`"])) or "at work"
