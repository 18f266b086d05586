"""What "equal to one process" means for all methods: loss and every gradient, and weights after ten steps.

Gradients are held against each other in fp32, each tensor by ‖Δ‖/‖g‖; weights after AdamW's steps in fp64,
because its division by √v makes 1e-5 of fp32's rounding. Sizes are prime or odd where they can be, and every
row has another number of targets, so that a mean of means, or a cut that takes evenness for granted, differs.

A method's test makes a `Found` on each rank and holds it against `alone`; a planted fault has to raise
`Differs` from the same helpers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scalelab.core.config import DecoderConfig
from scalelab.models import Decoder
from scalelab.models.loss import IGNORE_INDEX

VOCAB, SEQ_LEN = 61, 12
CONFIG = DecoderConfig(n_layers=2, d_model=16, n_heads=4, vocab_size=VOCAB, seq_len=SEQ_LEN)
GRADIENT_TOLERANCE = 1e-6
WEIGHT_TOLERANCE = 1e-10
N_STEPS = 10


def make_model(*, double: bool = False, seed: int = 3, config: DecoderConfig = CONFIG) -> Decoder:
    """The same model wherever it is made, in fp32 or in fp64."""
    model = Decoder(config, seed=seed)
    return model.double() if double else model


@dataclass(frozen=True)
class Batch:
    """Tokens and what follows each, both [B, T]; IGNORE_INDEX is none."""

    tokens: Tensor
    targets: Tensor

    @property
    def n_targets(self) -> int:
        return int((self.targets != IGNORE_INDEX).sum())

    def cut(self, n: int) -> list[Batch]:
        """Into n batches by rows, the first ones larger where n does not divide."""
        parts = zip(self.tokens.tensor_split(n), self.targets.tensor_split(n), strict=True)
        return [Batch(tokens, targets) for tokens, targets in parts]


def make_batch(n_rows: int = 7, *, seed: int = 1, seq_len: int = SEQ_LEN, vocab: int = VOCAB) -> Batch:
    """A batch whose rows have 1 to T targets, no two neighbours equally many; the last row has but one."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocab, (n_rows, seq_len), generator=draw)
    targets = torch.randint(vocab, (n_rows, seq_len), generator=draw)
    for row in range(n_rows):
        targets[row, max(2, seq_len - (5 * row) % seq_len) :] = IGNORE_INDEX
    targets[-1, 1:] = IGNORE_INDEX
    return Batch(tokens, targets)


def make_batches(n: int = N_STEPS, n_rows: int = 7, **changes: Any) -> list[Batch]:
    """One for each step, all different."""
    return [make_batch(n_rows, seed=100 + step, **changes) for step in range(n)]


def summed_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The sum over a batch's targets: divided by the whole batch's count, it is what all ranks share out."""
    loss: Tensor = model.loss(batch.tokens, batch.targets, reduction="sum")  # type: ignore[operator]
    return loss


@dataclass(frozen=True)
class Found:
    """What a way of computing gave: the batch's mean loss, and gradients by the model's own names."""

    loss: float
    gradients: Mapping[str, Tensor]


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of what backward has left."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def alone(model: nn.Module, batch: Batch) -> Found:
    """Loss and gradients of one process with the whole batch in one piece; the model is left without any."""
    model.zero_grad()
    loss = summed_loss(model, batch) / batch.n_targets
    loss.backward()
    found = Found(loss.item(), gradients_of(model))
    model.zero_grad()
    return found


def make_adamw(parameters: Iterable[Tensor]) -> torch.optim.AdamW:
    """The optimiser of the weights' tests: decay on, a rate at which ten steps move far."""
    return torch.optim.AdamW(parameters, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)


def trained_alone(
    model: nn.Module, batches: Sequence[Batch], *, clip: float | None = None
) -> dict[str, Tensor]:
    """Weights of one process after a step on each batch."""
    optimizer = make_adamw(model.parameters())
    for batch in batches:
        optimizer.zero_grad()
        (summed_loss(model, batch) / batch.n_targets).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return weights_of(model)


# --- holding against each other -----------------------------------------------------------------------------


class Differs(AssertionError):
    """Two ways of computing that should agree do not: what a planted fault has to raise."""


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖ / ‖expected‖."""
    norm = torch.linalg.vector_norm
    size = float(norm(expected.double()))
    off = float(norm(found.double() - expected.double()))
    return off / size if size else off


def largest_difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Of all tensors by name, the largest `relative_difference`: for tables of what was reached."""
    return max(relative_difference(found[name], expected[name]) for name in expected)


def assert_same_tensors(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float
) -> None:
    """Raises Differs: other names or shapes, numbers that are not finite, ‖Δ‖/‖expected‖ above that."""
    if set(found) != set(expected):
        raise Differs(f"missing: {set(expected) - set(found)}; too many: {set(found) - set(expected)}")
    for name, wanted in expected.items():
        if found[name].shape != wanted.shape:
            raise Differs(f"{name}: shape {tuple(found[name].shape)}, expected {tuple(wanted.shape)}")
        off = relative_difference(found[name], wanted)
        if not off <= tolerance:
            raise Differs(f"{name}: off by {off:.2e} of its norm, allowed {tolerance:.0e}")


def assert_same_found(found: Found, expected: Found, tolerance: float = GRADIENT_TOLERANCE) -> None:
    """Raises Differs: another loss, or as `assert_same_tensors` for any gradient."""
    off = abs(found.loss - expected.loss) / abs(expected.loss)
    if not off <= tolerance:
        raise Differs(
            f"loss {found.loss}, expected {expected.loss}: off by {off:.2e}, allowed {tolerance:.0e}"
        )
    assert_same_tensors(found.gradients, expected.gradients, tolerance)


def assert_same_weights(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = WEIGHT_TOLERANCE
) -> None:
    """As `assert_same_tensors`, and in fp64, without which the tolerance means nothing."""
    assert all(value.dtype == torch.float64 for value in expected.values()), "weights are compared in fp64"
    assert_same_tensors(found, expected, tolerance)
