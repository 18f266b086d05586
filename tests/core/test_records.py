"""Records of runs: they come back as they went, refuse what cannot be, and survive a cut at any byte."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from scalelab.core.config import config_to_dict
from scalelab.core.errors import RecordError
from scalelab.core.presets import preset
from scalelab.core.records import RunRecord, append_records, read_records, record_from_dict

VALUES: dict[str, Any] = {
    "run_id": "python-é-1",
    "config": config_to_dict(preset("gpt2")),
    "corpus": "python",
    "tokenizer": "bpe-512",
    "n_params": 124_439_808,
    "n_params_matmul": 123_653_376,
    "n_params_non_embedding": 85_056_000,
    "n_tokens": 2_000_000,
    "n_tokens_unique": 1_000_000,
    "epochs": 2.0,
    "flops": 1.5e15,
    "loss_nats": 2.5,
    "bits_per_byte": 1.4,
    "curve": [[1_000, 6.0], [1_000_000, 2.6]],
    "learning_rate": 1e-3,
    "batch_tokens": 4_096,
    "seed": 0,
    "seconds": 51.2,
    "device": "cpu",
    "versions": {"torch": "2.13.0"},
    "commit": "04896f3",
}


def _record(**change: Any) -> RunRecord:
    return record_from_dict({**VALUES, **change})


def test_a_record_comes_back_as_it_went(tmp_path: Path) -> None:
    records = [_record(seed=seed, run_id=f"run {seed}\n\u2028é") for seed in range(3)]
    append_records(tmp_path / "new" / "runs.jsonl", records[:1])
    append_records(tmp_path / "new" / "runs.jsonl", records[1:])
    assert read_records(tmp_path / "new" / "runs.jsonl") == records
    lines = (tmp_path / "new" / "runs.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [0, 1, 2]


def test_the_fields_are_those_that_are_documented() -> None:
    assert [field.name for field in dataclasses.fields(RunRecord)] == list(VALUES)


@pytest.mark.parametrize("name", VALUES)
def test_a_missing_field_is_named(name: str) -> None:
    with pytest.raises(RecordError, match=f"lacks {name!r}"):
        record_from_dict({key: value for key, value in VALUES.items() if key != name})


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(RecordError, match="unknown field 'loss'"):
        _record(loss=2.5)


WRONG: dict[str, list[Any]] = {
    "run_id": ["", 3, None],
    "config": ["gpt2", None, []],
    "corpus": ["", 1],
    "tokenizer": ["", None],
    "n_params": [0, -1, 1e6, "many", True],
    "n_params_matmul": [0, 1.5],
    "n_params_non_embedding": [0, None],
    "n_tokens": [0, 2e6, math.nan],
    "n_tokens_unique": [0, "1"],
    "epochs": [-1, math.inf, "2"],
    "flops": [-1.0, math.nan, None, True],
    "loss_nats": [math.nan, math.inf, -0.1, "2.5"],
    "bits_per_byte": [math.nan, -1],
    "curve": [None, 3, "ab", [1, 2], [[1]], [[1, 2, 3]], [["x", 1]], [[1, math.nan]], [[1, math.inf]],
              [[-1, 2.0]], [[1, -2.0]], [[math.inf, 2.0]], [[math.nan, 2.0]], [[1, None]]],
    "learning_rate": [-1e-3, math.nan, "1e-3"],
    "batch_tokens": [0, 1.0],
    "seed": [-1, 0.5, None],
    "seconds": [-1, math.nan],
    "device": ["", 0],
    "versions": [[], None, "torch"],
    "commit": ["", None],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG for value in WRONG[name]])
def test_an_impossible_value_is_refused_by_its_fields_name(name: str, value: Any) -> None:
    with pytest.raises(RecordError, match=name):
        _record(**{name: value})


def test_every_field_has_an_impossible_value_among_those_tried() -> None:
    assert set(WRONG) == set(VALUES)


@pytest.mark.parametrize("value", [[], "x", 3, None])
def test_what_is_no_object_is_no_record(value: Any) -> None:
    with pytest.raises(RecordError, match="must be a JSON object"):
        record_from_dict(value)


@pytest.mark.parametrize(
    "line", ["{", "[]", "null", "nonsense", '{"run_id": 3}', json.dumps({**VALUES, "seed": -1})]
)
def test_a_line_that_is_no_record_is_refused_by_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(f"{_record().to_json()}\n\n{line}\n{_record().to_json()}\n", encoding="utf-8")
    with pytest.raises(RecordError, match="line 3: "):
        read_records(path)


def test_a_file_that_cannot_be_read_is_refused_by_its_path(tmp_path: Path) -> None:
    for path, content in ((tmp_path / "missing", None), (tmp_path / "binary", b"\xff\xfe\n")):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(RecordError, match=f"cannot read records from .*{path.name}"):
            read_records(path)


def test_records_cut_at_any_byte_keep_those_before_the_cut_and_take_more(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    records = [_record(seed=0), _record(seed=1)]
    append_records(path, records)
    whole = path.read_bytes()
    first = len(records[0].to_json().encode()) + 1
    around = [first - 2, first - 1, first, first + 1, len(whole) - 1, len(whole)]
    for cut in sorted({*range(0, len(whole), 23), *around}):
        path.write_bytes(whole[:cut])
        kept = records[: (cut >= first) + (cut == len(whole))]
        assert read_records(path) == kept, cut
        append_records(path, [_record(seed=2)])
        assert read_records(path) == [*kept, _record(seed=2)], cut


def test_a_writer_killed_at_any_moment_leaves_whole_records_in_order(tmp_path: Path) -> None:
    script = """
        import dataclasses, sys
        from pathlib import Path
        from scalelab.core.records import append_records, read_records
        path = Path(sys.argv[1])
        record = read_records(path)[-1]
        while True:
            record = dataclasses.replace(record, seed=record.seed + 1)
            append_records(path, [record])
            print(flush=True)
    """
    path = tmp_path / "runs.jsonl"
    # A long curve makes a long write, so that kills fall into it.
    append_records(path, [_record(curve=[[n, 3.0] for n in range(20_000)])])
    draw = random.Random(0)
    for _ in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(path)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(draw.uniform(0, 0.05))
        child.kill()
        child.communicate()
    seeds = [record.seed for record in read_records(path)]
    assert seeds == list(range(len(seeds)))
    assert len(seeds) > 6
