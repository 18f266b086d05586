"""The course's recorded studies: runs that take longer than a lab, kept with where they were made.

Each study is a folder of JSONL files of run records, beside `measurements.json` and `provenance.json`; the
program of the same name under studies/ makes it again.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from scalelab.core.errors import LabError
from scalelab.core.records import RunRecord, read_records


def study_folder(name: str) -> Path:
    """The folder of a study such as "transformers/training".

    Raises:
        LabError: there is no such study.
    """
    folder = Path(str(files("scalelab.lab"))) / "records" / name
    if not (folder / "provenance.json").is_file():
        raise LabError(f"no recorded study {name!r}")
    return folder


def study_runs(name: str, arm: str) -> list[RunRecord]:
    """The records of one arm of a study.

    Raises:
        LabError: the study has no such arm.
    """
    path = study_folder(name) / f"{arm}.jsonl"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.jsonl")))
        raise LabError(f"the study {name!r} has no arm {arm!r}; it has {known}")
    return read_records(path)


def study_json(name: str, file: str) -> dict[str, Any]:
    """`measurements` or `provenance` of a study, as parsed JSON."""
    values: dict[str, Any] = json.loads((study_folder(name) / f"{file}.json").read_text(encoding="utf-8"))
    return values
