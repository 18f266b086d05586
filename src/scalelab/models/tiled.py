"""Attention tile by tile: the same numbers as softmax(q kᵀ / √K) v, without ever holding T × S scores.

A softmax can be built up piece by piece: keep the largest score so far, the sum of the exponentials and the
sum of the values they weigh, and rescale both sums whenever the largest score grows. Only a tile of scores
exists at any moment, so memory beyond the inputs and the result does not grow with T · S.
Source: Milakov & Gimelshein 2018, arXiv:1805.02867, algorithm 3 (the sum); Rabe & Staats 2021,
arXiv:2112.05682, section 2; Dao et al. 2022, arXiv:2205.14135, algorithm 1 (the values as well).
Taught in book/transformers/attention.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from scalelab.core.checks import check_positive_int
from scalelab.core.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


def tiled_attention(
    q: Float[Tensor, "*batch T K"],
    k: Float[Tensor, "*batch S K"],
    v: Float[Tensor, "*batch S M"],
    *,
    is_causal: bool = False,
    q_tile: int = 128,
    k_tile: int = 128,
) -> Float[Tensor, "*batch T M"]:
    """softmax(q kᵀ / √K) v, at most q_tile × k_tile scores at a time; forward only.

    Args:
        q, k, v: queries, keys and values, with the same leading axes. Scores and sums are kept in fp32 where
            these are narrower: thousands of terms added up in bf16 would lose all that is small.
        is_causal: query t sees keys 0 … t. Tiles that lie wholly in the future are skipped.
        q_tile, k_tile: queries and keys in a tile; neither need divide T or S.

    Raises:
        ConfigError: shapes that do not belong together, or a tile of no size.

    Differs: from the papers in being ordinary tensor code. It saves memory, as theirs does; it saves no
        time, since a kernel that keeps a tile in fast memory is what does that.
    """
    _check_shapes(q, k, v)
    check_positive_int("q_tile", q_tile)
    check_positive_int("k_tile", k_tile)
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    for first in range(0, q.shape[-2], q_tile):
        rows = q[..., first : first + q_tile, :]
        out[..., first : first + q_tile, :] = _attend_rows(rows, k, v, k_tile, first if is_causal else None)
    return out


def _attend_rows(
    q: Float[Tensor, "*batch T K"],
    k: Float[Tensor, "*batch S K"],
    v: Float[Tensor, "*batch S M"],
    k_tile: int,
    first: int | None,
) -> Float[Tensor, "*batch T M"]:
    """One tile of queries against all keys; `first` is its first place where attention is causal."""
    n_keys = k.shape[-2]
    end = n_keys if first is None else min(n_keys, first + q.shape[-2])  # beyond: future of all rows
    wide, answer = torch.promote_types(q.dtype, torch.float32), q.dtype
    q = q.to(wide)
    largest = q.new_full((*q.shape[:-1], 1), -math.inf)  # m: the largest score so far
    total = torch.zeros_like(largest)  # l: Σ exp(score - m)
    mixed = q.new_zeros(*q.shape[:-1], v.shape[-1])  # a: Σ exp(score - m) · value
    for start in range(0, end, k_tile):
        stop = min(end, start + k_tile)
        scores = (q @ k[..., start:stop, :].to(wide).transpose(-1, -2)) / math.sqrt(q.shape[-1])
        if first is not None and stop > first + 1:  # else every row sees the whole tile
            scores = scores.masked_fill(_hidden(first, q.shape[-2], start, stop, q.device), -math.inf)
        grown = torch.maximum(largest, scores.amax(-1, keepdim=True))
        # Key 0 is in the first tile and every row sees it, so `grown` is finite from the first tile on.
        weights = torch.exp(scores - grown)
        shrink = torch.exp(largest - grown)  # what was summed was measured from the old maximum
        total = total * shrink + weights.sum(-1, keepdim=True)
        mixed = mixed * shrink + weights @ v[..., start:stop, :].to(wide)
        largest = grown
    return (mixed / total).to(answer)


def _hidden(first: int, n_rows: int, start: int, stop: int, device: torch.device) -> Bool[Tensor, "T tile"]:
    """True where a key of the tile stands after the query: places in the whole sequence, not in the tile."""
    rows = torch.arange(first, first + n_rows, device=device)
    keys = torch.arange(start, stop, device=device)
    return keys[None, :] > rows[:, None]


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    shapes = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
    if min(q.ndim, k.ndim, v.ndim) < 2 or not q.ndim == k.ndim == v.ndim:
        raise ConfigError(
            f"queries, keys and values must be [..., places, width] of equal rank; got {shapes}"
        )
    if q.shape[:-2] != k.shape[:-2] or k.shape[:-1] != v.shape[:-1]:
        raise ConfigError(f"leading axes must agree, and k and v have as many places; got {shapes}")
    if q.shape[-1] != k.shape[-1] or k.shape[-2] == 0 or q.shape[-1] == 0:
        raise ConfigError(f"q and k must have the same width, and there must be a key; got {shapes}")
