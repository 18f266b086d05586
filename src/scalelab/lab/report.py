"""What a sitting came to: predictions against measurements, exercises, mistakes met.

Kept on the reader's machine as JSON and nowhere else; `export` writes the same for a teacher. It holds
no name, no path and no code.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scalelab.core.artifacts import write_atomic
from scalelab.core.errors import LabError
from scalelab.lab.attempts import Attempts
from scalelab.lab.predictions import Prediction, Value, compare, show

FORMAT = 1


def collect(
    *,
    lab: str,
    seed: int,
    tier: str,
    device: str,
    versions: Mapping[str, str],
    names: Sequence[str],
    predictions: Mapping[str, Prediction],
    measured: Mapping[str, tuple[Value, str]],
    attempts: Mapping[str, Attempts],
) -> dict[str, Any]:
    """The report as JSON values."""
    rows = []
    for name in names:
        value, unit = measured.get(name, (None, ""))
        prediction = predictions.get(name)
        rows.append(
            {
                "name": name,
                "prediction": dataclasses.asdict(prediction) if prediction else None,
                "measured": value,
                "unit": unit or (prediction.unit if prediction else ""),
                "comparison": compare(prediction, value) if prediction and value is not None else None,
            }
        )
    return {
        "format": FORMAT,
        "lab": lab,
        "seed": seed,
        "tier": tier,
        "device": device,
        "versions": dict(versions),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "predictions": rows,
        "exercises": [
            {
                "name": name,
                "passed": tried.passed_at is not None,
                "passed_at_try": tried.passed_at,
                "tries": tried.n_tries,
                "hints": tried.n_hints,
                "mistakes": list(tried.mistakes),
            }
            for name, tried in attempts.items()
        ],
    }


def as_text(report: Mapping[str, Any]) -> str:
    """The report as a table in plain text."""
    lines = [f"{report['lab']}, {report['tier']} tier, seed {report['seed']}"]
    rows = [("you said", "measured", "")] if report["predictions"] else []
    names = ["Predictions"] if report["predictions"] else []
    for row in report["predictions"]:
        said, got = row["prediction"], row["measured"]
        names.append(f"  {row['name']}")
        rows.append(
            (
                show(said["guess"], said["unit"]) if said else "no guess",
                "not measured" if got is None else show(got, row["unit"]),
                row["comparison"] or "",
            )
        )
    if rows:
        lines += ["", *_columns(names, rows)]
    lines += ["", "Exercises"]
    width = max(len(exercise["name"]) for exercise in report["exercises"])
    lines += [f"  {exercise['name']:<{width}}  {_outcome(exercise)}" for exercise in report["exercises"]]
    n_passed = sum(exercise["passed"] for exercise in report["exercises"])
    lines += ["", f"{n_passed} of {len(report['exercises'])} exercises done."]
    return "\n".join(lines)


def keep(report: Mapping[str, Any], cache: Path) -> str:
    """Write the report into the cache, and say so; a cache that cannot be written is no reason to fail."""
    name = f"{report['lab'].replace('/', '-')}.json"
    try:
        write_atomic(cache / "reports" / name, _json(report))
    except OSError as error:
        return f"(Not kept: the cache cannot be written, {error.strerror or error}.)"
    return f"Kept on this machine only: reports/{name} in scalelab's cache."


def export(report: Mapping[str, Any], path: Path) -> None:
    """Write the report to a file of the reader's choice.

    Raises:
        LabError: the file cannot be written there.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        write_atomic(path, _json(report))
    except OSError as error:
        reason = error.strerror or error
        raise LabError(f"cannot export the report to {str(path)!r}: {reason}; name a file") from None


def _json(report: Mapping[str, Any]) -> bytes:
    return (json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _columns(names: list[str], rows: list[tuple[str, str, str]]) -> list[str]:
    """Names to the left, two columns of figures to the right, remarks after them."""
    name_width = max(len(name) for name in names)
    said_width, got_width = (max(len(row[i]) for row in rows) for i in (0, 1))
    return [
        f"{name:<{name_width}}  {said:>{said_width}}  {got:>{got_width}}  {remark}".rstrip()
        for name, (said, got, remark) in zip(names, rows, strict=True)
    ]


def _outcome(exercise: Mapping[str, Any]) -> str:
    met = f" (met: {'; '.join(exercise['mistakes'])})" if exercise["mistakes"] else ""
    if exercise["passed"]:
        first = "first" if exercise["passed_at_try"] == 1 else f"at try {exercise['passed_at_try']}"
        return f"✓ {'at the first try' if first == 'first' else first}{met}"
    if exercise["tries"] == 0:
        return "– not written"
    return f"✗ {exercise['tries']} {'try' if exercise['tries'] == 1 else 'tries'}{met}"
