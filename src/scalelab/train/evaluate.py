"""Held-out loss on fixed tokens, in nats per token and in bits per byte, which tokenizers cannot flatter.

Every evaluation of a run reads the same tokens, in fp32 and without dropout, whatever the run trains in: so
two figures differ because the models do. Taught in book/transformers/training.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from scalelab.core.checks import check_positive_int
from scalelab.core.errors import DataError
from scalelab.core.units import bits_per_byte
from scalelab.data import TokenData, held_out_windows
from scalelab.data.batches import NEXT_TOKEN
from scalelab.data.objectives import Objective
from scalelab.models.loss import IGNORE_INDEX
from scalelab.train.strategy import SingleProcess, Strategy


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What a model made of held-out text.

    Attributes:
        loss_nats: mean loss, nats per token. bits_per_byte: the same per byte of text.
        n_tokens: tokens predicted. n_bytes: bytes of UTF-8 that they spell (special ones spell nothing).
    """

    loss_nats: float
    bits_per_byte: float
    n_tokens: int
    n_bytes: int


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: TokenData,
    *,
    seq_len: int,
    max_tokens: int | None = None,
    batch_size: int = 32,
    strategy: Strategy | None = None,
    objective: Objective = NEXT_TOKEN,
) -> Evaluation:
    """Mean loss over non-overlapping windows of held-out tokens, each predicted from its own window only.

    Args:
        model: has `.loss(tokens, targets, reduction="sum")`; its mode (training or not) is restored.
        data: its `held_out` tokens are read; bytes are those that the predicted tokens spell.
        seq_len: tokens of each window.
        max_tokens: predict no more than this many, spread evenly over the text; None: all whole windows.
        batch_size: windows at a time; does not change the result beyond rounding.
        strategy: the one that placed the model, where several processes evaluate together; each takes its
            share of every batch, and the sum is over all. None: this process alone.
        objective: what is predicted. Figures of other objectives than the next token are per hidden token
            and per byte of hidden text, and compare with nothing but themselves.

    Raises:
        DataError: fewer tokens than one window and its last target, or tokens that spell nothing.
    """
    check_positive_int("batch_size", batch_size)
    inputs, targets = held_out_windows(data.held_out, seq_len, max_tokens, objective)
    counted = np.where((targets < 0) | (targets >= data.vocab_size), IGNORE_INDEX, targets)  # spell text
    n_tokens, n_bytes = int((targets != IGNORE_INDEX).sum()), data.n_bytes(counted)
    if not n_bytes:
        raise DataError(f"the {n_tokens} held-out tokens of {data.name} spell no text: no bits per byte")
    device = next(model.parameters()).device
    strategy = strategy or SingleProcess(device)
    loss = strategy.loss_function(model)
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=device)
    try:
        for start in range(0, len(inputs), batch_size):
            rows = slice(start, start + batch_size)
            tokens, wanted = _even(inputs[rows], targets[rows], strategy.n_shares)
            total += loss(_on(strategy.share(tokens), device), _on(strategy.share(wanted), device)).double()
    finally:
        model.train(was_training)
    loss_nats = float(strategy.total(total)) / n_tokens
    return Evaluation(
        loss_nats=loss_nats,
        bits_per_byte=bits_per_byte(loss_nats, n_tokens, n_bytes),
        n_tokens=n_tokens,
        n_bytes=n_bytes,
    )


def _even(inputs: np.ndarray, targets: np.ndarray, n_shares: int) -> tuple[np.ndarray, np.ndarray]:
    """As many rows as shares allow: what is added has no target that counts."""
    missing = -len(inputs) % n_shares
    if not missing:
        return inputs, targets
    filled = np.concatenate([inputs, np.repeat(inputs[:1], missing, axis=0)])
    nothing = np.full((missing, targets.shape[1]), IGNORE_INDEX, dtype=targets.dtype)
    return filled, np.concatenate([targets, nothing])


def _on(batch: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(batch, dtype=np.int64)).to(device)
