"""Training in several processes is the same training: gradients, losses, checkpoints, decisions."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from scalelab.train import load_checkpoint

LAYOUTS = ("ddp", "fsdp")


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


def assert_same_bits(one: dict[str, Any], other: dict[str, Any]) -> None:
    for part in ("weights", "optimizer"):
        assert one[part].keys() == other[part].keys()
        for name, value in one[part].items():
            assert torch.equal(value, other[part][name]), name
    assert one["losses"] == other["losses"]
    assert one["curve"] == other["curve"]


# --- equal to one process ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"pieces": 3},
        {"masked": True},
        {"masked": True, "pieces": 2},
        {"kind": "tied"},
        {"kind": "double"},
    ],
    ids=lambda case: " ".join(f"{name}={value}" for name, value in case.items()) or "plain",
)
def test_gradients_equal_one_processs_at_the_same_global_batch(
    layout: str, case: dict[str, Any], pair: Any, jobs: ModuleType
) -> None:
    loss, expected, _ = jobs.gradients(None, layout="", **case)
    for found_loss, found, _ in pair.run("gradients", layout=layout, **case):
        assert found_loss == pytest.approx(loss, rel=1e-6)
        assert found.keys() == expected.keys()
        worst = max(relative(found[name], expected[name]) for name in expected)
        assert worst <= (1e-14 if case.get("kind") == "double" else 1e-6)


def test_a_mean_of_means_would_be_noticed(jobs: ModuleType) -> None:
    """The halves of the masked batch have few and many targets: averaging their means is another loss."""
    _, expected, _ = jobs.gradients(None, layout="", masked=True)
    inputs, targets = jobs.batch(masked=True)
    model = jobs.Decoder(jobs.MODEL, seed=3)
    for rows in (slice(0, 4), slice(4, 8)):
        loss = model.loss(torch.from_numpy(inputs[rows]), torch.from_numpy(targets[rows]))
        (loss / 2).backward()
    worst = max(relative(p.grad, expected[name]) for name, p in model.named_parameters())
    assert worst > 0.1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_clipping_takes_the_norm_over_all_processes(layout: str, pair: Any, jobs: ModuleType) -> None:
    _, expected, norm = jobs.gradients(None, layout="", clip=0.1)
    assert norm > 0.1
    for _, found, found_norm in pair.run("gradients", layout=layout, clip=0.1):
        assert found_norm == pytest.approx(norm, rel=1e-5)
        assert max(relative(found[name], expected[name]) for name in expected) <= 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_processes_train_rank_0s_model_whatever_they_were_given(
    layout: str, pair: Any, jobs: ModuleType
) -> None:
    _, expected, _ = jobs.gradients(None, layout="")
    for _, found, _ in pair.run("gradients", layout=layout, seed_of_rank=True):
        assert max(relative(found[name], expected[name]) for name in expected) <= 1e-6


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [{}, {"accumulate": 2, "clip_norm": None, "schedule": "wsd"}], ids=str)
def test_twenty_steps_in_fp64_stay_within_1e_10_of_one_processs(
    layout: str, case: dict[str, Any], pair: Any, jobs: ModuleType
) -> None:
    alone = jobs.training(None, layout="", n_steps=20, kind="double", **case)
    assert alone["losses"][-1] < alone["losses"][0] - 0.1
    first, second = pair.run("training", layout=layout, n_steps=20, kind="double", **case)
    assert first["losses"] == second["losses"]
    assert max(abs(a - b) for a, b in zip(first["losses"], alone["losses"], strict=True)) <= 1e-10
    assert dict(first["curve"]) == pytest.approx(dict(alone["curve"]), abs=1e-10)
    for name, value in alone["weights"].items():
        assert (first["weights"][name] - value).abs().max() <= 1e-10


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("max_tokens", "batch_size"), [(None, 8), (7 * 32, 2), (32, 4)])
def test_evaluation_is_shared_out_and_weighs_every_token_alike(
    layout: str, max_tokens: int | None, batch_size: int, pair: Any, jobs: ModuleType
) -> None:
    case = {"max_tokens": max_tokens, "batch_size": batch_size}
    expected = jobs.evaluation(None, layout="", **case)
    for found in pair.run("evaluation", layout=layout, **case):
        assert found == pytest.approx(expected, rel=1e-12)


# --- what travels, and who holds what ---------------------------------------------------------------------


def test_ddp_reduces_gradients_once_a_step_not_once_a_micro_batch(pair: Any) -> None:
    one = pair.run("communication", layout="ddp", pieces=1)[0]
    four = pair.run("communication", layout="ddp", pieces=4)[0]
    assert four == one
    assert sum(four.values()) == 2, "one bucket of gradients, and the loss"


def test_fsdp_gathers_weights_and_cuts_gradients_for_each_micro_batch(pair: Any) -> None:
    """Gradients that waited for the last micro-batch would be held whole until then."""
    one = pair.run("communication", layout="fsdp", pieces=1)[0]
    four = pair.run("communication", layout="fsdp", pieces=4)[0]

    def times(counts: dict[str, int], kind: str) -> int:
        return sum(count for name, count in counts.items() if kind in name)

    assert times(one, "reduce_scatter") == 3, "two blocks and the rest"
    assert times(four, "reduce_scatter") == 4 * 3
    assert times(one, "allgather") >= 3
    assert times(four, "allgather") > 2 * times(one, "allgather")


def test_each_process_of_fsdp_holds_its_part_of_the_optimisers_state(pair: Any, jobs: ModuleType) -> None:
    alone = jobs.training(None, layout="", n_steps=1)["optimizer_bytes"]
    assert [r["optimizer_bytes"] for r in pair.run("training", layout="ddp", n_steps=1)] == [alone, alone]
    assert [r["optimizer_bytes"] for r in pair.run("training", layout="fsdp", n_steps=1)] == [alone // 2] * 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_rank_0_holds_what_was_gathered(layout: str, pair: Any) -> None:
    first, second = pair.run("training", layout=layout, n_steps=1)
    assert first["weights"]
    assert first["optimizer"]
    assert not second["weights"]
    assert not second["optimizer"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_contiguous_shares_and_decisions_are_rank_0s(layout: str, pair: Any) -> None:
    first, second = pair.run("together", layout=layout)
    assert (first.pop("rows"), second.pop("rows")) == ([0, 1, 2, 3], [4, 5, 6, 7])
    (kind, words), odd = first["errors"]
    assert (kind, words) == ("CheckpointError", "the disk of 0 is full")
    assert "of a kind that cannot travel" in odd[1]
    assert first == second
    assert first["agreed"] == (True, False, True)
    assert first["decided"] == "by 0"
    assert first["gathered"] == [{"rank": 0}, {"rank": 1}]
    assert first["total"] == 3.0


# --- one format, whoever wrote it -------------------------------------------------------------------------

FORTH_AND_BACK = [("", "ddp"), ("", "fsdp"), ("ddp", ""), ("fsdp", ""), ("ddp", "fsdp"), ("fsdp", "ddp")]


@pytest.mark.parametrize(("first", "then"), FORTH_AND_BACK, ids=lambda name: name or "one")
@pytest.mark.parametrize("kind", ["double", "tied"])
def test_a_checkpoint_loads_whoever_wrote_it_and_the_run_goes_on_as_one(
    first: str, then: str, kind: str, pair: Any, jobs: ModuleType, tmp_path: Path
) -> None:
    def go(layout: str, **case: Any) -> dict[str, Any]:
        run: dict[str, Any] = (
            pair.run("training", layout=layout, **case)[0]
            if layout
            else jobs.training(None, layout="", **case)
        )
        assert run["error"] is None
        return run

    alone = jobs.training(None, layout="", kind=kind)
    go(first, kind=kind, run_dir=str(tmp_path), until=3, save=True)
    stored = load_checkpoint(tmp_path)
    assert stored.weights.keys() == alone["weights"].keys()
    assert dict(stored.aliases) == alone["aliases"]
    assert stored.optimizer.keys() == alone["optimizer"].keys()
    resumed = go(then, kind=kind, run_dir=str(tmp_path), resume=True)
    assert resumed["steps"] == 6
    tolerance = 1e-10 if kind == "double" else 1e-4
    assert max(abs(a - b) for a, b in zip(resumed["losses"], alone["losses"], strict=True)) <= tolerance
    for name, value in alone["weights"].items():
        assert (resumed["weights"][name] - value).abs().max() <= tolerance * 10


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_of_two_processes_holds_the_bits_that_were_loaded_into_them(
    layout: str, pair: Any, jobs: ModuleType, tmp_path: Path
) -> None:
    alone = jobs.training(None, layout="", run_dir=str(tmp_path), until=3, save=True)
    moved = pair.run("training", layout=layout, run_dir=str(tmp_path), resume=True, until=3)[0]
    assert_same_bits(alone, moved)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [{"dropout": 0.2}, {"dropout": 0.2, "accumulate": 2}], ids=str)
def test_under_the_same_layout_resumed_equals_uninterrupted_bit_for_bit(
    layout: str, case: dict[str, Any], pair: Any, tmp_path: Path
) -> None:
    whole = pair.run("training", layout=layout, **case)
    pair.run("training", layout=layout, run_dir=str(tmp_path), until=4, save=True, **case)
    resumed = pair.run("training", layout=layout, run_dir=str(tmp_path), resume=True, **case)
    assert_same_bits(whole[0], resumed[0])
    assert resumed[0]["warnings"] == []
    for before, after in zip(whole, resumed, strict=True):
        assert torch.equal(before["random"], after["random"])
    assert not torch.equal(whole[0]["random"], whole[1]["random"]), "processes drop out other places"


def test_another_number_of_processes_is_said_and_dropouts_new_masks_are_warned_of(
    pair: Any, jobs: ModuleType, tmp_path: Path
) -> None:
    first, second = pair.run("training", layout="ddp", dropout=0.2, run_dir=str(tmp_path), until=3, save=True)
    assert load_checkpoint(tmp_path).environment["device"].startswith("2 × cpu (")
    assert load_checkpoint(tmp_path).environment["device"].endswith("), dp_replicate=2")
    assert first["record"]["device"].startswith("2 × cpu (")
    assert "dp_replicate=2" in first["record"]["device"]
    assert second["error"] is None
    resumed = jobs.training(None, layout="", dropout=0.2, run_dir=str(tmp_path), resume=True)
    masks, bits = resumed["warnings"]
    assert "stopped in 2 processes and goes on in 1: dropout draws other masks" in masks
    assert "device was '2 × cpu" in bits
    assert resumed["steps"] == 6


def test_without_dropout_only_the_last_bits_are_warned_of(
    pair: Any, tmp_path: Path, jobs: ModuleType
) -> None:
    jobs.training(None, layout="", run_dir=str(tmp_path), until=3, save=True)
    first, second = pair.run("training", layout="fsdp", run_dir=str(tmp_path), resume=True)
    (warning,) = first["warnings"]
    assert "last bits may differ" in warning
    assert second["warnings"] == []


# --- decided together -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rank", [0, 1])
def test_ctrl_c_on_one_process_stops_all_after_the_same_step(
    layout: str, rank: int, pair: Any, tmp_path: Path
) -> None:
    found = pair.run("training", layout=layout, run_dir=str(tmp_path), interrupt={rank: 3})
    assert [run["steps"] for run in found] == [3, 3]
    assert all("stopped after step 3 of 6" in run["stopped"] for run in found)
    assert load_checkpoint(tmp_path).step == 3
    resumed = pair.run("training", layout=layout, run_dir=str(tmp_path), resume=True)
    assert_same_bits(resumed[0], pair.run("training", layout=layout)[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("clip", [True, False])
def test_an_overflow_on_one_process_skips_the_step_on_all(layout: str, clip: bool, pair: Any) -> None:
    for found in pair.run("overflow", layout=layout, clip=clip):
        assert found == {"changed": [False, True], "scales": [2.0**9, 2.0**9]}


def test_precision_by_trial_is_rank_0s_choice(pair: Any, tmp_path: Path) -> None:
    found = pair.run("precision_by_trial", layout="ddp", run_dir=str(tmp_path))
    assert found == [("bf16", None, [0]), ("bf16", None, [])]
    assert load_checkpoint(tmp_path).precision.precision == "bf16"


def test_a_model_that_is_cut_is_not_tried_whole_but_goes_on_with_what_was_found(
    pair: Any, tmp_path: Path
) -> None:
    auto = {"precision": "auto", "n_steps": 4, "run_dir": str(tmp_path)}
    for found in pair.run("training", layout="fsdp", **auto):
        assert found["error"].startswith("ConfigError: precision='auto' tries the whole model on one device")
        assert found["error"].endswith(
            "dp_shard=2 cuts it because it may not fit there: give 'bf16' or 'fp32'"
        )
    assert not list(tmp_path.iterdir())
    pair.run("training", layout="ddp", until=2, save=True, **auto)
    first, _ = pair.run("training", layout="fsdp", resume=True, **auto)
    assert (first["error"], first["steps"]) == (None, 4)
    assert first["precision"] == load_checkpoint(tmp_path).precision.precision


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_rank_0s_logger_refuses_is_refused_by_all(layout: str, pair: Any) -> None:
    assert pair.run("logger_refuses", layout=layout) == ["no account there"] * 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_loss_that_is_not_finite_ends_all_processes_with_the_same_words(layout: str, pair: Any) -> None:
    first, second = pair.run("training", layout=layout, learning_rate=1e20, clip_norm=None)
    assert first["error"].startswith("TrainingError: the loss is nan at step")
    assert second["error"] == first["error"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_that_holds_a_run_is_refused_by_all(layout: str, pair: Any, tmp_path: Path) -> None:
    pair.run("training", layout=layout, run_dir=str(tmp_path), n_steps=1)
    first, second = pair.run("training", layout=layout, run_dir=str(tmp_path), n_steps=1)
    assert "already holds a run, at step 1" in first["error"]
    assert second["error"] == first["error"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_disk_that_refuses_rank_0s_checkpoint_ends_all(layout: str, pair: Any, tmp_path: Path) -> None:
    first, second = pair.run("write_fails", layout=layout, run_dir=str(tmp_path))
    assert first == second == "CheckpointError: cannot write: is the disk full?"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_processes_that_read_other_texts_are_refused(layout: str, pair: Any) -> None:
    first, second = pair.run("training", layout=layout, change={1: 1})
    assert "process 1 would train chain-" in first["error"]
    assert second["error"] == first["error"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_that_cannot_be_shared_equally_is_refused_with_sizes_that_would_do(
    layout: str, pair: Any
) -> None:
    for found in pair.run("training", layout=layout, batch_size=7):
        assert found["error"].startswith("ConfigError: batch_size=7 cannot be shared equally by 2 processes")
        assert "6 or 8 would do" in found["error"]
    for found in pair.run("training", layout=layout, batch_size=1):
        assert found["error"].endswith(": 2 would do")


# --- four processes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["dp_replicate=2,dp_shard=2", "dp_shard=4", "dp_replicate=4"])
def test_four_processes_equal_one_and_resume_to_the_same_bits(
    layout: str, four: Any, jobs: ModuleType, tmp_path: Path
) -> None:
    alone = jobs.training(None, layout="", kind="double", n_steps=8)
    found = four.run("training", layout=layout, kind="double", n_steps=8)
    assert max(abs(a - b) for a, b in zip(found[0]["losses"], alone["losses"], strict=True)) <= 1e-10
    parts = {"dp_replicate=2,dp_shard=2": 2, "dp_shard=4": 4, "dp_replicate=4": 1}[layout]
    assert {run["optimizer_bytes"] for run in found} == {alone["optimizer_bytes"] // parts}
    case = {"layout": layout, "dropout": 0.2}
    whole = four.run("training", **case)
    four.run("training", run_dir=str(tmp_path), until=4, save=True, **case)
    assert_same_bits(whole[0], four.run("training", run_dir=str(tmp_path), resume=True, **case)[0])


def test_ddp_among_some_of_the_processes_is_as_among_all_and_fsdp_is_not_offered(
    four: Any, jobs: ModuleType
) -> None:
    alone, _, _ = jobs.gradients(None, layout="", kind="double")
    others, mine, none, also_mine = four.run("among_some", ranks=[1, 3])
    assert others is none is None
    assert mine == also_mine
    assert mine[0] == "by 0 of [1, 3]"
    assert mine[1] == pytest.approx(alone, rel=1e-12)
    assert set(four.run("sharded_among_some", ranks=[1, 3])) == {None, "a mesh spans all processes"}
