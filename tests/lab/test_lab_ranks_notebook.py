"""Ranks in a real kernel: `%%px`, the stop button, and nothing left behind however the kernel ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

SETUP = """
import scalelab.lab
lab = scalelab.lab.start("transformers/training", seed=0)
ranks = lab.ranks(2)
import os, torch
print(json.dumps([ranks._cluster._process.pid, str(ranks._cluster.folder)]))
"""


class Kernel:
    """A kernel of this Python with two ranks."""

    def __init__(self) -> None:
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(
            env={**os.environ, "OMP_NUM_THREADS": "1", "SCALELAB_TIER": "cpu"}, extra_arguments=["--quiet"]
        )
        self.client: BlockingKernelClient = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=300)
        out, error = self.run("import json" + SETUP)
        assert error is None, error
        nursery, folder = json.loads(out.splitlines()[-1])
        self.folder = Path(folder)
        self.group = nursery
        assert len(self.left()) == 5, "nursery, controller and its heart monitor, two engines"

    def run(self, source: str, interrupt_after: float | None = None) -> tuple[str, str | None]:
        """What a cell printed, and "Type: text" of what it raised."""
        said: list[str] = []

        def hear(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                said.append(message["content"]["text"])

        if interrupt_after is not None:
            self.client.execute(source)
            time.sleep(interrupt_after)
            self.manager.interrupt_kernel()
            reply = self.client.get_shell_msg(timeout=60)
        else:
            reply = self.client.execute_interactive(source, output_hook=hear, timeout=300)
        content = reply["content"]
        error = f"{content['ename']}: {content['evalue']}" if content["status"] == "error" else None
        return "".join(said), error

    def left(self) -> list[psutil.Process]:
        """Processes of the ranks that are still there: all are of one group."""
        return [each for each in psutil.process_iter() if group_of(each) == self.group]

    def assert_ended(self, within_s: float = 5) -> None:
        deadline = time.monotonic() + within_s
        while self.left() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert self.left() == []

    def assert_gone(self, within_s: float = 5) -> None:
        deadline = time.monotonic() + within_s
        self.assert_ended(within_s)
        while self.folder.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not self.folder.exists()

    def close(self) -> None:
        self.client.stop_channels()
        if self.manager.is_alive():
            self.manager.shutdown_kernel(now=True)


def group_of(process: psutil.Process) -> int | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getpgid(process.pid)
    except (ProcessLookupError, psutil.Error):
        return None


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    started = Kernel()
    yield started
    started.close()


def test_a_cell_runs_on_every_rank_and_can_run_here_too(kernel: Kernel) -> None:
    out, error = kernel.run("%%px --local\nclass Twice:\n    def __call__(self, x): return 2 * x")
    assert (out, error) == ("", None)
    out, error = kernel.run("%%px\ntwice = Twice()\nprint(twice(rank))\ntwice(10)")
    assert out == "[stdout:0] 0\n[stdout:1] 2\n[result:0] 20\n[result:1] 20\n"
    assert kernel.run("Twice()(4)")[1] is None
    assert kernel.run("%px print(rank)")[0] == "[stdout:0] 0\n[stdout:1] 1\n"
    assert kernel.run("%%px --targets 1\nprint(rank)")[0] == "[stdout:1] 1\n"
    assert kernel.run("%%px --local\n1 / rank")[1].startswith("RanksError: rank 0: ZeroDivisionError")


def test_a_function_of_a_cell_is_checked_here_and_runs_there(kernel: Kernel) -> None:
    define = "def total(group, x):\n    y = x.clone()\n    group.exchange(x, group.next, y, group.previous)\n"
    out, error = kernel.run(define + "    return x + y\nranks.run(total, torch.ones(2))")
    assert error is None
    out, error = kernel.run("ranks.push(total=total)")
    assert error is None
    out, error = kernel.run("%%px\nprint(total(group, torch.full((1,), rank + 1.0)))")
    assert out == "[stdout:0] tensor([3.])\n[stdout:1] tensor([3.])\n"


def test_a_deadlock_can_be_shown_without_going_red(kernel: Kernel) -> None:
    out, error = kernel.run("%%px --stuck 1\ngroup.recv(torch.zeros(1), 1 - rank)")
    assert error is None
    assert out.splitlines() == [
        "Stuck after 1 s:",
        "rank 0: waiting to receive 4 bytes from rank 1, in `group.recv(torch.zeros(1), 1 - rank)`",
        "rank 1: waiting to receive 4 bytes from rank 0, in `group.recv(torch.zeros(1), 1 - rank)`",
    ]
    out, error = kernel.run("%%px --stucked\n1")
    assert error is not None
    assert "it takes --targets RANKS, --local, --stuck" in error


@pytest.mark.parametrize(
    "cell",
    [
        "group.recv(torch.zeros(1), 1 - rank)",
        "if rank == 0: dist.all_reduce(torch.zeros(1))",
        "import time; time.sleep(50)",
        "while True: pass",
    ],
)
def test_the_stop_button_ends_a_cell_and_the_next_one_works(kernel: Kernel, cell: str) -> None:
    begun = time.monotonic()
    _, error = kernel.run(f"%%px\n{cell}", interrupt_after=1)
    assert error == "RanksInterrupt: the ranks have stopped, and are joined anew"
    assert time.monotonic() - begun < 1 + 2 * patience()
    out, error = kernel.run("%%px\nx = torch.ones(1)\ndist.all_reduce(x)\ngroup.barrier()\nprint(x)")
    assert error is None
    assert out == "[stdout:0] tensor([2.])\n[stdout:1] tensor([2.])\n"


def test_a_wait_of_too_long_says_who_waits_for_whom(kernel: Kernel) -> None:
    kernel.run("%px group.limit_s = 1")
    _, error = kernel.run("%%px\nif rank == 0: group.recv(torch.zeros(1), 1)")
    assert error is not None
    assert error.startswith(
        "RanksError: rank 0: ParallelError: rank 0 waited to receive 4 bytes from rank 1: "
    )
    assert "rank 0 waits to receive 4 bytes from rank 1; rank 1 waits for no message" in error
    assert kernel.run("%%px\ngroup.barrier()") == ("", None)


def patience() -> float:
    """How many times longer than alone things may take now: other tests run on the same cores."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1) + 1)


