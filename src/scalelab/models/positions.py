"""Attention cannot tell order by itself: positions are added to its input, or turn its queries and keys.

Learned positions are a table of parameters (in decoder.py). Here are those that need none: fixed waves that
are added; rotations, after which the product of a query and a key depends on how far apart they stand and on
nothing else about where; penalties that grow with the distance (ALiBi); and T5's buckets of distances, for
which a small table is learnt.
Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5; Su et al. 2021, arXiv:2104.09864, eq. 15
and 34; Llama 3, arXiv:2407.21783 (stretching); Press et al. 2021, arXiv:2108.12409 (ALiBi); Raffel et al.
2019, arXiv:1910.10683, section 2.1 (buckets). Taught in book/transformers/attention.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from scalelab.core.config import RopeScaling
from scalelab.models.parts import Rotary

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


def sinusoidal_positions(
    seq_len: int, width: int, device: torch.device | None = None
) -> Float[Tensor, "T D"]:
    """PE[t, 2i] = sin(t / 10000^(2i/D)), PE[t, 2i+1] = cos(t / 10000^(2i/D)), in fp32.

    Source: Vaswani et al. 2017, section 3.5.
    """
    return sinusoidal_waves(torch.arange(seq_len, device=device), width)


def sinusoidal_waves(positions: Int[Tensor, "*B T"], width: int) -> Float[Tensor, "*B T D"]:
    """The same at any positions: while generating, at one."""
    even = torch.arange(0, width, 2, device=positions.device)  # 2i
    angles = positions[..., None].float() * 10_000.0 ** (-even / width)  # [*B, T, ceil(D/2)]
    table = angles.new_empty((*positions.shape, width))
    table[..., 0::2] = angles.sin()
    table[..., 1::2] = angles[..., : width // 2].cos()
    return table


def rope_frequencies(config: Rotary, device: torch.device | None = None) -> Float[Tensor, " R/2"]:
    """Angle per token by which each pair of numbers turns: theta^(-2i/R), R the rotary width of a head."""
    even = torch.arange(0, config.rotary_width, 2, device=device)  # 2i
    frequencies = 1.0 / config.rope_theta ** (even.float() / config.rotary_width)
    if config.rope_scaling is None:
        return frequencies
    return _stretch(frequencies, config.rope_scaling)


def rope_tables(
    config: Rotary, positions: Int[Tensor, "*B T"]
) -> tuple[Float[Tensor, "*B T R/2"], Float[Tensor, "*B T R/2"]]:
    """Cosine and sine of each position's angles, fp32.

    They are computed anew at each forward pass: that costs a few microseconds, while a stored buffer
    would be rounded by `model.to(torch.bfloat16)` and left empty by building on the meta device.

    Args:
        positions: where each token stands: [T] where rows agree, else [B, T].
    """
    angles = positions[..., None].float() * rope_frequencies(config, positions.device)  # [*B, T, R/2]
    return angles.cos(), angles.sin()


def rotate(
    x: Float[Tensor, "B T N K"], cos: Float[Tensor, "*B T R/2"], sin: Float[Tensor, "*B T R/2"]
) -> Float[Tensor, "B T N K"]:
    """Turn number i of each head with number i + R/2 by position t's angle i; numbers beyond R stay.

    Differs: the paper pairs neighbours (2i, 2i+1). This pairs halves, as `transformers` stores its
    weights; the two are the same model with the rows of W_q and W_k in another order.
    """
    half = cos.shape[-1]
    cos = cos.to(x.dtype)[..., None, :]  # [T, 1, R/2]: one for all heads
    sin = sin.to(x.dtype)[..., None, :]
    first, second, rest = x.split_with_sizes((half, half, x.shape[-1] - 2 * half), dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def alibi_slopes(n_heads: int, device: torch.device | None = None) -> Float[Tensor, " H"]:
    """How steeply each head's scores fall with the distance: 2^(-8/H), 2^(-16/H), ... 2^-8.

    For a number of heads that is no power of two, the slopes of the next lower power, then every other
    one of the next higher power, as the authors' code does.

    Source: Press et al. 2021, arXiv:2108.12409, section 3.
    """
    lower = 2 ** int(math.log2(n_heads))
    slopes = [2.0 ** (-8.0 * (head + 1) / lower) for head in range(lower)]
    slopes += [2.0 ** (-8.0 * (2 * head + 1) / (2 * lower)) for head in range(n_heads - lower)]
    return torch.tensor(slopes, device=device)


def alibi_bias(
    n_heads: int, queries: Int[Tensor, "*B T"], keys: Int[Tensor, "*B S"]
) -> Float[Tensor, "#B H T S"]:
    """-slope · distance, to be added to the scores: the further back a key, the less it counts.

    Args:
        queries, keys: positions, [T] and [S] where rows agree, else [B, T] and [B, S].
    """
    distance = (queries[..., :, None] - keys[..., None, :]).abs().float()  # [*B, T, S]
    bias = -alibi_slopes(n_heads, keys.device)[:, None, None] * distance.unsqueeze(-3)  # [*B, H, T, S]
    return bias if bias.ndim == 4 else bias[None]


class RelativePositions(nn.Module):
    """T5's positions: a learned number for each head and bucket of distances, added to the scores.

    Half of a direction's buckets are single distances, the others grow as their logarithm up to
    `max_distance`, beyond which all share the last one.

    Args:
        n_buckets, max_distance: of the table. n_heads: H.
        both_ways: whether keys may stand behind the query: an encoder has half of its buckets for them.
    """

    def __init__(self, n_buckets: int, max_distance: int, n_heads: int, *, both_ways: bool) -> None:
        super().__init__()
        self.n_buckets = n_buckets
        self.max_distance = max_distance
        self.both_ways = both_ways
        self.table = nn.Embedding(n_buckets, n_heads)

    def forward(self, queries: Int[Tensor, " T"], keys: Int[Tensor, " S"]) -> Float[Tensor, "1 H T S"]:
        """What is added to the scores."""
        buckets = self.buckets(keys[None, :] - queries[:, None])  # [T, S]
        return self.table(buckets).permute(2, 0, 1)[None]  # type: ignore[no-any-return]

    def buckets(self, offsets: Int[Tensor, "T S"]) -> Int[Tensor, "T S"]:
        """The bucket of each offset, key position minus query position."""
        n_buckets, first = self.n_buckets, torch.zeros_like(offsets)
        if self.both_ways:
            n_buckets //= 2
            first = (offsets > 0).long() * n_buckets  # later keys have the upper half
            distance = offsets.abs()
        else:
            distance = (-offsets).clamp(min=0)
        n_single = n_buckets // 2
        # From here on a bucket spans a fixed ratio of distances.
        ratio = (distance.float() / n_single).clamp(min=1e-6).log() / math.log(self.max_distance / n_single)
        far = (n_single + (ratio * (n_buckets - n_single)).long()).clamp(max=n_buckets - 1)
        return first + torch.where(distance < n_single, distance, far)


def _stretch(frequencies: Float[Tensor, " N"], scaling: RopeScaling) -> Float[Tensor, " N"]:
    """Llama 3.1: slow waves longer than the old context by `factor`, keep short ones, blend between."""
    turns = scaling.original_seq_len * frequencies / (2 * math.pi)  # in the original context
    band = scaling.high_freq_factor - scaling.low_freq_factor
    keep = ((turns - scaling.low_freq_factor) / band).clamp(0, 1)  # 0: slowed, 1: as it was
    return frequencies * (keep + (1 - keep) / scaling.factor)
