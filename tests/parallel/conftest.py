"""Processes that stay for the whole session and train together, since starting them takes seconds."""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

JOBS = Path(__file__).with_name("jobs.py")


class Pool:
    """Processes on gloo with one thread each; `run` has each of them do a job of jobs.py at the same time.

    "file:job" is one of another file beside it.
    """

    def __init__(self, n_processes: int, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.n_processes = n_processes
        self._ends: list[Connection] = []
        self._asked = 0
        self._processes = []
        for rank in range(n_processes):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=serve, args=(rank, n_processes, str(folder / "meeting"), theirs), daemon=True
            )
            process.start()
            self._ends.append(ours)
            self._processes.append(process)

    def run(self, job: str, **arguments: Any) -> list[Any]:
        """What the job returned in each process, by rank; an error in any of them fails the test."""
        self._asked += 1
        for end in self._ends:
            end.send((self._asked, job, arguments))
        answers = []
        for rank, end in enumerate(self._ends):
            number = 0
            while number != self._asked:  # a job that took too long may have answered since
                assert end.poll(120), f"process {rank} does not answer to {job}"
                number, *answer = end.recv()
            answers.append(answer)
        failed = [f"process {rank}:\n{told}" for rank, (ok, told) in enumerate(answers) if not ok]
        assert not failed, "\n".join(failed)
        return [answer for _, answer in answers]

    def close(self) -> None:
        for end in self._ends:
            end.send(None)
        for process in self._processes:
            process.join(20)
            process.kill()


def serve(rank: int, n_processes: int, meeting: str, end: Connection) -> None:
    """A process of the pool: jobs in, answers out."""
    import traceback

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=n_processes)
    while (asked := end.recv()) is not None:
        number, job, arguments = asked
        file, _, name = job.rpartition(":")
        try:
            end.send((number, True, getattr(jobs(file), name)(dist.group.WORLD, **arguments)))
        except BaseException:
            end.send((number, False, traceback.format_exc()))
    end.close()
    os._exit(0)  # as the command does: threads of the group may still be at work


@functools.cache
def jobs(file: str) -> Any:
    """The module of jobs of this name; "" is jobs.py."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("jobs", JOBS.with_stem(file or JOBS.stem))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(2, tmp_path_factory.mktemp("pair"))
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(4, tmp_path_factory.mktemp("four"))
    yield pool
    pool.close()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
