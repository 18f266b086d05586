"""Shapes of models as frozen data: what a model is, without a single weight.

Every other part of the package reads these: `models` builds from them, `cost` counts them, records
and checkpoints store them. No torch here, so planning a 405B model costs nothing.
Taught in book/transformers/block.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from scalelab.core.checks import check_heads_divide, check_positive_int
from scalelab.core.config_decoder import (
    DecoderConfig,
    FeedForward,
    Norm,
    NormPosition,
    Positions,
    RopeScaling,
)
from scalelab.core.config_encoder import EncoderConfig, EncoderDecoderConfig
from scalelab.core.errors import ConfigError

__all__ = [
    "DecoderConfig",
    "EncoderConfig",
    "EncoderDecoderConfig",
    "FeedForward",
    "ModelConfig",
    "Norm",
    "NormPosition",
    "Positions",
    "RopeScaling",
    "VisionConfig",
    "build",
    "config_from_dict",
    "config_to_dict",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig:
    """ViT's shape: an encoder over image patches with a class token and a classifying head.

    Attributes:
        n_layers, d_model, n_heads, d_ff: L, D, H, F.
        patch_size, image_size: pixels a side. n_channels: colour channels. n_classes: outputs.

    Source: Dosovitskiy et al. 2020, arXiv:2010.11929, table 1.
    """

    n_layers: int
    d_model: int
    n_heads: int
    d_ff: int
    patch_size: int
    image_size: int = 224
    n_channels: int = 3
    n_classes: int = 1000

    def __post_init__(self) -> None:
        for name in (
            "n_layers", "d_model", "n_heads", "d_ff", "patch_size", "image_size", "n_channels", "n_classes",
        ):  # fmt: skip
            check_positive_int(name, getattr(self, name))
        check_heads_divide(self.d_model, self.n_heads)
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}"
            )

    @property
    def n_patches(self) -> int:
        """Patches an image is cut into, without the class token."""
        return (self.image_size // self.patch_size) ** 2


ModelConfig = DecoderConfig | EncoderConfig | EncoderDecoderConfig | VisionConfig
KINDS: Mapping[str, type] = {
    "decoder": DecoderConfig,
    "encoder": EncoderConfig,
    "encoder-decoder": EncoderDecoderConfig,
    "vision": VisionConfig,
}
C = TypeVar("C")


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """A plain dict with `kind` first, fit for JSON; `config_from_dict` reads it back.

    A decoder's `norm_position` is named only where it is "post", so that runs from before there was a choice
    keep their names.

    Raises:
        ConfigError: `config` is none of the four kinds.
    """
    kind = next((name for name, cls in KINDS.items() if type(config) is cls), None)
    if kind is None:
        known = ", ".join(cls.__name__ for cls in KINDS.values())
        raise ConfigError(f"a model config is one of {known}; got {config!r:.80} (a name needs preset(name))")
    values = dataclasses.asdict(config)
    if isinstance(config, DecoderConfig) and config.norm_position == "pre":
        del values["norm_position"]
    return {"kind": kind, **values}


def config_from_dict(values: Mapping[str, Any]) -> ModelConfig:
    """The config that `config_to_dict` wrote.

    Raises:
        ConfigError: unknown kind, unknown or missing field, or a value the config refuses.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"a model config must be a mapping of names to values, got {values!r}")
    fields = dict(values)
    kind = fields.pop("kind", "decoder")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(f"unknown kind of model {kind!r}; known: {', '.join(KINDS)}")
    scaling = fields.get("rope_scaling")
    if isinstance(scaling, Mapping):
        fields["rope_scaling"] = build(RopeScaling, scaling)
    config: ModelConfig = build(KINDS[kind], fields)
    return config


def build(cls: Callable[..., C], values: Mapping[str, Any]) -> C:
    """Make a config dataclass from a mapping, naming unknown and missing fields.

    Raises:
        ConfigError: a field the class does not have, or one it needs and did not get.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = [name for name in values if name not in fields]
    if unknown:
        raise ConfigError(f"unknown setting {unknown[0]!r}; known: {', '.join(fields)}")
    missing = [
        name
        for name, f in fields.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"missing setting {missing[0]!r} (needed: {', '.join(missing)})")
    return cls(**values)
