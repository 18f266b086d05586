"""Our tensor parallelism on real processes: one process's gradients and weights, and torch's beside them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from scalelab.cost.traffic import tensor_parallel_traffic
from scalelab.parallel.scratch.group import Traffic

sys.path.insert(0, str(Path(__file__).parents[1] / "parallel_scratch"))

from cut_models import CONFIGS, batch_of, found_alone, lively
from equality import assert_same_found, assert_same_tensors, assert_same_weights, trained_alone

JOBS = "scratch_jobs_tensor_parallel"


@pytest.mark.parametrize(("name", "way"), [("gpt", "tensor"), ("gpt", "sequence"), ("waves", "sequence")])
def test_four_processes_equal_one_and_send_the_formulas_bytes(four: Any, name: str, way: str) -> None:
    expected, (rows, time) = found_alone(CONFIGS[name]), batch_of().tokens.shape
    in_time = way == "sequence"
    formula = tensor_parallel_traffic(
        CONFIGS[name], 4, batch_size=rows, seq_len=time, sequence_parallel=in_time, keeps_shards=in_time
    )
    for rank, (found, sent) in enumerate(four.run(f"{JOBS}:gradients", name=name, way=way)):
        assert_same_found(found, expected)
        assert sent == Traffic(formula.total.messages[rank], formula.sent_bytes[rank])


def test_two_processes_cut_grouped_heads_and_a_head_of_its_own(pair: Any) -> None:
    for found, _ in pair.run(f"{JOBS}:gradients", name="llama", way="sequence"):
        assert_same_found(found, found_alone(CONFIGS["llama"]))


def test_four_processes_take_ten_adamw_steps_as_one(four: Any) -> None:
    batches = [batch_of(seed=100 + step) for step in range(10)]
    expected = trained_alone(lively(CONFIGS["gpt"], double=True), batches)
    for weights in four.run(f"{JOBS}:trained", name="gpt", way="sequence", n_steps=10):
        assert_same_weights(weights, expected)


def test_a_cut_feed_forward_equals_torchs_and_takes_as_many_sums(pair: Any) -> None:
    for ours, torchs, counts, sent in pair.run(f"{JOBS}:feed_forward"):
        assert_same_tensors(ours, torchs, 1e-6)
        assert counts == [{"all_reduce": 1}, {"all_reduce": 1}]
        assert sent.messages == 2 * 2 * (2 - 1)  # two sums around a ring of two


def test_the_vocabulary_loss_equals_torchs_loss_parallel(pair: Any) -> None:
    for mean, gradient, torchs, torchs_gradient in pair.run(f"{JOBS}:loss"):
        torch.testing.assert_close(mean, torchs)
        torch.testing.assert_close(gradient, torchs_gradient)


def test_torchs_differentiable_all_reduce_is_not_g(four: Any) -> None:
    """It sums the gradient as well: the reason that g is written out."""
    assert four.run(f"{JOBS}:gradient_through_torchs_all_reduce") == [4.0] * 4
