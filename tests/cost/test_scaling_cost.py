"""When adding ranks stops paying: the step-time model, and the largest group that keeps an efficiency."""

from __future__ import annotations

import pytest

from scalelab.core.errors import ConfigError
from scalelab.cost import (
    Link,
    all_reduce,
    data_parallel_step,
    flops,
    largest_dp,
    tensor_parallel_step,
    tensor_parallel_traffic,
)

LINK = Link(latency_s=5e-6, bytes_per_s=25e9)
STEP = flops("gpt2", batch_size=512, seq_len=1024, training=True).total
N = 124_439_808


def test_one_rank_computes_all_and_sends_nothing() -> None:
    step = data_parallel_step(STEP, N, 1, flops_per_s=1e14, link=LINK)
    assert step.total_s == step.compute_s == STEP / 1e14
    assert step.efficiency == 1


def test_computation_falls_with_ranks_and_communication_hardly_rises() -> None:
    few, many = (data_parallel_step(STEP, N, dp, flops_per_s=1e14, link=LINK) for dp in (8, 64))
    assert many.compute_s == few.compute_s / 8
    assert few.communication_s == all_reduce(N, 8).seconds(LINK)
    assert few.communication_s < many.communication_s < 1.2 * few.communication_s
    assert many.efficiency < few.efficiency


def test_overlap_hides_a_share_but_no_more_than_backward_is_long() -> None:
    none, half, full = (
        data_parallel_step(STEP, N, 16, flops_per_s=1e14, link=LINK, overlap=share) for share in (0, 0.5, 1)
    )
    assert half.exposed_s == pytest.approx(none.communication_s / 2)
    assert full.exposed_s == 0
    slow = data_parallel_step(STEP, N, 256, flops_per_s=1e14, link=LINK, overlap=1)
    assert slow.exposed_s == pytest.approx(slow.communication_s - slow.compute_s * 2 / 3)


@pytest.mark.parametrize("overlap", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("efficiency", [0.3, 0.8, 0.95])
def test_the_largest_group_is_the_last_that_keeps_the_efficiency(overlap: float, efficiency: float) -> None:
    small = Link(latency_s=20e-6, bytes_per_s=100e9)

    def reached(dp: int) -> float:
        return data_parallel_step(STEP, N, dp, flops_per_s=1e14, link=small, overlap=overlap).efficiency

    found = largest_dp(STEP, N, efficiency=efficiency, flops_per_s=1e14, link=small, overlap=overlap)
    assert reached(found) >= efficiency > reached(found + 1)
    assert all(reached(dp) >= efficiency for dp in range(1, found))


def test_a_search_ends_where_it_is_told_to_and_one_rank_always_keeps_its_efficiency() -> None:
    assert largest_dp(STEP, N, efficiency=0.01, flops_per_s=1e14, link=LINK, most=50) == 50
    assert largest_dp(1.0, N, efficiency=0.9, flops_per_s=1e14, link=LINK) == 1
    assert largest_dp(STEP, N, efficiency=0.9, flops_per_s=1e14, link=LINK, most=1) == 1


def test_faster_ranks_stop_paying_sooner_and_a_larger_batch_later() -> None:
    def largest(step_flops: float, flops_per_s: float) -> int:
        return largest_dp(step_flops, N, efficiency=0.8, flops_per_s=flops_per_s, link=LINK)

    assert largest(STEP, 5e14) < largest(STEP, 1e14) < largest(4 * STEP, 1e14)


def test_tensor_parallelism_pays_within_a_fast_server_and_not_across_slow_wires() -> None:
    inside, across = Link(latency_s=2e-6, bytes_per_s=450e9), Link(latency_s=10e-6, bytes_per_s=50e9)
    shape = {"batch_size": 1, "seq_len": 8192, "flops_per_s": 5e14}
    near, far = (tensor_parallel_step("llama-3.1-8b", 8, **shape, link=link) for link in (inside, across))
    sent = tensor_parallel_traffic("llama-3.1-8b", 8, batch_size=1, seq_len=8192, bytes_per_element=2)
    assert near.communication_s == near.exposed_s == sent.seconds(inside)
    work = flops("llama-3.1-8b", batch_size=1, seq_len=8192, training=True).total
    assert near.compute_s == pytest.approx(work / 8 / 5e14)
    assert near.efficiency > 0.7 > 0.35 > far.efficiency


def test_what_is_no_share_or_rate_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"overlap must lie in \[0, 1\], got 1.5"):
        data_parallel_step(STEP, N, 2, flops_per_s=1e14, link=LINK, overlap=1.5)
    with pytest.raises(ConfigError, match=r"efficiency must lie in \(0, 1\], got 0"):
        largest_dp(STEP, N, efficiency=0, flops_per_s=1e14, link=LINK)
    with pytest.raises(ConfigError, match="flops_per_s must be a finite number above 0"):
        tensor_parallel_step("gpt2", 2, batch_size=1, seq_len=8, flops_per_s=0, link=LINK)
    with pytest.raises(ConfigError, match="step_flops must be a finite number above 0"):
        data_parallel_step(0, N, 2, flops_per_s=1e14, link=LINK)
