"""The study behind book/scaling-laws/planning.md: a loss foretold before its run, the run, the error.

    python studies/scaling-laws/planning.py predict     # half a minute; then commit prediction.json
    python studies/scaling-laws/planning.py run         # an hour or two on one core; goes on after a kill
    python studies/scaling-laws/planning.py small       # the same in small, on `markov`: two minutes

`predict` fits the sweep on `packages` (studies/scaling-laws/packages.toml) up to 1e13 FLOPs, by the way that
foretold best *within* those budgets, and writes the shape, N, D, loss and 90 % interval of one run at 1e14.
`run` trains it with the sweep's own settings. It refuses unless prediction.json is committed as it stands;
once it has begun, `predict` refuses to write another.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

import scalelab
from scalelab.core.records import append_records, read_records
from scalelab.core.units import FLOPS_PER_PARAM_TOKEN
from scalelab.lab.scaling_laws.extrapolation import (
    LEVEL,
    SAME_BUDGET,
    budgets_of,
    fingerprint,
    foretell,
    rms_error,
    try_ways,
)
from scalelab.lab.scaling_laws.recorded_bets import BET, CUT, shown_runs
from scalelab.sweeps import Cell, Sweep, read_sweep, run_sweep
from scalelab.sweeps.runner import Standing

SWEEP = Path(__file__).with_name("packages.toml")
RECORDS = Path(scalelab.__file__).parent / "lab" / "records" / "scaling-laws"
OUT = RECORDS / "planning"
PREDICTION, BEGUN, OUTCOME = OUT / "prediction.json", OUT / "begun.json", OUT / "outcome.json"
GRID = "larger"
# Sizes to choose from, heads 16 wide as the sweep's are; the nearest to what the valleys call for is taken.
SHAPES = {
    "n853k": {"n_layers": 4, "d_model": 128, "n_heads": 8},
    "n1070k": {"n_layers": 4, "d_model": 144, "n_heads": 9},
    "n1311k": {"n_layers": 4, "d_model": 160, "n_heads": 10},
    "n1640k": {"n_layers": 5, "d_model": 160, "n_heads": 10},
    "n1970k": {"n_layers": 5, "d_model": 176, "n_heads": 11},
}


def larger(shape: str | None = None) -> tuple[Sweep, list[Cell]]:
    """The sweep's own settings for these shapes at the large budget, and its cells."""
    sweep = read_sweep(SWEEP)
    grid = next(grid for grid in sweep.grids if grid.name == "isoflop")
    shapes = SHAPES if shape is None else {shape: SHAPES[shape]}
    grid = dataclasses.replace(grid, name=GRID, shapes=tuple(shapes), values=(BET,), tokens_per_param=None)
    sweep = dataclasses.replace(sweep, shapes=shapes, grids=(grid,), out=OUT)
    return sweep, sweep.cells(vocab_size=sweep.text.vocab_size)


def predict() -> None:
    """Write the prediction, unless its run has begun."""
    if BEGUN.exists() or OUTCOME.exists():
        raise SystemExit("the run has begun: its prediction stands")
    runs = shown_runs()
    shown = budgets_of(runs)
    if shown.values[-1] < CUT / SAME_BUDGET:
        raise SystemExit(
            f"the record's largest budget is {shown.values[-1]:.3g} FLOPs, not {CUT:g}: finish the sweep"
        )
    fit = shown.valleys()
    wanted = float(fit.n_law(BET))
    _, cells = larger()
    cell = min(cells, key=lambda one: abs(math.log(one.n_params / wanted)))
    found = foretell(shown, cell.n_params, cell.n_tokens)
    tries = try_ways(shown)
    keep(
        PREDICTION,
        {
            "date": time.strftime("%Y-%m-%d"),
            "command": "python studies/scaling-laws/planning.py predict",
            "fitted_up_to_flops": CUT,
            "budgets": shown.values,
            "n_runs": len(runs),
            "data_sha256": fingerprint(runs),
            "run": {
                "shape": cell.shape,
                **SHAPES[cell.shape],
                "n_params": cell.n_params,
                "n_tokens": cell.n_tokens,
                "flops_6nd": FLOPS_PER_PARAM_TOKEN * cell.n_params * cell.n_tokens,
                "learning_rate": cell.train.learning_rate,
                "warmup_steps": cell.train.warmup,
                "seed": cell.train.seed,
                "best_size_by_valleys": wanted,
            },
            "way": found.way,
            "chosen_by": "least RMS of ln(foretold / measured) over the tries below, all within the "
            "fitted budgets",
            "loss_nats": found.loss,
            "level": LEVEL,
            "interval": [found.low, found.high],
            "interval_by_bootstrap": list(found.by_bootstrap),
            "interval_by_errors": list(found.by_errors),
            "noise_nats": fit.noise,
            "rms_errors": {
                way: dict(zip(("rms", "n"), rms_error(tries, way), strict=True))
                for way in dict.fromkeys(one.way for one in tries)
            },
            "tries": [dataclasses.asdict(one) for one in tries],
        },
    )
    print(
        f"{cell.shape}: {cell.n_params:,} parameters, {cell.n_tokens:,} tokens (the valleys ask for "
        f"{wanted:,.0f})"
    )
    print(f"{found.way}: {found.loss:.4f} nats, {LEVEL:.0%} in [{found.low:.4f}, {found.high:.4f}]")
    print(f"now commit {PREDICTION.name}, then run")


