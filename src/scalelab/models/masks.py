"""Who may see whom: the three shapes of attention, padding, and distances, as one mask.

Encoders see everything, decoders what came before, and cross-attention the whole of another text. Padding is
hidden from everybody. A row that could see nothing sees itself, since a mean over nothing is not a number.
Taught in book/transformers/attention.md and book/transformers/architectures.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scalelab.core.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from scalelab.models.attention import Mask


def visible(
    n_queries: int,
    n_keys: int,
    *,
    causal: bool,
    padding: Bool[Tensor, "B S"] | None = None,
    device: torch.device | None = None,
) -> Bool[Tensor, "#B 1 T S"]:
    """True where a query may see a key; queries are the last `n_queries` of the `n_keys` tokens.

    Args:
        causal: each query sees itself and what came before it.
        padding: True for tokens, False for filling, of all keys.
    """
    seen = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    if causal:
        seen = seen.tril(n_keys - n_queries)
    mask = seen[None, None]  # [1, 1, T, S]
    if padding is not None:
        places = torch.arange(n_keys, device=device)
        itself = places[n_keys - n_queries :, None] == places  # [T, S]
        mask = (mask & padding[:, None, None, :]) | itself
    return mask


def as_numbers(seen: Bool[Tensor, "#B 1 T S"], added: Float[Tensor, "#B H T S"]) -> Float[Tensor, "#B H T S"]:
    """One mask of numbers: what is added to the scores, -inf where nothing may be seen."""
    return added.masked_fill(~seen, -torch.inf)


def token_positions(
    n_queries: int, n_kept: int, padding: Bool[Tensor, "B S"] | None, device: torch.device
) -> Int[Tensor, " T"] | Int[Tensor, "B T"]:
    """Where the new tokens stand, counted from each row's first token; filling in front does not count.

    Args:
        n_kept: tokens read before these. padding: of all tokens, kept and new.
    """
    if padding is None:
        return torch.arange(n_kept, n_kept + n_queries, device=device)
    return (padding.cumsum(dim=1) - 1).clamp(min=0)[:, n_kept:]


def check_padding(padding: Mask | None, batch_size: int, n_keys: int, *, device: torch.device) -> None:
    """Refuse a padding mask of another type or shape, elsewhere than the tokens, or without any in a row.

    Raises:
        DataError: naming what was found and what is needed.
    """
    if padding is None:
        return
    if not isinstance(padding, torch.Tensor) or padding.dtype != torch.bool:
        found = padding.dtype if isinstance(padding, torch.Tensor) else type(padding).__name__
        raise DataError(f"padding must be a tensor of bool (True for tokens, False for filling), got {found}")
    if tuple(padding.shape) != (batch_size, n_keys):
        raise DataError(
            f"padding must have the shape [batch, tokens] = [{batch_size}, {n_keys}], kept tokens included; "
            f"got {list(padding.shape)}"
        )
    if padding.device != device:
        raise DataError(f"padding is on {padding.device}, the tokens on {device}: move one of them")
    if not bool(padding.any(dim=1).all()):
        row = int((~padding.any(dim=1)).nonzero()[0, 0])
        raise DataError(f"row {row} of padding has no token at all: leave such rows out")
