"""Model, settings and data are held against each other before anything is trained, so no run fails late."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from scalelab.core.checks import check_positive_int
from scalelab.core.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig, ModelConfig
from scalelab.core.errors import ConfigError, DataError, TrainingError
from scalelab.core.seeding import derive_seed
from scalelab.data import TokenData
from scalelab.data.objectives import Objective, ObjectiveName, SpanObjective, make_objective
from scalelab.data.special import N_SPECIAL, SpecialTokens
from scalelab.models import Decoder, Encoder, EncoderDecoder
from scalelab.train.config import TrainConfig
from scalelab.train.strategy import Strategy

OBJECTIVE_OF: Mapping[type, ObjectiveName] = {
    DecoderConfig: "causal",
    EncoderConfig: "mlm",
    EncoderDecoderConfig: "spans",
}


def build(config: ModelConfig, seed: int) -> nn.Module:
    """The model of a config, its weights drawn by the run's seed.

    Raises:
        ConfigError: of a kind that only its user can build.
    """
    weights_seed = derive_seed(seed, "weights")
    if isinstance(config, DecoderConfig):
        return Decoder(config, seed=weights_seed)
    if isinstance(config, EncoderConfig):
        return Encoder(config, seed=weights_seed)
    if isinstance(config, EncoderDecoderConfig):
        return EncoderDecoder(config, seed=weights_seed)
    raise ConfigError(
        f"a trainer builds decoders, encoders and encoder–decoders, got {type(config).__name__}: give the "
        "model itself, not its config"
    )


def objective_of(model: ModelConfig, config: TrainConfig, data: TokenData) -> Objective:
    """What the run predicts.

    Raises:
        ConfigError: an objective for another kind of model, or a vocabulary without room for special tokens.
    """
    wanted = OBJECTIVE_OF.get(type(model), config.objective)
    if config.objective != wanted:
        raise ConfigError(
            f"objective={config.objective!r} does not train a model with a {type(model).__name__}; "
            f"that is {wanted!r}"
        )
    if config.objective == "causal":
        return make_objective("causal", seq_len=config.seq_len)
    vocab_size, first = int(getattr(model, "vocab_size", 0)), data.vocab_size
    if vocab_size < first + N_SPECIAL:
        raise ConfigError(
            f"objective={config.objective!r} needs ids for padding, class, separator and mask after the "
            f"tokenizer's {first}: the model's vocab_size={vocab_size} must be at least {first + N_SPECIAL}"
        )
    if isinstance(model, EncoderConfig) and not model.mlm_head:
        raise ConfigError("objective='mlm' needs a model with mlm_head=True")
    if isinstance(model, EncoderDecoderConfig) and model.pad_id != first:
        raise ConfigError(f"pad_id={model.pad_id} must be the first id after the tokenizer's: {first}")
    sentinels = tuple(range(first + N_SPECIAL, vocab_size))
    special = SpecialTokens(first, first + 1, first + 2, first + 3, sentinels)
    return make_objective(config.objective, seq_len=config.seq_len, special=special)


def target_len(config: TrainConfig, objective: Objective) -> int | None:
    """Tokens that an encoder–decoder writes for each sequence it reads; None for the other objectives."""
    if not isinstance(objective, SpanObjective):
        return None
    return objective.lengths(objective.window_length(config.seq_len)).targets


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


def check_shares(config: TrainConfig, strategy: Strategy, *, resumes: bool = False) -> None:
    """Refuse a batch that the processes cannot take equal shares of, and a trial of what is cut.

    Args:
        resumes: the run goes on from a checkpoint, which holds what a trial has found.

    Raises:
        ConfigError: the message names the sizes nearby that would do, or the precisions.
    """
    if config.precision == "auto" and strategy.n_parts > 1 and not resumes:
        raise ConfigError(
            f"precision='auto' tries the whole model on one device, and {strategy.layout} cuts it because it "
            "may not fit there: give 'bf16' or 'fp32'"
        )
    below = config.batch_size // strategy.n_shares * strategy.n_shares
    if below != config.batch_size:
        near = [size for size in (below, below + strategy.n_shares) if size]
        raise ConfigError(
            f"batch_size={config.batch_size} cannot be shared equally by {strategy.n_shares} processes "
            f"({strategy.layout}): {' or '.join(map(str, near))} would do"
        )


def check_same_everywhere(strategy: Strategy, run_id: str, step: int) -> None:
    """Refuse to train when processes would train different runs: their gradients would add up to nonsense.

    Raises:
        TrainingError: the message names a process that differs, and in what.
    """
    found = strategy.gather((run_id, step))
    for rank, (other_id, other_step) in enumerate(found):
        if other_id != found[0][0]:
            raise TrainingError(
                f"process {rank} would train {other_id}, process 0 {found[0][0]}: their settings or texts "
                "differ; give all of them the same corpus and flags"
            )
        if other_step != found[0][1]:
            raise TrainingError(
                f"process {rank} found a checkpoint of step {other_step}, process 0 one of step "
                f"{found[0][1]}: the run's folder must be one that all of them see"
            )


def last_step(config: TrainConfig, until_tokens: int | None) -> int:
    """The step after which so many tokens have been trained on; that of the whole budget for None.

    Raises:
        ConfigError: no positive whole number.
    """
    if until_tokens is None:
        return config.n_steps
    check_positive_int("until_tokens", until_tokens)
    return min(config.n_steps, math.ceil(until_tokens / config.batch_tokens))
