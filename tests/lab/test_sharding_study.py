"""The recorded study of sharding agrees with the formulas, and a small part of it can be made again."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from scalelab.cost.layer_activations import layer_activation_bytes
from scalelab.cost.sharding import zero_memory
from scalelab.cost.traffic import zero_traffic
from scalelab.lab.records import study_json
from scalelab.parallel.scratch.threads import run_threads

STATES = study_json("parallelism/sharding", "states")["runs"]


@pytest.fixture(scope="module")
def study() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "studies" / "parallelism" / "sharding.py"
    spec = importlib.util.spec_from_file_location("sharding_study", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_states_and_traffic_are_the_formulas_to_the_byte() -> None:
    assert len(STATES) == 3 * 2 * (1 + 2 + 3 + 4 + 8)
    for row in STATES:
        size = 2 if row["precision"] == "mixed" else 4
        expected = zero_memory(
            row["units"],
            stage=row["stage"],
            dp=row["ranks"],
            rank=row["rank"],
            precision=row["precision"],
        )
        assert row["weights_bytes"] == expected.weights_bytes
        assert row["gradients_bytes"] == expected.gradients_bytes
        assert row["optimizer_bytes"] == expected.optimizer_bytes
        traffic = zero_traffic(
            row["units"], row["ranks"], stage=row["stage"], weight_bytes=size, gradient_bytes=size
        )
        assert row["sent_bytes"] == traffic.sent_bytes[row["rank"]]


def test_what_a_layer_keeps_is_the_papers_formula_and_its_norms_statistics() -> None:
    for row in study_json("parallelism/sharding", "kept")["runs"]:
        sizes = {name: row[name] for name in ("seq_len", "batch_size", "d_model", "n_heads")}
        statistics = 0 if row["recompute"] == "full" else 8 * row["seq_len"] * row["batch_size"]
        found = sum(tensor["n_bytes"] for tensor in row["tensors"])
        assert found == layer_activation_bytes(**sizes, recompute=row["recompute"]) + statistics


def test_recomputation_costs_a_third_more_flops_or_the_cores() -> None:
    rows = study_json("parallelism/sharding", "recompute")["runs"]
    for none, selective, full in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        s, h = none["seq_len"], none["d_model"]
        assert full["flops"] * 3 == none["flops"] * 4
        assert selective["flops"] / none["flops"] - 1 == pytest.approx(s / (18 * h + 3 * s))
        assert none["seconds"] < selective["seconds"] < full["seconds"] < 2 * none["seconds"]


def test_a_rank_of_the_record_can_be_made_again(study: ModuleType) -> None:
    found = run_threads(3, study.states_on, 2, True)
    recorded = [row for row in STATES if (row["ranks"], row["stage"], row["precision"]) == (3, 2, "mixed")]
    for made, row in zip(found, recorded, strict=True):
        assert made == {name: row[name] for name in made}
