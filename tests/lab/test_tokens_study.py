"""The study recorded for `tokens` shows what its chapter says, and is what its program would run."""

from __future__ import annotations

import importlib.util
import statistics
import sys
from pathlib import Path

import pytest

from scalelab.core.config import config_to_dict
from scalelab.lab.records import study_json, study_runs
from scalelab.train import TrainConfig

STUDY = "transformers/tokens"
FOLDER = Path(__file__).resolve().parents[2] / "studies" / "transformers"


def program():
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("tokens_study", FOLDER / "tokens.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["tokens_study"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def measured():
    return study_json(STUDY, "measurements")


def best_runs():
    groups = {}
    for run in study_runs(STUDY, "vocabulary"):
        groups.setdefault(run.config["vocab_size"], {}).setdefault(run.learning_rate, []).append(run)
    return {
        size: min(
            (runs for runs in rates.values() if len(runs) >= 3),
            key=lambda runs: statistics.mean(run.loss_nats for run in runs),
        )
        for size, rates in sorted(groups.items())
    }


def test_each_better_idea_of_what_comes_next_costs_fewer_bits():
    marks = measured()["marks"]
    falling = ["uniform", *(f"{n}-gram of bytes" for n in range(1, 7))]
    assert [marks[name] for name in falling] == sorted((marks[name] for name in falling), reverse=True)
    assert marks["4-gram of bytes"] < marks["gzip"] < marks["3-gram of bytes"]
    assert marks["5-gram of tokens"] < marks["xz"] < marks["5-gram of bytes"] < marks["gzip"]


def test_the_base_model_is_below_every_mark():
    found = measured()
    assert found["base"]["bits_per_byte"] < min(v for k, v in found["marks"].items() if k != "xz primed")
    assert found["base"]["n_bytes"] > 0.99 * 820_000, "it read all of the held-out text"


def test_loss_per_token_rises_with_the_vocabulary_and_bits_per_byte_has_its_minimum_inside():
    runs = best_runs()
    assert list(runs) == [257, 512, 1024, 2048, 4096, 8192]
    assert all(len({run.seed for run in group}) >= 3 for group in runs.values())
    nats = [statistics.mean(run.loss_nats for run in group) for group in runs.values()]
    bits = [statistics.mean(run.bits_per_byte for run in group) for group in runs.values()]
    assert nats == sorted(nats)
    best = bits.index(min(bits))
    assert 0 < best < len(bits) - 1
    noise = max(statistics.stdev(run.bits_per_byte for run in group) for group in runs.values())
    assert bits[0] - bits[best] > 2 * noise
    assert bits[-1] - bits[best] > noise


def test_runs_of_a_width_cost_the_same_operations_whatever_the_vocabulary():
    for arm, budget in (("vocabulary", 1e12), ("vocabulary-narrow", 2e11)):
        for run in study_runs(STUDY, arm):
            assert run.flops == pytest.approx(budget, rel=0.01)
            assert run.flops <= budget
            assert run.epochs <= 1


def test_the_best_rates_of_small_vocabularies_lie_inside_those_tried():
    for size in (257, 512, 1024):
        first = {
            run.learning_rate: run.loss_nats
            for run in study_runs(STUDY, "vocabulary")
            if run.config["vocab_size"] == size and run.seed == 0
        }
        rates = sorted(first)
        assert len(rates) >= 4
        ends = (first[rates[0]], first[rates[-1]])
        tuned = min(
            statistics.mean(r.loss_nats for r in study_runs(STUDY, "vocabulary")
                            if r.config["vocab_size"] == size and r.learning_rate == rate)
            for rate in rates[1:-1]
        )  # fmt: skip
        assert tuned < max(ends)


def test_intervals_of_both_laws_are_narrow_and_hold_the_estimate():
    words = measured()["words"]
    for name, width in (("zipf", 0.08), ("heaps", 0.08)):
        value, low, high = words[name]
        assert low < value < high
        assert high - low < width
    assert not words["zipf"][1] < words["zipf_line_through_all_ranks"] < words["zipf"][2]
    assert words["heaps"][2] < 1 / words["zipf"][0], "a finite text lies below 1/s"


def test_a_leak_gains_a_long_memory_more_than_a_short_one():
    leak = measured()["leak"]
    gains = {order: bits[0] - bits[-1] for order, bits in leak["bits_per_byte_by_order"].items()}
    assert gains["2"] < gains["3"] < gains["5"]
    assert leak["bits_per_byte_by_order"]["3"][-1] < leak["bits_per_byte_by_order"]["5"][0]
    assert leak["bits_per_seen_byte"] < leak["bits_per_new_byte"]


def test_the_recorded_runs_are_those_that_the_program_would_run():
    module = program()
    known = {
        (arm.name, run.config["vocab_size"], run.learning_rate, run.seed): run
        for arm in module.ARMS
        for run in study_runs(STUDY, arm.name)
    }
    wanted = {(arm.name, size, rate, seed): arm for arm, size, rate, seed in module.wanted()}
    assert set(known) == set(wanted)
    for key, arm in wanted.items():
        model = module.model_of(arm, key[1])
        settings = module.settings_of(arm, model, key[2], key[3])
        assert isinstance(settings, TrainConfig)
        stored = dict(known[key].config)
        now = config_to_dict(model)
        assert {name: now[name] for name in stored if name in now} == stored
        assert known[key].n_tokens == settings.n_tokens
