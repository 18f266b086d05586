"""Looking inside: the attention weights of every layer and head, and the stream after every block.

Taught in book/transformers/attention.md and book/transformers/block.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from scalelab.core.errors import ConfigError
from scalelab.models.attention import Attention, Sight, attention_weights
from scalelab.models.block import Block
from scalelab.models.building import evaluating
from scalelab.models.decoder import Decoder
from scalelab.models.encoder import Encoder

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


@torch.no_grad()
def attention_maps(model: Decoder | Encoder, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "L B H T T"]:
    """How much each token (next to last index) looks at each other one (last index), by layer and head.

    Each row sums to one. Dropout is off while this runs.

    Raises:
        ConfigError: another kind of model.
        DataError: tokens that the model refuses.
    """
    _check_one_stack(model)
    maps: list[Tensor] = []

    def look(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(layer, Attention)
        x, sight = inputs[0], inputs[1]
        assert isinstance(sight, Sight)
        q, k, _ = layer.project(x, sight.rotation)
        maps.append(attention_weights(q, k, causal=sight.causal, mask=sight.mask, scale=layer.scale))

    hooks = [m.register_forward_pre_hook(look) for m in model.modules() if isinstance(m, Attention)]
    with _looking(model, hooks):
        model.hidden(tokens)
    return torch.stack(maps)


@torch.no_grad()
def residual_stream(model: Decoder | Encoder, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "L+1 B T D"]:
    """The stream as it enters the first block, and after each block, before the last norm.

    Raises:
        ConfigError: another kind of model.
        DataError: tokens that the model refuses.
    """
    _check_one_stack(model)
    stream: list[Tensor] = []

    def enter(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not stream:
            stream.append(inputs[0].clone())

    def leave(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        stream.append(output.clone())

    blocks = [m for m in model.modules() if isinstance(m, Block)]
    hooks = [blocks[0].register_forward_pre_hook(enter), *(b.register_forward_hook(leave) for b in blocks)]
    with _looking(model, hooks):
        model.hidden(tokens)
    return torch.stack(stream)


@contextlib.contextmanager
def _looking(model: nn.Module, hooks: list[Any]) -> Iterator[None]:
    """Evaluation mode while hooks are on; both as before afterwards."""
    try:
        with evaluating(model):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_one_stack(model: nn.Module) -> None:
    if not isinstance(model, Decoder | Encoder):
        raise ConfigError(
            f"a Decoder or an Encoder can be looked into, got {type(model).__name__}: on the layers of other "
            "models register hooks of your own"
        )
