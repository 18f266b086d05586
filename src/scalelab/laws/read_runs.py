"""Anyone's table of runs becomes checked columns, or an error that names its bad rows by line.

Of parameters N, tokens D and training FLOPs C any two will do, in each row: C = 6ND gives the third. Nothing
is dropped, mended or derived without a word: what happened stands in the notes and the rows left out.

Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1 (C ≈ 6ND). Taught in
book/scaling-laws/power-laws.md.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scalelab.core.artifacts import user_path
from scalelab.core.errors import ConfigError, FitError
from scalelab.laws.check_runs import FLOPS_TOLERANCE, KNOWN_COLUMNS, flops_hint, off_by
from scalelab.laws.run_files import RawTable, read_table
from scalelab.laws.runs import Curve, Runs, checked_curve, derived

SCALES = ("n_params", "n_tokens", "flops")
DEFAULT_COLUMNS: Mapping[str, str] = {**{name: name for name in SCALES}, "loss": "loss_nats"}
SHOWN_ROWS = 10
_COMMA_DECIMAL = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+),\d+([eE][+-]?\d+)?")  # 6,7604 and 1.300,5


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that cannot be used: its name ("line 7"), and why."""

    row: str
    why: str

    def __str__(self) -> str:
        return f"{self.row}: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunTable:
    """What `read_runs` found in a file.

    Attributes:
        runs: the good rows, named by their line.
        columns: which column gave n_params, n_tokens, flops and loss; those derived are absent.
        notes: what was derived or left out that is no mistake, a sentence each.
        skipped: the bad rows, left out because that was asked for.
        details: for each run, what `check_runs` can hold it against; empty where the file has no more
            columns than those of the runs.
    """

    runs: Runs
    columns: Mapping[str, str]
    notes: tuple[str, ...]
    skipped: tuple[BadRow, ...]
    details: tuple[Mapping[str, object], ...]


def read_runs(
    path: Path | str,
    *,
    n_params: str | None = None,
    n_tokens: str | None = None,
    loss: str | None = None,
    flops: str | None = None,
    skip_bad: bool = False,
    flops_tolerance: float = FLOPS_TOLERANCE,
) -> RunTable:
    """The runs of a CSV, TSV or JSONL file.

    Args:
        path: the file; its first line names the columns, or each line is a JSON object.
        n_params, n_tokens, loss, flops: the columns that hold them; by default those of the package's own
            records: n_params, n_tokens, loss_nats (nats per token), flops. Two of the three scales suffice.
        skip_bad: leave bad rows out and list them in `skipped`, instead of raising.
        flops_tolerance: how many times apart a row's FLOPs and 6ND may lie before it is bad.

    Raises:
        DataFileError: the file cannot be read as a table.
        FitError: a column is missing or stands there twice, or rows are bad (up to ten are named); no good
            row is left.
        ConfigError: one column for two quantities, or a tolerance below 1.
    """
    if not flops_tolerance >= 1:
        raise ConfigError(f"flops_tolerance is a factor of at least 1, got {flops_tolerance!r}")
    path = user_path(path)
    table = read_table(path)
    asked = {"n_params": n_params, "n_tokens": n_tokens, "flops": flops, "loss": loss}
    columns = _columns(path, table, asked)
    bad: dict[int, str] = {}
    values = {name: _numbers(name, column, table, bad) for name, column in columns.items()}
    derivations = _fill(values, columns, table, bad, flops_tolerance)
    curves = _curves(table, bad)
    skipped = _bad_rows(table, bad)
    if skipped and not skip_bad:
        raise FitError(_refusal(path, skipped, len(table.lines) + len(table.broken)))
    keep = np.array([i for i in range(len(table.lines)) if i not in bad], dtype=np.intp)
    if not len(keep):
        raise FitError(f"{path}: all {len(skipped)} rows are bad, the first: {skipped[0]}")
    seeds, seed_note = _seeds(table, keep)
    runs = Runs(
        **{name: column[keep] for name, column in values.items()},
        rows=tuple(f"line {table.lines[i]}" for i in keep),
        seeds=seeds,
        curves=None if curves is None else tuple(curves[i] for i in keep),
    )
    return RunTable(
        runs=runs,
        columns=columns,
        notes=(*table.notes, *derivations, *seed_note),
        skipped=skipped,
        details=_details(table, columns, keep),
    )


