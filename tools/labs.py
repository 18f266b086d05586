"""Execute labs at the cpu tier, and write their outputs and their cost back into them.

    python tools/labs.py                        every lab
    python tools/labs.py transformers/training  those named
    python tools/labs.py --tier gpu NAME        measure on a GPU: stores the figure, keeps the outputs

A lab is executed whole, from an empty cache, by a kernel of this Python bound to two cores; a failure
leaves its old notebook as it was.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import copy
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import notebooks
import psutil
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from normalise import normalise, problems_of_outputs

CELL_TIMEOUT_S = 600
CORES = 2
NEWS = 1.01  # how much more must be resident for it to be worth a closer look


@dataclass(slots=True)
class Cost:
    """What executing a notebook took.

    Attributes:
        cell_seconds: of each code cell, in order. seconds: of all cells together.
        peak_mib: the most the kernel and its children (a lab's ranks) held in memory at once, a page that
            they share counted once.
    """

    cell_seconds: list[float] = field(default_factory=list)
    peak_mib: float = 0.0

    @property
    def seconds(self) -> float:
        """Of all cells together, the kernel's start not counted."""
        return sum(self.cell_seconds)


class _OneKernel(KernelSpecManager):  # type: ignore[misc]
    """Finds one kernel, whatever kernels are installed elsewhere."""

    def __init__(self, argv: Sequence[str]) -> None:
        super().__init__()
        self.argv = [*argv, "--log-level=ERROR", "-f", "{connection_file}"]

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(argv=self.argv, display_name="Python 3", language="python", name="python3")


def execute(
    notebook: NotebookNode,
    *,
    folder: Path,
    environ: dict[str, str],
    name: str,
    kernel: Sequence[str] = (sys.executable, "-m", "ipykernel_launcher"),
) -> Cost:
    """Run every cell in place, in `folder`, and measure.

    Args:
        kernel: the command that starts it; by default the Python that runs this tool.

    Raises:
        notebooks.ToolError: a cell raised, ran out of time, or killed its kernel; names the cell.
    """
    cost = Cost()
    begun = 0.0

    def start(cell: NotebookNode, cell_index: int) -> None:
        nonlocal begun
        begun = time.perf_counter()

    def stop(cell: NotebookNode, cell_index: int, **_: Any) -> None:
        cost.cell_seconds.append(time.perf_counter() - begun)

    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=_OneKernel(kernel))
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=CELL_TIMEOUT_S,
        resources={"metadata": {"path": str(folder)}},
        coalesce_streams=True,
        on_cell_start=start,
        on_cell_executed=stop,
    )
    try:
        asyncio.run(_execute(client, manager, environ, cost))
    except CellExecutionError as error:
        raise notebooks.ToolError(f"{name}: a cell raised.\n{error}") from None
    except (TimeoutError, RuntimeError) as error:  # nbclient's own timeout and dead-kernel errors
        raise notebooks.ToolError(f"{name}: {type(error).__name__}: {error}") from None
    return cost


async def _execute(
    client: NotebookClient, manager: AsyncKernelManager, environ: dict[str, str], cost: Cost
) -> None:
    async with client.async_setup_kernel(env=environ, cleanup_kc=True):
        pid = manager.provisioner.pid
        _bind_to_cores(pid)
        with _watch_memory(pid, cost):
            for index, cell in enumerate(client.nb.cells):
                number = len(cost.cell_seconds) + 1 if cell.cell_type == "code" else None
                await client.async_execute_cell(cell, index, execution_count=number)


def _bind_to_cores(pid: int) -> None:
    """Give the kernel as many cores as the badge speaks of, where the system can."""
    process = psutil.Process(pid)
    if hasattr(process, "cpu_affinity"):
        process.cpu_affinity(process.cpu_affinity()[:CORES])


