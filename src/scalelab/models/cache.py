"""The KV cache: keys and values of tokens read so far, so that each new token costs one token's work.

It holds 2 · L · KV · K numbers for each token of each row. Room is made once for the longest length, since
growing by concatenation would copy everything for every token. It is for writing text, not for training: new
keys go into tensors that a backward pass through earlier ones would need. Read under torch.no_grad().
Source: Pope et al. 2022, arXiv:2211.05102, section 2. Taught in book/transformers/inference.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scalelab.core.checks import check_positive_int
from scalelab.core.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


class LayerCache:
    """Keys and values of one layer.

    Attributes:
        length: tokens kept so far.
    """

    def __init__(self, keys: Float[Tensor, "B KV M K"], values: Float[Tensor, "B KV M K"]) -> None:
        self._keys = keys
        self._values = values
        self.length = 0

    def append(
        self, k: Float[Tensor, "B KV T K"], v: Float[Tensor, "B KV T K"]
    ) -> tuple[Float[Tensor, "B KV S K"], Float[Tensor, "B KV S K"]]:
        """Keep those of new tokens; all of them, old and new.

        Raises:
            DataError: there is no room left, another number of rows, or keys of another model's shape.
        """
        end = self.length + k.shape[2]
        if end > self._keys.shape[2] or k.shape[0] != self._keys.shape[0]:
            raise DataError(
                f"the cache has room for {self._keys.shape[0]} rows of {self._keys.shape[2]} tokens; "
                f"asked to keep {k.shape[0]} rows of {end}: make a larger one"
            )
        if k.shape[1::2] != self._keys.shape[1::2]:
            raise DataError(
                f"the cache keeps {_heads_of(self._keys)}; asked to keep {_heads_of(k)}: "
                "make one with the model's own make_cache"
            )
        self._keys[:, :, self.length : end] = k
        self._values[:, :, self.length : end] = v
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def select(self, rows: Int[Tensor, " N"]) -> None:
        """Keep these rows, in this order; a row may be taken more than once."""
        if len(rows) != self._keys.shape[0]:
            self._keys, self._values = self._keys[rows], self._values[rows]
            return
        for kept in (self._keys, self._values):  # as many as before: only what is filled has to move
            filled = kept[:, :, : self.length]
            filled.copy_(filled[rows])


class Cache:
    """Keys and values of all layers.

    Args:
        n_layers, n_kv_heads, d_head: L, KV, K.
        batch_size: rows. max_tokens: M, the longest length there will be.
        dtype, device: of the model's keys.

    Raises:
        ConfigError: a size that is not a positive whole number.
    """

    def __init__(
        self,
        *,
        n_layers: int,
        n_kv_heads: int,
        d_head: int,
        batch_size: int,
        max_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        sizes = {"n_layers": n_layers, "n_kv_heads": n_kv_heads, "d_head": d_head, "batch_size": batch_size}
        for name, size in {**sizes, "max_tokens": max_tokens}.items():
            check_positive_int(name, size)
        shape = (batch_size, n_kv_heads, max_tokens, d_head)
        self.max_tokens = max_tokens
        self.layers = tuple(
            LayerCache(*(torch.empty(shape, dtype=dtype, device=device) for _ in range(2)))
            for _ in range(n_layers)
        )

    @property
    def length(self) -> int:
        """Tokens kept so far."""
        return self.layers[0].length

    @property
    def n_bytes(self) -> int:
        """Bytes of the room that was made."""
        return sum(2 * layer._keys.numel() * layer._keys.element_size() for layer in self.layers)

    def check_layers(self, n_layers: int) -> None:
        """Refuse a model with another number of layers.

        Raises:
            DataError: naming both numbers.
        """
        if n_layers != len(self.layers):
            raise DataError(
                f"the cache has {len(self.layers)} layers, the model {n_layers}: "
                "make one with the model's own make_cache"
            )

    def crop(self, length: int) -> None:
        """Forget all tokens from `length` on.

        Raises:
            DataError: there are not so many.
        """
        if not 0 <= length <= self.length:
            raise DataError(f"cannot go back to {length} tokens: {self.length} are kept")
        for layer in self.layers:
            layer.length = length

    def select(self, rows: Int[Tensor, " N"]) -> None:
        """Keep these rows, in this order; a row may be taken more than once."""
        for layer in self.layers:
            layer.select(rows)


def _heads_of(keys: Float[Tensor, "B KV T K"]) -> str:
    return f"{keys.shape[1]} heads of width {keys.shape[3]}"