def _columns(path: Path, table: RawTable, asked: Mapping[str, str | None]) -> dict[str, str]:
    """Which column holds what: those asked for must be there, of the other scales those that are."""
    found: dict[str, str] = {}
    for name, column in asked.items():
        wanted = column if column is not None else DEFAULT_COLUMNS[name]
        if wanted in table.names:
            if wanted in table.repeated:
                raise FitError(
                    f"{path} has more than one column {wanted!r}; which is {name}? Rename the others"
                )
            found[name] = wanted
        elif column is not None or name == "loss":
            raise FitError(f"{path} has no column {wanted!r}{_way_out(name, wanted, table)}")
    scales = [name for name in SCALES if name in found]
    if len(scales) < 2:
        lacking = next(name for name in SCALES if name not in found)
        has = f"only {scales[0]}" if scales else "none of them"
        raise FitError(
            f"two of n_params, n_tokens and flops are needed, {path} has {has}"
            f"{_way_out(lacking, DEFAULT_COLUMNS[lacking], table)}"
        )
    for name, column in found.items():
        twin = next(other for other in found if found[other] == column)
        if twin != name:
            raise ConfigError(f"the column {column!r} cannot be both {twin} and {name}")
    return found


def _way_out(name: str, wanted: str, table: RawTable) -> str:
    names = [column for column in table.names if column]
    lower = {column.lower(): column for column in names}
    near = [lower[match] for match in difflib.get_close_matches(wanted.lower(), list(lower), n=2, cutoff=0.6)]
    listed = ", ".join(name if len(name) <= 30 else f"{name[:27]}..." for name in names[:20]) + (
        f" and {len(names) - 20} more" if len(names) > 20 else ""
    )
    meant = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return (
        f"; its columns are {listed}{meant}; say which holds {name} ({name}=…, --{name.replace('_', '-')} …)"
    )


def _numbers(name: str, column: str, table: RawTable, bad: dict[int, str]) -> np.ndarray:
    """A column as float64, NaN where a scale's cell is empty; unusable cells are put into `bad`."""
    cells = table.columns[column]
    values = np.empty(len(cells))
    for i, cell in enumerate(cells):
        value = _number(cell)
        if isinstance(value, str):
            bad.setdefault(i, f"{column} {value}")
            values[i] = math.nan
        else:
            values[i] = value
            if value != value and name == "loss":
                bad.setdefault(i, f"{column} is empty")
    return values


