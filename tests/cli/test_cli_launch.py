"""`scalelab launch` prints commands that hold together; tests/parallel/test_machines.py runs them."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from scalelab.cli import main

TWO = ["launch", "--nodes", "2", "--gpus-per-node", "8"]
TRAIN = ["train", "--parallel", "dp_shard=4,tp=4", "--out", "runs/a b"]


def test_plain_hosts_get_a_command_each_that_differs_in_its_rank_alone(capsys: Any) -> None:
    assert main([*TWO, "--master-addr", "10.0.0.1", "--", *TRAIN]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "# on 10.0.0.1"
    assert lines[2] == "# on machine 2 of 2"
    first, second = (shlex.split(line) for line in lines[1::2])
    assert first[0] == second[0] == "torchrun"
    assert [pair for pair in zip(first, second, strict=True) if pair[0] != pair[1]] == [("0", "1")]
    assert first[first.index("--node-rank") + 1] == "0"
    assert first[-len(TRAIN) :] == TRAIN, "with what needs quotes in quotes"


def test_slurm_gets_a_script_that_starts_one_torchrun_on_each_machine(capsys: Any) -> None:
    assert main([*TWO, "--slurm", "--port", "1234", "--", *TRAIN]) == 0
    out = capsys.readouterr().out
    assert out.startswith("#!/bin/bash\n")
    for line in ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--signal=TERM@120"):
        assert f"#SBATCH {line}\n" in out
    assert "srun torchrun --nnodes 2 --nproc-per-node 8" in out
    assert '--rdzv-endpoint "$first:1234"' in out
    assert "-m scalelab train --parallel dp_shard=4,tp=4 --out 'runs/a b'" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "what is to be started? Give a training command after --, got nothing"),
        (["generate", "runs/x"], "got generate runs/x"),
        (["train", "--out", "runs/x"], "16 processes would start, and nothing says how they train together"),
        (["train", "--parallel", "tp=8"], "the layout 'tp=8' is of 8 processes, 16 were started"),
        (["train", "--parallel=tq=8"], "unknown axis 'tq'"),
    ],
)
def test_commands_that_would_fail_are_refused_before_any_machine_is_asked(
    words: list[str], says: str, capsys: Any
) -> None:
    assert main([*TWO, "--", *words]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert says in err


def test_tensor_parallelism_across_machines_is_noted(capsys: Any) -> None:
    main([*TWO, "--", "train", "--parallel", "tp=16"])
    assert "# note: tp=16 crosses machines of 8 processes" in capsys.readouterr().out
    main([*TWO, "--", "train", "--parallel", "fsdp"])
    assert "note" not in capsys.readouterr().out
