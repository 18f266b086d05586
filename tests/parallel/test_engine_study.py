"""The study recorded for "the same run in two processes" shows what the chapter says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from scalelab.cost import params
from scalelab.lab.records import study_json

STUDY = "transformers/engine"
PROGRAM = Path(__file__).resolve().parents[2] / "studies" / "transformers" / "engine.py"
MEASURED = study_json(STUDY, "measurements")


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("engine_study", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_processes_train_as_one_to_the_tenth_digit(program: ModuleType) -> None:
    equal = MEASURED["equality"]
    assert equal["steps"] == program.EQUAL_STEPS == 20
    assert equal["last_loss_nats"] < equal["first_loss_nats"] - 0.5
    assert 0 < max(equal["largest_difference_nats"].values()) <= 1e-10


def test_fsdp_halves_the_optimisers_state_and_ddp_does_not(program: ModuleType) -> None:
    whole = 2 * 4 * params(program.MODEL).total
    held = MEASURED["equality"]["optimizer_bytes_by_process"]
    assert held == {"one": [whole], "ddp": [whole, whole], "fsdp": [whole // 2, whole // 2]}


def test_the_commands_shown_are_those_of_the_program_and_speak_for_themselves(program: ModuleType) -> None:
    first, second = MEASURED["session"]
    assert program.TRAIN in first["command"]
    assert first["command"].startswith("torchrun --nproc-per-node 2 -m scalelab train ")
    assert "stopped after step" in first["printed"].splitlines()[-1]
    assert f"{second['command']}, in one process" in first["printed"]
    assert "dp_replicate=2" in second["printed"]
    assert "step 400/400" in second["printed"]


def test_each_way_was_timed_as_often_as_the_others_and_the_load_is_known(program: ModuleType) -> None:
    timed = MEASURED["speeds"]
    assert timed["tokens"] == program.TIMED_TOKENS
    assert [len(rates) for rates in timed["tokens_per_s"].values()] == [program.ROUNDS] * 3
    assert len(timed["load_before_each"]) == 3 * program.ROUNDS


def test_provenance_says_how_to_make_it_again() -> None:
    kept = study_json(STUDY, "provenance")
    assert kept["command"] == "python studies/transformers/engine.py"
    assert {"machine", "versions", "date", "text"} <= kept.keys()