def _number(cell: object) -> float | str:
    """A cell's positive finite number, NaN where it is empty, else what is wrong with it."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return math.nan
    if isinstance(cell, bool) or not isinstance(cell, str | int | float) or "_" in str(cell):
        return _no_number(cell)
    try:
        value = float(cell)
    except ValueError:
        return _no_number(cell)
    except OverflowError:  # a whole number of JSON beyond 1e308
        return "is too large a number"
    if math.isnan(value):
        return "is NaN"
    if not (math.isfinite(value) and value > 0):
        return f"is {value:g}; it must be positive and finite"
    return value


def _no_number(cell: object) -> str:
    text = cell.strip() if isinstance(cell, str) else ""
    for mark in (",", ".", "_", "'", " "):
        if mark in text and re.fullmatch(rf"\d{{1,3}}({re.escape(mark)}\d{{3}})+", text):
            plain = f"write it without separators, {text.replace(mark, '')}"
            if mark == "," and text.count(mark) == 1:  # 1,300 is one thing in Boston and another in Berlin
                plain += f", or, where the comma is the decimal one, with a point, {text.replace(mark, '.')}"
            return f"is {text!r}: {plain}"
    if _COMMA_DECIMAL.fullmatch(text):
        point = text.replace(".", "").replace(",", ".")
        return f"is {text!r}: write the decimal comma as a point, {point}"
    for mark in (",", "_", "'", " "):
        if mark in text and text.replace(mark, "").isdecimal():
            return f"is {text!r}: write it without separators, {text.replace(mark, '')}"
    exponents = {"k": 3, "m": 6, "g": 9, "b": 9, "t": 12}
    if text[-1:].lower() in exponents and text[:-1].replace(".", "", 1).isdecimal():
        return f"is {text!r}: write it out, {text[:-1]}e{exponents[text[-1].lower()]}"
    return f"is {_shortly(cell)}, no number"


def _fill(
    values: dict[str, np.ndarray],
    columns: Mapping[str, str],
    table: RawTable,
    bad: dict[int, str],
    flops_tolerance: float,
) -> list[str]:
    """Derives what is missing of N, D and C, row by row, and marks rows whose three do not fit together."""
    n_rows = len(table.lines)
    for name in SCALES:
        values.setdefault(name, np.full(n_rows, math.nan))
    empty = {name: np.isnan(values[name]) for name in SCALES}
    for i in np.flatnonzero(sum(empty[name].astype(int) for name in SCALES) > 1):
        lacking = [columns[name] for name in SCALES if empty[name][i] and name in columns]
        bad.setdefault(int(i), f"{' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} empty")
    usable = np.ones(n_rows, dtype=bool)
    usable[list(bad)] = False
    notes = []
    for name in SCALES:
        rows = np.flatnonzero(empty[name] & usable)
        if not len(rows):
            continue
        known = {other: values[other][rows] for other in SCALES if other != name}
        values[name][rows] = derived(name, known)
        notes.append(_derivation(name, rows, n_rows, name in columns, table))
        for i in rows[~(np.isfinite(values[name][rows]) & (values[name][rows] > 0))]:
            bad.setdefault(int(i), f"its other columns give {values[name][i]:g} for {name}")
    whole = usable & ~(empty["n_params"] | empty["n_tokens"] | empty["flops"])
    expected = derived("flops", values)
    with np.errstate(invalid="ignore", over="ignore"):
        factors = values["flops"] / expected
        off = whole & ~((factors <= flops_tolerance) & (factors >= 1 / flops_tolerance))
    for i in np.flatnonzero(off):
        bad.setdefault(int(i), _off(columns["flops"], float(values["flops"][i]), float(expected[i])))
    return notes


def _derivation(name: str, rows: np.ndarray, n_rows: int, has_column: bool, table: RawTable) -> str:
    formula = {"n_params": "C / 6D", "n_tokens": "C / 6N", "flops": "6ND"}[name]
    if not has_column:
        return f"{name} is {formula}: the file has no column for it"
    if len(rows) == n_rows:
        return f"{name} is {formula}: its column is empty"
    shown = ", ".join(str(table.lines[i]) for i in rows[:SHOWN_ROWS])
    more = f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
    return f"{name} is {formula} in {len(rows)} of {n_rows} rows, where it is empty (lines {shown}{more})"


def _off(column: str, given: float, expected: float) -> str:
    factor = given / expected if expected > 0 else math.inf
    hint = flops_hint(factor)
    return f"{column} is {given:.4g}, {off_by(factor)} for 6ND = {expected:.4g}{f' ({hint})' if hint else ''}"


def _curves(table: RawTable, bad: dict[int, str]) -> list[Curve] | None:
    cells = table.columns.get("curve")
    if cells is None or all(cell is None or isinstance(cell, str) for cell in cells):
        return None  # a CSV's column of that name is something else
    found: list[Curve] = []
    for i, cell in enumerate(cells):
        try:
            found.append(() if cell is None else checked_curve(cell, ""))
        except FitError as error:
            found.append(())
            bad.setdefault(i, str(error).removeprefix(": "))
    return found


def _seeds(table: RawTable, keep: np.ndarray) -> tuple[np.ndarray | None, tuple[str, ...]]:
    cells = table.columns.get("seed")
    if cells is None or "seed" in table.repeated:
        return None, ()
    seeds = [_seed(cells[i]) for i in keep]
    known = [seed for seed in seeds if seed is not None]
    if len(known) < len(seeds):
        return None, (f"seeds are ignored: {len(seeds) - len(known)} of {len(seeds)} runs have none",)
    return np.array(known, dtype=np.int64), ()


def _seed(cell: object) -> int | None:
    text = str(cell).strip()
    whole = not isinstance(cell, bool) and text.isascii() and text.isdigit() and len(text) < 19
    return int(text) if whole else None


def _details(
    table: RawTable, columns: Mapping[str, str], keep: np.ndarray
) -> tuple[Mapping[str, object], ...]:
    """Each run's cells under the names that `check_runs` knows."""
    names = {column: column for column in table.names if column in KNOWN_COLUMNS}
    for name, column in columns.items():
        names.pop(column, None)
        names[DEFAULT_COLUMNS[name]] = column
    names.pop("loss", None)  # another column of that name than the loss that was asked for
    if columns.get("n_params", "n_params") != "n_params":
        names.pop("n_params_matmul", None)  # another N: not to be held against this one's FLOPs
    if columns.get("n_params") in ("n_params_matmul", "n_params_non_embedding"):
        names.pop("n_layers", None)  # nor a part of the parameters against the whole shape
    if set(names) <= {*DEFAULT_COLUMNS.values(), "seed"}:
        return ()
    return tuple(
        {"row": f"line {table.lines[i]}"} | {name: table.columns[column][i] for name, column in names.items()}
        for i in keep
    )


