"""Our pipeline on real processes: one process's gradients and weights, and those of torch's own pipelines."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "parallel_scratch"))

from equality import (
    CONFIG,
    Found,
    alone,
    assert_same_found,
    assert_same_weights,
    make_batch,
    make_batches,
    make_model,
    trained_alone,
)

from scalelab.cost.traffic import pipeline_traffic
from scalelab.parallel.scratch.schedules import make_schedule
from scalelab.parallel.scratch.trace import bubble, of_rank

LAYERS = dataclasses.replace(CONFIG, n_layers=8)
UNTIED = dataclasses.replace(LAYERS, tie_embeddings=False)
WAYS = {
    "gpipe": {"name": "gpipe", "m": 6, "v": 1},
    "1f1b": {"name": "1f1b", "m": 6, "v": 1},
    "interleaved": {"name": "interleaved", "m": 8, "v": 2},
    "zero-bubble": {"name": "zero-bubble", "m": 6, "v": 1},
}


def together(answers: list[dict[str, Any]]) -> Found:
    """The last rank's loss and every rank's gradients."""
    whole = {name: value for answer in answers for name, value in answer["gradients"].items()}
    return Found(answers[-1]["loss"], whole)


@pytest.mark.parametrize("name", WAYS)
def test_on_processes_loss_gradients_order_and_bytes_are_right(four: Any, name: str) -> None:
    way = WAYS[name]
    answers = four.run("scratch_jobs_pipeline:ours", **way, rows=11, config=LAYERS)
    assert_same_found(together(answers), alone(make_model(config=LAYERS), make_batch(11)))
    schedule = make_schedule(name, 4, way["m"], v=way["v"])
    spans = [span for answer in answers for span in answer["spans"]]
    assert all(tuple(of_rank(spans, rank)) == schedule[rank] for rank in range(4))
    assert 0 < bubble(spans) < 1, "one clock for all processes"
    even = four.run("scratch_jobs_pipeline:ours", **way, rows=2 * way["m"], config=LAYERS)
    cost = pipeline_traffic(LAYERS, 4, n_micro_batches=way["m"], micro_batch_size=2, seq_len=12, v=way["v"])
    assert tuple(answer["bytes"] for answer in even) == cost.total.sent_bytes


@pytest.mark.parametrize("name", ["1f1b", "interleaved"])
def test_on_processes_weights_after_ten_steps_equal_one_process(four: Any, name: str) -> None:
    answers = four.run("scratch_jobs_pipeline:trained", **WAYS[name], rows=9, config=LAYERS)
    weights = {name: value for answer in answers for name, value in answer.items()}
    expected = trained_alone(make_model(double=True, config=LAYERS), make_batches(n_rows=9))
    assert_same_weights(weights, expected)


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "interleaved"])
def test_torchs_own_pipelines_give_the_same_gradients(four: Any, name: str) -> None:
    """Rows that divide, and a head of its own: torch's schedules sum no tied tables."""
    way = {**WAYS[name], "rows": 2 * WAYS[name]["m"], "config": UNTIED}
    expected = alone(make_model(config=UNTIED), make_batch(way["rows"]))
    for job in ("ours", "torchs"):
        assert_same_found(together(four.run(f"scratch_jobs_pipeline:{job}", **way)), expected)
