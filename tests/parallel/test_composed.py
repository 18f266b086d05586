"""Layers dealt out are the same layers: tp, pp and their products train as one process does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from scalelab.parallel.engine.pipeline import layers_of, n_micro_batches
from scalelab.train import load_checkpoint

ALONE = ("dp_replicate=2", "dp_shard=2", "tp=2", "pp=2")
PAIRS = (
    "dp_replicate=2,dp_shard=2",
    "dp_replicate=2,tp=2",
    "pp=2,dp_replicate=2",
    "dp_shard=2,tp=2",
    "pp=2,dp_shard=2",
    "pp=2,tp=2",
)
UNEVEN = {"masked": True, "pieces": 2, "clip": 0.1}
LLAMA = {
    "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "d_head": None, "d_ff": None, "norm": "rmsnorm",
    "positions": "rope", "feed_forward": "swiglu", "attention_bias": False, "feed_forward_bias": False,
    "tie_embeddings": False,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "gpt-2's": {},
    "llama's": LLAMA,
    "alibi, parallel": {"positions": "alibi", "parallel_residual": True},
    "post-norm, waves": {"positions": "sinusoidal", "norm_position": "post", "norm_bias": False},
    "odd widths": {"d_head": 3, "d_ff": 20, "n_layers": 3, "vocab_size": 67},
}


@pytest.fixture(scope="session")
def jobs() -> ModuleType:
    """The jobs, to do in this process what the pool does in many."""
    spec = importlib.util.spec_from_file_location("jobs_alone", Path(__file__).with_name("jobs.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def differences(answers: list[Any], alone: Any) -> tuple[float, float, float]:
    """Of loss, gradients (the worst tensor) and norm, each relative to one process's."""
    loss, gradients, norm = alone
    losses = max(abs(found[0] - loss) / loss for found in answers)
    assert answers[0][1].keys() == gradients.keys()
    worst = max(relative(answers[0][1][name], gradients[name]) for name in gradients)
    norms = max(abs(found[2] - norm) / norm for found in answers) if norm is not None else 0.0
    return losses, worst, norms


def pool_of(layout: str, pair: Any, four: Any) -> Any:
    return pair if layout in ALONE else four


def assert_same_bits(one: dict[str, Any], other: dict[str, Any]) -> None:
    for part in ("weights", "optimizer"):
        assert one[part].keys() == other[part].keys()
        for name, value in one[part].items():
            assert torch.equal(value, other[part][name]), name
    assert one["losses"] == other["losses"]
    assert one["curve"] == other["curve"]


# --- equal to one process ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [*ALONE, *PAIRS])
def test_loss_gradients_and_norm_equal_one_processs_in_fp32(
    layout: str, pair: Any, four: Any, jobs: ModuleType
) -> None:
    """With far fewer targets in one half of the batch than in the other, in micro-batches, clipped."""
    alone = jobs.gradients(None, layout="", **UNEVEN)
    found = pool_of(layout, pair, four).run("gradients", layout=layout, **UNEVEN)
    assert max(differences(found, alone)) <= 1e-6


