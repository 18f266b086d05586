"""What the chapter `data-parallel` takes from times measured on four processes, once they are recorded.

The times of all-reduces at some lengths give a latency and a bandwidth; the others judge them. No torch here.
"""

from __future__ import annotations

import json
from statistics import median
from typing import Any

from data_parallel_common import ms, percent

from scalelab.cost import all_reduce, fit_link
from scalelab.lab.parallelism.recorded_batches import STUDY
from scalelab.lab.records import study_folder


def time_numbers() -> dict[str, str]:
    """Two sentences: whether two terms foretell measured rings, and what overlapping brought."""
    file = study_folder(STUDY) / "times.json"
    if not file.is_file():
        return {
            "record_ring": "The lab times rings among four processes on your machine, fits the two numbers "
            "to some lengths and foretells others that the fit has not seen. It prints the errors.",
            "record_steps": "The lab times such steps on your machine.",
        }
    found = json.loads(file.read_text(encoding="utf-8"))
    return {"record_ring": ring(found), "record_steps": steps(found)}


def ring(found: dict[str, Any]) -> str:
    """The two terms, fitted to every other length and judged on those between."""
    ranks, n_bytes, seconds = found["n_ranks"], found["n_bytes"], found["seconds"]
    bills = [all_reduce(n // 4, ranks) for n in n_bytes]
    sent, rounds = [bill.critical_bytes for bill in bills], [bill.steps for bill in bills]
    fit = fit_link(sent[::2], seconds["ring"][::2], messages=rounds[::2])
    errors = [abs(e) for e in fit.errors(sent[1::2], seconds["ring"][1::2], messages=rounds[1::2])]
    tree = all_reduce(n_bytes[-1] // 4, ranks, algorithm="tree")
    short, long = (seconds["tree"][place] / seconds["ring"][place] for place in (0, -1))
    crowd = " (Processes take turns on fewer cores, and in a tree's rounds half of them have nothing to do.)"
    return (
        f"We timed our ring among {ranks} processes on {found['n_cores']} cores, at {len(n_bytes)} lengths "
        f"from {n_bytes[0]} bytes to {n_bytes[-1] / 2**20:.0f} MiB. Fitted to every other length, it has a "
        f"latency of {ms(fit.link.latency_s)} and {fit.link.bytes_per_s / 1e9:.2g} GB/s; the lengths between "
        f"are foretold within {percent(max(errors))}, half of them within {percent(median(errors))}. A tree "
        f"took {short:.2f} times as long for the shortest and {long:.2f} times for the longest, where its "
        f"rounds and bytes say {tree.steps / rounds[-1]:.2f} and {tree.critical_bytes / sent[-1]:.2f}."
        f"{crowd if found['n_cores'] < ranks else ''}"
    )


def steps(found: dict[str, Any]) -> str:
    """A step with gradients sent one by one, in buckets after the backward pass, and during it."""
    each, after, during = (found["step_seconds"][way] for way in ("each", "after", "overlapped"))
    return (
        f"(Measured, with {found['n_ranks']} ranks of a small decoder on {found['n_cores']} cores, where "
        f"messages need the very processors that compute: a step takes {ms(each)} with each gradient sent by "
        f"itself, {ms(after)} with buckets after the backward pass, {ms(during)} with buckets during it.)"
    )
