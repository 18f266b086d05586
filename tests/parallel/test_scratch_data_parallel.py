"""Our data parallelism on real processes: one process's gradients and weights, and those of torch's DDP."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "parallel_scratch"))

from equality import (
    GRADIENT_TOLERANCE,
    Found,
    alone,
    assert_same_found,
    assert_same_tensors,
    assert_same_weights,
    make_batch,
    make_batches,
    make_model,
    trained_alone,
)

from scalelab.cost import collectives as cost

JOBS = "scratch_jobs_data_parallel"


@pytest.mark.parametrize("n", [3, 1000])
def test_collectives_give_what_torchs_give(four: Any, n: int) -> None:
    for found in four.run(f"{JOBS}:collectives", n=n):
        for name, (ours, theirs) in found.items():
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize(("n_rows", "pieces", "way"), [(7, 1, "ring"), (9, 2, "tree")])
def test_gradients_equal_one_process_and_bytes_the_model(
    four: Any, n_rows: int, pieces: int, way: str
) -> None:
    expected = alone(make_model(), make_batch(n_rows))
    found = four.run(f"{JOBS}:ours", n_rows=n_rows, pieces=pieces, all_reduce=way)
    for rank, (loss, gradients, traffic, sizes) in enumerate(found):
        assert_same_found(Found(loss, gradients), expected)
        assert traffic.n_bytes == sum(cost.all_reduce(n, 4, algorithm=way).sent_bytes[rank] for n in sizes)


def test_gradients_equal_torchs(four: Any) -> None:
    ours = four.run(f"{JOBS}:ours", n_rows=7, pieces=1)
    theirs = four.run(f"{JOBS}:torchs", n_rows=7)
    for (_, gradients, _, _), expected in zip(ours, theirs, strict=True):
        assert_same_tensors(gradients, expected, GRADIENT_TOLERANCE)


def test_weights_after_ten_steps_equal_one_process(four: Any) -> None:
    expected = trained_alone(make_model(double=True), make_batches())
    for weights in four.run(f"{JOBS}:training"):
        assert_same_weights(weights, expected)
