"""Gradients of a batch's mean loss, a micro-batch at a time: the same as in one piece, in less memory.

Each micro-batch's *summed* loss is divided by the whole batch's count of targets. Averaging the means of
micro-batches instead is right only while all of them hold equally many targets.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scalelab.core.errors import DataError
from scalelab.models.loss import IGNORE_INDEX
from scalelab.train.config import Precision
from scalelab.train.passes import Share
from scalelab.train.precision import LossFunction
from scalelab.train.strategy import Strategy


def accumulate_gradients(
    loss_function: LossFunction,
    inputs: np.ndarray,
    targets: np.ndarray,
    *,
    pieces: int,
    precision: Precision,
    scaler: torch.amp.GradScaler,
    strategy: Strategy,
) -> Tensor:
    """Add the batch's gradients, times the scaler's factor, to `.grad`; return its mean loss, nats per token.

    Args:
        loss_function: summed loss of a micro-batch.
        inputs, targets: the whole batch, [B, T]; this process works on its share.
        pieces: micro-batches to cut the share into, as equal as whole sequences allow; a pipeline may
            need more.
        precision: of matrix products.
        scaler: fp16's loss scaling.
        strategy: where to compute, and with whom.

    Raises:
        DataError: no target in the batch counts.
    """
    n_targets = int(np.count_nonzero(targets != IGNORE_INDEX))
    if not n_targets:
        raise DataError(f"a batch of {targets.size} targets has none that counts (all are {IGNORE_INDEX})")
    share = Share(
        inputs=strategy.share(inputs),
        targets=strategy.share(targets),
        n_targets=n_targets,
        pieces=pieces,
        precision=precision,
        scaler=scaler,
    )
    return strategy.total(strategy.forward_and_back(share, loss_function))