@contextlib.contextmanager
def _watch_memory(pid: int, cost: Cost) -> Iterator[None]:
    """Sample the memory of a process and its children; the system's own peak of the process counts too.

    A process alone: what is resident. With children: what `_tree_mib` says, which takes a while to read, so
    only when more is resident than ever before.
    """
    ended = threading.Event()

    def sample() -> None:
        most_resident = 0.0
        while not ended.wait(0.05):
            members = _tree(pid)
            resident = sum(map(_resident_mib, members))
            if len(members) == 1:
                cost.peak_mib = max(cost.peak_mib, resident)
            elif resident > NEWS * most_resident:
                most_resident = resident
                cost.peak_mib = max(cost.peak_mib, _tree_mib(members))

    watcher = threading.Thread(target=sample, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        cost.peak_mib = max(cost.peak_mib, _tree_mib(_tree(pid)), _high_water_mib(pid))


def _tree(pid: int) -> list[psutil.Process]:
    """A process and its children, theirs among them; [] when it is gone."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _tree_mib(members: Sequence[psutil.Process]) -> float:
    """The memory of several processes together, a page that several share counted once (PSS, on Linux).

    Where the system does not tell who shares what, a shared page counts for each.
    """
    total = 0.0
    for member in members:
        try:
            total += member.memory_full_info().pss / 2**20
        except (psutil.Error, AttributeError):
            total += _resident_mib(member)
    return total


def _resident_mib(process: psutil.Process) -> float:
    """What of a process is in memory, shared pages included; 0 when it is gone."""
    with contextlib.suppress(psutil.Error):
        return process.memory_info().rss / 2**20
    return 0.0


def _high_water_mib(pid: int) -> float:
    """Linux keeps the largest resident size a process ever had, which no sampling can miss."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


def run_lab(path: Path, *, tier: str, repository: str) -> Cost:
    """Execute one lab and write it back: outputs and figure at the cpu tier, the figure alone at gpu.

    Raises:
        notebooks.ToolError: it failed, or an output holds what must not be published. The file is as before.
    """
    name = notebooks.lab_name(path)
    old = notebooks.read(path)
    notebook = copy.deepcopy(old)
    notebooks.set_badges(notebook, name, repository)  # a missing marker is said before the long run
    with tempfile.TemporaryDirectory(prefix="scalelab-lab-") as scratch:
        environ = {
            **os.environ,
            "SCALELAB_TIER": tier,
            "SCALELAB_STRICT": "1",
            "SCALELAB_CACHE": str(Path(scratch) / "cache"),
        }
        if tier == "cpu":
            environ |= {"SCALELAB_THREADS": str(CORES), "OMP_NUM_THREADS": str(CORES)}
        cost = execute(notebook, folder=path.parent, environ=environ, name=name)
        normalise(notebook)
        problems = problems_of_outputs(notebook, private=(scratch,))
    if problems:
        raise notebooks.ToolError(f"{name}: not written back.\n" + "\n".join(problems))
    kept = notebook if tier == "cpu" else old
    figures = {"cpu": None, "gpu": None, **old.metadata.get("scalelab", {}), tier: _figures(cost, tier)}
    kept.metadata["scalelab"] = figures
    notebooks.set_badges(kept, name, repository)
    notebooks.write(path, kept)
    return cost


def _figures(cost: Cost, tier: str) -> dict[str, Any]:
    return {
        "seconds": round(cost.seconds, 1),
        "peak_mib": round(cost.peak_mib),
        "longest_cell_seconds": round(max(cost.cell_seconds, default=0.0), 1),
        "machine": _gpu_name() if tier == "gpu" else f"{CORES} cores, {platform.machine()}",
        "date": datetime.now(UTC).date().isoformat(),
    }


def _gpu_name() -> str:
    import torch

    return str(torch.cuda.get_device_name())


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="part/name of a lab; all when none is given")
    parser.add_argument("--tier", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--labs", type=Path, default=notebooks.LABS, help="folder of labs (default: labs/)")
    options = parser.parse_args(arguments)
    failed = 0
    try:
        paths = notebooks.find_labs(options.names, options.labs)
    except notebooks.ToolError as error:
        print(f"labs: {error}", file=sys.stderr)
        return 2
    for path in paths:
        name = notebooks.lab_name(path)
        print(f"{name}: running", flush=True)
        try:
            cost = run_lab(path, tier=options.tier, repository=notebooks.repository_url())
        except notebooks.ToolError as error:
            print(f"labs: {error}", file=sys.stderr)
            failed += 1
            continue
        slowest = max(range(len(cost.cell_seconds)), key=cost.cell_seconds.__getitem__, default=0)
        print(
            f"{name}: {cost.seconds:.1f} s, {cost.peak_mib:.0f} MiB; "
            f"longest: code cell {slowest + 1}, {max(cost.cell_seconds, default=0):.1f} s"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
