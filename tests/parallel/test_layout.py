"""Layouts and launches that cannot be are refused with the value and the way out."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from scalelab.core.errors import ConfigError, TrainingError
from scalelab.parallel.engine.launch import Launch, read_launch
from scalelab.parallel.engine.layout import Layout, parse_layout, processes_of
from scalelab.parallel.engine.processes import device_of, make_strategy


@pytest.mark.parametrize(
    ("text", "n_processes", "layout", "name"),
    [
        ("ddp", 2, Layout(dp_replicate=2), "dp_replicate=2"),
        ("fsdp", 4, Layout(dp_shard=4), "dp_shard=4"),
        ("dp_replicate=3", 3, Layout(dp_replicate=3), "dp_replicate=3"),
        ("dp_shard=2,dp_replicate=2", 4, Layout(dp_replicate=2, dp_shard=2), "dp_replicate=2,dp_shard=2"),
        ("tp=2,pp=3,dp_shard=2", 12, Layout(pp=3, dp_shard=2, tp=2), "pp=3,dp_shard=2,tp=2"),
        (" dp_replicate = 2 , dp_shard = 1 ", 2, Layout(dp_replicate=2), "dp_replicate=2"),
        ("ddp", 1, Layout(), "dp_replicate=1"),
        ("dp_shard=1", 1, Layout(), "dp_replicate=1"),
    ],
)
def test_a_layout_is_read_from_its_axes_or_a_shorthand(
    text: str, n_processes: int, layout: Layout, name: str
) -> None:
    found = parse_layout(text, n_processes)
    assert found == layout
    assert str(found) == name
    assert found.n_processes == n_processes
    assert found.n_shares == n_processes // (found.tp * found.pp)
    assert parse_layout(str(found), n_processes) == found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dpp", r"unknown axis 'dpp' in 'dpp'; did you mean pp or ddp"),
        ("dp_shards=2", r"unknown axis 'dp_shards' .* did you mean dp_shard"),
        ("cp=2", r"unknown axis 'cp' in 'cp=2'.*the axes are pp, dp_replicate, dp_shard, tp"),
        ("", r"unknown axis '' in ''"),
        ("dp_shard=2,", r"unknown axis '' in 'dp_shard=2,'"),
        ("dp_shard=2,dp_shard=1", r"dp_shard stands twice"),
        ("dp_shard=0", r"dp_shard must be a whole number of at least 1, got '0' in 'dp_shard=0'"),
        ("dp_shard=-2", r"got '-2'"),
        ("dp_shard=two", r"got 'two'"),
        ("dp_shard=2.0", r"got '2.0'"),
        ("dp_shard=", r"got ''"),
        ("dp_shard", r"dp_shard must be a whole number of at least 1, got 'nothing'"),
        ("dp_shard=²", r"got '²'"),
        ("ddp=2", r"'ddp' stands for all processes and takes no count, got 'ddp=2': write ddp alone"),
        ("ddp,dp_shard=2", r"'ddp' stands for all processes"),
        ("dp_shard=3", r"is of 3 processes, 2 were started: start 3"),
        ("dp_replicate=2,dp_shard=2", r"is of 4 processes, 2 were started"),
        ("dp_shard=1", r"is of 1 processes, 2 were started"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_with_what_was_meant(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_layout(text, 2)


def test_ranks_run_along_tp_first_and_along_pp_last_and_share_rows_along_both() -> None:
    layout = Layout(pp=2, dp_replicate=3, dp_shard=2, tp=2)
    assert [layout.coordinates(rank)["tp"] for rank in range(4)] == [0, 1, 0, 1]
    assert [layout.coordinates(rank)["pp"] for rank in (0, 11, 12, 23)] == [0, 0, 1, 1]
    assert [layout.share_of(rank) for rank in range(12)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert [layout.share_of(rank) for rank in range(12, 24)] == [layout.share_of(rank) for rank in range(12)]
    assert (layout.n_shares, layout.n_parts) == (6, 8)


def test_a_count_that_is_no_number_is_refused_by_the_layout_itself() -> None:
    with pytest.raises(ConfigError, match="dp_shard must be"):
        Layout(dp_shard=0)
    with pytest.raises(ConfigError, match="dp_replicate must be"):
        Layout(dp_replicate=2.0)  # type: ignore[arg-type]


def test_a_shorthand_asks_for_two_processes_at_least() -> None:
    assert processes_of("ddp") == processes_of("fsdp") == 2
    assert processes_of("dp_replicate=2,dp_shard=3") == 6


TORCHRUN = {
    "RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}  # fmt: skip


def test_torchruns_environment_says_which_process_this_is() -> None:
    assert read_launch(TORCHRUN) == Launch(rank=1, n_processes=4, local_rank=1, local_processes=2)
    assert read_launch({}) is None
    assert read_launch({"LOCAL_RANK": "1"}) is None
    assert read_launch({"WORLD_SIZE": "1"}) is None
    assert read_launch({"RANK": "0", "WORLD_SIZE": "1"}) == Launch(
        rank=0, n_processes=1, local_rank=0, local_processes=1
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"RANK": None}, "RANK must be a whole number of at least 0, got None: start by torchrun"),
        ({"WORLD_SIZE": None}, "WORLD_SIZE must be a whole number of at least 0, got None"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE must be .* got 'many'"),
        ({"RANK": "-1"}, "RANK must be .* got '-1'"),
        ({"RANK": "4"}, "RANK=4 is no process of WORLD_SIZE=4"),
        ({"WORLD_SIZE": "0"}, "is no process of WORLD_SIZE=0"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2 is no process of LOCAL_WORLD_SIZE=2"),
        ({"LOCAL_WORLD_SIZE": "0"}, "is no process of LOCAL_WORLD_SIZE=0"),
        ({"MASTER_ADDR": None}, "WORLD_SIZE=4 is set and MASTER_ADDR is not"),
        ({"MASTER_PORT": ""}, "WORLD_SIZE=4 is set and MASTER_PORT is not"),
    ],
)
def test_half_of_a_launch_is_refused_with_the_variable_that_is_wrong(
    changes: dict[str, str | None], says: str
) -> None:
    environment = {name: value for name, value in {**TORCHRUN, **changes}.items() if value is not None}
    with pytest.raises(ConfigError, match=says):
        read_launch(environment)


def test_each_process_takes_the_gpu_of_its_place_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    launch = Launch(rank=3, n_processes=4, local_rank=1, local_processes=2)
    assert device_of(launch, None) == device_of(launch, "cuda") == torch.device("cuda", 1)
    assert taken == [torch.device("cuda", 1)] * 2
    assert device_of(launch, "cpu") == torch.device("cpu")
    with pytest.raises(
        ConfigError, match="--device cuda:1 is one device, and there are 4 processes: give cuda"
    ):
        device_of(launch, "cuda:1")
    crowded = Launch(rank=0, n_processes=3, local_rank=0, local_processes=3)
    with pytest.raises(TrainingError, match="3 processes on a machine with 2 GPUs: start --nproc-per-node 2"):
        device_of(crowded, None)
    with pytest.raises(TrainingError, match="unknown device 'gpu'"):
        device_of(launch, "gpu")


@pytest.mark.parametrize(
    ("device", "layout", "says"),
    [
        ("mps", Layout(dp_replicate=2), r"dp_replicate=2 needs processes that exchange tensors, .* 'mps'"),
        ("cuda", Layout(tp=2), r"tp=2 cuts the model over GPUs, which takes NCCL, .* --device cpu"),
    ],
)
def test_what_torch_cannot_do_on_a_device_is_refused_with_what_it_can(
    device: str, layout: Layout, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(TrainingError, match=says):
        make_strategy(layout, None, torch.device(device))  # type: ignore[arg-type]


def test_a_layout_is_read_without_torch() -> None:
    code = (
        "import sys; import scalelab.parallel.engine.layout, scalelab.parallel.engine.launch; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_a_torch_that_cannot_sum_in_fsdp_is_refused_with_the_version_that_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch.distributed.fsdp import FSDPModule

    from scalelab.parallel.engine import sharded

    monkeypatch.delattr(FSDPModule, "set_force_sum_reduction_for_comms")
    with pytest.raises(TrainingError, match=r"dp_shard needs torch 2\.8 or newer, this is .*--parallel ddp"):
        sharded._check_torch()
