"""What a process does with its rows in one step: forward and back, a micro-batch at a time.

A `Share` says what there is to do; `one_by_one` does it where each process holds all layers. Strategies whose
processes hand micro-batches on to one another do it in their own order. Taught in
book/transformers/training.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scalelab.train.config import Precision
from scalelab.train.precision import LossFunction, autocast


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """A process's part of one batch.

    Attributes:
        inputs, targets: its rows, [B / n_shares, T].
        n_targets: targets that count in the *whole* batch; each loss is divided by it.
        pieces: micro-batches to cut the rows into.
        precision: of matrix products.
        scaler: fp16's loss scaling.
    """

    inputs: np.ndarray
    targets: np.ndarray
    n_targets: int
    pieces: int
    precision: Precision
    scaler: torch.amp.GradScaler


def one_by_one(
    share: Share,
    loss_function: LossFunction,
    device: torch.device,
    around: Callable[[bool], AbstractContextManager[object]],
) -> Tensor:
    """Add a share's gradients, times the scaler's factor, to `.grad`; its loss, summed and divided.

    Args:
        loss_function: summed loss of a micro-batch.
        around: makes the context of a micro-batch; it is told whether this is the last one.
    """
    pieces = min(share.pieces, len(share.inputs))
    cuts = [len(share.inputs) * number // pieces for number in range(pieces + 1)]
    total: Tensor | None = None
    for start, stop in itertools.pairwise(cuts):
        tokens, wanted = (on_device(part[start:stop], device) for part in (share.inputs, share.targets))
        with around(stop == len(share.inputs)):
            with autocast(share.precision, device):
                loss = loss_function(tokens, wanted) / share.n_targets
            share.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        found = loss.detach().to(torch.promote_types(loss.dtype, torch.float32))
        total = found if total is None else total + found
    assert total is not None, "a share has rows"
    return total


def on_device(batch: np.ndarray, device: torch.device) -> Tensor:
    """A batch as a tensor there."""
    tensor = torch.from_numpy(np.ascontiguousarray(batch))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # copied while the step before still computes
