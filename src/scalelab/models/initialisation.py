"""Where training starts: small normal weights, smaller still where layers add into the residual stream.

2L sub-layers of a decoder add to one stream. With their outgoing weights scaled by 1/√(2L), the stream's
variance at the end does not grow with depth, and the first loss is close to ln V.
Source: Radford et al. 2019 (GPT-2), section 2.3. Taught in book/transformers/block.md.
"""

from __future__ import annotations

import math

import torch
from torch import nn

STD = 0.02  # GPT-2's, for every matrix and table
RESIDUAL_PROJECTIONS = ("attention.out.weight", "feed_forward.down.weight")


@torch.no_grad()
def initialise(model: nn.Module, n_additions: int, generator: torch.Generator) -> None:
    """Fill every parameter in place: matrices and tables normal, biases zero, norms one.

    Args:
        model: its parameters are visited in the order of `named_parameters`.
        n_additions: how many sub-layers add to the stream, whose outgoing weights are scaled down by its
            root; 1 where each sum is normed at once (post-norm), as in BERT.
        generator: a CPU generator; drawing there gives the same weights on every device.
    """
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.zero_()
        elif parameter.ndim == 1:  # a norm's weight
            parameter.fill_(1.0)
        else:
            std = STD / math.sqrt(n_additions) if name.endswith(RESIDUAL_PROJECTIONS) else STD
            parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))


@torch.no_grad()
def initialise_by_fan_in(model: nn.Module, table_std: float, generator: torch.Generator) -> None:
    """Fill every parameter in place: matrices normal with a spread of 1/√(numbers that meet in a sum).

    A matrix then hands on what it is given at the size it was given, whatever its width. (GPT-2's 0.02 is
    that spread at D = 2,500, and far below it in a narrow model.)

    Args:
        table_std: of every table that is looked up.
        generator: a CPU generator; drawing there gives the same weights on every device.

    Source: `transformers`, models/t5/modeling_t5.py, for the matrices and the token table.
    Differs: every table is drawn at `table_std`, that of relative positions too, and queries are no smaller
    than other matrices; `EncoderDecoder` scales both to what T5 draws.
    """
    tables = {name + ".weight" for name, part in model.named_modules() if isinstance(part, nn.Embedding)}
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.zero_()
        elif parameter.ndim == 1:  # a norm's weight
            parameter.fill_(1.0)
        else:
            std = table_std if name in tables else parameter.shape[1] ** -0.5
            parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))
