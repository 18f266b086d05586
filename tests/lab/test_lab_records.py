"""The study recorded for `training` shows what its chapter says, and is what its program would run."""

from __future__ import annotations

import importlib.util
import statistics
from pathlib import Path

import pytest

from scalelab.core.config import config_to_dict
from scalelab.core.errors import LabError
from scalelab.cost import flops, params
from scalelab.lab.records import study_folder, study_json, study_runs
from scalelab.train import TrainConfig

STUDY = "transformers/training"
PROGRAM = Path(__file__).resolve().parents[2] / "studies" / "transformers" / "training.py"


def program():
    spec = importlib.util.spec_from_file_location("training_study", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bits(arm: str) -> list[float]:
    return [run.bits_per_byte for run in study_runs(STUDY, arm)]


def test_a_minute_of_training_is_below_gzip_for_every_seed_and_a_larger_model_lower_still():
    compressors = study_json(STUDY, "measurements")["compressors_bits_per_byte"]
    assert len(bits("minute")) >= 3
    assert max(bits("minute")) < compressors["gzip"]
    assert max(bits("larger")) < min(bits("minute"))


def test_rotary_positions_beat_a_table_by_more_than_the_seeds_scatter():
    rotary, table = bits("minute"), bits("minute-table")
    gap = statistics.mean(table) - statistics.mean(rotary)
    assert gap > 3 * max(statistics.stdev(rotary), statistics.stdev(table))


def test_the_best_learning_rate_lies_inside_the_range_that_was_tried():
    runs = study_runs(STUDY, "rates")
    rates = sorted({run.learning_rate for run in runs})
    means = [statistics.mean(r.bits_per_byte for r in runs if r.learning_rate == rate) for rate in rates]
    best = means.index(min(means))
    assert 0 < best < len(rates) - 1
    assert means[best + 1] - means[best] > 3 * (means[best - 1] - means[best]), "the wall is on the right"


def test_a_schedule_that_decays_ends_below_a_constant_one_seed_by_seed():
    for name in ("cosine", "linear", "wsd"):
        assert all(
            low < high for low, high in zip(bits(f"schedule-{name}"), bits("schedule-constant"), strict=True)
        )


def test_in_a_run_this_short_staying_at_the_peak_longest_ends_lowest():
    for name in ("constant", "cosine", "linear"):
        assert max(bits("schedule-wsd")) < min(bits(f"schedule-{name}"))


def test_the_study_is_complete_and_holds_nothing_but_what_its_program_runs():
    expected: dict[str, list[tuple[dict, TrainConfig]]] = {}
    for arm, model, settings in program().arms():
        expected.setdefault(arm, []).append((config_to_dict(model), settings))
    assert sorted(expected) == sorted(file.stem for file in study_folder(STUDY).glob("*.jsonl"))
    for arm, runs in expected.items():
        recorded = study_runs(STUDY, arm)
        assert len({run.run_id for run in recorded}) == len(recorded) == len(runs)
        for run, (model, settings) in zip(recorded, runs, strict=True):
            assert dict(run.config) == model
            assert (run.learning_rate, run.seed) == (settings.learning_rate, settings.seed)
            assert run.n_tokens == settings.n_steps * settings.batch_tokens


def test_counts_and_flops_in_the_records_are_those_of_the_models():
    for model, settings in {(model, settings) for _, model, settings in program().arms()}:
        a_step = flops(model, batch_size=settings.batch_size, seq_len=settings.seq_len, training=True).total
        arms = [arm for arm, m, s in program().arms() if (m, s) == (model, settings)]
        for run in study_runs(STUDY, arms[0]):
            if (run.seed, run.learning_rate) == (settings.seed, settings.learning_rate):
                assert run.n_params == params(model).total
                assert run.flops == pytest.approx(a_step * settings.n_steps)


def test_no_record_was_made_on_repeated_text():
    for file in study_folder(STUDY).glob("*.jsonl"):
        assert all(run.epochs <= 1 for run in study_runs(STUDY, file.stem))


def test_an_unknown_study_or_arm_is_refused_by_name():
    with pytest.raises(LabError, match="no recorded study 'transformers/nothing'"):
        study_folder("transformers/nothing")
    with pytest.raises(LabError, match=r"no arm 'nothing'; it has .*minute"):
        study_runs(STUDY, "nothing")


def test_two_processes_train_the_same_and_no_faster_than_two_threads_of_one():
    """What the chapter says of the recorded runs: equal to rounding, halved by FSDP alone, slower here."""
    measured = study_json("transformers/engine", "measurements")
    equal, speeds = measured["equality"], measured["speeds"]["tokens_per_s"]
    assert all(0 < difference < 1e-10 for difference in equal["largest_difference_nats"].values())
    held = equal["optimizer_bytes_by_process"]
    assert held["ddp"] == held["one"] * 2
    assert [2 * part for part in held["fsdp"]] == held["ddp"]
    assert max(speeds["fsdp"]) < min(speeds["ddp"])
    assert max(speeds["ddp"]) < min(speeds["one"])
