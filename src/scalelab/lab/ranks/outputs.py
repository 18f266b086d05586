"""What ranks showed and what they raised, as one notebook cell's output: rank by rank, in their order."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from scalelab.core.errors import LabError

WOKEN = {"RuntimeError", "ParallelError"}  # kinds of error in which a wait ends that is ended from outside
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"


class RanksError(LabError):
    """What ranks raised, as one error. In a notebook it shows the ranks' own tracebacks.

    Attributes:
        failures: by rank, as `engine.do` tells them.
        held_up: what the ranks did that waited for those in vain, by rank. remark: what has become of all.
    """

    def __init__(
        self, failures: Mapping[int, Mapping[str, Any]], *, held_up: Mapping[int, str], remark: str = ""
    ) -> None:
        self.held_up = dict(held_up)
        # What a rank raised that was woken from its wait is no cause.
        self.failures = {
            rank: failure
            for rank, failure in failures.items()
            if rank not in held_up or not WOKEN & set(failure["kinds"])
        }
        self.remark = remark
        super().__init__("\n".join([*map(_title, self._alike()), *self._rest()]))

    def _alike(self) -> list[tuple[list[int], Mapping[str, Any]]]:
        """Ranks that raised the same, together."""
        groups: dict[tuple[str, str], tuple[list[int], Mapping[str, Any]]] = {}
        for rank, failure in self.failures.items():
            key = (failure["ename"], failure["evalue"])
            groups.setdefault(key, ([], failure))[0].append(rank)
        return list(groups.values())

    def _rest(self) -> list[str]:
        """What is said after the tracebacks."""
        doing: dict[str, list[int]] = {}
        for rank, words in self.held_up.items():
            doing.setdefault(words, []).append(rank)
        lines = [f"Meanwhile {name_ranks(ranks)}: {words}" for words, ranks in doing.items()]
        return [*lines, self.remark] if self.remark else lines

    def _render_traceback_(self) -> list[str]:
        """IPython shows this instead of the way the error took through this package."""
        lines = []
        for ranks, failure in self._alike():
            lines += [f"{BOLD}{name_ranks(ranks)}:{PLAIN}", *"\n".join(failure["traceback"]).splitlines(), ""]
        return [*lines, *self._rest()]


class RanksInterrupt(KeyboardInterrupt):
    """The cell was interrupted, and its ranks have been."""

    def _render_traceback_(self) -> list[str]:
        return [f"KeyboardInterrupt: {self}"]


def show(waits: Mapping[int, Any], answers: Mapping[int, Any]) -> None:
    """Show what ranks printed, displayed, and the values of their last expressions.

    Args:
        waits: rank → AsyncResult whose output has come. answers: rank → what `engine.run_cell` gave.
    """
    for kind, file in (("stdout", sys.stdout), ("stderr", sys.stderr)):
        said = {rank: getattr(wait, kind) for rank, wait in waits.items()}
        text = "".join(_headed(f"[{kind}:{rank}]", said[rank]) for rank in said if said[rank].strip())
        if text:
            print(text, end="", file=file, flush=True)
    for rank, wait in waits.items():
        for output in wait.outputs or []:
            _publish(f"[output:{rank}]", output["data"], output.get("metadata") or {})
    for rank, answer in answers.items():
        if answer.get("data"):
            _publish(f"[result:{rank}]", answer["data"], answer["metadata"])


def name_ranks(ranks: Sequence[int]) -> str:
    """ "rank 2", "ranks 0 and 3", "ranks 0, 1 and 2"."""
    words = [str(rank) for rank in ranks]
    if len(words) == 1:
        return f"rank {words[0]}"
    return f"ranks {', '.join(words[:-1])} and {words[-1]}"


def _title(alike: tuple[list[int], Mapping[str, Any]]) -> str:
    ranks, failure = alike
    return f"{name_ranks(ranks)}: {failure['ename']}: {failure['evalue']}"


def _headed(heading: str, text: str) -> str:
    """A line beside its heading, several below it."""
    text = text.rstrip("\n")
    return f"{heading}\n{text}\n" if "\n" in text else f"{heading} {text}\n"


def _publish(heading: str, data: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Show rich output under a heading, plain text beside it."""
    if set(data) <= {"text/plain"}:
        print(_headed(heading, data.get("text/plain", "")), end="", flush=True)
        return
    from IPython.display import publish_display_data

    print(heading, flush=True)
    publish_display_data(data=dict(data), metadata=dict(metadata))  # type: ignore[no-untyped-call]
