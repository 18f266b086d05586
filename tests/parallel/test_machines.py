"""The commands that `scalelab launch` prints train one run on two machines, played by this one."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scalelab.cli import main
from scalelab.train import load_checkpoint

TINY = [
    "--corpus", "markov", "--max-bytes", "20000", "--d-model", "32", "--n-layers", "2", "--n-heads", "2",
    "--seq-len", "32", "--batch-size", "8", "--n-evals", "2", "--quiet", "--tokens", str(12 * 8 * 32),
]  # fmt: skip
TWO_BY_TWO = ["launch", "--nodes", "2", "--gpus-per-node", "2"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of one process."""
    out = tmp_path_factory.mktemp("one") / "run"
    assert main(["train", *TINY, "--out", str(out)]) == 0
    return load_checkpoint(out).history.loss_nats


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Where `torchrun` and a Slurm of this machine's are found."""
    tools = tmp_path / "tools"
    tools.mkdir()
    write(tools / "torchrun", f'exec {shlex.quote(sys.executable)} -m torch.distributed.run "$@"')
    write(tools / "scontrol", "echo localhost; echo localhost")
    write(tools / "srun", '"$@" & first=$!; "$@" & second=$!; wait $first && wait $second')
    return os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def write(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def printed(capsys: Any, *words: str) -> str:
    assert main([*TWO_BY_TWO, "--port", free_port(), *words]) == 0
    out: str = capsys.readouterr().out
    return out


def ended(processes: list[subprocess.Popen[str]]) -> None:
    try:
        for process in processes:
            _, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
    finally:
        for process in processes:
            process.kill()


def started(command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_a_command_for_each_of_two_hosts_trains_one_run(
    expected: list[float], environment: dict[str, str], tmp_path: Path, capsys: Any
) -> None:
    train = ["train", *TINY, "--parallel", "pp=2,tp=2", "--out", str(tmp_path / "run")]
    lines = printed(capsys, "--master-addr", "127.0.0.1", "--", *train).splitlines()
    commands = [shlex.split(line) for line in lines if not line.startswith("#")]
    assert len(commands) == 2
    ended([started(command, environment) for command in commands])
    assert load_checkpoint(tmp_path / "run").history.loss_nats == pytest.approx(expected, abs=1e-3)
    assert "pp=2,tp=2" in load_checkpoint(tmp_path / "run").environment["device"]


def test_the_script_for_slurm_trains_one_run(
    expected: list[float], environment: dict[str, str], tmp_path: Path, capsys: Any
) -> None:
    train = ["train", *TINY, "--parallel", "dp_replicate=2,dp_shard=2", "--out", str(tmp_path / "run")]
    script = tmp_path / "job.sh"
    script.write_text(printed(capsys, "--slurm", "--", *train), encoding="utf-8")
    job = environment | {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost,localhost"}
    ended([started(["bash", str(script)], job)])
    assert load_checkpoint(tmp_path / "run").history.loss_nats == pytest.approx(expected, abs=1e-3)