@pytest.mark.parametrize("layout", ["tp=2", "pp=2", "dp_shard=2,tp=2", "pp=2,tp=2"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_decoder_is_cut_right(
    layout: str, kind: str, pair: Any, four: Any, jobs: ModuleType
) -> None:
    case = {"kind": "double", "pieces": 2, "clip": 0.1, **KINDS[kind]}
    alone = jobs.gradients(None, layout="", **case)
    found = pool_of(layout, pair, four).run("gradients", layout=layout, **case)
    assert max(differences(found, alone)) <= 1e-13


@pytest.mark.parametrize(
    ("layout", "fault"),
    [
        ("dp_replicate=2", "ddp averaged"),
        ("dp_shard=2", "averaged"),
        ("tp=2", "plain cut"),
        ("pp=2", "own half of the table"),
        ("pp=2", "scaled by micro-batches"),
        ("dp_replicate=2,dp_shard=2", "averaged"),
        ("dp_replicate=2,tp=2", "neighbours' rows"),
        ("pp=2,dp_replicate=2", "same rows"),
        ("dp_shard=2,tp=2", "copies counted"),
        ("pp=2,dp_shard=2", "averaged"),
        ("pp=2,tp=2", "all count"),
    ],
)
def test_a_fault_in_the_engine_would_be_noticed(
    layout: str, fault: str, pair: Any, four: Any, jobs: ModuleType
) -> None:
    alone = jobs.gradients(None, layout="", **UNEVEN)
    found = pool_of(layout, pair, four).run("gradients", layout=layout, fault=fault, **UNEVEN)
    assert max(differences(found, alone)) > 0.01


@pytest.mark.parametrize("layout", ["tp=2", "pp=2", *PAIRS])
def test_ten_steps_in_fp64_stay_within_1e_10_of_one_processs(
    layout: str, pair: Any, four: Any, jobs: ModuleType
) -> None:
    case = {"kind": "double", "n_steps": 10, "accumulate": 2, "clip_norm": 0.5}
    alone = jobs.training(None, layout="", **case)
    assert min(alone["norms"]) > 0.5, "clipping is at work"
    found = pool_of(layout, pair, four).run("training", layout=layout, **case)
    assert all(run["losses"] == found[0]["losses"] for run in found)
    assert max(abs(a - b) for a, b in zip(found[0]["losses"], alone["losses"], strict=True)) <= 1e-10
    assert dict(found[0]["curve"]) == pytest.approx(dict(alone["curve"]), abs=1e-10)
    for part in ("weights", "optimizer"):
        assert found[0][part].keys() == alone[part].keys()
        for name, value in alone[part].items():
            assert (found[0][part][name] - value).abs().max() <= 1e-10, name
    assert not any(run["weights"] or run["optimizer"] for run in found[1:]), "rank 0 alone keeps them"


@pytest.mark.parametrize("order", ["gpipe", "1f1b"])
def test_a_pipelines_order_changes_nothing_but_the_order(order: str, pair: Any, jobs: ModuleType) -> None:
    case = {"pieces": 4, "masked": True, "kind": "double"}
    found = pair.run("gradients", layout="pp=2", order=order, **case)
    assert max(differences(found, jobs.gradients(None, layout="", **case))) <= 1e-13


@pytest.mark.parametrize("layout", ["tp=2", "pp=2"])
@pytest.mark.parametrize(("max_tokens", "batch_size"), [(None, 8), (7 * 32, 2)])
def test_evaluation_weighs_every_token_alike(
    layout: str, max_tokens: int | None, batch_size: int, pair: Any, jobs: ModuleType
) -> None:
    case = {"max_tokens": max_tokens, "batch_size": batch_size}
    expected = jobs.evaluation(None, layout="", **case)
    for found in pair.run("evaluation", layout=layout, **case):
        assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("layout", ["tp=2", "pp=2"])
def test_all_processes_train_rank_0s_model_whatever_they_were_given(
    layout: str, pair: Any, jobs: ModuleType
) -> None:
    alone = jobs.gradients(None, layout="")
    found = pair.run("gradients", layout=layout, seed_of_rank=True)
    assert max(differences(found, alone)) <= 1e-6


@pytest.mark.parametrize("layout", ["tp=2", "pp=2", "pp=2,tp=2"])
def test_bf16_is_as_near_to_fp32_as_one_processs_bf16(
    layout: str, pair: Any, four: Any, jobs: ModuleType
) -> None:
    exact = jobs.gradients(None, layout="")
    alone = differences([jobs.gradients(None, layout="", precision="bf16")], exact)
    found = pool_of(layout, pair, four).run("gradients", layout=layout, precision="bf16")
    assert 1e-4 < alone[1] < 0.05
    assert differences(found, exact)[1] < 2 * alone[1]


@pytest.mark.parametrize("layout", ["tp=2", "dp_shard=2,tp=2"])
def test_an_overflow_in_one_processs_part_skips_the_step_on_all(layout: str, pair: Any, four: Any) -> None:
    for found in pool_of(layout, pair, four).run("overflow", layout=layout, clip=True):
        assert found == {"changed": [False, True], "scales": [2.0**9, 2.0**9]}


def test_ctrl_c_on_the_last_stage_stops_all_after_the_same_step(pair: Any, tmp_path: Path) -> None:
    found = pair.run("training", layout="pp=2", run_dir=str(tmp_path), interrupt={1: 3})
    assert [run["steps"] for run in found] == [3, 3]
    assert all("stopped after step 3 of 6" in run["stopped"] for run in found)
    resumed = pair.run("training", layout="pp=2", run_dir=str(tmp_path), resume=True)
    assert_same_bits(resumed[0], pair.run("training", layout="pp=2")[0])


# --- one format, whatever the layout ----------------------------------------------------------------------


def test_a_run_goes_from_dp_shard_and_tp_to_pp_to_one_process_as_if_never_stopped(
    four: Any, pair: Any, jobs: ModuleType, tmp_path: Path
) -> None:
    case = {"kind": "double", "n_steps": 9, "run_dir": str(tmp_path)}
    alone = jobs.training(None, layout="", kind="double", n_steps=9)
    four.run("training", layout="dp_shard=2,tp=2", until=3, save=True, **case)
    stored = load_checkpoint(tmp_path)
    assert stored.step == 3
    assert stored.weights.keys() == alone["weights"].keys()
    assert stored.optimizer.keys() == alone["optimizer"].keys()
    pair.run("training", layout="pp=2", until=6, save=True, resume=True, **case)
    assert load_checkpoint(tmp_path).step == 6
    resumed = jobs.training(None, layout="", resume=True, **case)
    assert resumed["steps"] == 9
    assert max(abs(a - b) for a, b in zip(resumed["losses"], alone["losses"], strict=True)) <= 1e-10
    for name, value in alone["weights"].items():
        assert (resumed["weights"][name] - value).abs().max() <= 1e-10, name


@pytest.mark.parametrize("layout", ["tp=2", "pp=2", "dp_shard=2,tp=2", "pp=2,tp=2", "pp=2,dp_shard=2"])
def test_a_checkpoint_holds_the_bits_that_were_loaded(
    layout: str, pair: Any, four: Any, jobs: ModuleType, tmp_path: Path
) -> None:
    case = {"run_dir": str(tmp_path), "until": 3, "vocab_size": 67}
    alone = jobs.training(None, layout="", save=True, **case)
    moved = pool_of(layout, pair, four).run("training", layout=layout, resume=True, **case)[0]
    assert_same_bits(alone, moved)


@pytest.mark.parametrize("layout", ["tp=2", "pp=2", "pp=2,tp=2"])
def test_under_the_same_layout_resumed_equals_uninterrupted_bit_for_bit(
    layout: str, pair: Any, four: Any, tmp_path: Path
) -> None:
    case = {"layout": layout, "dropout": 0.2}
    pool = pool_of(layout, pair, four)
    whole = pool.run("training", **case)
    pool.run("training", run_dir=str(tmp_path), until=4, save=True, **case)
    resumed = pool.run("training", run_dir=str(tmp_path), resume=True, **case)
    assert_same_bits(whole[0], resumed[0])


def test_each_process_holds_its_part_of_model_and_optimiser(four: Any, jobs: ModuleType) -> None:
    alone = jobs.training(None, layout="", n_steps=1, tie_embeddings=False)["optimizer_bytes"]
    for layout in ("dp_shard=2,tp=2", "pp=2,tp=2"):
        held = [
            run["optimizer_bytes"]
            for run in four.run("training", layout=layout, n_steps=1, tie_embeddings=False)
        ]
        assert max(held) < 0.35 * alone, layout
        assert sum(held) < 1.25 * alone, layout


# --- what cannot be is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "case", "says"),
    [
        (
            "tp=2",
            {"n_heads": 1, "n_kv_heads": 1, "d_head": None, "d_ff": 33},
            "tp=2 deals out heads, .* divide n_heads=1, n_kv_heads=1, d_ff=33",
        ),
        ("tp=2", {"seq_len": 31}, "does not divide seq_len=31: choose multiples of 2, or another tp"),
        ("pp=2", {"n_layers": 1}, "pp=2 stages need a layer each, the model has n_layers=1: use pp=1"),
        ("pp=2", {"batch_size": 1}, "a pipeline of 2 stages needs as many rows .* gets 1: raise batch_size"),
        ("pp=2", {"precision": "fp16"}, "precision='fp16' scales losses .* give 'bf16' or 'fp32'"),
        ("tp=2", {"precision": "auto"}, "precision='auto' tries the whole model .* tp=2 cuts it"),
        ("tp=2", {"kind": "tied"}, "tp=2 knows the way through a Decoder, not through WithTiedHead"),
    ],
)
def test_what_a_layout_cannot_train_is_refused_with_its_values(
    layout: str, case: dict[str, Any], says: str, pair: Any
) -> None:
    found = pair.run("training", layout=layout, n_steps=1, **case)
    for run in found:
        assert run["error"] is not None
        assert run["error"].startswith("ConfigError: ")
        assert re.search(says, run["error"]), run["error"]


def test_compiling_is_left_aside_with_a_warning(pair: Any) -> None:
    first, second = pair.run("training", layout="tp=2", n_steps=1, compile=True)
    assert first["warnings"] == [
        "compile=True is left aside, the run goes on uncompiled: tp=2 is not compiled"
    ]
    assert second["warnings"] == []
    assert first["compiled"] is False


def test_layers_are_dealt_out_in_order_and_the_last_stage_has_no_more_than_the_first() -> None:
    for n_layers in range(1, 13):
        for n_stages in range(1, n_layers + 1):
            found = [layers_of(n_layers, stage, n_stages) for stage in range(n_stages)]
            assert [layer for layers in found for layer in layers] == list(range(n_layers))
            assert len(found[0]) - len(found[-1]) in (0, 1)


@pytest.mark.parametrize(
    ("rows", "wanted", "n_stages", "expected"), [(8, 1, 2, 2), (8, 3, 2, 4), (7, 2, 2, 7), (2, 9, 2, 2)]
)
def test_micro_batches_are_equal_and_enough(rows: int, wanted: int, n_stages: int, expected: int) -> None:
    assert n_micro_batches(rows, wanted, n_stages) == expected
