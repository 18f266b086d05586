"""What `scalelab fit` says: the fit as JSON values, and the same as text for people."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scalelab import __version__
from scalelab.cli.fit_laws import SCALES, FittedLaw
from scalelab.cli.tables import table
from scalelab.core.units import FLOPS_PER_PARAM_TOKEN, format_count
from scalelab.laws.check_runs import Finding
from scalelab.laws.intervals import Interval
from scalelab.laws.read_runs import RunTable, rows_by_reason
from scalelab.laws.runs import Runs

MADE_BY = "scalelab fit"
SHOWN = 5  # rows named in one warning
FAR = 10.0  # times the largest run: beyond, few extrapolations have been tried
NOTABLE_RATIO = 1.05
LEAST_EXPLAINED = 0.5  # of the losses' spread, by medians
FEWEST_COUNTED = 100  # parameters, or tokens: fewer are no model, but millions or billions
SAME_RUN = 0.01  # losses of one N and D (and seed, if known) farther apart than chance puts them
BITS, PERPLEXITIES = ("bit", "bpb", "bpc"), ("ppl", "perplex")


def fit_report(
    path: Path,
    data: RunTable,
    law: FittedLaw,
    budgets: Sequence[float],
    findings: Sequence[Finding],
    *,
    n_resamples: int,
    seed: int,
    level: float,
) -> dict[str, Any]:
    """The fit as JSON values: what `scalelab fit --json` prints. Ends that the data do not bound are None.

    Args:
        path: where the runs stood. data: what was read of it. law: what was fitted.
        budgets: FLOPs to plan for. findings: of `check_runs`.
        n_resamples, seed, level: of the intervals.
    """
    runs = data.runs
    planned = _planned(law, budgets, runs)
    scatter = None if law.log_ratios is None else float(np.median(np.abs(law.log_ratios)))
    return {
        "made_by": MADE_BY,
        "version": __version__,
        "file": str(path),
        "law": law.name,
        "formula": law.formula,
        **{name: _finite(value) for name, value in law.fields.items()},
        "objective": _finite(law.objective),
        "n_runs": law.n_runs,
        "status": law.status,
        "median_residual": None if scatter is None else _finite(scatter),
        "level": level,
        "intervals": {name: _ends(interval) for name, interval in law.intervals.items()},
        "budgets": planned,
        "warnings": [
            *_units(data),
            *_unexplained(runs, law),
            *law.warnings,
            *_warnings(data, law, planned, findings),
        ],
        "notes": [*data.notes, *_ratio_note(runs)],
        "skipped": [{"row": bad.row, "why": bad.why} for bad in data.skipped],
        "outliers": [
            {"row": runs.rows[i], "loss": float(runs.loss[i]), "log_ratio": _finite(off)}
            for i, off in law.outliers
        ],
        "data": {
            "columns": dict(data.columns),
            **{name: _range(getattr(runs, name)) for name in ("n_params", "n_tokens", "flops", "loss")},
        },
        "settings": {
            **{name: _finite(v) if isinstance(v, float) else v for name, v in law.settings.items()},
            "n_resamples": n_resamples,
            "seed": seed,
        },
        "how": law.how,
    }


def report_text(report: Mapping[str, Any], law: FittedLaw) -> str:
    """The report as tables for people."""
    blocks = [_data_text(report), _law_table(report, law), _budget_table(report)]
    if report["warnings"]:
        blocks.append("\n".join(["Warnings", *(f"  {warning}" for warning in report["warnings"])]))
    settings = report["settings"]
    how = f"How: {report['how']}."
    if report["median_residual"] is not None:
        how += f"\n  Half of the runs lie within {report['median_residual']:.2%} of the law's loss."
    if report["intervals"]:
        how += (
            f"\n  Intervals hold {report['level']:.3g} of {settings['n_resamples']:,} {law.refits} "
            f"(seed {settings['seed']}): of the law, not of one run's loss, which scatters besides."
        )
    return "\n\n".join([*blocks, how])


def _planned(law: FittedLaw, budgets: Sequence[float], runs: Runs) -> list[dict[str, Any]]:
    largest = float(_six_nd(runs).max())
    spread = law.spread(np.array(budgets)) if law.spread is not None else None
    planned = []
    for place, flops in enumerate(budgets):
        best = law.optimum(flops)
        planned.append(
            {
                "flops": flops,
                **{name: _finite(best[name]) for name in SCALES},
                "tokens_per_param": _finite(best["n_tokens"] / best["n_params"]),
                "times_largest_run": flops / largest,
                "intervals": {} if spread is None else {name: _ends(spread[name][place]) for name in SCALES},
            }
        )
    return planned


def _warnings(
    data: RunTable, law: FittedLaw, planned: Sequence[Mapping[str, Any]], findings: Sequence[Finding]
) -> list[str]:
    found = []
    if data.skipped:
        found.append(f"{len(data.skipped)} bad rows left out: {rows_by_reason(data.skipped)}.")
    found += [f"{text}." for text in summary(findings)]
    runs = data.runs
    found += _tried_again(runs)
    if law.outliers:
        rows = ", ".join(_outlier(runs, i, off) for i, off in law.outliers[:SHOWN])
        rows += _more(len(law.outliers))
        found.append(f"{len(law.outliers)} of {len(runs)} runs lie far off the law (kept): {rows}.")
    ratios = runs.n_tokens / runs.n_params
    for plan in planned:
        if plan["times_largest_run"] > FAR * (1 + 1e-9):
            found.append(
                f"{plan['flops']:.3g} FLOPs are {_times(plan['times_largest_run'])} the largest run: no run "
                "near it supports the law there."
            )
        ratio = plan["tokens_per_param"]
        if ratio is not None and not ratios.min() <= ratio <= ratios.max():
            found.append(
                f"The optimum at {plan['flops']:.3g} FLOPs has {ratio:.3g} tokens a parameter; "
                f"the runs have {ratios.min():.3g} to {ratios.max():.3g}."
            )
    return found


def _unexplained(runs: Runs, law: FittedLaw) -> list[str]:
    """A law can be fitted to losses that rise, or to another column: it then says little."""
    if law.log_ratios is None:
        return []
    logs = np.log(runs.loss)
    spread = float(np.median(np.abs(logs - np.median(logs))))
    left = float(np.median(np.abs(law.log_ratios)))
    if spread == 0 or 1 - (left / spread) ** 2 >= LEAST_EXPLAINED:
        return []
    return [
        f"The law explains little: half of the runs lie within {left:.2%} of it, and within {spread:.2%} of "
        "their own middle. Do the losses fall with N and D? Are these the columns?"
    ]


def _units(data: RunTable) -> list[str]:
    """A law of other units is a law, but its figures are not what the tables here call them."""
    found = []
    column, runs = data.columns["loss"], data.runs
    if any(word in column.lower() for word in BITS):
        found.append(
            f"The column {column!r} seems to hold bits: then E, A, B and every loss here are in its unit, "
            "not in nats per token (a bit is ln 2 = 0.6931 nats)."
        )
    elif any(word in column.lower() for word in PERPLEXITIES):
        found.append(
            f"The column {column!r} seems to hold perplexities: the law is one of their logarithms, the loss "
            "in nats per token; give a column of these."
        )
    for name in ("n_params", "n_tokens"):
        low, high = _range(getattr(runs, name))
        if low < FEWEST_COUNTED:
            found.append(
                f"{name} runs from {low:.3g} to {high:.3g}: in millions or billions? Give counts, such as "
                "7e9; FLOPs and budgets here are of counts."
            )
    return found


def _tried_again(runs: Runs) -> list[str]:
    """A grid over learning rates leaves runs of all of them; a law is of models trained well."""
    seeds = [None] * len(runs) if runs.seeds is None else runs.seeds.tolist()
    ends: dict[tuple[float, float, int | None], tuple[float, float]] = {}
    columns = (runs.n_params.tolist(), runs.n_tokens.tolist(), seeds)
    for key, loss in zip(zip(*columns, strict=True), runs.loss.tolist(), strict=True):
        low, high = ends.get(key, (loss, loss))
        ends[key] = (min(low, loss), max(high, loss))
    apart = {key: high / low - 1 for key, (low, high) in ends.items() if high / low - 1 > SAME_RUN}
    if not apart:
        return []
    n_apart, n_pairs = (len({key[:2] for key in keys}) for keys in (apart, ends))
    return [
        f"{n_apart} of {n_pairs} pairs of N and D were trained more than once, to losses up to "
        f"{max(apart.values()):.1%} apart, and all are fitted: where a learning rate or another setting was "
        "tried out, keep only the best run of each pair."
    ]


def summary(findings: Sequence[Finding]) -> list[str]:
    """Findings of one kind in one sentence: a slip in each row must not fill the screen."""
    kinds: dict[str, list[Finding]] = {}
    for finding in findings:
        kinds.setdefault(re.sub(r"(line|index) \d+", "another row", finding.what), []).append(finding)
    texts = []
    for kind, rows in kinds.items():
        if len(rows) == 1:
            texts.append(str(rows[0]))
        else:
            named = ", ".join(finding.row for finding in rows[:SHOWN])
            texts.append(f"{len(rows)} rows: {kind} ({named}{_more(len(rows))}), the first: {rows[0]}")
    return texts


def _ratio_note(runs: Runs) -> list[str]:
    """Exact counts differ from 6ND; whoever plans by this law counts in 6ND."""
    ratio = float(np.median(runs.flops / _six_nd(runs)))
    if 1 / NOTABLE_RATIO <= ratio <= NOTABLE_RATIO:
        return []
    return [f"the FLOPs given are {ratio:.3g} times 6ND in the middle run; budgets here are 6ND"]


def _data_text(report: Mapping[str, Any]) -> str:
    spans = report["data"]
    text = f"{report['file']}: {report['n_runs']} runs"
    for name, symbol in (("n_params", "N"), ("n_tokens", "D")):
        low, high = spans[name]
        text += f", {symbol} {_count(low)} to {_count(high)}"
    text += f", {spans['flops'][0]:.3g} to {spans['flops'][1]:.3g} FLOPs"
    return "\n".join([text, *(f"  {note}" for note in report["notes"])])


def _law_table(report: Mapping[str, Any], law: FittedLaw) -> str:
    rows = [
        (name, _number(report[name]), _interval(report["intervals"].get(name)), law.meaning[name])
        for name in law.fields
    ]
    width = max(len(row[3]) for row in rows)
    padded = [(*row[:3], row[3].ljust(width)) for row in rows]  # words read from the left
    return table(law.formula, ("value", f"{report['level']:.0%} interval", ""), padded)


def _budget_table(report: Mapping[str, Any]) -> str:
    rows = []
    for plan in report["budgets"]:
        ends = plan["intervals"]
        rows.append(
            (
                f"{plan['flops']:.3g} FLOPs",
                *(
                    f"{_amount(name, plan[name])} {_interval(ends.get(name), name)}".rstrip()
                    for name in SCALES
                ),
                "-" if plan["tokens_per_param"] is None else f"{plan['tokens_per_param']:.3g}",
                _times(plan["times_largest_run"]),
            )
        )
    heads = ("N", "D", "loss", "D/N", "of largest run")
    return table("Compute-optimal for", heads, rows)


def _interval(ends: Sequence[float | None] | None, name: str = "") -> str:
    if ends is None:
        return ""
    low, high = (("unbounded" if end is None else _amount(name, end)) for end in ends)
    return f"[{low}, {high}]"


def _amount(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name in ("n_params", "n_tokens"):
        return _count(value)
    return f"{value:.4f}" if name == "loss" else _number(value)


def _count(value: float) -> str:
    return format_count(value) if 1 <= value < 1e27 else f"{value:.3g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _times(factor: float) -> str:
    return f"{factor:.3g}×"


def _outlier(runs: Runs, index: int, off: float) -> str:
    return runs.rows[index] if math.isnan(off) else f"{runs.rows[index]} ({math.expm1(off):+.1%})"


def _more(count: int) -> str:
    return f" and {count - SHOWN} more" if count > SHOWN else ""


def _six_nd(runs: Runs) -> np.ndarray:
    return np.asarray(FLOPS_PER_PARAM_TOKEN * runs.n_params * runs.n_tokens)


def _range(column: np.ndarray) -> list[float]:
    return [float(column.min()), float(column.max())]


def _ends(interval: Interval) -> list[float | None]:
    return [_finite(interval.low), _finite(interval.high)]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
