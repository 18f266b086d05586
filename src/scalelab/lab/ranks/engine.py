"""What runs inside of each rank: joining the others, running cells and functions, saying where it stands.

`unblock` runs in a thread of its own while the rank waits: it writes down at which line, and then shuts the
rank's connections to the others, upon which gloo gives up at once whatever was being waited for. (A wait of
torch's hears no signal, and `abort` does not end it: tried with torch 2.13 on gloo.)
"""

from __future__ import annotations

import contextlib
import json
import linecache
import os
import random
import re
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.distributed as dist
from ipyparallel.engine.app import IPEngine

from scalelab.lab.ranks.board import FileBoard, board_file
from scalelab.parallel.scratch.torch_group import TorchGroup

WIDTH = 60  # of a source line in a message
ANSI = re.compile(r"\x1b\[[0-9;]*m")
LIBRARIES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}", f"{os.sep}scalelab{os.sep}")


def do(task: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Do one of the tasks below: what it came to, or what it raised, and how many messages it had sent."""
    before = _messages()
    try:
        answer = task(*arguments)
    except BaseException as error:  # KeyboardInterrupt as well: it is told to the notebook
        answer = _failure(error, traceback.format_exception(error))
    answer = answer if isinstance(answer, dict) else {"value": answer}
    return {**answer, "sent": _messages() - before}


def join(folder: str, size: int, attempt: int, limit_s: float, backend: str) -> None:
    """Join the other ranks, as if never joined before, and put the names into the notebook's reach.

    Args:
        attempt: numbers the meetings: each needs a file of its own.
        limit_s: of a wait in `group`; torch's own collectives get twice that.
    """
    rank = IPEngine.instance().id
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError, ValueError):  # of what is broken already
            dist.destroy_process_group()
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend,
        init_method=f"file://{folder}/meeting-{attempt}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=2 * limit_s),
    )
    board = FileBoard(board_file(Path(folder)), size)
    board.write(rank, "")
    group = TorchGroup(device=device, limit_s=limit_s, board=board)
    _names().update(rank=rank, size=size, group=group, device=device)


def prepare(seed: int) -> None:
    """Once, before the first `join`: modules, threads, seeds."""
    torch.set_num_threads(1)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    _names().update(torch=torch, dist=dist, np=np)


def run_cell(source: str) -> dict[str, Any]:
    """Run a cell as a notebook would; what it came to, or what it raised."""
    shell = _shell()
    result = shell.run_cell(source, store_history=False, silent=False)
    error = result.error_before_exec or result.error_in_exec
    if error is not None:
        return _failure(error, getattr(shell, "_last_traceback", None) or [])
    if result.result is None:
        return {"data": {}, "metadata": {}}
    data, metadata = shell.display_formatter.format(result.result)
    return {"data": data, "metadata": metadata}


def call(function: Callable[..., Any], arguments: Sequence[Any]) -> dict[str, Any]:
    """What `function(group, *arguments)` returned, or what it raised."""
    try:
        return {"value": function(_names()["group"], *arguments)}
    except BaseException as error:  # KeyboardInterrupt as well: it is told to the notebook
        behind = error.__traceback__.tb_next if error.__traceback__ else None
        try:
            shown = _shell().InteractiveTB.structured_traceback(type(error), error, behind)
        except Exception:
            shown = traceback.format_exception(type(error), error, behind)
        return _failure(error, shown)


def update(values: Mapping[str, Any], sources: Mapping[str, list[str]]) -> None:
    """Define names; the sources of functions among them are kept for tracebacks."""
    for name, lines in sources.items():
        linecache.cache[name] = (sum(map(len, lines)), None, lines, name)
    _names().update(values)


def look_up(name: str) -> dict[str, Any]:
    """The value of a name; {} when it is none."""
    return {"value": _names()[name]} if name in _names() else {}


def lacking(names: Sequence[str]) -> list[str]:
    """Those of the names that mean nothing here."""
    return [name for name in names if name not in _names()]


def unblock(folder: Path, rank: int) -> None:
    """Write down where the rank stands, then have whatever it waits for end in an error."""
    written = place(folder, rank).with_suffix(".new")
    written.write_text(json.dumps(_where_main_thread_stands()))
    written.rename(place(folder, rank))
    if dist.is_initialized() and dist.get_backend() == "nccl":
        with contextlib.suppress(Exception):
            dist.distributed_c10d._abort_process_group()  # the only way out of a kernel that waits
        return
    own = psutil.Process()
    connections = getattr(own, "net_connections", None) or own.connections  # psutil before 6.0
    found = [each for each in connections("tcp") if each.status == psutil.CONN_ESTABLISHED]
    here = {each.laddr for each in found}
    ports = _ports_of_ipyparallel()
    for each in found:
        is_between_ranks = each.laddr.ip == each.raddr.ip and each.raddr not in here
        if is_between_ranks and each.raddr.port not in ports:
            with contextlib.suppress(OSError):  # closed meanwhile
                with socket.socket(fileno=os.dup(each.fd)) as end:
                    end.shutdown(socket.SHUT_RDWR)


def place(folder: Path, rank: int) -> Path:
    """The file in which `unblock` writes where a rank stands."""
    return folder / f"place-{rank}"


def _ports_of_ipyparallel() -> set[int]:
    if not IPEngine.initialized():
        return set()
    ports: set[int] = set()
    for value in IPEngine.instance().connection_info.values():
        ports |= {each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int)}
    return ports


def _where_main_thread_stands() -> str:
    """The innermost line of the notebook that it is in; "" when it is in none."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        name = frame.f_code.co_filename
        line = linecache.getline(name, frame.f_lineno).strip()
        # A notebook's cell has lines, and a name that is no file's.
        if line and not os.path.exists(name) and not name.startswith("<frozen"):
            return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"
        frame = frame.f_back
    return ""


def _failure(error: BaseException, shown: list[str]) -> dict[str, Any]:
    kinds = [kind.__name__ for kind in type(error).__mro__]
    frames = [frame for frame in shown if not _is_of_a_library(frame)]
    return {"ename": type(error).__name__, "evalue": str(error), "kinds": kinds, "traceback": frames}


def _is_of_a_library(frame: str) -> bool:
    """Whether a part of a traceback is a frame of a package's code: not what a reader wrote."""
    first = ANSI.sub("", frame).strip().split("\n")[0]
    return first.startswith("File ") and any(folder in first for folder in LIBRARIES)


def _shell() -> Any:
    from IPython.core.getipython import get_ipython

    return get_ipython()


def _messages() -> int:
    group = _names().get("group")
    return group.traffic.messages if isinstance(group, TorchGroup) else 0


def _names() -> dict[str, Any]:
    names: dict[str, Any] = _shell().user_ns
    return names
