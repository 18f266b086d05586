"""What a lab of two sittings carries from the first to the second: a few numbers, kept on this machine.

A notebook's variables are gone when it is closed. At the half-way point the lab keeps what the second half
needs; its first cell reads it again, and says what to run when there is nothing to read.
Taught in book/transformers/inference.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scalelab.core.artifacts import write_atomic
from scalelab.core.checks import is_number
from scalelab.core.errors import LabError
from scalelab.data.cache import cache_dir
from scalelab.lab.predictions import read_number


def keep_sitting(lab: str, values: Mapping[str, Any]) -> None:
    """Keep these numbers of a lab's first sitting; a cache that cannot be written is no reason to fail.

    Args:
        lab: "part/name". values: name → number, which may be numpy's or a tensor of one element.

    Raises:
        LabError: a value that is no finite number.
    """
    numbers = {n: value if is_number(value) else read_number(n, value) for n, value in values.items()}
    try:
        write_atomic(_path(lab), (json.dumps(numbers, indent=1) + "\n").encode())
    except OSError as error:
        print(
            f"not kept: the cache cannot be written ({error.strerror or error}). Do both sittings in one, or "
            "set SCALELAB_CACHE to a folder of yours"
        )
        return
    print(f"kept for the second sitting: {', '.join(values)}")


def resume_sitting(lab: str) -> dict[str, float]:
    """What `keep_sitting` kept.

    Raises:
        LabError: nothing has been kept, or what was is damaged.
    """
    path = _path(lab)
    if not path.is_file():
        raise LabError(
            f"nothing is kept of the first sitting of {lab}: run the cells before the half-way mark"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or not all(is_number(value) for value in values.values()):
            raise ValueError("not a table of numbers")
    except (ValueError, RecursionError) as error:
        raise LabError(f"what was kept of {lab} is damaged ({error}): run the first sitting again") from None
    return values


def _path(lab: str) -> Path:
    return cache_dir() / "sittings" / f"{lab.replace('/', '-')}.json"
