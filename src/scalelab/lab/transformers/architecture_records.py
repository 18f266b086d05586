"""The recorded comparison of architectures, read: who wins at what, over seeds. No torch here.

Arms are compared seed by seed: same text in the same order, same questions.
Taught in book/transformers/architectures.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scalelab.core.errors import LabError
from scalelab.lab.records import study_folder, study_json
from scalelab.lab.transformers.ablation_records import Interval, interval

STUDY = "transformers/architectures"
KINDS = ("decoder", "encoder", "encoder-decoder")


def rows(file: str, **wanted: Any) -> list[dict[str, Any]]:
    """The rows of a file of the study with these values.

    Raises:
        LabError: there are none, or no such file.
    """
    try:
        every: Any = study_json(STUDY, file)
    except FileNotFoundError:
        known = ", ".join(sorted(path.stem for path in study_folder(STUDY).glob("*.json")))
        raise LabError(f"the study {STUDY!r} has no file {file!r}; it has {known}") from None
    found = [row for row in every if all(row.get(key) == value for key, value in wanted.items())]
    if not found:
        raise LabError(f"the study {STUDY!r} has no row in {file!r} with {wanted}")
    return found


def values(file: str, field: str, **wanted: Any) -> list[float]:
    """One field of some rows, a value a seed, by seed."""
    return [row[field] for row in sorted(rows(file, **wanted), key=lambda row: row["seed"])]


def language(kind: str, field: str) -> list[float]:
    """A field of one architecture's pretrained models, a value a seed."""
    return values("language", field, kind=kind)


def best_fill(kind: str) -> str:
    """The field that holds an architecture's best way to fill a gap."""
    return {"decoder": "fill_whole_text", "encoder-decoder": "fill_one_token"}.get(kind, "fill_accuracy")


def mean_of(found: Sequence[float]) -> Interval:
    """Mean over seeds with its 95 % interval."""
    return interval(list(found))


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """How much larger ours are than theirs, paired by seed, with a 95 % interval.

    Raises:
        LabError: not as many of both, or fewer than two.
    """
    if len(ours) != len(theirs):
        raise LabError(f"{len(ours)} runs cannot be paired with {len(theirs)}")
    return interval([mine - other for mine, other in zip(ours, theirs, strict=True)])


def winner(field: str, *, low: bool = False) -> str | None:
    """The architecture that is better in a field than each other one, paired by seed.

    Args:
        low: whether less is better.

    Returns:
        its kind; None where the one with the best mean cannot be told from another (95 % interval).
    """
    sign = -1 if low else 1
    found = {kind: [sign * value for value in language(kind, field)] for kind in KINDS}
    best = max(KINDS, key=lambda kind: sum(found[kind]))
    others = [kind for kind in KINDS if kind != best]
    return best if all(difference(found[best], found[kind]).low > 0 for kind in others) else None
