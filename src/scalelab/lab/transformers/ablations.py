"""Decoders with one part taken out or changed, and what flows through the depth of any decoder.

An ablation asks what a part is for by leaving it out and training again, everything else equal. What a
config can say is said by the config; the rest (no residual, no norm, no 1/√K, other first weights) is done
here to a finished decoder, whose other weights stay as the same seed draws them.
Taught in book/transformers/block.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from scalelab.core.checks import check_bool, check_choice
from scalelab.core.config import DecoderConfig
from scalelab.core.errors import ConfigError
from scalelab.models import Block, Decoder
from scalelab.models.initialisation import RESIDUAL_PROJECTIONS, STD

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

Start = Literal["scaled", "flat", "fan_in", "large"]
LARGE = 10  # times GPT-2's 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Ablation:
    """What is changed.

    Attributes:
        config: fields of the decoder's config that are replaced: {"positions": "none"}.
        residual: whether a sub-layer's output is added to the stream; without, it takes its place.
        norms: whether there are norms at all.
        scale_scores: whether attention divides its scores by √K.
        start: first weights of the matrices. "scaled": 0.02, divided by √(2L) where a matrix writes into the
            stream; "flat": 0.02 everywhere; "fan_in": 1/√(inputs), which keeps the size of what goes through
            (the tables stay at 0.02); "large": ten times 0.02 everywhere, tables too.

    Raises:
        ConfigError: a value of the wrong kind, or a start that is not known.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    residual: bool = True
    norms: bool = True
    scale_scores: bool = True
    start: Start = "scaled"

    def __post_init__(self) -> None:
        for name in ("residual", "norms", "scale_scores"):
            check_bool(name, getattr(self, name))
        check_choice("start", self.start, get_args(Start))
        if not isinstance(self.config, Mapping):
            raise ConfigError(f"config must map names of fields to values, got {self.config!r}")


class NoResidualBlock(Block):
    """A block whose sub-layers replace the stream by what they computed from it."""

    def _add(
        self,
        x: Float[Tensor, "B T D"],
        norm: nn.Module,
        sublayer: Callable[[Float[Tensor, "B T D"]], Float[Tensor, "B T D"]],
    ) -> Float[Tensor, "B T D"]:
        return self.dropout(sublayer(norm(x)))  # type: ignore[no-any-return]


def ablated_config(base: DecoderConfig, ablation: Ablation) -> DecoderConfig:
    """The config with the ablation's fields in place.

    Raises:
        ConfigError: a field that configs do not have, or a value they refuse.
    """
    known = {each.name for each in dataclasses.fields(DecoderConfig)}
    for name in ablation.config:
        if name not in known:
            raise ConfigError(f"a decoder's config has no field {name!r}; it has {', '.join(sorted(known))}")
    return dataclasses.replace(base, **ablation.config)


def ablated(base: DecoderConfig, ablation: Ablation, *, seed: int) -> Decoder:
    """A decoder with the ablation done to it.

    Args:
        base: what is changed. seed: of the first weights, which are those of the unchanged decoder wherever
            the ablation does not touch them.

    Raises:
        ConfigError: see `ablated_config`; or an ablation without a meaning: post-norm without a residual or
            without norms.
    """
    config = ablated_config(base, ablation)
    if config.norm_position == "post" and not (ablation.residual and ablation.norms):
        raise ConfigError("norm_position='post' norms a sum: it needs residual=True and norms=True")
    model = Decoder(config, seed=seed)
    _restart(model, ablation.start)
    for place, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        if not ablation.residual:
            bare = NoResidualBlock(config)
            bare.load_state_dict(block.state_dict())
            model.blocks[place] = block = bare
        if not ablation.norms:
            block.attention_norm, block.feed_forward_norm = nn.Identity(), nn.Identity()
        if not ablation.scale_scores:
            block.attention.scale = 1.0
    if not ablation.norms:
        model.final_norm = nn.Identity()
    return model


@torch.no_grad()
def _restart(model: Decoder, start: Start) -> None:
    """Rescale first weights in place; the numbers drawn stay the same."""
    is_post = model.config.norm_position == "post"
    shrunk = 1.0 if is_post else 1 / math.sqrt(2 * model.config.n_layers)
    for name, weight in model.named_parameters():
        if weight.ndim < 2 or start == "scaled":
            continue
        std = STD * (shrunk if name.endswith(RESIDUAL_PROJECTIONS) else 1.0)
        is_table = "embedding" in name
        if start == "fan_in" and not is_table:
            weight.mul_(1 / (std * math.sqrt(weight.shape[1])))
        elif start == "flat":
            weight.mul_(STD / std)
        elif start == "large":
            weight.mul_(LARGE * STD / std)


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthProfile:
    """Sizes through the depth of a decoder on some tokens: root mean squares over tokens and width.

    Attributes:
        stream: of the stream at its start and after each of the 2L sub-layers, [2L + 1].
        added: of what each sub-layer wrote, [2L]: attention and feed-forward in turns.
        gradient: of the derivative of the mean loss by the stream at those places, [2L + 1], times the number
            of tokens, so that it does not depend on it.
        alike: mean cosine between the stream's vectors at two different places of one text, [2L + 1]: at 1
            all of them point the same way, and the tokens can no longer be told apart.
        loss_nats: the loss.
    """

    stream: tuple[float, ...]
    added: tuple[float, ...]
    gradient: tuple[float, ...]
    alike: tuple[float, ...]
    loss_nats: float


def depth_profile(model: Decoder, tokens: Int[Tensor, "B T"], targets: Int[Tensor, "B T"]) -> DepthProfile:
    """Run a decoder forward and back once, and measure what flows through its depth.

    The model's mode and gradients are as before afterwards.
    """
    stream: list[Tensor] = []
    added: list[Tensor] = []
    is_post = model.config.norm_position == "post"

    def arrive(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        inputs[0].retain_grad()
        stream.append(inputs[0])

    def leave(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        output.retain_grad()
        stream.append(output)

    def write(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        added.append(output.detach())

    blocks = [block for block in model.blocks if isinstance(block, Block)]
    hooks: list[Any] = [blocks[-1].register_forward_hook(leave)]
    for block in blocks:
        # Between its sub-layers the stream is what the second one is handed: normed already, or to be normed.
        middle = block.feed_forward if is_post else block.feed_forward_norm
        hooks += [block.register_forward_pre_hook(arrive), middle.register_forward_pre_hook(arrive)]
        hooks += [part.register_forward_hook(write) for part in (block.attention, block.feed_forward)]
    was_training = model.training
    weights = list(model.parameters())
    kept = [weight.grad for weight in weights]
    model.eval()
    try:
        loss = model.loss(tokens, targets)
        loss.backward()  # type: ignore[no-untyped-call]
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
        for weight, gradient in zip(weights, kept, strict=True):
            weight.grad = gradient
    gradients = [place.grad for place in stream]
    return DepthProfile(
        stream=tuple(_size(place.detach()) for place in stream),
        added=tuple(_size(part) for part in added),
        gradient=tuple(_size(g) * tokens.numel() for g in gradients if g is not None),
        alike=tuple(_alike(place.detach()) for place in stream),
        loss_nats=float(loss.detach()),
    )


def _alike(stream: Float[Tensor, "B T D"]) -> float:
    """Mean cosine over pairs of different places: the squared length of the sum of T unit vectors, less T."""
    time = stream.shape[1]
    if time < 2:
        return 1.0
    total = F.normalize(stream, dim=-1, eps=1e-30).sum(1)  # [B, D]
    return float(((total.square().sum(-1) - time) / (time * (time - 1))).mean())


def _size(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
