"""The study behind book/scaling-laws/power-laws.md: tiny decoders on `markov`, over seeds.

    python studies/scaling-laws/power_laws.py      # about three minutes on two quiet cores

It runs markov.toml (what is recorded already is not run again) and writes beside the records the exact loss
of the language on the tokens that judged them, and where the runs were made.
"""

from __future__ import annotations

import json
from pathlib import Path

from scalelab.core.records import read_records
from scalelab.lab.scaling_laws.markov_sweep import exact_loss
from scalelab.sweeps import read_sweep, run_sweep

SWEEP = Path(__file__).with_name("markov.toml")


def main() -> None:
    """Run the sweep and write what belongs to it."""
    sweep = read_sweep(SWEEP)
    report = run_sweep(sweep, workers=1)
    print(f"{report.n_new} new runs, {report.n_there} were there, {len(report.failures)} failed")
    runs = [run for grid in sweep.grids for run in read_records(sweep.out / f"{grid.name}.jsonl")]
    _write(sweep.out / "measurements.json", {"exact_loss_nats": exact_loss()})
    provenance = {
        "command": "python studies/scaling-laws/power_laws.py",
        "sweep": "studies/scaling-laws/markov.toml",
        "n_runs": len(runs),
        "devices": sorted({run.device for run in runs}),
        "versions": [json.loads(each) for each in sorted({json.dumps(dict(run.versions)) for run in runs})],
        "commits": sorted({run.commit for run in runs}),
    }
    _write(sweep.out / "provenance.json", provenance)


def _write(path: Path, values: object) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
