"""Bytes that each way of sharing a model sends in a step: papers' volumes, and counts made by hand."""

from __future__ import annotations

import dataclasses

import pytest

from scalelab.core.config import DecoderConfig
from scalelab.core.errors import ConfigError
from scalelab.cost import (
    Link,
    all_gather,
    all_reduce,
    data_parallel_traffic,
    pipeline_traffic,
    reduce_scatter,
    tensor_parallel_traffic,
    zero_traffic,
)

GPT = DecoderConfig(n_layers=4, d_model=24, n_heads=4, vocab_size=101, seq_len=16)
LLAMA = DecoderConfig(
    n_layers=4, d_model=24, n_heads=4, n_kv_heads=2, vocab_size=101, seq_len=16, norm="rmsnorm",
    positions="rope", feed_forward="swiglu", attention_bias=False, feed_forward_bias=False,
    tie_embeddings=False,
)  # fmt: skip


def test_data_parallelism_is_an_all_reduce_for_each_bucket() -> None:
    one = data_parallel_traffic(1_003, 4)
    assert one.total == all_reduce(1_003, 4)
    buckets = data_parallel_traffic([500, 500, 3], 4)
    assert buckets.total == all_reduce(500, 4) + all_reduce(500, 4) + all_reduce(3, 4)
    assert buckets.total.steps == 3 * one.total.steps
    assert buckets.seconds(Link(latency_s=1.0, bytes_per_s=1e12)) == pytest.approx(18, rel=1e-6)


