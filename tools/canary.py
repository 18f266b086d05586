"""Run every lab where it will be opened: in fresh environments, by its own set-up cell.

    python tools/canary.py                        every combination, every lab
    python tools/canary.py --only "py311-tested"  those named; a wrong name gets the list

The results are merged into book/about/compatibility.json, which a page of the site shows.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import address
import fresh
import notebooks
import snapshot
from fresh import CannotInstall, Result
from nbformat import NotebookNode
from notebooks import ToolError, lab_name
from snapshot import GitError, Snapshot

from scalelab.core.artifacts import write_atomic

RECORD = notebooks.ROOT / "book" / "about" / "compatibility.json"
NOT_RUN = "not run"
INSTALL = re.compile(r"^\s*(?P<line>!pip install .*)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Combination:
    """An environment to run the labs in.

    Attributes:
        name: what it is asked for by. why: what it stands for, for the table.
        python: version of the interpreter, as in "3.12".
        requirements: what is there before the lab is opened.
    """

    name: str
    why: str
    python: str
    requirements: tuple[str, ...]


def combinations(root: Path = notebooks.ROOT) -> list[Combination]:
    """The matrix; its oldest and its tested versions are read from the files that name them."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needs = [*project["dependencies"], *project["optional-dependencies"]["lab"]]
    floor = {need.split(">=")[0]: need.replace(">=", "==") for need in needs}
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = {line.split("==")[0]: line for line in lines if "==" in line}
    return [
        Combination(
            name="py311-oldest",
            why="the oldest torch and numpy that are admitted",
            python="3.11",
            requirements=(floor["torch"], floor["numpy"], "ipykernel"),
        ),
        Combination(
            name="py311-floor",
            why="every package at its lower bound",
            python="3.11",
            requirements=(*floor.values(), "ipykernel"),
        ),
        Combination(
            name="py311-tested",
            why="the versions that the tests run on",
            python="3.11",
            requirements=(tested["torch"], tested["numpy"], "ipykernel"),
        ),
        Combination(
            name="py312-hosted",
            why="a Python and a torch such as notebook hosts offer",
            python="3.12",
            requirements=("torch==2.11.0", "numpy==2.0.2", "ipykernel"),
        ),
        Combination(
            name="py313-newest",
            why="the newest that can be had",
            python="3.13",
            requirements=("torch", "numpy", "ipykernel"),
        ),
    ]


def install_line(notebook: NotebookNode) -> str:
    """The line of a lab's set-up cells that installs the package.

    Raises:
        ToolError: there is none, or there are two.
    """
    found = [m["line"] for cell in notebooks.tagged(notebook, "setup") for m in INSTALL.finditer(cell.source)]
    if len(found) != 1:
        raise ToolError(f"{len(found)} lines of its set-up cells begin with '!pip install'; one is needed")
    return found[0]


