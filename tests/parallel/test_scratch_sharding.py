"""Our ZeRO on real processes: one process's gradients and weights, and those of torch's own ways."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "parallel_scratch"))

from equality import (
    CONFIG,
    alone,
    assert_same_found,
    assert_same_weights,
    make_batch,
    make_batches,
    make_model,
    summed_loss,
    weights_of,
)

from scalelab.cost.sharding import zero_memory
from scalelab.cost.traffic import zero_traffic
from scalelab.parallel.scratch.flat import units_of
from scalelab.train.optimizer import parameter_groups

FOUR_BLOCKS = dataclasses.replace(CONFIG, n_layers=4)
CLIP = 0.3


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    """Weights of one process after ten steps."""
    model = make_model(double=True, config=FOUR_BLOCKS)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-2, betas=(0.9, 0.95))
    for batch in make_batches():
        optimizer.zero_grad()
        (summed_loss(model, batch) / batch.n_targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    return weights_of(model)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_on_four_processes_gradients_bytes_held_and_sent_are_as_on_threads(four: Any, stage: int) -> None:
    one = alone(make_model(), make_batch())
    *blocks, root = [sum(p.numel() for p in own) for _, own in units_of(make_model())]
    for rank, (found, held, sent) in enumerate(
        four.run("scratch_jobs_sharding:gradients", stage=stage, config=CONFIG)
    ):
        assert_same_found(found, one)
        states = zero_memory([*blocks, root], stage=stage, dp=4, rank=rank)
        assert held == dataclasses.replace(states, optimizer_bytes=0)  # before AdamW's first step
        traffic = [
            zero_traffic(n, 4, stage=stage, resharded=reshard).parts
            for n, reshard in ((blocks, True), ([root], False))
        ]
        before_step = [part.sent_bytes[rank] for parts in traffic for name, part in parts.items()
                       if "after the step" not in name]  # fmt: skip
        assert sent == sum(before_step)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_on_four_processes_weights_after_ten_steps_equal_one_process(
    four: Any, stage: int, expected: dict[str, torch.Tensor]
) -> None:
    for found in four.run("scratch_jobs_sharding:trained", stage=stage, config=FOUR_BLOCKS):
        assert_same_weights(found, expected)


def test_torchs_fsdp_ends_with_the_same_weights_by_9_all_gathers_and_5_reduce_scatters(
    four: Any, expected: dict[str, torch.Tensor]
) -> None:
    """Four blocks gathered twice and the root once."""
    n_params = sum(p.numel() for p in make_model(config=FOUR_BLOCKS).parameters())
    answers = four.run("scratch_jobs_sharding:trained_by_fsdp", config=FOUR_BLOCKS)
    for found in answers:
        assert_same_weights(found["weights"], expected)
        assert found["counts"]["allgather_base"] == 9
        assert found["counts"]["reduce_scatter_base"] == 5
    assert sum(found["held"] for found in answers) >= 8 * n_params
    # Cut tensor by tensor along rows, padded to equal pieces: within a few rows of a fourth each.
    assert max(found["held"] for found in answers) < 1.1 * 8 * n_params / 4


def test_torchs_own_count_of_four_layers_in_a_fifth_module_is_9_and_5_as_well(four: Any) -> None:
    for counts in four.run("scratch_jobs_sharding:collectives_of_fsdp"):
        assert counts == {"_allgather_base_": 9, "_reduce_scatter_base_": 5}


def test_torchs_zero_redundancy_optimizer_ends_with_the_same_weights(
    four: Any, expected: dict[str, torch.Tensor]
) -> None:
    job = "scratch_jobs_sharding:trained_by_zero_redundancy_optimizer"
    for found in four.run(job, config=FOUR_BLOCKS):
        assert_same_weights(found, expected)
