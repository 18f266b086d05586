"""Tables and numbers of the page `compatibility`, computed from the record that `make canary` writes."""

from __future__ import annotations

import html
import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from IPython.display import HTML

FOLDER = Path(__file__).resolve().parent
RECORD = FOLDER / "compatibility.json"
PYPROJECT = FOLDER.parents[1] / "pyproject.toml"
NOT_RUN = "not run"
HEAD = ("combination: lab", "Python", "PyTorch", "NumPy", "set-up line", "whole lab", "result", "on")


def record() -> dict[str, Any]:
    """What `make canary` found last, by combination."""
    return dict(json.loads(RECORD.read_text(encoding="utf-8")))


def entries() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Combination, lab and result of each run."""
    for name, row in record().items():
        for lab, entry in row["labs"].items():
            yield name, lab, entry


def numbers() -> dict[str, str]:
    """Every number of the page's prose."""
    found = [entry for _, _, entry in entries()]
    run = [entry for entry in found if entry.get("install_seconds") is not None]
    return {
        "runs": str(sum(entry["status"] != NOT_RUN for entry in found)),
        "passed": str(sum(entry["status"] == "passed" for entry in found)),
        "slowest_install": seconds(max((entry["install_seconds"] for entry in run), default=None)),
        "most_added": str(max((len(entry["installed"]) for entry in run), default=0)),
    }


def seconds(value: float | None) -> str:
    """Whole seconds, or a dash."""
    return "–" if value is None else f"{value:.0f} s"


def table() -> HTML:
    """One row for each lab in each combination."""
    rows = []
    for name, lab, entry in entries():
        versions = [entry.get(key) or "–" for key in ("python", "torch", "numpy")]
        times = [seconds(entry.get("install_seconds")), seconds(entry.get("seconds"))]
        rows.append([f"{name}: {lab}", *versions, *times, entry["status"], entry["date"]])
    return HTML(as_table(HEAD, rows))


def remarks() -> HTML:
    """What each combination stands for, and why a run did not pass."""
    stands_for = [f"<code>{name}</code>: {html.escape(one['why'])}" for name, one in record().items()]
    failed = [
        f"<code>{name}</code>, {lab}: {entry['status']}, {html.escape(entry['reason'])}"
        for name, lab, entry in entries()
        if entry["reason"]
    ]
    return HTML(as_list(stands_for + failed))


def bounds() -> HTML:
    """The lower bounds of all that a lab needs."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    needs = [*project["dependencies"], *project["optional-dependencies"]["lab"]]
    return HTML(as_table(("package", "at least"), [need.split(">=") for need in needs]))


def as_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """HTML of a table whose first column names its rows."""
    heads = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    body = ""
    for first, *rest in rows:
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in rest)
        body += f'<tr><th scope="row">{html.escape(first)}</th>{cells}</tr>'
    return f'<table class="numbers"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'


def as_list(lines: Sequence[str]) -> str:
    """HTML of a list; "" of an empty one."""
    return f"<ul>{''.join(f'<li>{line}.</li>' for line in lines)}</ul>" if lines else ""
