"""What models have in common before they compute: weights from a seed, and tokens that can be looked up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from scalelab.core.checks import check_seed
from scalelab.core.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


def materialise(
    model: nn.Module,
    fill: Callable[[torch.Generator], None],
    *,
    seed: int | None,
    device: torch.device | str | None,
) -> None:
    """Give a model that was built on the meta device its first weights, in place.

    Args:
        fill: writes the weights, drawn from the generator.
        seed: of the weights; None draws a fresh one from the system.
        device: where they live, the CPU when None. On "meta" there are none.

    Raises:
        ConfigError: the seed is not a whole number in [0, 2^64).
    """
    device = torch.device("cpu" if device is None else device)
    if device.type == "meta":
        return
    model.to_empty(device=device)
    fill(seeded(seed))


@contextlib.contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Without dropout; every module's mode as before afterwards."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def make_dropout(probability: float) -> nn.Module:
    """Dropout, or nothing where nothing is dropped: asked twice a block, it would cost each token time."""
    return nn.Dropout(probability) if probability else nn.Identity()


def seeded(seed: int | None) -> torch.Generator:
    """A CPU generator; with a fresh seed from the system when None.

    Raises:
        ConfigError: the seed is not a whole number in [0, 2^64).
    """
    generator = torch.Generator()
    if seed is None:
        generator.seed()
        return generator
    check_seed(seed)
    return generator.manual_seed(seed)


def check_tokens(
    tokens: Int[Tensor, "B T"], room: int | None, seq_len: int | None, what: str = "tokens"
) -> None:
    """Refuse tokens of another type or rank, none, or more than there is room for.

    Args:
        room: how many more tokens a row may have; None: any number. seq_len: the model's whole length.

    Raises:
        DataError: naming what was found and what is needed.
    """
    if not isinstance(tokens, torch.Tensor) or tokens.dtype not in (torch.int64, torch.int32):
        found = tokens.dtype if isinstance(tokens, torch.Tensor) else type(tokens).__name__
        raise DataError(f"{what} must be a tensor of int64 or int32, got {found}")
    if tokens.ndim != 2 or tokens.numel() == 0:
        raise DataError(
            f"{what} must have the shape [batch, time], neither of them 0, got {tuple(tokens.shape)}"
        )
    if room is not None and tokens.shape[1] > room:
        kept = f", of which {seq_len - room} are taken" if seq_len is not None and room < seq_len else ""
        raise DataError(
            f"{tokens.shape[1]} tokens are more than the model's seq_len={seq_len}{kept}: "
            "cut them, or build a model with a longer seq_len"
        )


def look_up(table: nn.Embedding, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
    """The rows of a table.

    Raises:
        DataError: a token outside it (on the CPU).
    """
    try:
        return table(tokens)  # type: ignore[no-any-return]
    except IndexError:
        # The CPU's look-up checks every id anyway, so asking afterwards costs a good step nothing.
        # An accelerator could only be asked by waiting for it: there the data must be right.
        raise DataError(
            f"token ids must lie in [0, {table.num_embeddings}), the model's vocabulary; "
            f"these reach from {int(tokens.min())} to {int(tokens.max())}"
        ) from None