def test_a_dead_rank_is_told_and_started_anew(kernel: Kernel) -> None:
    kernel.run("os.kill(ranks._cluster.pids[1], 9)")
    time.sleep(0.5)
    _, error = kernel.run("%%px\n1")
    assert error is not None
    assert error.startswith("LabError: rank 1 has ended (killed by SIGKILL")
    kernel.assert_gone()
    out, error = kernel.run("ranks = lab.ranks(2)")
    assert (out, error) == ("2 ranks on the CPU by gloo, one thread each\n", None)
    assert kernel.run("%%px\nprint(rank)")[0] == "[stdout:0] 0\n[stdout:1] 1\n"


@pytest.mark.parametrize("how", ["shut down", "restarted", "killed", "exit"])
def test_nothing_is_left_when_the_kernel_ends(how: str) -> None:
    kernel = Kernel()
    try:
        if how == "shut down":
            kernel.manager.shutdown_kernel()
        elif how == "restarted":
            kernel.manager.restart_kernel(now=True)
        elif how == "killed":
            kernel.client.execute("%%px\nimport time; time.sleep(60)")
            time.sleep(0.5)
            os.kill(kernel.manager.provisioner.pid, signal.SIGKILL)
        else:
            kernel.client.execute("import os; os._exit(1)")
        kernel.assert_gone()
    finally:
        kernel.close()


def test_nothing_is_left_when_the_nursery_is_killed() -> None:
    kernel = Kernel()
    try:
        os.kill(kernel.group, signal.SIGKILL)
        kernel.assert_ended()
        _, error = kernel.run("%%px\n1")
        assert error is not None
        assert error.startswith("LabError: the ranks have ended: Start all anew")
        kernel.assert_gone()
    finally:
        kernel.close()


NOTEBOOK = [
    SETUP.replace("print(json", "import json; print(json").replace("print(", "_ = (", 0),
    "%%px\n# NBVAL_CHECK_OUTPUT\nx = torch.full((2,), rank + 1.0)\ndist.all_reduce(x)\nprint(x)",
    "%%px --stuck 1\n# NBVAL_CHECK_OUTPUT\nif rank == 0: group.recv(x, 1)",
    "# NBVAL_CHECK_OUTPUT\nranks.run(lambda group, y: group.rank + y, 10)",
]


def test_nbval_runs_a_notebook_with_ranks_twice_alike_and_leaves_nothing(tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
    import labs
    import normalise

    cells = [nbformat.v4.new_code_cell(source) for source in NOTEBOOK]
    notebook = nbformat.v4.new_notebook(cells=cells)
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "SCALELAB_TIER": "cpu"}
    cost = labs.execute(notebook, folder=tmp_path, environ=environ, name="ranks")
    assert cost.peak_mib > 300, "the ranks' memory counts"
    nursery = int(re.search(r"\[(\d+),", notebook.cells[0].outputs[0].text)[1])  # type: ignore[index]
    notebook.cells[0].source = notebook.cells[0].source.split("import json")[0]
    notebook.cells[0].outputs = []
    normalise.normalise(notebook)
    assert normalise.problems_of_outputs(notebook) == []
    assert notebook.cells[1].outputs[0].text == "[stdout:0] tensor([3., 3.])\n[stdout:1] tensor([3., 3.])\n"
    path = tmp_path / "ranks.ipynb"
    nbformat.write(notebook, path)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--nbval-lax", "--nbval-current-env"]
    done = subprocess.run(
        [*command, str(path)], capture_output=True, text=True, env=environ, cwd=tmp_path, timeout=150
    )
    assert "4 passed" in done.stdout, done.stdout
    left = [each for each in psutil.process_iter() if group_of(each) == nursery]
    assert left == []
    assert not [
        each for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(each.info["cmdline"])
    ]
