"""The pipeline's record: made by its program; equal gradients, counted bytes, bubbles by the formula."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scalelab.cost import pipeline_traffic
from scalelab.lab.records import study_json
from scalelab.parallel.scratch.schedules import Operation, make_schedule
from scalelab.parallel.scratch.trace import Span, in_flight, of_rank

STUDY = "parallelism/pipeline"
RUNS: list[dict[str, Any]] = study_json(STUDY, "traces")["runs"]
NAMES = [f"{run['schedule']}-m{run['micro_batches']}" for run in RUNS]


@pytest.fixture(scope="module")
def study() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "studies" / "parallelism" / "pipeline.py"
    spec = importlib.util.spec_from_file_location("pipeline_study", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_record_is_its_programs(study: ModuleType) -> None:
    assert study_json(STUDY, "provenance")["command"] == study.COMMAND
    assert [(run["schedule"], run["v"], run["micro_batches"]) for run in RUNS] == [
        (name, v, m) for name, v in study.WAYS for m in study.MICRO_BATCHES
    ]


@pytest.mark.parametrize("run", RUNS, ids=NAMES)
def test_gradients_bytes_held_and_bytes_sent_are_right(run: dict[str, Any], study: ModuleType) -> None:
    name, v, m = run["schedule"], run["v"], run["micro_batches"]
    assert run["off_by"] < 1e-5
    cost = pipeline_traffic(
        study.CONFIG, 4, n_micro_batches=m, micro_batch_size=study.ROWS, seq_len=study.CONFIG.seq_len, v=v
    )
    assert tuple(run["sent_bytes"]) == cost.total.sent_bytes
    if v == 1:
        held = [in_flight(order) for order in make_schedule(name, 4, m)]
        assert run["most_bytes"] == [n * one for n, one in zip(held, run["pass_bytes"], strict=True)]


@pytest.mark.parametrize("run", RUNS, ids=NAMES)
def test_shares_sum_to_one_and_bubbles_that_kept_the_beat_are_the_formulas(run: dict[str, Any]) -> None:
    for share in run["on_beat"] + run["free"]:
        assert sum(share) == pytest.approx(1, abs=1e-4)
    kept = [waiting for (_, waiting, _), was in zip(run["on_beat"], run["kept_the_beat"], strict=True) if was]
    for waiting in kept:
        assert waiting == pytest.approx(run["formula"], rel=0.10)


@pytest.mark.parametrize("run", [run for run in RUNS if "spans" in run], ids=lambda run: run["schedule"])
def test_drawn_spans_are_the_schedules(run: dict[str, Any]) -> None:
    spans = [Span(rank, Operation(*operation), start, end) for rank, *operation, start, end in run["spans"]]
    schedule = make_schedule(run["schedule"], 4, run["micro_batches"], v=run["v"])
    assert tuple(tuple(of_rank(spans, rank)) for rank in range(4)) == schedule