@pytest.mark.parametrize(("stage", "times"), [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_zeros_volumes_are_2_2_2_and_3_times_the_parameters(stage: int, times: int) -> None:
    # Rajbhandari et al. 2019, section 7.
    n, dp = 1_024_000, 1_024
    found = zero_traffic(n, dp, stage=stage, weight_bytes=1, gradient_bytes=1)
    assert set(found.sent_bytes) == {times * n * (dp - 1) // dp}


def test_zeros_parts_are_scattered_gradients_and_gathered_weights_unit_by_unit() -> None:
    units = [10, 7, 30]
    found = zero_traffic(units, 4, stage=3, weight_bytes=2, gradient_bytes=4, micro_batches=3)
    gathered = all_gather(10, 4, bytes_per_element=2) + all_gather(7, 4, bytes_per_element=2)
    gathered += all_gather(30, 4, bytes_per_element=2)
    scattered = reduce_scatter(10, 4) + reduce_scatter(7, 4) + reduce_scatter(30, 4)
    assert found.parts["weights, forward"] == found.parts["weights, backward"] == gathered.times(3)
    assert found.parts["gradients"] == scattered.times(3)
    kept = zero_traffic(units, 4, stage=3, weight_bytes=2, gradient_bytes=4, micro_batches=3, resharded=False)
    assert "weights, backward" not in kept.parts


def test_accumulating_micro_batches_costs_stage_2_more_and_stage_1_nothing() -> None:
    def sent(stage: int, micro_batches: int) -> int:
        return zero_traffic(1_000, 4, stage=stage, micro_batches=micro_batches).sent_bytes[0]

    assert sent(1, 8) == sent(1, 1) == sent(2, 1)
    assert sent(2, 8) == sent(2, 1) + 7 * reduce_scatter(1_000, 4).sent_bytes[0]
    assert sent(3, 8) == 8 * sent(3, 1)


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_tensor_parallelism_sends_8_btd_numbers_a_layer(tp: int) -> None:
    # Narayanan et al. 2021, section 3.2: 8 b s h (t-1)/t for each layer and micro-batch.
    batch, time = 3, 16
    found = tensor_parallel_traffic(GPT, tp, batch_size=batch, seq_len=time, bytes_per_element=1)
    layers = [part for name, part in found.parts.items() if name.startswith(("attention", "feed-forward"))]
    assert sum(part.sent_bytes[0] for part in layers) == 4 * 8 * batch * time * 24 * (tp - 1) // tp
    around = all_reduce(batch * time * 24, tp, bytes_per_element=1)
    assert found.parts["token table, forward"] == found.parts["head, backward"] == around
    assert found.parts["loss"] == all_reduce(batch * time, tp).times(3)


@pytest.mark.parametrize("time", [16, 8])
def test_sequence_parallelism_sends_as_many_bytes_but_for_norms(time: int) -> None:
    plain = tensor_parallel_traffic(LLAMA, 2, batch_size=2, seq_len=time)
    cut = tensor_parallel_traffic(LLAMA, 2, batch_size=2, seq_len=time, sequence_parallel=True)
    norms = cut.parts["norms, biases, positions"]
    assert norms == all_reduce((2 * 4 + 1) * 24, 2)
    assert [a - n for a, n in zip(cut.sent_bytes, norms.sent_bytes, strict=True)] == list(plain.sent_bytes)


def test_what_every_rank_holds_whole_is_summed_once_under_sequence_parallelism() -> None:
    found = tensor_parallel_traffic(GPT, 2, batch_size=1, seq_len=16, sequence_parallel=True)
    whole = (2 * 4 + 1) * 2 * 24 + 4 * 2 * 24 + 16 * 24  # norms, biases behind sums, position table
    assert found.parts["norms, biases, positions"] == all_reduce(whole, 2)


def test_uneven_sequences_are_cut_by_tokens() -> None:
    found = tensor_parallel_traffic(LLAMA, 4 // 2, batch_size=3, seq_len=15, sequence_parallel=True)
    row = 3 * 24 * 4
    assert found.parts["head, forward"].sent_bytes == (8 * row, 7 * row)
    assert found.parts["token table, forward"].sent_bytes == (7 * row, 8 * row)


def test_keeping_shards_gathers_once_more_for_each_matrix_that_was_gathered_for() -> None:
    lean = tensor_parallel_traffic(
        LLAMA, 2, batch_size=2, seq_len=16, sequence_parallel=True, keeps_shards=True
    )
    plain = tensor_parallel_traffic(LLAMA, 2, batch_size=2, seq_len=16, sequence_parallel=True)
    more = lean.total.total_bytes - plain.total.total_bytes
    assert more == (2 * 4 + 1) * all_gather(16, 2, bytes_per_element=2 * 24 * 4).total_bytes


@pytest.mark.parametrize(("pp", "v"), [(1, 1), (2, 1), (4, 1), (2, 2), (1, 3)])
def test_a_pipeline_sends_one_message_over_every_boundary_between_ranks(pp: int, v: int) -> None:
    message = 2 * 8 * 24 * 4
    onward, back = [0] * pp, [0] * pp
    for piece in range(pp * v - 1):
        if piece % pp != (piece + 1) % pp:
            onward[piece % pp] += 5 * message
            back[(piece + 1) % pp] += 5 * message
    found = pipeline_traffic(LLAMA, pp, n_micro_batches=5, micro_batch_size=2, seq_len=8, v=v)
    assert found.parts["activations"].sent_bytes == tuple(onward)
    assert found.parts["gradients"].sent_bytes == tuple(back)
    assert found.sent_bytes == tuple(a + b for a, b in zip(onward, back, strict=True))


def test_interleaving_v_times_sends_about_v_times_as_much() -> None:
    # Narayanan et al. 2021, section 2.2.2.
    def total(v: int) -> int:
        sizes = {"n_micro_batches": 4, "micro_batch_size": 1, "seq_len": 8}
        return pipeline_traffic(LLAMA, 2, **sizes, v=v).total.total_bytes

    assert total(2) == 3 * total(1)  # boundaries: p v - 1 for p - 1


def test_a_tied_tables_two_gradients_are_summed_between_first_and_last_stage() -> None:
    found = pipeline_traffic(GPT, 3, n_micro_batches=2, micro_batch_size=1, seq_len=8).parts["tied table"]
    assert found.sent_bytes == (101 * 24 * 4, 0, 101 * 24 * 4)
    untied = dataclasses.replace(GPT, tie_embeddings=False)
    assert (
        "tied table"
        not in pipeline_traffic(untied, 3, n_micro_batches=2, micro_batch_size=1, seq_len=8).parts
    )


def test_what_cannot_be_shared_so_is_refused() -> None:
    with pytest.raises(ConfigError, match="tp=3 does not divide n_heads=4"):
        tensor_parallel_traffic(GPT, 3, batch_size=1, seq_len=8)
    with pytest.raises(ConfigError, match="seq_len=17 exceeds the model's context of 16"):
        tensor_parallel_traffic(GPT, 2, batch_size=1, seq_len=17)
    with pytest.raises(ConfigError, match="keeps_shards=True needs sequence_parallel=True"):
        tensor_parallel_traffic(GPT, 2, batch_size=1, seq_len=8, keeps_shards=True)
    with pytest.raises(ConfigError, match="4 layers cannot be cut into pp=3 times v=2"):
        pipeline_traffic(GPT, 3, n_micro_batches=1, micro_batch_size=1, seq_len=8, v=2)
    with pytest.raises(ConfigError, match="stage must be 0, 1, 2 or 3, got True"):
        zero_traffic(10, 2, stage=True)
    with pytest.raises(ConfigError, match="n_params must be a whole number of at least 0, got -1"):
        data_parallel_traffic([3, -1], 2)
    with pytest.raises(ConfigError, match="pipelines can be counted for decoders only"):
        pipeline_traffic("t5-small", 2, n_micro_batches=1, micro_batch_size=1, seq_len=8)
