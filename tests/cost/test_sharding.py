"""Bytes of training state on each rank: ZeRO's stages, tensor-parallel cuts, pipeline stages."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from scalelab.core.config import DecoderConfig
from scalelab.core.errors import ConfigError
from scalelab.cost import (
    bytes_per_parameter,
    chunk_sizes,
    count_params,
    held_params,
    memory,
    rank_memory,
    zero_memory,
)

LLAMA = DecoderConfig(
    n_layers=5, d_model=24, n_heads=4, n_kv_heads=2, vocab_size=101, seq_len=16, norm="rmsnorm",
    positions="rope", feed_forward="swiglu", d_ff=50, attention_bias=False, feed_forward_bias=False,
    tie_embeddings=False,
)  # fmt: skip
GPT = DecoderConfig(n_layers=4, d_model=24, n_heads=4, vocab_size=101, seq_len=16)


@pytest.mark.parametrize(
    ("precision", "optimizer", "expected"),
    [
        ("fp32", "adamw", (4, 4, 8)),
        ("fp32", "momentum", (4, 4, 4)),
        ("fp32", "sgd", (4, 4, 0)),
        ("mixed", "adamw", (2, 2, 12)),  # ZeRO, section 3.1: K = 12
        ("mixed", "momentum", (2, 2, 8)),
        ("mixed", "sgd", (2, 2, 4)),
    ],
)
def test_a_parameter_has_the_bytes_of_its_precision_and_optimiser(
    precision: str, optimizer: str, expected: tuple[int, int, int]
) -> None:
    assert bytes_per_parameter(precision, optimizer) == expected


@pytest.mark.parametrize(
    ("stage", "gigabytes"),
    [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)],  # Rajbhandari et al. 2019, figure 1: 7.5B, 64 replicas
)
def test_zeros_figure_1_follows(stage: int, gigabytes: float) -> None:
    held = zero_memory(7_500_000_000, stage=stage, dp=64, precision="mixed")
    assert held.total_bytes / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_every_stage_cuts_one_kind_more() -> None:
    held = [zero_memory(1_000, stage=stage, dp=4, precision="mixed") for stage in range(4)]
    assert [(h.weights_bytes, h.gradients_bytes, h.optimizer_bytes) for h in held] == [
        (2_000, 2_000, 12_000),
        (2_000, 2_000, 3_000),
        (2_000, 500, 3_000),
        (500, 500, 3_000),
    ]


@pytest.mark.parametrize("n", [7, 8, 10, 3])
def test_replicas_of_an_uneven_cut_hold_every_byte_once(n: int) -> None:
    for tensors in (n, [n, 5, 1]):
        whole = zero_memory(tensors, stage=0, dp=1)
        parts = [zero_memory(tensors, stage=3, dp=4, rank=rank).total_bytes for rank in range(4)]
        assert sum(parts) == whole.total_bytes
        assert max(parts) == parts[0]


def test_tensors_that_are_cut_by_themselves_are_not_cut_as_one_vector() -> None:
    assert zero_memory([1, 1, 1, 1], stage=3, dp=4, rank=0).weights_bytes == 16
    assert zero_memory(4, stage=3, dp=4, rank=0).weights_bytes == 4
    assert zero_memory([6, 6], stage=3, dp=4, owned=5).weights_bytes == 20


def test_chunks_are_those_of_torch_chunk_with_the_ranks_that_get_none() -> None:
    for n, parts in itertools.product(range(1, 15), range(1, 8)):
        found = tuple(len(piece) for piece in torch.arange(n).chunk(parts))
        assert chunk_sizes(n, parts) == found + (0,) * (parts - len(found))


def test_without_cuts_a_rank_holds_what_the_memory_of_a_step_says() -> None:
    held, step = rank_memory("gpt2", precision="fp32"), memory("gpt2", batch_size=1, seq_len=8)
    assert held.weights_bytes == step.weights_bytes
    assert held.gradients_bytes == step.gradients_bytes
    assert held.optimizer_bytes == step.optimizer_bytes


@pytest.mark.parametrize("config", [LLAMA, GPT])
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize(("pp", "v"), [(1, 1), (2, 1), (4, 1), (2, 2)])
def test_ranks_hold_every_parameter_once_but_for_copies(
    config: DecoderConfig, tp: int, pp: int, v: int
) -> None:
    held = [
        held_params(config, tp=tp, pp=pp, tp_rank=t, pp_rank=p, v=v) for t in range(tp) for p in range(pp)
    ]
    c = config
    norm = c.d_model * (2 if c.norm == "layernorm" else 1)
    biases = c.n_layers * c.d_model * 2 if c.attention_bias else 0
    positions = c.seq_len * c.d_model if c.positions == "learned" else 0
    copies = (tp - 1) * ((2 * c.n_layers + 1) * norm + biases + positions)
    tied = c.vocab_size * c.d_model if c.tie_embeddings and pp > 1 else 0
    assert sum(h.total for h in held) == count_params(c) + copies + tied


def test_shares_are_those_of_a_model_that_is_cut_by_hand() -> None:
    draw = random.Random(0)
    heads, kv, width, wide, vocab = 4, 2, 16, draw.randint(9, 30), 33
    c = DecoderConfig(
        n_layers=1, d_model=width, n_heads=heads, n_kv_heads=kv, d_ff=wide, vocab_size=vocab, seq_len=8,
        tie_embeddings=False,
    )  # fmt: skip
    k = width // heads
    for rank in range(2):
        ff = len(torch.arange(wide).tensor_split(2)[rank])
        rows = len(torch.arange(vocab).tensor_split(2)[rank])
        found = held_params(c, tp=2, tp_rank=rank).parts
        assert found == {
            "token table": rows * width,
            "position table": 8 * width,
            "queries, keys, values": (heads // 2 + 2 * kv // 2) * k * (width + 1),
            "attention output": (heads // 2) * k * width + width,
            "feed-forward": ff * (width + 1) + ff * width + width,
            "norms": 3 * 2 * width,
            "head": rows * width,
        }


def test_a_405b_model_fits_16384_devices_only_when_cut_three_ways() -> None:
    alone = rank_memory("llama-3.1-405b", tp=8, precision="mixed").total_bytes
    cut = rank_memory("llama-3.1-405b", dp=128, tp=8, pp=16, stage=2, precision="mixed").total_bytes
    assert alone / 80e9 > 10
    assert cut / 80e9 < 0.12


def test_cuts_that_cannot_be_are_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match="tp=4 does not divide n_heads=4 and n_kv_heads=2"):
        held_params(LLAMA, tp=4)
    with pytest.raises(ConfigError, match="5 layers cannot be cut into pp=3 times v=2 pieces"):
        held_params(LLAMA, pp=3, v=2)
    with pytest.raises(ConfigError, match="pp_rank=2 is no rank: there are ranks 0 to 1"):
        held_params(LLAMA, pp=2, pp_rank=2)
    with pytest.raises(ConfigError, match="for decoders only, got EncoderConfig"):
        rank_memory("bert-base-uncased")
    with pytest.raises(ConfigError, match="stage must be 0, 1, 2 or 3, got 4"):
        zero_memory(10, stage=4, dp=2)
    with pytest.raises(ConfigError, match="precision must be one of fp32, mixed; got 'bf16'"):
        zero_memory(10, stage=1, dp=2, precision="bf16")
    with pytest.raises(ConfigError, match="owned=11 parameters are more than the model's 10"):
        zero_memory(10, stage=1, dp=2, owned=11)
    with pytest.raises(ConfigError, match="rank=2 is no rank"):
        zero_memory(10, stage=1, dp=2, rank=2)
