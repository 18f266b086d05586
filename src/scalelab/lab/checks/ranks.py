"""An answer that several ranks run together: on threads, so that a wait in vain is seen and not waited for.

An exercise's `observe` calls `on_ranks` and reads what the ranks returned. When they wait for each other for
ever, the observation is which of them do, with an account of who waits for whom; a fault that leaves ranks
waiting is thus told from others like any mistake.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from scalelab.lab.checks.answers import Numbers, Rejected, call, check_signature
from scalelab.lab.checks.framework import Answer, Observation
from scalelab.parallel.scratch.group import Group
from scalelab.parallel.scratch.threads import Deadlock, OutOfTime, run_threads

WAITING = "ranks that wait for ever"
LIMIT_S = 15.0  # less than an answer has


def on_ranks(
    answer: Answer,
    size: int,
    arguments: Callable[[Group], tuple[Any, ...]],
    read: Callable[[list[Any]], Observation],
) -> Observation:
    """What an answer gives on so many ranks.

    Args:
        arguments: what each rank calls the answer with, made afresh on it: `answer(*arguments(group))`.
        read: what is observed of the ranks' answers, in order of rank.

    Returns:
        For ranks that come to an end, `{WAITING: none, **read(answers)}`; else which wait, 1 for each.

    Raises:
        Rejected: as `call`; what a rank raised is told as the answer's.
    """

    def work(group: Group) -> Any:
        given = arguments(group)
        check_signature(answer, given, {})
        return answer(*given)

    stuck: list[Deadlock] = []

    def ranks() -> list[Any]:
        try:
            return run_threads(size, work, limit_s=LIMIT_S)
        except Deadlock as deadlock:
            stuck.append(deadlock)
            return []
        except OutOfTime as error:
            raise Rejected(
                f"did not come to an end: {error}", name="did not come to an end", ran=False
            ) from error
        except ValueError as error:
            if "process group has not been initialized" not in str(error):
                raise
            raise Rejected(
                "calls torch.distributed, which knows nothing of these ranks: they are threads. Use `group`",
                name="torch.distributed in place of group",
                ran=False,
            ) from error

    answers = call(ranks)
    waiting = np.zeros(size)
    if stuck:
        waiting[list(stuck[0].ranks)] = 1
        return {WAITING: Numbers(waiting, "rank", account=f"{sentence(str(stuck[0]))}.")}
    return {WAITING: Numbers(waiting, "rank"), **read(answers)}


def sentence(text: str) -> str:
    """The text with a capital."""
    return text[0].upper() + text[1:]