def committed(path: Path) -> str:
    """The commit that holds a file as it stands.

    Raises:
        SystemExit: it is not committed, or was changed since.
    """

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", *words, "--", path.name], cwd=path.parent, capture_output=True, text=True
        )

    if not path.exists():
        raise SystemExit(f"there is no {path.name}: predict first")
    if git("ls-files", "--error-unmatch").returncode:
        raise SystemExit(f"{path.name} is not committed: a prediction that can still be changed is none")
    if git("diff", "--quiet", "HEAD").returncode:
        raise SystemExit(f"{path.name} was changed since its commit")
    return git("log", "-1", "--format=%H").stdout.strip()


def begin() -> dict[str, Any]:
    """What was committed to, from the first start on.

    Raises:
        SystemExit: no committed prediction, or another one than at the first start.
    """
    commit = committed(PREDICTION)
    now = {
        "prediction_commit": commit,
        "prediction_sha256": hashlib.sha256(PREDICTION.read_bytes()).hexdigest(),
    }
    if BEGUN.exists():
        before: dict[str, Any] = json.loads(BEGUN.read_text(encoding="utf-8"))
        if before["prediction_sha256"] != now["prediction_sha256"]:
            raise SystemExit(f"{PREDICTION.name} is not the one that this run began with")
        return before
    begun = {**now, "begun": time.strftime("%Y-%m-%dT%H:%M:%S")}
    keep(BEGUN, begun)
    return begun


def run() -> None:
    """Train what was foretold, and hold the loss against it."""
    begun = begin()
    foretold = json.loads(PREDICTION.read_text(encoding="utf-8"))
    sweep, cells = larger(foretold["run"]["shape"])
    for name in ("n_params", "n_tokens"):
        if getattr(cells[0], name) != foretold["run"][name]:
            raise SystemExit(
                f"{name} would be {getattr(cells[0], name)}, not the {foretold['run'][name]} foretold"
            )
    report = run_sweep(sweep, workers=1, report=_tell())
    if report.failures:
        raise SystemExit(report.failures[0].reason)
    made = read_records(OUT / f"{GRID}.jsonl")[-1]
    low, high = foretold["interval"]
    keep(
        OUTCOME,
        {
            **begun,
            "ended": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "run_id": made.run_id,
            "loss_nats": made.loss_nats,
            "foretold_nats": foretold["loss_nats"],
            "error_nats": foretold["loss_nats"] - made.loss_nats,
            "error_log": math.log(foretold["loss_nats"] / made.loss_nats),
            "inside": bool(low <= made.loss_nats <= high),
            "times_the_largest_fitted": FLOPS_PER_PARAM_TOKEN * made.n_params * made.n_tokens / CUT,
        },
    )
    provenance()
    print(f"foretold {foretold['loss_nats']:.4f} [{low:.4f}, {high:.4f}], measured {made.loss_nats:.4f}")


def _tell() -> Any:
    last = [0.0]

    def report(standing: Standing) -> None:
        if time.monotonic() - last[0] > 60:
            last[0] = time.monotonic()
            left = "" if standing.left_s is None else f", {standing.left_s / 60:.0f} minutes left"
            print(f"{standing.n_done} of {standing.n_runs} done{left}", flush=True)

    return report


def small() -> None:
    """The live part's runs over three seeds, so that one live seed can be seen for what it is."""
    from scalelab.lab.scaling_laws.small_bet import LARGE, SHOWN_TOKENS, SHOWN_WIDTHS, train_on_markov

    path = OUT / "small.jsonl"
    for seed in range(3):
        there = [run for run in read_records(path) if run.seed == seed] if path.exists() else []
        if len(there) == len(SHOWN_WIDTHS) * len(SHOWN_TOKENS) + 1:
            continue
        made = train_on_markov(SHOWN_WIDTHS, SHOWN_TOKENS, [seed]) + train_on_markov(
            [LARGE[0]], [LARGE[1]], [seed]
        )
        append_records(path, made)
        print(f"seed {seed}: {len(made)} runs, the large one {made[-1].loss_nats:.4f}", flush=True)
    provenance()


def provenance() -> None:
    """Where all this was made."""
    runs = [one for path in sorted(OUT.glob("*.jsonl")) for one in read_records(path)]
    keep(
        OUT / "provenance.json",
        {
            "command": "python studies/scaling-laws/planning.py predict | run | small",
            "n_runs": len(runs),
            "devices": sorted({one.device for one in runs}),
            "versions": [
                json.loads(each) for each in sorted({json.dumps(dict(one.versions)) for one in runs})
            ],
            "commits": sorted({one.commit for one in runs}),
            "numpy": np.__version__,
            "date": time.strftime("%Y-%m-%d"),
        },
    )


def keep(path: Path, values: Any) -> None:
    """Write one file of the record whole, or not at all."""
    from scalelab.core.artifacts import write_atomic

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(values, indent=1) + "\n").encode())


def main() -> None:
    """Read the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("predict", "run", "small"))
    {"predict": predict, "run": run, "small": small}[parser.parse_args().command]()


if __name__ == "__main__":
    main()
