"""Model, settings and data are held against each other before anything is trained, so no run fails late."""

from __future__ import annotations

from torch import nn

from scalelab.core.config import ModelConfig
from scalelab.core.errors import ConfigError, DataError
from scalelab.data import TokenData
from scalelab.train.config import TrainConfig


def config_of(model: nn.Module) -> ModelConfig:
    """The config of a model that can be trained.

    Raises:
        ConfigError: it has no config of ours, or no `.loss`.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, ModelConfig) or not callable(getattr(model, "loss", None)):
        raise ConfigError(
            f"{type(model).__name__} cannot be trained: it needs .config (a config of scalelab.core.config, "
            f"found {type(config).__name__}) and .loss(tokens, targets, reduction=...)"
        )
    return config


def check_fits(model: ModelConfig, config: TrainConfig, data: TokenData) -> None:
    """Refuse settings that contradict each other.

    Raises:
        ConfigError: sequences longer than the context, or a batch larger than the text.
        DataError: tokens outside the vocabulary, or too few to evaluate on.
    """
    context, vocab_size = getattr(model, "seq_len", None), getattr(model, "vocab_size", None)
    if context is not None and config.seq_len > context:
        raise ConfigError(
            f"seq_len={config.seq_len} is longer than the model's context of {context}: shorten it, "
            "or lengthen the model's seq_len"
        )
    if config.batch_tokens + 1 > len(data.train):
        raise ConfigError(
            f"a step takes batch_size × seq_len = {config.batch_tokens} tokens, the training text has "
            f"{len(data.train)}: lower batch_size or seq_len, or use a larger corpus"
        )
    for part, tokens in (("training", data.train), ("held-out", data.held_out)):
        if vocab_size is not None and len(tokens) and int(tokens.max()) >= vocab_size:
            raise DataError(
                f"the {part} text has token {int(tokens.max())}, the model's vocabulary ends at "
                f"{vocab_size - 1}: use the model's own tokenizer, or set its vocab_size"
            )
    if len(data.held_out) <= config.seq_len:
        raise DataError(
            f"the held-out text has {len(data.held_out)} tokens, an evaluation needs more than "
            f"seq_len={config.seq_len}: use a larger corpus or shorter sequences"
        )
