"""`scalelab train --parallel` outside of torchrun, and what several processes need of a machine's memory."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scalelab.cli import main
from scalelab.cli import train as command
from scalelab.core.config import DecoderConfig
from scalelab.core.errors import ConfigError, TrainingError
from scalelab.cost import memory
from scalelab.parallel.engine.launch import Launch
from scalelab.parallel.engine.layout import Layout
from scalelab.train import TrainConfig, Trainer, load_checkpoint

TINY = [
    "--corpus", "markov", "--max-bytes", "4000", "--d-model", "16", "--n-layers", "1", "--n-heads", "2",
    "--seq-len", "16", "--batch-size", "4", "--n-evals", "1", "--tokens", "128", "--quiet",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("layout", "n_processes"), [("ddp", 2), ("fsdp", 2), ("dp_shard=4", 4), ("dp_replicate=2,dp_shard=3", 6)]
)
def test_a_layout_of_several_processes_in_one_is_refused_with_the_command_that_starts_them(
    layout: str, n_processes: int, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "a b"
    assert main(["train", *TINY, "--out", str(out), "--parallel", layout]) == 2
    err = capsys.readouterr().err
    assert f"--parallel {layout} is for several processes, and this is one: torchrun" in err
    assert f"torchrun --nproc-per-node {n_processes} -m scalelab train --corpus markov" in err
    assert f"--out '{out}' --parallel {layout}" in err
    assert not out.exists()


@pytest.mark.parametrize("layout", ["dpp", "dp_shard=0", "dp_shard", "cp=1", ""])
def test_a_layout_that_cannot_be_is_one_clear_line(layout: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["train", *TINY, "--out", str(tmp_path / "a"), "--parallel", layout]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert repr(layout) in err
    assert not (tmp_path / "a").exists()


def test_a_layout_of_one_process_is_one_process(tmp_path: Path) -> None:
    assert main(["train", *TINY, "--out", str(tmp_path / "a"), "--parallel", "dp_shard=1"]) == 0


def test_half_a_launch_is_one_clear_line(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", *TINY, "--out", str(tmp_path / "a"), "--parallel", "ddp"]) == 2
    assert "RANK must be a whole number of at least 0, got None: start by torchrun" in capsys.readouterr().err


def test_help_says_what_parallel_takes(capsys: Any) -> None:
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--parallel LAYOUT" in out
    assert "torchrun --nproc-per-node 2 -m scalelab train" in out


def test_how_long_to_wait_is_read_before_processes_meet_whatever_else_is_wrong() -> None:
    assert command._timeout(["--timeout", "5", "--d-modell", "7"]).total_seconds() == 5
    assert command._timeout(["--timeout=2k"]).total_seconds() == 2000
    for words in ([], ["--help"], ["--timeout", "soon"], ["--timeout"]):
        assert command._timeout(words).total_seconds() == 1800


def test_several_processes_and_no_layout_are_refused_with_the_layouts_there_are() -> None:
    launch = Launch(rank=0, n_processes=2, local_rank=0, local_processes=2)
    args: Any = SimpleNamespace(parallel=None, device="cpu")
    with pytest.raises(
        ConfigError, match=r"2 processes were started, .*--parallel ddp .* or --parallel fsdp"
    ):
        command._strategy(args, [], launch, None)


def test_one_process_under_torchrun_is_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["train", *TINY, "--out", str(tmp_path / "plain")]) == 0
    torchrun = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    assert main(["train", *TINY, "--out", str(tmp_path / "one"), "--parallel", "fsdp"]) == 0
    newest = [max((tmp_path / name / "checkpoints").glob("step-*")) for name in ("plain", "one")]
    assert load_checkpoint(newest[0]).history.loss_nats == load_checkpoint(newest[1]).history.loss_nats


def test_ctrl_c_without_a_word_is_told_as_an_interruption_with_how_to_go_on(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Trainer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "run", interrupted)
    out = tmp_path / "a run"
    assert main(["train", *TINY, "--out", str(out)]) == 130
    told = capsys.readouterr().err
    assert told == f"scalelab: error: interrupted; go on with: scalelab train --out '{out}' --resume\n"
    assert shlex.split(told)[-3:] == ["--out", str(out), "--resume"], "fit to be pasted"


def strategy_of(n_shares: int, n_parts: int) -> Any:
    return SimpleNamespace(n_shares=n_shares, n_parts=n_parts, device=torch.device("cpu"))


@pytest.mark.parametrize(("n_parts", "here", "fits"), [(1, 1, True), (1, 2, False), (2, 2, True)])
def test_processes_share_a_machines_memory_and_sharding_makes_room(
    n_parts: int, here: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = DecoderConfig(n_layers=2, d_model=512, n_heads=4, vocab_size=512, seq_len=16)
    training = TrainConfig(n_tokens=128, batch_size=here, seq_len=16)
    one = memory(model, batch_size=1, seq_len=16)
    monkeypatch.setattr(command, "_device_bytes", lambda device: int(1.5 * one.peak_bytes))
    strategy = strategy_of(here, n_parts)
    launch = Launch(rank=0, n_processes=here, local_rank=0, local_processes=here)
    if fits:
        command._check_memory(model, training, strategy, launch)
    else:
        with pytest.raises(TrainingError, match="of memory in its 2 processes, this cpu has"):
            command._check_memory(model, training, strategy, launch)


def test_layers_that_are_dealt_out_make_room_for_activations_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    model = DecoderConfig(n_layers=2, d_model=64, n_heads=4, vocab_size=512, seq_len=128)
    training = TrainConfig(n_tokens=128 * 64, batch_size=64, seq_len=128)
    launch = Launch(rank=0, n_processes=4, local_rank=0, local_processes=1)
    one = memory(model, batch_size=64, seq_len=128)
    monkeypatch.setattr(command, "_device_bytes", lambda device: int(0.4 * one.peak_bytes))
    command._check_memory(model, training, strategy_of(1, 4), launch, Layout(pp=2, tp=2))
    with pytest.raises(TrainingError, match="a step needs about"):
        command._check_memory(model, training, strategy_of(1, 4), launch, Layout(dp_shard=4))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_one_process_needs_what_cost_counts_and_fsdp_cuts_all_but_activations(
    precision: str, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = DecoderConfig(n_layers=2, d_model=512, n_heads=4, vocab_size=512, seq_len=16)
    training = TrainConfig(
        n_tokens=16 * 64, batch_size=64, seq_len=16, precision=precision, accumulate=accumulate
    )
    launch = Launch(rank=0, n_processes=1, local_rank=0, local_processes=1)

    def fits(strategy: Any, room: int) -> bool:
        monkeypatch.setattr(command, "_device_bytes", lambda device: room)
        try:
            command._check_memory(model, training, strategy, launch)
        except TrainingError:
            return False
        return True

    def count(batch_size: int, later: int) -> Any:
        return memory(model, batch_size=batch_size, seq_len=16, precision=precision, accumulate=later)

    one = count(64 // accumulate, accumulate)
    assert fits(strategy_of(1, 1), one.peak_bytes)
    assert not fits(strategy_of(1, 1), one.peak_bytes - 1)
    rows = 8 // accumulate
    kept = one.weights_bytes + one.optimizer_bytes + one.gradients_bytes
    passing = count(rows, 2).peak_bytes - kept
    there = kept if accumulate > 1 else kept - one.gradients_bytes
    assert passing < one.gradients_bytes, "or gradients left whole would not show"
    needed = max(passing + there // 8, (kept - one.weights_bytes + one.gradients_bytes) // 8)
    assert fits(strategy_of(8, 8), needed)
    assert not fits(strategy_of(8, 8), needed - 1)
