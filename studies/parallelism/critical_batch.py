"""The recorded study behind book/parallelism/data-parallel.md: what batch size does to the steps needed.

Run it again, on one core without a GPU (under an hour; it goes on where it was stopped):

    .venv/dev/bin/python studies/parallelism/critical_batch.py

A decoder of 0.1 M parameters learns `markov` at batches of 4 to 1,024 sequences, each until its loss is 0.09
nats above the language's entropy. At each batch size learning rates a factor 2 apart are tried until the best
has a worse one on either side; the best is then run with two seeds more. It writes, under
src/scalelab/lab/records/parallelism/data-parallel/: critical-batch.jsonl and provenance.json.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import scalelab
from scalelab.core.artifacts import write_atomic
from scalelab.core.records import RunRecord, append_records, read_records
from scalelab.lab.parallelism.batch_runs import BatchRun, exact_loss, train_until
from scalelab.lab.parallelism.recorded_batches import (
    ARM,
    LOWEST_EXCESS,
    STUDY,
    TARGETS,
    batch_points,
    fit_batch_law,
    steps_to,
)

OUT = Path(scalelab.__file__).parent / "lab" / "records" / STUDY
RUNS = OUT / f"{ARM}.jsonl"
COMMAND = "python studies/parallelism/critical_batch.py"
BATCH_SIZES = (4, 8, 16, 32, 64, 128, 256, 512, 1024)  # sequences of 32 symbols
FIRST_RATE = 2e-3  # where the search begins at the smallest batch; at the next, at what was best before
SEEDS = (1, 2)
WORSE = 1.5  # a run is given up at so many times the tokens of the best of its batch size


class Study:
    """The runs so far, and those to come."""

    def __init__(self) -> None:
        self.runs: dict[str, RunRecord] = {}
        if RUNS.exists():
            self.runs = {run.run_id: run for run in read_records(RUNS)}

    def steps(self, run: BatchRun, best: float = math.inf) -> float:
        """Steps of a run to the lowest target, recorded or now made; infinite if it gives up."""
        if run.run_id not in self.runs:
            enough = None if math.isinf(best) else int(WORSE * best * run.batch_size * 32)
            record = train_until(run, max_tokens=enough)
            append_records(RUNS, [record])
            self.runs[run.run_id] = record
            print(f"{run} {record.n_tokens:,} tokens {record.seconds:.0f} s", flush=True)
        found = steps_to(self.runs[run.run_id], LOWEST_EXCESS, exact_loss())
        return found if math.isfinite(found) else math.inf

    def best_rate(self, batch_size: int, begin: float) -> float:
        """The best learning rate of a batch size, by steps of a factor 2 from where the search begins."""
        tried = {begin: self.steps(BatchRun(batch_size=batch_size, learning_rate=begin))}
        while True:
            best = min(tried, key=lambda rate: tried[rate])
            open_ = [rate for rate in (best * 2, best / 2) if rate not in tried]
            if not open_:
                return best
            run = BatchRun(batch_size=batch_size, learning_rate=open_[0])
            tried[open_[0]] = self.steps(run, tried[best])


def main() -> None:
    """Run what is missing, then say what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    study, rate, best = Study(), FIRST_RATE, {}
    for batch_size in BATCH_SIZES:
        rate = best[batch_size] = study.best_rate(batch_size, rate)
    for seed in SEEDS:
        for batch_size, rate in best.items():
            study.steps(BatchRun(batch_size=batch_size, learning_rate=rate, seed=seed))
    runs = list(study.runs.values())
    keep_provenance(runs)
    for excess in TARGETS:
        points = batch_points(runs, excess, exact_loss())
        law = fit_batch_law([point.batch_tokens for point in points], [point.steps for point in points])
        print(f"to {excess} nats above: {law}, E_min {law.min_tokens:,.0f} tokens")
        for point in points:
            print(f"  B {point.batch_tokens:>6}  S {point.steps:8.1f}  E {point.tokens:>11,.0f}  {point}")


def keep_provenance(runs: list[RunRecord]) -> None:
    """Where the runs were made, and what their losses are measured from."""
    values = {
        "command": COMMAND,
        "n_runs": len(runs),
        "exact_loss_nats": exact_loss(),
        "devices": sorted({run.device for run in runs}),
        "versions": [json.loads(each) for each in sorted({json.dumps(dict(run.versions)) for run in runs})],
        "commits": sorted({run.commit for run in runs}),
    }
    write_atomic(OUT / "provenance.json", (json.dumps(values, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
