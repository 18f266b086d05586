"""Contenders in processes of their own that take turns, round by round; what their times come to, and where.

Each contender lives in its own process, as a user's would, so that none inherits the memory another has
warmed up. They take turns, so that whatever else the machine does falls on all, and ratios are taken within
a round.
"""

from __future__ import annotations

import datetime
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import transformers

from scalelab.core.artifacts import write_atomic

Action = Callable[[], Any]
Summary = Callable[[Sequence[float]], float]
Figures = dict[str, float]


class Worker:
    """A contender in its own process; it idles unless asked to act."""

    def __init__(self, make: Callable[[], Action], n_threads: int) -> None:
        """Start it; `make` runs there, and so must be picklable: a partial of a module's function."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, n_threads), daemon=True)
        self._process.start()
        theirs.close()

    def first(self) -> Any:
        """What its first action returned, as plain Python values; call it once, before anything is timed."""
        return self._pipe.recv()

    def times_s(self, repeats: int) -> list[float]:
        """Wall time of each of so many actions."""
        self._pipe.send(repeats)
        found: list[float] = self._pipe.recv()
        return found

    def stop(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def _serve(pipe: Connection, make: Callable[[], Action], n_threads: int) -> None:
    torch.set_num_threads(n_threads)
    transformers.logging.set_verbosity_error()
    act = make()
    pipe.send(act())
    while True:
        try:
            repeats = pipe.recv()
        except EOFError:
            return
        durations_s = []
        for _ in range(repeats):
            begin = time.perf_counter()
            act()
            durations_s.append(time.perf_counter() - begin)
        pipe.send(durations_s)


def take_turns(
    workers: Mapping[str, Worker], *, rounds: int, repeats: int, summary: Summary
) -> dict[str, list[float]]:
    """One duration for each contender and round: the mean, or the fastest, of the round's repeats."""
    durations_s: dict[str, list[float]] = {name: [] for name in workers}
    for number in range(rounds):
        # Forwards and backwards in turn, so that no contender always follows the same one.
        for name in list(workers) if number % 2 == 0 else reversed(list(workers)):
            durations_s[name].append(summary(workers[name].times_s(repeats)))
    return durations_s


def speeds_of(durations_s: Mapping[str, Sequence[float]], n_tokens: int, unit: str) -> dict[str, Figures]:
    """Tokens per second of each contender, and how its durations spread."""
    return {
        name: {"tokens_per_s": n_tokens / statistics.median(times), **spread(times, f"{unit}_s")}
        for name, times in durations_s.items()
    }


def ratios_of(
    durations_s: Mapping[str, Sequence[float]], pairs: Sequence[tuple[str, str]]
) -> dict[str, Figures]:
    """How many times as fast the first of each pair is as the second, within rounds."""
    return {
        f"{ours} / {theirs}": spread(
            [b / a for a, b in zip(durations_s[ours], durations_s[theirs], strict=True)], "ratio"
        )
        for ours, theirs in pairs
    }


def spread(values: Sequence[float], name: str) -> Figures:
    """Median, quartiles and extremes."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {
        f"{name}_median": middle,
        f"{name}_quartile_1": low,
        f"{name}_quartile_3": high,
        f"{name}_min": min(values),
        f"{name}_max": max(values),
    }


def print_table(title: str, speeds: Mapping[str, Figures], ratios: Mapping[str, Figures]) -> None:
    """Speeds, and ratios with their quartiles."""
    print(f"\n{title}")
    for name, row in speeds.items():
        print(f"  {name:40s} {row['tokens_per_s']:10,.0f} tokens/s")
    for name, row in ratios.items():
        quartiles = f"[{row['ratio_quartile_1']:.2f}, {row['ratio_quartile_3']:.2f}]"
        print(f"  {name:62s} {row['ratio_median']:.2f}  {quartiles}")


def write_report(out: Path, *, settings: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """The figures, and what they were taken on, as one JSON file."""
    report = {"machine": describe_machine(), "settings": settings, "results": results}
    write_atomic(out, (json.dumps(report, indent=1) + "\n").encode())
    print(f"written: {out.name}")


def describe_machine() -> dict[str, object]:
    """What the numbers were taken on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": fields.get("model name", platform.processor()),
        "cores": sum(line.startswith("processor") for line in lines) or None,
        "bf16_matrix_units": "amx_bf16" in flags,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
