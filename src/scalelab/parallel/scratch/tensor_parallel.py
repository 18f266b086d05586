"""A product of two matrices can be cut over ranks by columns, and the next by rows, with one sum after both.

Column-parallel: each rank has some rows of a weight [F, D] and computes some of the outputs, from the whole
input. Row-parallel: each has some columns of a weight [D, F], and computes a part of every output from those
inputs that it has; the parts are summed over ranks. What lies between, an activation function or heads of
attention, must work on each output by itself. Two operators stand at the borders of such a region: f where
the stream enters, g where it leaves.

Condition of equality: heads divide; whatever is not cut (stream, norms, targets) is the same on every rank.
Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3 (f and g). Taught in
book/parallelism/tensor-parallel.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalelab.core.config import DecoderConfig
from scalelab.core.errors import ParallelError
from scalelab.models.attention import Sight, attend
from scalelab.models.feed_forward import bend
from scalelab.models.positions import rotate
from scalelab.parallel.scratch.collectives import ring_all_reduce
from scalelab.parallel.scratch.group import Group

if TYPE_CHECKING:
    from jaxtyping import Float

Map = tuple[Tensor, Tensor | None]  # weight [N, D] and bias [N]


# --- the operators ----------------------------------------------------------------------------------------


def copy_to_ranks(x: Float[Tensor, "*shape"], group: Group) -> Float[Tensor, "*shape"]:
    """f: the stream as it is; backward, the sum over ranks of what each sends back.

    Each rank's part of the region hands back only its own share of the gradient of x.
    """
    return _CopyToRanks.apply(x, group)  # type: ignore[no-any-return, no-untyped-call]


def sum_over_ranks(x: Float[Tensor, "*shape"], group: Group) -> Float[Tensor, "*shape"]:
    """g: the sum over ranks; backward, the gradient as it is.

    Every rank then computes the same loss from the same sum, so each has the whole gradient of that sum
    already. `torch.distributed.nn.functional.all_reduce` takes each rank's loss for one of its own, whose sum
    is meant: it adds the gradients up once more, and they come out p times too large.
    """
    return _SumOverRanks.apply(x, group)  # type: ignore[no-any-return, no-untyped-call]


class _CopyToRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Summed in a copy: autograd may have handed the same tensor to the residual branch as well.
        total = gradient.clone(memory_format=torch.contiguous_format)
        ring_all_reduce(total, ctx.group)
        return total, None


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)  # x may be needed for another's backward pass
        ring_all_reduce(total, group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


# --- the borders of a cut region --------------------------------------------------------------------------


class Borders(Protocol):
    """How the stream enters a region that is cut over ranks, and how it leaves."""

    group: Group

    def enter(self, x: Float[Tensor, "B t D"], *maps: Map) -> tuple[Float[Tensor, "B T N"], ...]:
        """The products of all tokens of the stream with this rank's rows of one or more weights."""
        ...

    def leave(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B t D"]:
        """The stream, of this rank's share of each of its numbers."""
        ...


class TensorBorders:
    """Every rank has the whole stream: f at the entrance, g at the exit."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def enter(self, x: Float[Tensor, "B T D"], *maps: Map) -> tuple[Float[Tensor, "B T N"], ...]:
        x = copy_to_ranks(x, self.group)  # once for all maps, so that their gradients are summed once
        return tuple(F.linear(x, weight, bias) for weight, bias in maps)

    def leave(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return sum_over_ranks(x, self.group)


def column_parallel(
    x: Float[Tensor, "B t D"], borders: Borders, *linears: nn.Linear
) -> tuple[Float[Tensor, "B T N"], ...]:
    """This rank's outputs of one or more maps, of which it has some rows, biases included."""
    return borders.enter(x, *((linear.weight, linear.bias) for linear in linears))


def row_parallel(x: Float[Tensor, "B T N"], linear: nn.Linear, borders: Borders) -> Float[Tensor, "B t D"]:
    """All outputs of a map, from those inputs and columns that each rank has.

    The bias is whole on every rank and is added once, after the sum.
    """
    whole = borders.leave(F.linear(x, linear.weight))
    return whole if linear.bias is None else whole + linear.bias


# --- a block's two halves, narrower -----------------------------------------------------------------------


def share(n: int, group: Group) -> int:
    """How many of n rows a rank has: as `torch.tensor_split`, whose first n mod p pieces have one more."""
    return n // group.size + (group.rank < n % group.size)


class ParallelAttention(nn.Module):
    """Attention with this rank's heads: its rows of the fused qkv matrix, its columns of the way out.

    Args:
        config: of the whole model. group: the ranks that share it.

    Raises:
        ParallelError: ranks that do not divide the heads.
    """

    def __init__(self, config: DecoderConfig, group: Group) -> None:
        super().__init__()
        check_heads(config, group.size)
        self.n_heads, self.n_kv_heads = config.n_heads // group.size, config.kv_heads // group.size
        self.d_head, bias = config.head_width, config.attention_bias
        self.scale = config.head_width**-0.5 if config.scale_scores else 1.0
        self.qkv = nn.Linear(config.d_model, (self.n_heads + 2 * self.n_kv_heads) * self.d_head, bias=bias)
        self.out = nn.Linear(self.n_heads * self.d_head, config.d_model, bias=bias)

    def forward(self, x: Float[Tensor, "B t D"], sight: Sight, borders: Borders) -> Float[Tensor, "B t D"]:
        (fused,) = column_parallel(x, borders, self.qkv)  # [B, T, (H + 2·KV) K] of this rank's heads
        heads = fused.view(*fused.shape[:2], -1, self.d_head)
        turning, v = heads.split_with_sizes((self.n_heads + self.n_kv_heads, self.n_kv_heads), dim=2)
        if sight.rotation is not None:
            turning = rotate(turning, *sight.rotation)
        q, k = turning.split_with_sizes((self.n_heads, self.n_kv_heads), dim=2)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # [B, H or KV, T, K]
        mixed = attend(q, k, v, causal=sight.causal, mask=sight.mask, scale=self.scale)
        return row_parallel(mixed.transpose(1, 2).flatten(2), self.out, borders)


class ParallelFeedForward(nn.Module):
    """W_down · act(W_up · x), of whose F widened numbers this rank has its share."""

    def __init__(self, config: DecoderConfig, group: Group) -> None:
        super().__init__()
        wide, bias = share(config.ff_width, group), config.feed_forward_bias
        self.activation = config.feed_forward
        self.up = nn.Linear(config.d_model, wide, bias=bias)
        self.down = nn.Linear(wide, config.d_model, bias=bias)

    def forward(self, x: Float[Tensor, "B t D"], borders: Borders) -> Float[Tensor, "B t D"]:
        (wide,) = column_parallel(x, borders, self.up)
        return row_parallel(bend(wide, self.activation), self.down, borders)


class ParallelSwiGLU(nn.Module):
    """W_down · (silu(W_gate · x) ⊙ W_up · x): gate and up are cut alike, so that what is multiplied meets."""

    def __init__(self, config: DecoderConfig, group: Group) -> None:
        super().__init__()
        wide, bias = share(config.ff_width, group), config.feed_forward_bias
        self.gate = nn.Linear(config.d_model, wide, bias=bias)
        self.up = nn.Linear(config.d_model, wide, bias=bias)
        self.down = nn.Linear(wide, config.d_model, bias=bias)

    def forward(self, x: Float[Tensor, "B t D"], borders: Borders) -> Float[Tensor, "B t D"]:
        gate, up = column_parallel(x, borders, self.gate, self.up)  # the stream enters once for both
        return row_parallel(F.silu(gate) * up, self.down, borders)


def check_heads(config: DecoderConfig, size: int) -> None:
    """Refuse a cut through a head, or of query heads from the keys and values that they read.

    Raises:
        ParallelError: naming the numbers.
    """
    if config.n_heads % size or config.kv_heads % size:
        raise ParallelError(
            f"{size} ranks do not divide n_heads={config.n_heads} and n_kv_heads={config.kv_heads}: each "
            f"needs whole heads, and the keys and values that they read"
        )