def _bad_rows(table: RawTable, bad: Mapping[int, str]) -> tuple[BadRow, ...]:
    by_line = {**dict(table.broken), **{table.lines[i]: why for i, why in bad.items()}}
    return tuple(BadRow(row=f"line {line}", why=by_line[line]) for line in sorted(by_line))


def _refusal(path: Path, bad: Sequence[BadRow], n_rows: int) -> str:
    advice = ""
    if sum("for 6ND" in row.why for row in bad) > n_rows / 2:
        advice = ", or allow FLOPs and 6ND to differ by more (flops_tolerance=…, --flops-tolerance …)"
    return (
        f"{path}: {len(bad)} of {n_rows} rows cannot be used: {rows_by_reason(bad)}. "
        f"Mend them, or leave them out (skip_bad=True, --skip-bad){advice}"
    )


def rows_by_reason(bad: Sequence[BadRow]) -> str:
    """Rows and why they were refused, those of one reason in one clause, as many as a reader takes in."""
    reasons: dict[str, list[str]] = {}
    for row in bad:
        reasons.setdefault(row.why, []).append(row.row)
    clauses = []
    for why, rows in list(reasons.items())[:SHOWN_ROWS]:
        more = f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
        clauses.append(f"{_listed(rows[:SHOWN_ROWS])}{more}: {why}")
    unsaid = sum(len(rows) for rows in list(reasons.values())[SHOWN_ROWS:])
    return "; ".join(clauses) + (f"; and {unsaid} more" if unsaid else "")


def _listed(rows: Sequence[str]) -> str:
    """ "line 5", or "lines 5, 6, 7"."""
    if len(rows) == 1 or not all(row.startswith("line ") for row in rows):
        return ", ".join(rows)
    return "lines " + ", ".join(row.removeprefix("line ") for row in rows)


def _shortly(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 30 else f"{text[:27]}..."
