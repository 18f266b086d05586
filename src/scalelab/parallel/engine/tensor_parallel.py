"""Tensor parallelism: each process computes some heads and some columns of every layer, on the same rows.

Read `parallelize`: it says of each part of a decoder how it is cut. Between sub-layers each process keeps its
stretch of the time axis (sequence parallelism), so norms, dropout and the residual stream are shared out as
well. The vocabulary is cut in the input table and the head, and the loss is taken from logits that no process
ever holds whole.

Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3 (columns, then rows; the vocabulary); Korthikanti et
al. 2022, arXiv:2205.05198, section 4.2.1 (the time axis). Taught in book/transformers/training.md.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement, Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.distributed.tensor.parallel.style import ParallelStyle

from scalelab.core.config import DecoderConfig
from scalelab.core.errors import ConfigError
from scalelab.models import Decoder
from scalelab.models.attention import Attention, Sight

WHOLE, OVER_TIME = Replicate(), Shard(1)


def parallelize(decoder: Decoder, mesh: DeviceMesh) -> None:
    """Cut a decoder, or what a pipeline's stage has of one, over the processes of a mesh with one axis.

    All of them hold the same weights before. Afterwards parameters are DTensors whose rows in `attention.qkv`
    stand in the order of `rows_by_rank`, and a block takes and gives [B, T / tp, D].
    """
    for module in decoder.modules():
        if isinstance(module, Attention):
            _deal_out_heads(module, mesh)
    if decoder.config.norm_position == "post":
        for block in decoder.blocks.children():  # their norms' outputs are views, and FSDP wants none
            block.register_forward_hook(lambda module, words, out: out.clone())
    plan: list[tuple[str, ParallelStyle]] = [
        # The stream: whole where tokens are looked up and positions added, then cut over time.
        (
            "token_embedding",
            RowwiseParallel(input_layouts=WHOLE, output_layouts=WHOLE, use_local_output=False),
        ),
        ("position_embedding", HeldWhole()),
        ("dropout", _moved(WHOLE, to=OVER_TIME)),
        # Attention: heads. Its input is gathered over time, its output summed and cut again.
        ("blocks.*.attention_norm", SequenceParallel(use_local_output=True)),
        ("blocks.*.attention", _moved(OVER_TIME, None, None, to=WHOLE)),
        ("blocks.*.attention.qkv", ColwiseParallel()),
        ("blocks.*.attention.out", RowwiseParallel(output_layouts=OVER_TIME)),
        # Feed-forward: columns of what widens, rows of what narrows.
        ("blocks.*.feed_forward_norm", SequenceParallel(use_local_output=True)),
        ("blocks.*.feed_forward", _moved(OVER_TIME, to=WHOLE)),
        ("blocks.*.feed_forward.gate", ColwiseParallel()),
        ("blocks.*.feed_forward.up", ColwiseParallel()),
        ("blocks.*.feed_forward.down", RowwiseParallel(output_layouts=OVER_TIME)),
        # The head: rows of the vocabulary, over a stream that is gathered once more.
        ("final_norm", SequenceParallel()),
        (
            "final_norm",
            PrepareModuleOutput(
                output_layouts=OVER_TIME, desired_output_layouts=WHOLE, use_local_output=False
            ),
        ),
        ("head", ColwiseParallel()),
    ]
    there = [name for name, _ in decoder.named_modules()]
    for path, style in plan:
        if any(fnmatchcase(name, path) for name in there):
            parallelize_module(decoder, mesh, {path: style}, src_data_rank=None)


def check_divides(config: DecoderConfig, tp: int, *, seq_len: int | None = None) -> None:
    """Refuse what cannot be dealt out equally; the vocabulary need not be.

    Args:
        seq_len: tokens of each row that will be trained on; None: not known yet.

    Raises:
        ConfigError: naming every count that the number of processes does not divide.
    """
    counts = {
        "n_heads": config.n_heads,
        "n_kv_heads": config.kv_heads,
        "d_ff": config.ff_width,
        "seq_len": seq_len or tp,
    }
    wrong = [f"{name}={count}" for name, count in counts.items() if count % tp]
    if wrong:
        raise ConfigError(
            f"tp={tp} deals out heads, columns and time equally, and does not divide "
            f"{', '.join(wrong)}: choose multiples of {tp}, or another tp"
        )


def rows_by_rank(n_heads: int, n_kv_heads: int, d_head: int, tp: int) -> Tensor:
    """Order of the rows of a joint query–key–value matrix in which each of `tp` equal cuts has whole heads.

    The model keeps all queries, then all keys, then all values; a plain cut would hand one process queries
    alone. Process r gets its H/tp query heads, then its key heads, then its value heads, so that a query head
    and the key head it shares are never parted.

    Returns:
        [(H + 2·KV)·K] numbers of rows; `argsort` of it restores the model's own order.
    """
    rows = torch.arange((n_heads + 2 * n_kv_heads) * d_head).view(-1, d_head)
    kinds = rows.split_with_sizes((n_heads, n_kv_heads, n_kv_heads))
    parts = [kind.chunk(tp) for kind in kinds]
    return torch.cat([part[rank] for rank in range(tp) for part in parts]).flatten()


class HeldWhole(ParallelStyle):
    """Every process holds all of a module's parameters, as DTensors like the rest."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return distribute_module(module, device_mesh)


def _moved(*layouts: Placement | None, to: Placement) -> PrepareModuleInput:
    """A module's first argument arrives in one layout and is worked on, as a plain tensor, in another."""
    wanted = tuple(to if layout is not None else None for layout in layouts)
    return PrepareModuleInput(input_layouts=layouts, desired_input_layouts=wanted, use_local_output=True)


def _deal_out_heads(attention: Attention, mesh: DeviceMesh) -> None:
    """Order the rows by rank, and tell the module how many heads it will have."""
    tp, rank = mesh.size(), mesh.get_local_rank()
    order = rows_by_rank(attention.n_heads, attention.n_kv_heads, attention.d_head, tp)
    with torch.no_grad():
        for parameter in attention.qkv.parameters():
            parameter.copy_(parameter[order.to(parameter.device)])
    attention.n_heads //= tp
    attention.n_kv_heads //= tp
    own = slice(rank * attention.n_heads, (rank + 1) * attention.n_heads)

    def with_own_mask(module: nn.Module, words: tuple[Any, ...]) -> tuple[Any, ...]:
        """A mask with numbers of its own for each head (ALiBi) is for all heads of the model."""
        x, sight, *rest = words
        if sight.mask is not None and sight.mask.shape[-3] > 1:
            sight = Sight(sight.causal, sight.mask[..., own, :, :], sight.rotation)
        return (x, sight, *rest)

    attention.register_forward_pre_hook(with_own_mask)
