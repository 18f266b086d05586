"""Between cut regions each rank keeps the stream of its own tokens only: same bytes sent, fewer bytes held.

Tensor parallelism leaves norms, dropout and the residual stream whole on every rank. They work on each token
by itself, so they can be cut along time. An all-reduce is a reduce-scatter and then an all-gather: what
leaves a region is reduce-scattered along time (ḡ), the rank works on its own tokens, and where the next
region begins they are gathered again (g). Each is the other's backward pass.

What has seen only some tokens has only their part of a gradient: those of all parameters that are not cut,
norms, position table and biases added after a sum, are summed over ranks at the end (`sum_whole_gradients`).
Names: this paper calls g what gathers; the earlier one, of `tensor_parallel.py`, calls g what sums.
Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2. Taught in
book/parallelism/tensor-parallel.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scalelab.core.errors import ParallelError
from scalelab.parallel.scratch.collectives import pass_around, ring_all_reduce, sum_pieces
from scalelab.parallel.scratch.group import Group
from scalelab.parallel.scratch.tensor_parallel import Map, share

if TYPE_CHECKING:
    from jaxtyping import Float

# --- collectives along time -------------------------------------------------------------------------------


def own_tokens(x: Float[Tensor, "B T *rest"], group: Group) -> Float[Tensor, "B t *rest"]:
    """This rank's tokens of what all ranks have: piece `rank` of `torch.tensor_split` along time."""
    return x.tensor_split(group.size, dim=1)[group.rank]


def all_gather_tokens(x: Float[Tensor, "B t D"], group: Group, n_tokens: int) -> Float[Tensor, "B T D"]:
    """All ranks' tokens in order; around a ring, as `collectives.ring_all_gather`, in pieces of whole tokens.

    Raises:
        ParallelError: this rank does not have its share of so many tokens.
    """
    if x.shape[1] != share(n_tokens, group):
        raise ParallelError(
            f"rank {group.rank} has {x.shape[1]} tokens, and of {n_tokens} over {group.size} ranks its share "
            f"would be {share(n_tokens, group)}"
        )
    whole = x.new_empty((n_tokens, x.shape[0], *x.shape[2:]))  # time first: a rank's tokens lie in one piece
    pieces = whole.tensor_split(group.size)
    pieces[group.rank].copy_(x.detach().transpose(0, 1))
    pass_around(pieces, group)
    return whole.transpose(0, 1).contiguous()


def reduce_scatter_tokens(x: Float[Tensor, "B T D"], group: Group) -> Float[Tensor, "B t D"]:
    """The sum over ranks, of which each keeps its own tokens; x stays as it is."""
    pieces = x.detach().transpose(0, 1).contiguous().tensor_split(group.size)
    return sum_pieces(pieces, group).transpose(0, 1).contiguous()


# --- the operators ----------------------------------------------------------------------------------------


def gather_tokens(x: Float[Tensor, "B t D"], group: Group, n_tokens: int) -> Float[Tensor, "B T D"]:
    """g: all ranks' tokens; backward, the sum of what all ranks send back for this rank's."""
    return _GatherTokens.apply(x, group, n_tokens)  # type: ignore[no-any-return, no-untyped-call]


def scatter_sum(x: Float[Tensor, "B T D"], group: Group) -> Float[Tensor, "B t D"]:
    """ḡ: the sum over ranks of this rank's tokens; backward, all ranks' gradients gathered."""
    return _ScatterSum.apply(x, group)  # type: ignore[no-any-return, no-untyped-call]


class _GatherTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, n_tokens: int) -> Tensor:
        ctx.group = group
        return all_gather_tokens(x, group, n_tokens)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return reduce_scatter_tokens(gradient, ctx.group), None, None


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group, ctx.n_tokens = group, x.shape[1]
        return reduce_scatter_tokens(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return all_gather_tokens(gradient, ctx.group, ctx.n_tokens), None


# --- the borders of a cut region --------------------------------------------------------------------------


class SequenceBorders:
    """Between regions every rank has its own tokens: gathered at the entrance, sum-scattered at the exit.

    Args:
        n_tokens: T, of all ranks together.
        keeps_own: keep only the rank's own tokens for the backward pass and gather them again there: one
            all-gather more a region, and the 34/t of Korthikanti et al.; else the gathered ones are kept.
            Its products are written out, so autocast does not reach them: cast the model itself.
    """

    def __init__(self, group: Group, n_tokens: int, *, keeps_own: bool = True) -> None:
        self.group = group
        self.n_tokens = n_tokens
        self.keeps_own = keeps_own

    def enter(self, x: Float[Tensor, "B t D"], *maps: Map) -> tuple[Float[Tensor, "B T N"], ...]:
        if self.keeps_own:
            weights, biases = [weight for weight, _ in maps], [bias for _, bias in maps]
            return _GatheredProducts.apply(x, self.group, self.n_tokens, *weights, *biases)  # type: ignore[no-any-return, no-untyped-call]
        whole = gather_tokens(x, self.group, self.n_tokens)
        return tuple(F.linear(whole, weight, bias) for weight, bias in maps)

    def leave(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B t D"]:
        return scatter_sum(x, self.group)


class _GatheredProducts(torch.autograd.Function):
    """y = gather(x) Wᵀ + b for one or more (W, b), keeping this rank's tokens of x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, n_tokens: int, *parameters: Tensor) -> tuple[Tensor, ...]:
        weights, biases = parameters[: len(parameters) // 2], parameters[len(parameters) // 2 :]
        ctx.group, ctx.n_tokens, ctx.has_bias = group, n_tokens, [bias is not None for bias in biases]
        ctx.save_for_backward(x, *weights)
        whole = all_gather_tokens(x, group, n_tokens)
        return tuple(F.linear(whole, weight, bias) for weight, bias in zip(weights, biases, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        whole = all_gather_tokens(x, ctx.group, ctx.n_tokens)
        # dx = Σ dy W, dW = dyᵀ x, db = Σ dy over rows and tokens
        back = torch.stack([dy @ weight for dy, weight in zip(gradients, weights, strict=True)]).sum(0)
        to_weights = [torch.einsum("btn,btd->nd", dy, whole) for dy in gradients]
        to_biases = [dy.sum((0, 1)) if has else None for dy, has in zip(gradients, ctx.has_bias, strict=True)]
        return reduce_scatter_tokens(back, ctx.group), None, None, *to_weights, *to_biases


# --- what has seen only some tokens -----------------------------------------------------------------------


@torch.no_grad()
def sum_whole_gradients(parameters: Iterable[torch.nn.Parameter], group: Group) -> None:
    """Sum over ranks the gradients of parameters that every rank has whole: one all-reduce for all of them.

    After the backward pass, once, before the optimiser's step.

    Raises:
        ParallelError: a parameter without a gradient, which other ranks would wait for.
    """
    found = list(parameters)
    missing = sum(parameter.grad is None for parameter in found)
    if missing:
        raise ParallelError(
            f"{missing} of {len(found)} parameters have no gradient: call it after backward()"
        )
    gradients = [parameter.grad for parameter in found if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    ring_all_reduce(flat, group)
    for gradient, total in zip(gradients, flat.split_with_sizes([g.numel() for g in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))
