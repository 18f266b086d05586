"""The layers that the tensor-parallel lab counts: what is kept, and whose place torch's layer takes."""

from __future__ import annotations

import itertools

import pytest
import torch

from scalelab.core.config import DecoderConfig
from scalelab.cost.layer_activations import layer_activation_bytes
from scalelab.lab.parallelism.gpt_layer import GPTLayer
from scalelab.lab.parallelism.paper_layer import PaperLayer, kept_bytes
from scalelab.lab.parallelism.plain_layer import PlainLayer
from scalelab.models.attention import Sight
from scalelab.models.block import Block
from scalelab.parallel.scratch.group import Group
from scalelab.parallel.scratch.tensor_parallel import TensorBorders
from scalelab.parallel.scratch.threads import run_threads


@pytest.mark.parametrize(
    ("t", "sequence_parallel"), [(1, False), *itertools.product((2, 4, 8), (False, True))]
)
def test_a_cut_layer_keeps_what_the_formula_says_to_the_byte(t: int, sequence_parallel: bool) -> None:
    sizes = {"batch_size": 3, "seq_len": 32, "d_model": 48, "n_heads": 8}
    own_tokens = 3 * 32 // t if sequence_parallel else 3 * 32

    def work(group: Group) -> tuple[int, int]:
        return kept_bytes(group, sequence_parallel=sequence_parallel, **sizes)

    for kept, statistics in run_threads(t, work):
        assert statistics == 2 * own_tokens * 2 * 2  # two norms, two numbers a token, in bf16
        assert kept - statistics == layer_activation_bytes(tp=t, sequence_parallel=sequence_parallel, **sizes)


def test_on_one_rank_the_cut_layer_is_the_sharding_labs_layer() -> None:
    whole = GPTLayer(16, 4, dropout=0.0)
    x = torch.randn(2, 5, 16)

    def work(group: Group) -> torch.Tensor:
        cut = PaperLayer(16, 4, 1, dropout=0.0).float()
        cut.load_state_dict(whole.state_dict())
        return cut(x, TensorBorders(group)).detach()

    torch.testing.assert_close(run_threads(1, work)[0], whole(x))


def test_torchs_plain_layer_is_the_packages_block_with_its_fused_matrix_taken_apart() -> None:
    config = DecoderConfig(
        n_layers=1, d_model=16, n_heads=4, vocab_size=8, seq_len=8, positions="none", feed_forward="gelu"
    )
    plain, block = PlainLayer(16, 4), Block(config)
    weights = plain.state_dict()
    fused = torch.cat([weights.pop(f"attention.{name}.weight") for name in "qkv"])
    block.load_state_dict(
        weights | {"attention.qkv.weight": fused, "attention.qkv.bias": torch.zeros(3 * 16)}
    )
    x = torch.randn(2, 6, 16)
    torch.testing.assert_close(plain(x), block(x, Sight(causal=True)))
