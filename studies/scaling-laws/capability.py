"""The recorded study behind book/scaling-laws/capability.md: what the lab shows once, over seeds.

    python studies/scaling-laws/capability.py            # all arms: a quarter of an hour on a quiet core
    python studies/scaling-laws/capability.py sizes      # one arm; each goes on where it was stopped

It writes, under src/scalelab/lab/records/scaling-laws/capability/:
sizes.json (one task, letters to sort, over sizes at equal tokens: metrics of the same answers),
compute.json (three tasks side by side over sizes at equal FLOPs), seeds.json (one of these sizes with many
seeds, scored on the way), repeats.json (text of several lengths read
over and over at several sizes), leaks.json (held-out text leaked into the training text, over sizes),
times.json (the same over how often it was leaked, word for word and respelled) and provenance.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import scalelab
from scalelab.core.artifacts import write_atomic
from scalelab.core.seeding import derive_seed
from scalelab.lab.scaling_laws import small_tasks, small_text
from scalelab.lab.scaling_laws.recorded_capability import DESIGN, STUDY
from scalelab.train.record import commit

OUT = Path(scalelab.__file__).parent / "lab" / "records" / STUDY
COMMAND = "python studies/scaling-laws/capability.py"
N_MARKS = 24
Row = dict[str, Any]


def sizes(cell: Row) -> Row:
    """Sorting alone, every size on the same rows for as many steps."""
    run, _ = small_tasks.train_on_tasks(
        cell["width"], DESIGN.sorting_steps, seed=cell["seed"], tasks=("sorting",),
        rows_per_task=DESIGN.sorting_rows,
    )  # fmt: skip
    return run.as_dict()


def compute(cell: Row) -> Row:
    """Three tasks side by side, every size with the same FLOPs."""
    steps = small_tasks.steps_for(DESIGN.flops, cell["width"])
    run, _ = small_tasks.train_on_tasks(cell["width"], steps, seed=cell["seed"])
    return run.as_dict()


def seeds(cell: Row) -> Row:
    """The same of one size, scored on the way."""
    steps = small_tasks.steps_for(DESIGN.flops, cell["width"])
    run, _ = small_tasks.train_on_tasks(cell["width"], steps, seed=cell["seed"], n_marks=N_MARKS)
    return run.as_dict()


def repeats(cell: Row) -> Row:
    """The first `documents` of a text, read over and over for the same number of steps."""
    text = small_text.draw_documents(max(DESIGN.lengths), cell["seed"])[: cell["documents"]]
    judged = {"train": text[: DESIGN.judged], "held_out": held_out()}
    run, _ = small_text.train_on_documents(
        cell["width"], text, DESIGN.repeat_steps, seed=cell["seed"], judged=judged
    )
    return exact(run, judged)


def leaks(cell: Row) -> Row:
    """Held-out documents in the training text `times` times, every `every`-th symbol drawn anew (0: none)."""
    leaked, clean = small_text.split_held_out()
    n = DESIGN.leak_steps * small_text.BATCH
    told = leaked
    if cell["every"]:
        told = small_text.respelled(
            leaked, cell["every"], np.random.default_rng(derive_seed(cell["seed"], "respelled"))
        )
    text = small_text.leak(small_text.draw_documents(n, cell["seed"]), told, cell["times"])
    judged = {"leaked": leaked, "clean": clean}
    run, _ = small_text.train_on_documents(
        cell["width"], text, DESIGN.leak_steps, seed=cell["seed"], judged=judged, n_marks=1
    )
    return exact(run, judged)


def held_out() -> small_text.Ints:
    """What judges the repeats: clean documents."""
    return small_text.split_held_out()[1]


def exact(run: small_text.TextRun, judged: dict[str, small_text.Ints]) -> Row:
    """A run with the true language's loss on the same documents."""
    return {**run.as_dict(), "exact": {name: small_text.exact_loss(rows) for name, rows in judged.items()}}


ARMS: dict[str, Callable[[Row], Row]] = {
    "sizes": sizes,
    "compute": compute,
    "seeds": seeds,
    "leaks": leaks,
    "repeats": repeats,
    "times": leaks,
}


def keep(name: str, values: Any) -> None:
    """Write one file of the record whole, or not at all."""
    write_atomic(OUT / f"{name}.json", (json.dumps(values, indent=1) + "\n").encode())


def run_arm(name: str, until: float) -> bool:
    """Run what an arm still lacks; False when time ran out first."""
    path = OUT / f"{name}.json"
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    for cell in DESIGN.cells(name):
        if any(all(row[key] == value for key, value in cell.items()) for row in rows):
            continue
        if time.monotonic() > until:
            return False
        rows.append({**cell, **ARMS[name](cell)})
        keep(name, {"runs": rows})
        print(name, cell, f"{rows[-1]['seconds']:.0f} s", flush=True)
    return True


def provenance() -> None:
    """Where all this was made."""
    counts = {}
    for name in ARMS:
        path = OUT / f"{name}.json"
        counts[name] = len(json.loads(path.read_text(encoding="utf-8"))["runs"]) if path.exists() else 0
    keep(
        "provenance",
        {
            "command": COMMAND,
            "runs": counts,
            "device": "cpu, 1 thread, fp32",
            "versions": {
                "scalelab": scalelab.__version__, "torch": str(torch.__version__), "numpy": np.__version__,
            },
            "commit": commit(),
            "date": time.strftime("%Y-%m-%d"),
        },
    )  # fmt: skip


def main() -> None:
    """Run the arms asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("arms", nargs="*", metavar="ARM", help=", ".join(ARMS) + "; all by default")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop before the next run after so many")
    chosen = parser.parse_args()
    for name in chosen.arms:
        if name not in ARMS:
            parser.error(f"there is no arm {name!r}; there are {', '.join(ARMS)}")
    until = time.monotonic() + 60 * chosen.minutes
    for name in chosen.arms or ARMS:
        if not run_arm(name, until):
            print("stopped; run it again to go on")
            break
    provenance()


if __name__ == "__main__":
    main()
