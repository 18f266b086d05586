"""Ranks as a notebook holds them: cells and functions run on each, values go there and back.

    ranks = lab.ranks(4)
    ranks.push(all_reduce=all_reduce)
    ranks.run(all_reduce, torch.ones(3))

What goes wrong on one rank ends on all: after an error, an interrupt or a wait in vain they are joined anew,
since gloo's connections do not survive the last two and a message may be left over after the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from scalelab.core.errors import LabError
from scalelab.lab.ranks import engine, functions, outputs
from scalelab.lab.ranks.board import FileBoard
from scalelab.lab.ranks.cluster import Cluster
from scalelab.lab.ranks.outputs import RanksError, RanksInterrupt, name_ranks
from scalelab.lab.ranks.work import Answers, Gone, Work

MAX_SIZE = 16
LIMIT_S = 15.0
STUCK_S = 3.0
AFTERMATH_S = 1.0  # for the others to finish when a rank has failed
HEED_S = 15.0  # for ranks to end that were told to: a tenth of a second, but on a crowded machine many

COMMUNICATION = {"RuntimeError", "ParallelError", "KeyboardInterrupt"}  # errors that leave a group broken


def ensure(running: Ranks | None, size: int, *, on_gpus: bool, seed: int) -> Ranks:
    """The ranks that run if they are as many, else new ones; says which, and has `%%px` mean them.

    Args:
        running: those of before, if any; ended when they will not do. on_gpus: by NCCL, if there are enough.
        seed: as for `start`.

    Raises:
        LabError: not a number from 1 to 16, or they do not start.
    """
    from scalelab.lab.ranks.magics import register

    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_SIZE:
        raise LabError(f"the number of ranks must be a whole number from 1 to {MAX_SIZE}, got {size!r}")
    n_gpus = torch.cuda.device_count() if on_gpus else 0
    backend = "nccl" if n_gpus >= size else "gloo"
    if running is None or not running.alive or (running.size, running.backend) != (size, backend):
        if running is not None:
            running.stop()
        running = start(size, backend=backend, seed=seed)
        register(running)
    ranks = f"{size} rank{'s' if size > 1 else ''}"
    if backend == "nccl":
        print(f"{ranks} on NCCL, a GPU each")
    elif n_gpus:
        print(f"{ranks} on the CPU by gloo, one thread each: NCCL wants a GPU for each, and here is {n_gpus}")
    else:
        print(f"{ranks} on the CPU by gloo, one thread each")
    return running


def start(size: int, *, backend: str, seed: int, limit_s: float = LIMIT_S) -> Ranks:
    """Start ranks and join them.

    Args:
        backend: "gloo", or "nccl" with a GPU for each. seed: of torch, numpy and random, on each the same.
        limit_s: how long a message of `group` is waited for; torch's own collectives wait twice as long.

    Raises:
        LabError: they do not start, or this is Windows.
    """
    ranks = Ranks(Cluster(size), backend=backend, limit_s=limit_s)
    try:
        ranks.begin(seed=seed)
    except BaseException:
        ranks.stop()
        raise
    return ranks


class Ranks:
    """Processes that do what the notebook says, all at once. Made by `lab.ranks`.

    Attributes:
        size: how many. backend: what carries their messages, "gloo" or "nccl".
    """

    def __init__(self, cluster: Cluster, *, backend: str, limit_s: float) -> None:
        self.size = cluster.size
        self.backend = backend
        self._cluster = cluster
        self._limit_s = limit_s
        self._joined = 0

    def __repr__(self) -> str:
        return f"Ranks({self.size}, backend={self.backend!r})" + ("" if self.alive else ", ended")

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __getitem__(self, name: str) -> list[Any]:
        return self.pull(name)

    @property
    def alive(self) -> bool:
        """Whether all of them are there."""
        return self._cluster.lives

    def stop(self) -> None:
        """End them; again does nothing."""
        self._cluster.stop()

    def push(self, **values: Any) -> None:
        """Define names on every rank.

        A function written in the notebook finds the ranks' own names there (`group`, `rank`, `torch`, …).

        Raises:
            LabError: a class of the notebook, or a function that uses a name of the notebook which the ranks
                do not have.
        """
        self._check_names(values)
        sent = {name: functions.portable(value) for name, value in values.items()}
        self._work(range(self.size), engine.update, sent, functions.sources(values.values()))

    def pull(self, name: str) -> list[Any]:
        """The value a name has on each rank, by rank.

        Raises:
            LabError: a rank does not know it.
        """
        answers = self._work(range(self.size), engine.look_up, name)
        lacking = [rank for rank, answer in answers.items() if "value" not in answer]
        if lacking:
            raise LabError(
                f"{name!r} is no name on {name_ranks(lacking)} of {self.size}: define it in a %%px cell"
            )
        return [answer["value"] for answer in answers.values()]

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call `function(group, *arguments)` on every rank; what it returned, by rank.

        Raises:
            RanksError: a rank raised.
        """
        return [answer["value"] for answer in self._call(function, arguments).values()]

    def show_stuck(self, function: Callable[..., Any], *arguments: Any, limit_s: float = STUCK_S) -> None:
        """Run a function whose ranks wait in vain, and print after so many seconds who waits for whom.

        Raises:
            LabError: they did not wait in vain.
        """
        self._call(function, arguments, stuck_s=limit_s)

    def run_cell(
        self, source: str, ranks: Iterable[int] | None = None, *, stuck_s: float | None = None
    ) -> None:
        """What `%%px` does: run a cell on ranks, and show what they show.

        Args:
            ranks: which; None: all. stuck_s: they are expected to wait in vain: after so many seconds that is
                ended, and who waited for whom is printed.

        Raises:
            RanksError: a rank raised. LabError: a rank that is none, or ranks that did not wait in vain.
        """
        chosen = list(range(self.size) if ranks is None else ranks)
        if not chosen or not set(chosen) <= set(range(self.size)):
            raise LabError(f"there are ranks 0 to {self.size - 1}, asked for {chosen}")
        self._work(chosen, engine.run_cell, source, stuck_s=stuck_s)

    def begin(self, *, seed: int) -> None:
        """Once, before anything else: give each rank its modules, random state and place among all."""
        self._work(range(self.size), engine.prepare, seed)
        self.rejoin()

    def rejoin(self) -> None:
        """Join the ranks anew: a fresh `group`, and torch.distributed as if it were just initialised.

        Done without asking after an error. Meshes, DDP models and groups of before are of no use afterwards.
        """
        self._joined += 1
        FileBoard.create(self._cluster.board, self.size)
        where = (str(self._cluster.folder), self.size, self._joined, self._limit_s, self.backend)
        self._work(range(self.size), engine.join, *where)

    # --- how ------------------------------------------------------------------------------------------------

    def _call(
        self, function: Callable[..., Any], arguments: Iterable[Any], *, stuck_s: float | None = None
    ) -> Answers:
        everyone = range(self.size)
        self._check_names({getattr(function, "__name__", "it"): function})
        self._work(everyone, engine.update, {}, functions.sources([function]))
        sent = [functions.portable(argument) for argument in arguments]
        return self._work(everyone, engine.call, functions.portable(function), sent, stuck_s=stuck_s)

    def _check_names(self, values: Mapping[str, Any]) -> None:
        """Raises LabError: a function uses what this notebook has, and a rank has not."""
        needed = functions.needed(values)
        if not needed:
            return
        answers = self._work(range(self.size), engine.lacking, list(needed))
        for name, function in needed.items():
            if any(name in answer["value"] for answer in answers.values()):
                raise LabError(
                    f"{function} uses {name}, which the ranks do not have: define or import it in a %%px "
                    f"cell, or push it before, ranks.push({name}={name})"
                )

    def _work(
        self, ranks: Iterable[int], task: Callable[..., Any], *arguments: Any, stuck_s: float | None = None
    ) -> Answers:
        """Have ranks do a task of `engine`, show what they print, and see to it that all can go on.

        Raises:
            RanksError: a rank raised. LabError: a rank is gone. RanksInterrupt: Ctrl-C.
        """
        try:
            if not self.alive:
                raise Gone
            work = Work(self._cluster, ranks, task, arguments)
            try:
                return self._see_through(work, stuck_s, mend=task is not engine.join)
            except KeyboardInterrupt:
                raise self._interrupted(work) from None
        except Gone:
            told = self._cluster.told_ended()
            self.stop()
            raise LabError(f"{told}: {self._again()}") from None

    def _see_through(self, work: Work, stuck_s: float | None, *, mend: bool) -> Answers:
        """Wait for answers, or for a wait in vain; a rank that fails must not leave the others waiting."""
        held_up: dict[int, str] = {}
        if stuck_s is not None:
            if not work.wait(stuck_s):
                self._end_stuck(work, stuck_s)
                return {}
        elif not work.wait(AFTERMATH_S, after_failure=True):
            held_up = work.unblock()
            if not work.wait(HEED_S):
                print(
                    f"{name_ranks(work.busy)} still at work after another's error; the stop button ends it."
                )
                work.wait()
        answers = work.answers()
        outputs.show(work.waits, answers)
        failures = {rank: answer for rank, answer in answers.items() if "ename" in answer}
        if failures:
            raise RanksError(failures, held_up=held_up, remark=self._mend(failures) if mend else "")
        if stuck_s is not None:
            raise LabError(f"ranks were expected to wait in vain, and all have finished within {stuck_s:g} s")
        return answers

    def _mend(self, failures: Mapping[int, Mapping[str, Any]]) -> str:
        """Join the ranks anew after an error if it may have left something behind; says so.

        Nothing is left when all raised the same, no message was sent before, and it was not in communication.
        """
        alike = {(failure["ename"], failure["evalue"]) for failure in failures.values()}
        kinds = {kind for failure in failures.values() for kind in failure["kinds"]}
        n_sent = sum(failure["sent"] for failure in failures.values())
        if len(alike) == 1 and len(failures) == self.size and not n_sent and not kinds & COMMUNICATION:
            return ""
        self.rejoin()
        return "The ranks are joined anew: `group` works again; make meshes, DDP models and groups again."

    def _end_stuck(self, work: Work, limit_s: float) -> None:
        """End a wait in vain, and print who waited for whom."""
        held_up = work.unblock()
        if not work.wait(HEED_S):
            self.stop()
            raise LabError(f"{name_ranks(list(held_up))} did not wait but work: ended. {self._again()}")
        answers = work.answers()
        outputs.show(work.waits, answers)
        print(f"Stuck after {limit_s:g} s:")
        for rank, answer in answers.items():
            done = f"raised {answer['ename']}: {answer['evalue']}" if "ename" in answer else "finished"
            print(f"rank {rank}: {held_up.get(rank, done)}")
        self.rejoin()

    def _interrupted(self, work: Work) -> RanksInterrupt:
        """Pass Ctrl-C on to the ranks that are at work, and have all joined anew; what to raise."""
        self._cluster.interrupt(work.busy)
        try:
            work.unblock()
            heeded = work.wait(HEED_S)
        except KeyboardInterrupt:  # a second one: it is urgent
            heeded = False
        if not heeded:
            stubborn = work.busy
            self.stop()
            return RanksInterrupt(f"{name_ranks(stubborn)} did not heed it: all are ended. {self._again()}")
        outputs.show(work.waits, work.answers())
        self.rejoin()
        return RanksInterrupt("the ranks have stopped, and are joined anew")

    def _again(self) -> str:
        return (
            f"Start all anew by `ranks = lab.ranks({self.size})`, and run the cells again that define what "
            "they need."
        )
