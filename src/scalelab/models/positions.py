"""Attention cannot tell order by itself: positions are added to its input, or turn its queries and keys.

Learned positions are a table of parameters (in decoder.py). Here are the two that need none: fixed
waves that are added, and rotations, after which the product of a query and a key depends on how far
apart they stand and on nothing else about where.
Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5; Su et al. 2021, arXiv:2104.09864, eq. 15
and 34; Llama 3, arXiv:2407.21783 (stretching). Taught in book/transformers/training.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from scalelab.core.config import DecoderConfig, RopeScaling

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def sinusoidal_positions(
    seq_len: int, width: int, device: torch.device | None = None
) -> Float[Tensor, "T D"]:
    """PE[t, 2i] = sin(t / 10000^(2i/D)), PE[t, 2i+1] = cos(t / 10000^(2i/D)), in fp32.

    Source: Vaswani et al. 2017, section 3.5.
    """
    even = torch.arange(0, width, 2, device=device)  # 2i
    angles = _angles(seq_len, 10_000.0 ** (-even / width))  # [T, ceil(D/2)]
    table = torch.empty(seq_len, width, device=device)
    table[:, 0::2] = angles.sin()
    table[:, 1::2] = angles[:, : width // 2].cos()
    return table


def rope_frequencies(config: DecoderConfig, device: torch.device | None = None) -> Float[Tensor, " R/2"]:
    """Angle per token by which each pair of numbers turns: theta^(-2i/R), R the rotary width of a head."""
    even = torch.arange(0, config.rotary_width, 2, device=device)  # 2i
    frequencies = 1.0 / config.rope_theta ** (even.float() / config.rotary_width)
    if config.rope_scaling is None:
        return frequencies
    return _stretch(frequencies, config.rope_scaling)


def rope_tables(
    config: DecoderConfig, seq_len: int, device: torch.device | None = None
) -> tuple[Float[Tensor, "T R/2"], Float[Tensor, "T R/2"]]:
    """Cosine and sine of each position's angles, fp32.

    They are computed anew at each forward pass: that costs a few microseconds, while a stored buffer
    would be rounded by `model.to(torch.bfloat16)` and left empty by building on the meta device.
    """
    angles = _angles(seq_len, rope_frequencies(config, device))
    return angles.cos(), angles.sin()


def rotate(
    x: Float[Tensor, "B T N K"], cos: Float[Tensor, "T R/2"], sin: Float[Tensor, "T R/2"]
) -> Float[Tensor, "B T N K"]:
    """Turn number i of each head with number i + R/2 by position t's angle i; numbers beyond R stay.

    Differs: the paper pairs neighbours (2i, 2i+1). This pairs halves, as `transformers` stores its
    weights; the two are the same model with the rows of W_q and W_k in another order.
    """
    half = cos.shape[-1]
    cos = cos.to(x.dtype)[:, None]  # [T, 1, R/2]: one for all heads
    sin = sin.to(x.dtype)[:, None]
    first, second, rest = torch.split(x, [half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def _angles(seq_len: int, frequencies: Float[Tensor, " N"]) -> Float[Tensor, "T N"]:
    positions = torch.arange(seq_len, device=frequencies.device).float()
    return torch.outer(positions, frequencies)


def _stretch(frequencies: Float[Tensor, " N"], scaling: RopeScaling) -> Float[Tensor, " N"]:
    """Llama 3.1: slow waves longer than the old context by `factor`, keep short ones, blend between."""
    turns = scaling.original_seq_len * frequencies / (2 * math.pi)  # in the original context
    band = scaling.high_freq_factor - scaling.low_freq_factor
    keep = ((turns - scaling.low_freq_factor) / band).clamp(0, 1)  # 0: slowed, 1: as it was
    return frequencies * (keep + (1 - keep) / scaling.factor)
