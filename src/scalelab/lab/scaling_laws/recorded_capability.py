"""The record behind `capability`: its design and its runs, without torch.

Taught in book/scaling-laws/capability.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scalelab.core.errors import LabError
from scalelab.lab.records import study_json

STUDY = "scaling-laws/capability"
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """What was run: the study and the lab's live cells take it from here.

    Attributes:
        sorting_widths, sorting_steps, sorting_rows: one task over sizes at equal tokens.
        flops, widths: three tasks over sizes at equal FLOPs.
        seeds_width, seeds_more: one size of these again, with so many more seeds (100, 101 …).
        lengths: unique documents that are read over and over. repeat_widths, repeat_steps: by these sizes.
        leak_widths, leak_steps, times: sizes, steps and how often a held-out document was leaked.
        respelled_every: one symbol in so many is drawn anew in the respelled leak.
        judged: documents that the training loss is measured on. seeds: 0, 1, 2 … so many.
    """

    sorting_widths: tuple[int, ...] = (4, 8, 16, 24, 32, 48)
    sorting_steps: int = 160
    sorting_rows: int = 32
    flops: float = 4e10
    widths: tuple[int, ...] = (4, 8, 12, 16, 24, 32, 48)
    seeds_width: int = 24
    seeds_more: int = 16
    lengths: tuple[int, ...] = (64, 256, 1024, 8192)
    repeat_widths: tuple[int, ...] = (8, 20, 48)
    repeat_steps: int = 300
    leak_widths: tuple[int, ...] = (8, 12, 16, 24, 32, 48)
    leak_steps: int = 600
    times: int = 24
    times_tried: tuple[int, ...] = (1, 4, 48)
    times_width: int = 24
    respelled_every: int = 8
    judged: int = 64
    seeds: int = 3

    def cells(self, arm: str) -> list[Row]:
        """The runs of an arm, as the values that tell one from another; seed by seed."""
        seeds = range(self.seeds)
        if arm == "sizes":
            return [{"width": w, "seed": s} for s, w in itertools.product(range(4), self.sorting_widths)]
        if arm == "compute":
            return [{"width": w, "seed": s} for s, w in itertools.product(seeds, reversed(self.widths))]
        if arm == "seeds":
            return [{"width": self.seeds_width, "seed": 100 + s} for s in range(self.seeds_more)]
        if arm == "repeats":
            found = itertools.product(seeds, self.lengths, self.repeat_widths)
            return [{"width": w, "documents": u, "seed": s} for s, u, w in found]
        if arm == "leaks":
            plain = {"times": self.times, "every": 0}
            return [{"width": w, **plain, "seed": s} for s, w in itertools.product(seeds, self.leak_widths)]
        tried = [(t, 0) for t in self.times_tried] + [(self.times, self.respelled_every)]
        return [
            {"width": self.times_width, "times": t, "every": e, "seed": s}
            for s, (t, e) in itertools.product(seeds, tried)
        ]


DESIGN = Design()


def recorded(arm: str) -> list[Row]:
    """The runs of an arm: "sizes", "compute", "seeds", "repeats", "leaks" or "times".

    Raises:
        LabError: there is no record.
    """
    runs: list[Row] = study_json(STUDY, arm)["runs"]
    return runs


def table(runs: Sequence[Row], task: str | None, name: str) -> npt.NDArray[np.float64]:
    """A quantity of runs, [widths, seeds], widths ascending.

    Args:
        task: whose score it is; None for the run's own, such as "n_params" or "losses/clean". "n_params" and
            the like are the run's own whatever the task.

    Raises:
        LabError: widths with different numbers of seeds.
    """
    widths = sorted({run["width"] for run in runs})
    columns = [[_value(run, task, name) for run in runs if run["width"] == width] for width in widths]
    if len({len(column) for column in columns}) != 1:
        raise LabError(f"the runs have {[len(column) for column in columns]} seeds for widths {widths}")
    return np.array(columns, dtype=np.float64)


def _value(run: Row, task: str | None, name: str) -> float:
    place: Any = run["scores"][task] if task is not None and name not in run else run
    for part in name.split("/"):
        place = place[part]
    return float(place)
