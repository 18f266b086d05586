"""Ranks as processes on gloo do what ranks as threads do, and a wait in vain ends with who waits for whom."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scalelab.lab.ranks.board import FileBoard
from scalelab.parallel.scratch.threads import run_threads

JOBS = Path(__file__).with_name("torch_group_jobs.py")
SIZE = 3


@pytest.fixture(scope="module")
def jobs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("torch_group_jobs", JOBS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process said of each job, by rank."""
    folder = tmp_path_factory.mktemp("torch-group")
    FileBoard.create(folder / "board", SIZE)
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(JOBS), str(rank), str(SIZE), str(folder)],
            stdout=subprocess.PIPE,
            env=environ,
        )
        for rank in range(SIZE)
    ]
    try:
        said = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [json.loads(text) for text in said]


def of(answers: list[dict[str, Any]], job: str) -> list[Any]:
    return [answer[job] for answer in answers]


@pytest.mark.parametrize("job", ["around", "tags", "counted", "beside", "refused", "among_some"])
def test_processes_do_what_threads_do(answers: list[dict[str, Any]], jobs: ModuleType, job: str) -> None:
    assert of(answers, f"{job} first") == run_threads(SIZE, getattr(jobs, job))


def test_a_ring_brings_every_ranks_tensor_and_its_bytes_are_counted(answers: list[dict[str, Any]]) -> None:
    assert of(answers, "around first") == [[2, 1], [0, 2], [1, 0]]
    assert of(answers, "counted first") == [[2, 24]] * SIZE


def test_a_wait_beyond_its_limit_says_who_waits_for_whom(answers: list[dict[str, Any]]) -> None:
    first, second, third = of(answers, "in_vain second")
    standing = (
        "rank 0 waits to receive 20 bytes from rank 1; rank 1 waits to receive 20 bytes from rank 2; "
        "rank 2 waits for no message"
    )
    assert first.startswith("rank 0 waited to receive 20 bytes from rank 1: ")
    assert second.startswith("rank 1 waited to receive 20 bytes from rank 2: ")
    assert standing in first
    assert standing in second
    assert third == ""


def test_an_interruptible_wait_hears_a_signal(answers: list[dict[str, Any]]) -> None:
    assert of(answers, "interrupted third")[:2] == [0, 0]
    assert 0.1 < of(answers, "interrupted third")[2] < 5


@pytest.mark.parametrize("meeting", ["third", "fourth"])
def test_after_a_time_out_or_an_interrupt_ranks_can_join_anew(
    answers: list[dict[str, Any]], meeting: str
) -> None:
    assert of(answers, f"around {meeting}") == of(answers, "around first")
