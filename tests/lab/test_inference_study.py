"""What the inference lab measures with, and what its study recorded: formulas, bounds, and the findings."""

from __future__ import annotations

import importlib.util
import itertools
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from scalelab.core.config import DecoderConfig
from scalelab.core.errors import ConfigError, DataError, LabError
from scalelab.core.presets import preset
from scalelab.cost import decode_pass, prefill_pass, require_accelerator
from scalelab.lab.records import study_folder, study_json
from scalelab.lab.sittings import keep_sitting, resume_sitting
from scalelab.lab.transformers.drafting import BATCH_SIZE, SEQ_LEN, cut_draft, train_draft
from scalelab.lab.transformers.roofline import (
    Roofline,
    draw_roofline,
    measure_roofline,
    pass_seconds,
    read_bytes_per_s,
)
from scalelab.models import Decoder
from scalelab.models.speculative import expected_tokens_per_pass

STUDY = "transformers/inference"
ROOT = Path(__file__).resolve().parents[2]
SMALL = DecoderConfig(n_layers=3, d_model=32, n_heads=4, vocab_size=29, seq_len=128, positions="rope")


def module_at(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem + "_under_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return module_at(ROOT / "studies" / "transformers" / "inference.py")


# The roofline.


def test_the_roof_is_a_slope_up_to_the_ridge_and_flat_from_there() -> None:
    roof = Roofline(peak_flops_per_s=300.0, bandwidth_bytes_per_s=20.0)
    assert roof.ridge == 15.0
    assert [roof.attainable(i) for i in (1.5, 15.0, 150.0)] == [30.0, 300.0, 300.0]


def test_an_h100_has_its_ridge_at_295_and_decoding_lies_left_prefill_right_of_it() -> None:
    found = require_accelerator("h100")
    roof = Roofline(
        peak_flops_per_s=found.peak_flops["bf16"], bandwidth_bytes_per_s=found.bandwidth_bytes_per_s
    )
    assert roof.ridge == pytest.approx(295, abs=0.5)
    llama = preset("llama-3.1-8b")
    assert decode_pass(llama, batch_size=1, context_len=1024).intensity < roof.ridge
    assert prefill_pass(llama, batch_size=1, seq_len=1024).intensity > roof.ridge


@pytest.mark.parametrize("limits", [(0.0, 1.0), (1.0, -1.0), (math.nan, 1.0), (1.0, math.inf)])
def test_limits_that_are_none_are_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(ConfigError):
        Roofline(peak_flops_per_s=limits[0], bandwidth_bytes_per_s=limits[1])


def test_a_machine_multiplies_faster_than_it_reads() -> None:
    roof = measure_roofline(n_bytes=2**22, seconds=0.02)
    assert roof.peak_flops_per_s > 1e8
    assert roof.bandwidth_bytes_per_s > 1e7
    with pytest.raises(ConfigError, match="n_bytes"):
        read_bytes_per_s(n_bytes=0)


def test_a_pass_is_timed_whole_and_leaves_no_gradient() -> None:
    model = Decoder(SMALL, seed=0).eval()
    for sizes in ({"n_new": 8}, {"n_new": 1, "n_kept": 40}, {"n_new": 3, "n_kept": 5}):
        assert pass_seconds(model, batch_size=2, seconds=0.001, **sizes) > 0
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(DataError, match="128"):
        pass_seconds(model, batch_size=1, n_new=100, n_kept=100)


def test_the_figure_has_a_mark_for_each_pass() -> None:
    roof = Roofline(peak_flops_per_s=4e10, bandwidth_bytes_per_s=4e9)
    _, axes = draw_roofline(roof, {"one": (0.5, 1e9), "two": (40.0, 3e10)}, title="Two")
    names = [text.get_text() for text in axes.texts]
    assert {"one", "two", "ridge 10"} <= set(names)
    assert any("40 GFLOP/s" in name for name in names)


# Drafts.


def test_a_draft_of_all_layers_is_the_target_and_of_one_is_its_beginning() -> None:
    target = Decoder(SMALL, seed=3).eval()
    tokens = torch.arange(12)[None] % 29
    torch.testing.assert_close(cut_draft(target, 3)(tokens), target(tokens))
    one = cut_draft(target)
    assert len(one.blocks) == 1
    torch.testing.assert_close(one.blocks[0].state_dict(), target.blocks[0].state_dict())
    with pytest.raises(ConfigError, match="n_layers=4"):
        cut_draft(target, 4)


def test_training_a_draft_teaches_it_and_leaves_the_target_alone() -> None:
    target = Decoder(SMALL, seed=3).eval()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    tokens = np.tile(np.arange(29), 2 + 40 * BATCH_SIZE * SEQ_LEN // 29)
    draft = cut_draft(target)
    batch = torch.as_tensor(tokens[:64])[None]
    untrained = draft.loss(batch[:, :-1], batch[:, 1:]).item()
    trained = train_draft(draft, tokens, seed=0)
    assert trained.loss(batch[:, :-1], batch[:, 1:]).item() < 0.8 * untrained
    assert not trained.training
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    with pytest.raises(DataError, match="1024 tokens, got 5"):
        train_draft(draft, tokens[:5], seed=0)


# Two sittings.


def test_a_sitting_is_kept_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALELAB_CACHE", str(tmp_path))
    with pytest.raises(LabError, match="before the half-way mark"):
        resume_sitting(STUDY)
    keep_sitting(STUDY, {"rate": 3.5, "ratio": 2})
    assert resume_sitting(STUDY) == {"rate": 3.5, "ratio": 2}
    for wrong in (math.nan, math.inf, True, "fast", np.array([1.0, 2.0]), 10**400):
        with pytest.raises(LabError, match="rate must be a finite number"):
            keep_sitting(STUDY, {"rate": wrong})
    assert resume_sitting(STUDY) == {"rate": 3.5, "ratio": 2}
    keep_sitting(STUDY, {"a": np.float32(1.5), "b": np.int64(3), "c": torch.tensor(0.5)})
    assert resume_sitting(STUDY) == {"a": 1.5, "b": 3, "c": 0.5}
    [file] = (tmp_path / "sittings").iterdir()
    for damaged in ("{", "[1]", '{"rate": "x"}', "[" * 100_000):
        file.write_text(damaged)
        with pytest.raises(LabError, match="damaged"):
            resume_sitting(STUDY)


def test_a_cache_that_cannot_be_written_is_said_and_does_not_stop_the_lab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocker = tmp_path / "a file"
    blocker.write_text("")
    monkeypatch.setenv("SCALELAB_CACHE", str(blocker))
    keep_sitting(STUDY, {"rate": 3.5})
    printed = capsys.readouterr().out
    assert printed.startswith("not kept: the cache cannot be written")
    assert "SCALELAB_CACHE" in printed


# The study's own arithmetic, and what it found.


def test_the_estimate_of_k_tries_is_the_mean_over_all_choices_of_k(program: ModuleType) -> None:
    for n, c, k in ((6, 2, 3), (5, 0, 2), (5, 5, 1), (7, 3, 7)):
        marks = [True] * c + [False] * (n - c)
        chosen = [any(part) for part in itertools.combinations(marks, k)]
        assert program.at_least_one(n, c, k) == pytest.approx(sum(chosen) / len(chosen))


def test_blocks_are_cut_where_they_end_before_they_are_parsed(program: ModuleType) -> None:
    assert program.is_python("def f():\n    return 1\n\nx = (\n", 1)
    assert program.is_python("@property\ndef f(self):\n    return 1\nhalf a li", 2)
    assert not program.is_python("def f():\n    return (\n\nx = 1\n", 1)
    assert not program.is_python("def f():\nx = 1\n", 1)
    assert not program.is_python("def f():", 1)


def test_recorded_texts_people_do_not_write_the_likeliest_and_the_likeliest_repeats() -> None:
    runs = study_json(STUDY, "texts")["runs"]
    assert len({run["seed"] for run in runs}) >= 3
    for run in runs:
        nats = {way: -found["nats_a_token"] for way, found in run["ways"].items()}
        again = {way: found["repeated"] for way, found in run["ways"].items()}
        assert nats["beam search, 16"] < nats["beam search, 4"] < nats["greedy"] < nats["people"] - 1
        assert again["greedy"] > 4 * again["people"]
        assert abs(nats["everything"] - nats["people"]) < 0.6


def test_recorded_drafts_are_kept_as_often_as_p_and_q_overlap_and_passes_follow_the_formula() -> None:
    runs = study_json(STUDY, "drafts")["runs"]
    assert len({run["seed"] for run in runs}) >= 3
    for run in runs:
        assert run["acceptance"] == pytest.approx(run["overlap"], abs=4 * run["standard_error"] + 0.02)
        assert run["formula"] == pytest.approx(expected_tokens_per_pass(run["acceptance"], run["n_draft"]))
        assert run["tokens_per_pass"] == pytest.approx(run["formula"], rel=0.1)


def test_recorded_tries_fall_short_of_what_equal_chances_would_give() -> None:
    for run in study_json(STUDY, "tries")["runs"]:
        found, alike = run["at_least_one"], run["if_alike"]
        assert found == sorted(found)
        assert all(a <= b + 1e-12 for a, b in zip(found, alike, strict=True))
        assert alike[3] - found[3] > 0.01


def test_recorded_passes_lie_below_the_roof_and_batches_share_a_fetch() -> None:
    found = study_json(STUDY, "timings")
    roof = Roofline(
        peak_flops_per_s=found["peak_flops_per_s"], bandwidth_bytes_per_s=found["bandwidth_bytes_per_s"]
    )
    passes = {row["name"]: row for row in found["passes"]}
    for row in passes.values():
        assert row["flops"] / row["seconds"] < 1.3 * roof.attainable(row["intensity"])
    one, many, prompt = (passes[n] for n in ("decode, batch 1", "decode, batch 16", "prefill, 128"))
    assert one["intensity"] < roof.ridge < prompt["intensity"]
    assert many["seconds"] < 8 * one["seconds"]
    assert prompt["seconds"] < 64 * one["seconds"]
    assert min(row["ratio"] for row in found["cache"]) > 2


def test_the_chapter_prints_every_number_that_it_makes() -> None:
    pytest.importorskip("IPython")
    figures = module_at(ROOT / "book" / "transformers" / "inference_figures.py")
    assert figures.STUDY == STUDY
    numbers: dict[str, Any] = figures.numbers()
    assert numbers["kv_token"] == "128 KiB"
    assert numbers["kv_token_own"] == "512 KiB"
    assert numbers["ridge"] == "295"
    assert figures.majority(0.6, 1) == pytest.approx(0.6)
    text = (ROOT / "book" / "transformers" / "inference.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in numbers)
    assert study_folder(STUDY).is_dir()
