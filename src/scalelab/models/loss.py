"""The loss of a language model: minus the logarithm of the probability it gave to what came next.

In nats per token: ln V for a model that knows nothing, 0 for one that is always sure and right.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.nn.functional as F

from scalelab.core.checks import check_choice
from scalelab.core.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

Reduction = Literal["mean", "sum", "none"]
REDUCTIONS = get_args(Reduction)
IGNORE_INDEX = -100  # torch's and transformers' mark for "no target here"


def loss_nats(
    logits: Float[Tensor, "B T V"],
    targets: Int[Tensor, "B T"],
    reduction: Reduction = "mean",
    ignore_index: int = IGNORE_INDEX,
) -> Float[Tensor, ""] | Float[Tensor, "B T"]:
    """Cross-entropy in nats per token, computed in fp32 at least, whatever the logits are in.

    Args:
        logits: unnormalised log-probabilities.
        targets: the token that came next at each place, or `ignore_index` where none counts.
        reduction: "mean" over targets that count (NaN if none does, as in torch), "sum", or "none".

    Raises:
        ConfigError: another reduction.
        DataError: targets of another type or shape, or one outside the vocabulary (on the CPU; elsewhere
            asking would stall the device at every step).
    """
    check_choice("reduction", reduction, REDUCTIONS)
    if targets.is_floating_point():
        raise DataError(f"targets must be whole numbers, got {targets.dtype}: give token ids")
    if targets.shape != logits.shape[:-1]:
        raise DataError(f"targets have the shape {tuple(targets.shape)}, logits {tuple(logits.shape)}")
    flat = logits.reshape(-1, logits.shape[-1])  # [B·T, V]
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    try:
        loss = F.cross_entropy(
            flat, targets.reshape(-1).long(), reduction=reduction, ignore_index=ignore_index
        )
    except IndexError as error:
        raise DataError(
            f"a target lies outside the vocabulary of {logits.shape[-1]} tokens: {error}"
        ) from None
    return loss.view(targets.shape) if reduction == "none" else loss
