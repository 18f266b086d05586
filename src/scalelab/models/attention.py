"""Attention: each token asks the tokens it may see, and takes a weighted mean of what they answer.

Heads ask side by side. In grouped-query attention several query heads share one key/value head, which
shrinks what must be kept while generating. In cross-attention the answers come from another text.
Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2; Ainslie et al. 2023, arXiv:2305.13245.
Taught in book/transformers/attention.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from scalelab.models.parts import Parts
from scalelab.models.positions import rotate

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    Rotation = tuple[Float[Tensor, "*B T R/2"], Float[Tensor, "*B T R/2"]]
    Mask = Bool[Tensor, "#B #H #T S"] | Float[Tensor, "#B #H #T S"]


@dataclass(frozen=True, slots=True)
class Sight:
    """What each query may see, and what it is told about places.

    Attributes:
        causal: each token sees itself and those before it. Only where `mask` is None: a mask says it all.
        mask: True where a key may be seen, or numbers that are added to the scores (-inf hides);
            None where `causal` says it all.
        rotation: cosines and sines of the positions, for queries and keys; None: nothing turns.
    """

    causal: bool
    mask: Mask | None = None
    rotation: Rotation | None = None


class KeptKeys(Protocol):
    """What a layer keeps of the tokens read so far (models/cache.py)."""

    def append(
        self, k: Float[Tensor, "B KV T K"], v: Float[Tensor, "B KV T K"]
    ) -> tuple[Float[Tensor, "B KV S K"], Float[Tensor, "B KV S K"]]:
        """Add the keys and values of new tokens; all of them, old and new."""


class Attention(nn.Module):
    """softmax(Q Kᵀ / √K + mask) V, per head, then one map back to D.

    One matrix holds the weights of all queries, keys and values: one large product is faster than
    three small ones, forward and backward.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.n_heads = parts.n_heads
        self.n_kv_heads = parts.kv_heads
        self.d_head = parts.head_width
        self.scale = scale_of(parts)
        self.dropout = parts.dropout
        bias = parts.attention_bias
        self.qkv = nn.Linear(parts.d_model, (self.n_heads + 2 * self.n_kv_heads) * self.d_head, bias=bias)
        self.out = nn.Linear(self.n_heads * self.d_head, parts.d_model, bias=bias)

    def forward(
        self, x: Float[Tensor, "B T D"], sight: Sight, kept: KeptKeys | None = None
    ) -> Float[Tensor, "B T D"]:
        """Mix each token with those it may see.

        Args:
            x: what the block hands in: the normed stream, or the stream itself.
            sight: what may be seen.
            kept: keys and values of earlier tokens, to which these are added; None: there are none.
        """
        q, k, v = self.project(x, sight.rotation)
        if kept is not None:
            k, v = kept.append(k, v)
        dropout = self.dropout if self.training else 0.0
        mixed = attend(q, k, v, causal=sight.causal, mask=sight.mask, scale=self.scale, dropout=dropout)
        return self.out(_side_by_side(mixed))  # type: ignore[no-any-return]

    def project(
        self, x: Float[Tensor, "B T D"], rotation: Rotation | None
    ) -> tuple[Float[Tensor, "B H T K"], Float[Tensor, "B KV T K"], Float[Tensor, "B KV T K"]]:
        """Queries, keys and values, the first two turned by their positions."""
        batch, time, _ = x.shape
        n_q, n_kv = self.n_heads, self.n_kv_heads
        heads = self.qkv(x).view(batch, time, n_q + 2 * n_kv, self.d_head)  # [B, T, H + 2·KV, K]
        turning, v = heads.split_with_sizes((n_q + n_kv, n_kv), dim=2)
        if rotation is not None:
            turning = rotate(turning, *rotation)  # queries and keys at once: half as many steps
        q, k = turning.split_with_sizes((n_q, n_kv), dim=2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class CrossAttention(nn.Module):
    """Queries from one text, keys and values from another: how a decoder reads what an encoder made."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.n_heads = parts.n_heads
        self.d_head = parts.head_width
        self.scale = scale_of(parts)
        self.dropout = parts.dropout
        inner = self.n_heads * self.d_head
        self.q = nn.Linear(parts.d_model, inner, bias=parts.attention_bias)
        self.kv = nn.Linear(parts.d_model, 2 * inner, bias=parts.attention_bias)
        self.out = nn.Linear(inner, parts.d_model, bias=parts.attention_bias)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        answers: tuple[Float[Tensor, "B H S K"], Float[Tensor, "B H S K"]],
        mask: Bool[Tensor, "B 1 1 S"] | None,
    ) -> Float[Tensor, "B T D"]:
        """Mix into each token what it asks of the source.

        Args:
            answers: keys and values of the source, from `project`: the same for every token that is
                generated, so they are made once. mask: True where the source has a token.
        """
        q = _heads(self.q(x), self.d_head)
        dropout = self.dropout if self.training else 0.0
        mixed = attend(q, *answers, causal=False, mask=mask, scale=self.scale, dropout=dropout)
        return self.out(_side_by_side(mixed))  # type: ignore[no-any-return]

    def project(
        self, source: Float[Tensor, "B S D"]
    ) -> tuple[Float[Tensor, "B H S K"], Float[Tensor, "B H S K"]]:
        """Keys and values of a source."""
        k, v = self.kv(source).chunk(2, dim=-1)
        return _heads(k, self.d_head), _heads(v, self.d_head)


def scale_of(parts: Parts) -> float:
    """What scores are multiplied by: 1/√K, or 1 where the config leaves it out."""
    return float(parts.head_width**-0.5) if parts.scale_scores else 1.0


def attend(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B KV S K"],
    v: Float[Tensor, "B KV S K"],
    *,
    causal: bool,
    mask: Mask | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T K"]:
    """softmax(q kᵀ · scale + mask) v by torch's fused kernel, which never stores the T × S weights.

    Args:
        causal: query t sees keys 0 to t. Without a mask only.
        mask: True where a key may be seen, or numbers to add; every query must see at least one key.
        scale: 1/√K when None.

    Differs: training in bf16 on a CPU writes the products out, because forward and backward through the
    fused kernel take longer there (seen with torch 2.13 at T 128 and 256). Scores are then rounded to bf16
    before the softmax. From T = 1,024 on the stored weights would cost too much memory, and the
    fused kernel is used again.
    """
    assert not (causal and mask is not None), "where there is a mask, it says all: causal must be False"
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.requires_grad and q.shape[2] < 1024:
        return _attend_by_products(q, k, v, causal, mask, scale, dropout)
    is_grouped = q.shape[1] != k.shape[1]
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=is_grouped
    )


def attention_weights(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B KV S K"],
    *,
    causal: bool,
    mask: Mask | None = None,
    scale: float | None = None,
) -> Float[Tensor, "B H T S"]:
    """The weights that `attend` takes means by, written out: to look at, not to compute with."""
    assert not (causal and mask is not None), "where there is a mask, it says all: causal must be False"
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # [B, H, S, K]
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scale is None else scale)  # [B, H, T, S]
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(dim=-1)


def _heads(x: Float[Tensor, "B T H*K"], width: int) -> Float[Tensor, "B H T K"]:
    return x.view(*x.shape[:2], -1, width).transpose(1, 2)


def _side_by_side(heads: Float[Tensor, "B H T K"]) -> Float[Tensor, "B T H*K"]:
    batch, n_heads, time, width = heads.shape
    return heads.transpose(1, 2).reshape(batch, time, n_heads * width)


def _attend_by_products(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B KV S K"],
    v: Float[Tensor, "B KV S K"],
    causal: bool,
    mask: Mask | None,
    scale: float | None,
    dropout: float,
) -> Float[Tensor, "B H T K"]:
    batch, n_heads, time, width = q.shape
    n_keys, shared_by = k.shape[2], n_heads // k.shape[1]
    if shared_by > 1:
        k, v = (part.repeat_interleave(shared_by, dim=1) for part in (k, v))  # [B, H, S, K]
    q, k, v = (part.reshape(batch * n_heads, part.shape[2], width) for part in (q, k, v))  # [B·H, ·, K]
    if mask is None:
        added = torch.zeros((time, n_keys), dtype=q.dtype, device=q.device)
        if causal:
            added = added.fill_(-torch.inf).triu(1)  # later tokens
    else:
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, -torch.inf)
        added = mask.to(q.dtype).expand(batch, n_heads, time, n_keys).reshape(-1, time, n_keys)
    scale = width**-0.5 if scale is None else scale
    scores = torch.baddbmm(added, q, k.transpose(1, 2), alpha=scale)  # [B·H, T, S]
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return torch.bmm(weights, v).view(batch, n_heads, time, width)