def run(
    combination: Combination, paths: Sequence[Path], source: Snapshot, pip_options: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Run labs in a fresh environment of one combination; an entry of the record for each."""
    common = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": source.commit,
        "uncommitted": source.uncommitted,
    }
    read = {lab_name(path): notebooks.read(path) for path in paths}
    repository = address.repository().repository
    try:
        python = fresh.find_python(combination.python)
        with tempfile.TemporaryDirectory(prefix="scalelab-canary-") as scratch:
            with fresh.environment(
                Path(scratch) / "env", python, combination.requirements, pip_options
            ) as where:
                variables = snapshot.redirect(repository, source.path, {})
                entries = {}
                for number, (name, notebook) in enumerate(read.items()):
                    result = fresh.run_lab(notebook, name, where, Path(scratch) / str(number), variables)
                    entries[name] = common | _entry(result, notebook, where)
                return entries
    except CannotInstall as reason:
        return {name: common | {"status": NOT_RUN, "reason": str(reason)} for name in read}


def _entry(result: Result, notebook: NotebookNode, where: fresh.Environment) -> dict[str, Any]:
    seconds = result.install_seconds
    return {
        "status": result.status,
        "reason": result.reason,
        "install_line": install_line(notebook),
        "python": where.version,
        "torch": where.packages.get("torch"),
        "numpy": where.packages.get("numpy"),
        "installed": dict(sorted(result.added.items())),
        "install_seconds": None if seconds is None else round(seconds, 1),
        "seconds": round(result.seconds, 1),
        "longest_cell_seconds": round(result.longest_cell_seconds, 1),
        "peak_mib": round(result.peak_mib),
    }


def read_record(path: Path) -> dict[str, Any]:
    """The record, or an empty one.

    Raises:
        ToolError: it is there and cannot be read.
    """
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, OSError) as error:
        raise ToolError(f"{path.name} cannot be read: {error}; delete it to begin anew") from None


def merge(
    record: Mapping[str, Any], combination: Combination, entries: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The record with these entries in it; one that was not run leaves an older result where it is."""
    old = record.get(combination.name, {}).get("labs", {})
    new = {
        name: old[name] if entry["status"] == NOT_RUN and name in old else entry
        for name, entry in entries.items()
    }
    row = {"why": combination.why, "before": list(combination.requirements), "labs": {**old, **new}}
    return {**record, combination.name: row}


def prune(record: Mapping[str, Any], names: Iterable[str], labs: Iterable[str]) -> dict[str, Any]:
    """The record without combinations and labs that are no more, in the matrix's order."""
    known = set(labs)
    kept = {}
    for name in names:
        if name in record:
            rows = {lab: entry for lab, entry in sorted(record[name]["labs"].items()) if lab in known}
            kept[name] = {**record[name], "labs": rows}
    return kept


def table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """What was just run, for a terminal."""
    rows = [("combination", "lab", "python", "torch", "numpy", "install", "lab, all", "result")]
    for name, entries in results.items():
        for lab, entry in entries.items():
            times = [
                "-" if entry.get(key) is None else f"{entry[key]:.0f} s"
                for key in ("install_seconds", "seconds")
            ]
            versions = [str(entry.get(key) or "-") for key in ("python", "torch", "numpy")]
            said = entry["status"] + (f": {entry['reason']}" if entry["reason"] else "")
            rows.append((name, lab, *versions, *times, said))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(lines)


def main(arguments: list[str] | None = None, matrix: Sequence[Combination] | None = None) -> int:
    """The command; returns its exit code: 1 if a lab failed, or none was run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="LAB", help="part/name of a lab; all when none is given")
    parser.add_argument("--only", default="", metavar="NAMES", help="combinations to run; all when empty")
    parser.add_argument("--record", type=Path, default=RECORD, help="where results are kept")
    parser.add_argument("--labs", type=Path, default=notebooks.LABS, help="folder of labs (default: labs/)")
    parser.add_argument("--extra-index-url", help="where the fresh environments' pip looks for torch as well")
    options = parser.parse_args(arguments)
    known = {combination.name: combination for combination in matrix or combinations()}
    only = options.only.replace(",", " ").split()
    pip_options = ["--extra-index-url", options.extra_index_url] if options.extra_index_url else []
    try:
        if unknown := sorted(set(only) - set(known)):
            raise ToolError(f"no combination {', '.join(unknown)}; known: {', '.join(known)}")
        paths = notebooks.find_labs(options.names, options.labs)
        for path in paths:
            install_line(notebooks.read(path))
        every = [lab_name(path) for path in notebooks.find_labs(labs=options.labs)]
        record = read_record(options.record)
        results = {}
        with tempfile.TemporaryDirectory(prefix="scalelab-source-") as folder:
            source = snapshot.take(notebooks.ROOT, Path(folder) / "course.git", f"v{address.version()}")
            for name in only or known:
                print(f"{name}: {' '.join(known[name].requirements)}", flush=True)
                results[name] = run(known[name], paths, source, pip_options)
                record = prune(merge(record, known[name], results[name]), known, every)
                write_atomic(options.record, (json.dumps(record, indent=1) + "\n").encode())
    except (ToolError, GitError, address.AddressError) as error:
        print(f"canary: {error}", file=sys.stderr)
        return 2
    print(table(results))
    statuses = {entry["status"] for entries in results.values() for entry in entries.values()}
    return 0 if statuses <= {"passed", NOT_RUN} and "passed" in statuses else 1


if __name__ == "__main__":
    sys.exit(main())
