"""What `make test` runs: every check of the repository, one after another, and a summary with seconds.

A failed stage does not stop the later ones, so one run shows all that is wrong. Nothing here writes to a
committed file: linters only report, labs are executed in memory, editions and the book go to _build/.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAB_CELL_TIMEOUT_S = 300
STAGE_TIMEOUT_S = 3600  # a test that hangs should fail, not hold the machine for the night


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One command: it passes when it exits with 0.

    Attributes:
        name: shown in the summary.
        command: program and arguments, run in the repository's root.
        environment: variables set for it beside the common ones.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


def stages(labs: Sequence[str], jobs: int, make: str) -> list[Stage]:
    """The stages in order: quick ones first, and the book before the tests that read it."""
    python = sys.executable
    lint_imports = str(Path(python).parent / "lint-imports")
    return [
        Stage(name="lint", command=[python, "-m", "ruff", "check", "."]),
        Stage(name="format", command=[python, "-m", "ruff", "format", "--check", "."]),
        Stage(name="types", command=[python, "-m", "mypy"]),
        Stage(name="floors", command=[lint_imports]),
        Stage(name="student edition", command=[python, "tools/student.py", *labs]),
        Stage(name="book", command=[make, "--no-print-directory", "book"]),
        Stage(
            name="tests",
            command=[python, "-m", "pytest", "tests", "--durations=15", *_workers(jobs)],
            environment=_threads(jobs),
        ),
        *([_lab_stage(labs, min(jobs, len(labs)))] if labs else []),
    ]


def _lab_stage(labs: Sequence[str], jobs: int) -> Stage:
    """All labs by nbval: every cell runs, outputs marked as stable are compared, a wrong answer raises."""
    nbval = ["--nbval-lax", "--nbval-current-env", f"--nbval-cell-timeout={LAB_CELL_TIMEOUT_S}"]
    return Stage(
        name="labs",
        command=[sys.executable, "-m", "pytest", *nbval, *_workers(jobs), *labs],
        environment={**_threads(jobs), "SCALELAB_STRICT": "1", "SCALELAB_TIER": "cpu"},
    )


def _workers(jobs: int) -> list[str]:
    # By file, or the cells of one notebook would be spread over kernels.
    return ["-n", str(jobs), "--dist", "loadfile"] if jobs > 1 else []


def _threads(jobs: int) -> dict[str, str]:
    """Share the cores among `jobs` processes: two that use all of them each would thrash."""
    if jobs == 1:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}


def run(stage: Stage) -> tuple[bool, float]:
    """Run a stage with its output shown; whether it passed, and its wall time in seconds."""
    print(f"\n== {stage.name}: {' '.join(stage.command)}", flush=True)
    # No test may reach for the network or log in anywhere.
    common = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    started = time.monotonic()
    try:
        code = subprocess.call(
            stage.command,
            cwd=ROOT,
            env={**os.environ, **common, **stage.environment},
            timeout=STAGE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        print(f"error: stopped after {STAGE_TIMEOUT_S} s", file=sys.stderr)
        code = 124
    except FileNotFoundError as error:
        print(f"error: cannot run it: {error}", file=sys.stderr)
        code = 127
    if code < 0:
        print(f"error: it was ended by signal {-code}", file=sys.stderr)
    return code == 0, time.monotonic() - started


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all stages; 0 if every one passed."""
    parser = argparse.ArgumentParser(description="Run every check of the repository.")
    parser.add_argument("labs", nargs="*", help="notebooks to execute (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="test processes at once (default: 2)")
    parser.add_argument("--make", default="make", help="the make program, for the book (default: make)")
    options = parser.parse_args(arguments)
    labs = options.labs or sorted(str(lab.relative_to(ROOT)) for lab in ROOT.glob("labs/*/*.ipynb"))
    results = [(stage.name, *run(stage)) for stage in stages(labs, max(1, options.jobs), options.make)]
    width = max(len(name) for name, _, _ in results)
    print("\n== summary")
    for name, passed, seconds in results:
        print(f"{name:<{width}}  {seconds:7.1f} s  {'passed' if passed else 'FAILED'}")
    print(f"{'together':<{width}}  {sum(seconds for _, _, seconds in results):7.1f} s")
    if "SCALELAB_DATA" not in os.environ:
        print("SCALELAB_DATA is not set: tests that need the named data sets were skipped.")
    return 0 if all(passed for _, passed, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
