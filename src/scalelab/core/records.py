"""One training run is one record: what was trained, on what, for how much, and what loss it reached.

Records are JSON objects, one a line. They are the common coin of the package: training writes them,
sweeps collect them, laws are fitted to them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalelab.core.errors import RecordError


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """What one training run was and reached.

    Attributes:
        run_id: unique name of the run.
        config: the model's config as `config_to_dict` gives it.
        corpus, tokenizer: what text, cut how (names with their parameters).
        n_params: all parameters, a tied table once.
        n_params_matmul: those that multiply (without input and position tables, with the head): N of 6ND.
        n_params_non_embedding: without tables and head (Kaplan's count).
        n_tokens: tokens trained on, repeats counted. n_tokens_unique: without repeats. epochs: their ratio.
        flops: training FLOPs, exact count.
        loss_nats: final held-out loss, nats per token. bits_per_byte: the same per byte of text.
        curve: held-out losses on the way, [tokens, nats per token], at log-spaced steps.
        learning_rate: peak. batch_tokens: tokens per optimiser step. seed: of weights and data order.
        seconds: wall time of training. device: what it ran on. versions: of packages. commit: of the code.
    """

    run_id: str
    config: Mapping[str, Any]
    corpus: str
    tokenizer: str
    n_params: int
    n_params_matmul: int
    n_params_non_embedding: int
    n_tokens: int
    n_tokens_unique: int
    epochs: float
    flops: float
    loss_nats: float
    bits_per_byte: float
    curve: tuple[tuple[int, float], ...]
    learning_rate: float
    batch_tokens: int
    seed: int
    seconds: float
    device: str
    versions: Mapping[str, str]
    commit: str

    def __post_init__(self) -> None:
        for name in ("n_params", "n_params_matmul", "n_params_non_embedding", "n_tokens", "n_tokens_unique"):
            _check(name, getattr(self, name), int, lambda v: v >= 1, "a whole number of at least 1")
        _check("batch_tokens", self.batch_tokens, int, lambda v: v >= 1, "a whole number of at least 1")
        _check("seed", self.seed, int, lambda v: v >= 0, "a whole number of at least 0")
        for name in ("epochs", "flops", "loss_nats", "bits_per_byte", "learning_rate", "seconds"):
            _check(
                name,
                getattr(self, name),
                (int, float),
                lambda v: math.isfinite(v) and v >= 0,
                "finite and >= 0",
            )
        for name in ("run_id", "corpus", "tokenizer", "device", "commit"):
            _check(name, getattr(self, name), str, bool, "a text that is not empty")
        for name in ("config", "versions"):
            _check(name, getattr(self, name), Mapping, lambda v: True, "a mapping")
        try:
            object.__setattr__(
                self, "curve", tuple((int(tokens), float(loss)) for tokens, loss in self.curve)
            )
        except (TypeError, ValueError, OverflowError):
            raise RecordError(f"curve must be pairs [tokens, loss_nats], got {self.curve!r}") from None
        for tokens, loss in self.curve:
            if tokens < 0 or not (math.isfinite(loss) and loss >= 0):
                raise RecordError(f"curve must hold counts and finite losses >= 0, got [{tokens}, {loss}]")

    def to_json(self) -> str:
        """The record as one line of JSON."""
        return json.dumps(dataclasses.asdict(self), allow_nan=False)


def record_from_dict(values: Mapping[str, Any]) -> RunRecord:
    """A record from parsed JSON; keys it does not know are refused.

    Raises:
        RecordError: a field is missing, unknown, or has an impossible value.
    """
    known = [field.name for field in dataclasses.fields(RunRecord)]
    if not isinstance(values, Mapping):
        raise RecordError(f"a record must be a JSON object, got {values!r}")
    for name in known:
        if name not in values:
            raise RecordError(f"record lacks {name!r}; it has {', '.join(values) or 'no fields'}")
    for name in values:
        if name not in known:
            raise RecordError(f"record has the unknown field {name!r}; known: {', '.join(known)}")
    return RunRecord(**values)


def read_records(path: Path) -> list[RunRecord]:
    """All records of a JSONL file, in order; a last line cut off by a kill is ignored.

    Raises:
        RecordError: the file is missing, or a line is not a record; the message gives the line's number.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"cannot read records from {path}: {error}") from None
    records = []
    for number, line in enumerate(lines, start=1):
        cut_off = number == len(lines)  # no newline after it: its writing never finished
        if not line.strip() or cut_off:
            continue
        try:
            records.append(record_from_dict(json.loads(line)))
        except ValueError as error:
            raise RecordError(f"{path}, line {number}: {error}") from None
    return records


def append_records(path: Path, records: Iterable[RunRecord]) -> None:
    """Append records to a JSONL file, each a whole line on the disk before this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        _drop_cut_off_line(file)
        for record in records:
            file.write(record.to_json().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _drop_cut_off_line(file: Any) -> None:
    """A killed writer may have left half a line: cut it away, or the next record would be glued to it."""
    file.seek(0)
    content = file.read()
    if content and not content.endswith(b"\n"):
        file.truncate(content.rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)


def _check(name: str, value: object, kind: Any, holds: Any, expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, kind) or not holds(value):
        raise RecordError(f"{name} must be {expected}, got {value!r}")
