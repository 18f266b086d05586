"""Table and head cut by rows of the vocabulary: three numbers a token are exchanged, and never the logits.

Looking a token up, a rank that does not have its row gives zeros, and the sum over ranks is the row. For the
loss ln Σ exp(z) - z_target, each rank needs from the others the largest logit (so that no exponential
overflows), the sum of exponentials, and the target's logit: three all-reduces of one number a token, where
gathering logits would take V of them.

Condition of equality: every rank has the same targets. Sums run over all the vocabulary in another order than
one process takes.
Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3. Taught in book/parallelism/tensor-parallel.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scalelab.models.loss import IGNORE_INDEX
from scalelab.parallel.scratch.collectives import pass_around, ring_all_reduce
from scalelab.parallel.scratch.group import Group
from scalelab.parallel.scratch.tensor_parallel import Borders

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def first_row(vocab_size: int, group: Group) -> int:
    """The first of this rank's rows: the pieces of `torch.tensor_split`, in order of rank."""
    return group.rank * (vocab_size // group.size) + min(group.rank, vocab_size % group.size)


def look_up(
    tokens: Int[Tensor, "B T"], table: Float[Tensor, "v D"], first: int, borders: Borders
) -> Float[Tensor, "B t D"]:
    """The rows of a table of which this rank has those from `first` on."""
    is_own = (tokens >= first) & (tokens < first + table.shape[0])
    rows = table[torch.where(is_own, tokens - first, 0)]  # row 0 stands in for those of other ranks …
    return borders.leave(rows.masked_fill(~is_own[..., None], 0))  # … and is not used


def vocabulary_loss(
    logits: Float[Tensor, "*batch v"],
    targets: Int[Tensor, "*batch"],
    first: int,
    group: Group,
    ignore_index: int = IGNORE_INDEX,
) -> Float[Tensor, "*batch"]:
    """Cross-entropy of each target in nats, from logits of which each rank has its share of the vocabulary.

    Args:
        logits: of the tokens from `first` on; 16-bit ones are widened to fp32.
        targets: the same on every rank; 0 is returned, and no gradient, where one is `ignore_index`.

    Returns:
        The same on every rank.
    """
    wide = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    return _VocabularyLoss.apply(wide, targets, first, group, ignore_index)  # type: ignore[no-any-return, no-untyped-call]


class _VocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, first: int, group: Group, ignore_index: int
    ) -> Tensor:
        top = logits.amax(dim=-1)
        ring_all_max(top, group)
        shifted = logits - top[..., None]
        is_own = (targets >= first) & (targets < first + logits.shape[-1])
        place = torch.where(is_own, targets - first, 0)[..., None]
        hit = shifted.gather(-1, place).squeeze(-1).masked_fill_(~is_own, 0)
        ring_all_reduce(hit, group)  # one rank has it, the others add zeros
        exponentials = shifted.exp_()
        total = exponentials.sum(dim=-1)
        ring_all_reduce(total, group)
        ctx.save_for_backward(exponentials.div_(total[..., None]), place, is_own, targets == ignore_index)
        return (total.log() - hit).masked_fill_(targets == ignore_index, 0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        # d loss / d z = softmax(z), less 1 at the target: on the rank that has it
        softmax, place, is_own, is_ignored = ctx.saved_tensors
        back = softmax.scatter_add(-1, place, -is_own.to(softmax.dtype)[..., None])
        return back.mul_(gradient.masked_fill(is_ignored, 0)[..., None]), None, None, None, None


def ring_all_max(tensor: Tensor, group: Group) -> None:
    """Put the largest of all ranks' numbers in place of each: a ring all-reduce that compares, not adds."""
    pieces = tensor.view(-1).tensor_split(group.size)
    for step in range(group.size - 1):  # after these, piece `rank` is complete here
        send, take = (group.rank - 1 - step) % group.size, (group.rank - 2 - step) % group.size
        coming = torch.empty_like(pieces[take])
        group.exchange(pieces[send], group.next, coming, group.previous)
        torch.maximum(pieces[take], coming, out=pieces[take])
    pass_around(pieces, group)
