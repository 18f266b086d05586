"""How a model is trained, as frozen data: the budget is a count of tokens, never of seconds.

A budget in tokens makes the same run on every machine; seconds are measured, and never decide anything.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from scalelab.core.checks import (
    check_bool,
    check_choice,
    check_count,
    check_fraction,
    check_positive,
    check_positive_int,
    is_number,
)
from scalelab.core.config import build
from scalelab.core.errors import ConfigError
from scalelab.data.objectives import OBJECTIVES, ObjectiveName

ScheduleName = Literal["constant", "cosine", "linear", "wsd"]
Precision = Literal["fp32", "bf16", "fp16"]
PrecisionChoice = Literal["fp32", "bf16", "fp16", "auto"]

# Where the rate ends, as a share of its peak, when nothing is said: Chinchilla's tenth for the cosine
# (Hoffmann et al. 2022, arXiv:2203.15556, fig. A1); to zero where the decay is a straight line.
FINAL_SHARE: Mapping[str, float] = {"constant": 1.0, "cosine": 0.1, "linear": 0.0, "wsd": 0.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Everything about a training run but the model, the data and the machine.

    Attributes:
        n_tokens: the budget: tokens trained on, repeats counted. Whole steps that fit in it are taken.
        objective: what is predicted: "causal" (the next token; decoders), "mlm" (hidden tokens; encoders) or
            "spans" (hidden spans; encoder–decoders).
        batch_size: sequences per optimiser step, over all micro-batches and processes.
        seq_len: tokens per sequence.
        learning_rate: the peak.
        min_lr_fraction: the last step's rate over the peak; None: 0.1 for cosine, 0 for linear and wsd.
        warmup_steps: steps over which the rate climbs to its peak; None: a twentieth of the run.
        schedule: "constant", "cosine", "linear", or "wsd" (warm-up, stable, decay).
        decay_fraction: the share of all steps that wsd decays over.
        weight_decay: decoupled, on matrices only.
        betas, eps: AdamW's.
        clip_norm: largest global norm of a gradient; None: not clipped.
        accumulate: micro-batches that a batch is cut into, to save memory; the step stays the same.
        precision: "fp32", "bf16" or "fp16" for matrix products (weights stay in fp32); "auto": by a trial.
        compile: whether to run the model through `torch.compile`.
        deterministic: on a GPU, ask for kernels that repeat bit for bit.
        seed: of weights (when the trainer makes the model), data order and dropout.
        n_evals: held-out evaluations, at log-spaced steps, the last after the last step.
        eval_tokens: held-out tokens each of them reads, the same each time; None: all.
        checkpoint_every: steps between checkpoints; None: only at the end and when interrupted.
        keep_checkpoints: how many of them stay.
        log_every: steps between entries in the loggers.

    Raises:
        ConfigError: a value that cannot be used, with the value and what would do.
    """

    n_tokens: int
    objective: ObjectiveName = "causal"
    batch_size: int = 32
    seq_len: int = 128
    learning_rate: float = 1e-3
    min_lr_fraction: float | None = None
    warmup_steps: int | None = None
    schedule: ScheduleName = "cosine"
    decay_fraction: float = 0.2
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip_norm: float | None = 1.0
    accumulate: int = 1
    precision: PrecisionChoice = "fp32"
    compile: bool = False
    deterministic: bool = True
    seed: int = 0
    n_evals: int = 8
    eval_tokens: int | None = 65_536
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    log_every: int = 10

    def __post_init__(self) -> None:
        for name in (
            "n_tokens", "batch_size", "seq_len", "accumulate", "n_evals", "keep_checkpoints", "log_every",
        ):  # fmt: skip
            check_positive_int(name, getattr(self, name))
        check_count("seed", self.seed)
        check_choice("objective", self.objective, OBJECTIVES)
        check_choice("schedule", self.schedule, get_args(ScheduleName))
        check_choice("precision", self.precision, get_args(PrecisionChoice))
        check_bool("compile", self.compile)
        check_bool("deterministic", self.deterministic)
        for name in ("eval_tokens", "checkpoint_every"):
            if getattr(self, name) is not None:
                check_positive_int(name, getattr(self, name))
        self._check_batch()
        self._check_optimizer()
        self._check_schedule()

    def _check_batch(self) -> None:
        if self.batch_tokens > self.n_tokens:
            raise ConfigError(
                f"a step takes batch_size × seq_len = {self.batch_size} × {self.seq_len} = "
                f"{self.batch_tokens} tokens, more than the whole budget n_tokens={self.n_tokens}: "
                "raise n_tokens or lower batch_size"
            )
        if self.accumulate > self.batch_size:
            raise ConfigError(
                f"accumulate={self.accumulate} micro-batches cannot be cut from batch_size={self.batch_size} "
                "sequences: at most one per sequence"
            )
        if self.seed >= 2**63:
            raise ConfigError(f"seed must be below 2^63, got {self.seed!r}")

    def _check_optimizer(self) -> None:
        check_positive("learning_rate", self.learning_rate)
        check_positive("eps", self.eps)
        if not (is_number(self.weight_decay) and self.weight_decay >= 0):
            raise ConfigError(
                f"weight_decay must be a finite number of at least 0, got {self.weight_decay!r}"
            )
        if self.clip_norm is not None:
            check_positive("clip_norm", self.clip_norm)
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise ConfigError(f"betas must be two numbers, as in (0.9, 0.95), got {self.betas!r}")
        for position, beta in enumerate(self.betas):
            check_fraction(f"betas[{position}]", beta)
        object.__setattr__(self, "betas", tuple(self.betas))

    def _check_schedule(self) -> None:
        if self.warmup_steps is None:
            object.__setattr__(self, "warmup_steps", self.n_steps // 20)
        check_count("warmup_steps", self.warmup_steps)
        if self.warmup >= max(self.n_steps, 2):
            raise ConfigError(
                f"warmup_steps={self.warmup} leaves nothing of the run's {self.n_steps} steps "
                f"(n_tokens // (batch_size × seq_len)): lower it or raise n_tokens"
            )
        if self.min_lr_fraction is None:
            object.__setattr__(self, "min_lr_fraction", FINAL_SHARE[self.schedule])
        if not (is_number(self.min_lr_fraction) and 0 <= self.final_share <= 1):
            raise ConfigError(f"min_lr_fraction must lie in [0, 1], got {self.min_lr_fraction!r}")
        if self.schedule == "constant" and self.final_share != 1:
            raise ConfigError(
                f"min_lr_fraction={self.min_lr_fraction!r} does nothing under a constant schedule: "
                "leave it out, or choose cosine, linear or wsd"
            )
        if not (is_number(self.decay_fraction) and 0 < self.decay_fraction <= 1):
            raise ConfigError(f"decay_fraction must lie in (0, 1], got {self.decay_fraction!r}")
        if self.schedule == "wsd" and self.warmup + self.decay_steps > max(self.n_steps, 2):
            raise ConfigError(
                f"warmup_steps={self.warmup} and a decay over decay_fraction={self.decay_fraction} "
                f"({self.decay_steps} steps) overlap in a run of {self.n_steps} steps: lower one of them"
            )

    @property
    def batch_tokens(self) -> int:
        """Tokens per optimiser step."""
        return self.batch_size * self.seq_len

    @property
    def n_steps(self) -> int:
        """Optimiser steps: as many as the budget pays for in full."""
        return self.n_tokens // self.batch_tokens

    @property
    def decay_steps(self) -> int:
        """Steps that a wsd schedule decays over, at least one."""
        return max(1, round(self.decay_fraction * self.n_steps))

    # mypy knows these fields as Optional; after __post_init__ they never are.
    @property
    def warmup(self) -> int:
        """`warmup_steps`, never None."""
        assert self.warmup_steps is not None
        return self.warmup_steps

    @property
    def final_share(self) -> float:
        """`min_lr_fraction`, never None."""
        assert self.min_lr_fraction is not None
        return self.min_lr_fraction

    @property
    def eval_steps(self) -> tuple[int, ...]:
        """Counts of finished steps after which the held-out loss is read: log-spaced, the last at the end.

        They span the last factor of 128 of the run, so with eight of them each is at twice the tokens of the
        one before; early ones that would fall on the same step are read once.
        """
        if self.n_evals == 1:
            return (self.n_steps,)
        shares = (128 ** -(1 - index / (self.n_evals - 1)) for index in range(self.n_evals))
        steps = {max(1, math.ceil(self.n_steps * share - 1e-9)) for share in shares}
        return tuple(sorted(steps | {self.n_steps}))


def train_config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """A plain dict, fit for JSON; `train_config_from_dict` reads it back.

    The objective is named only where it is not the next token, so that runs from before there were others
    keep their names.
    """
    values = {**dataclasses.asdict(config), "betas": list(config.betas)}
    if config.objective == "causal":
        del values["objective"]
    return values


def train_config_from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """The config that `train_config_to_dict` wrote, or one parsed from TOML.

    Raises:
        ConfigError: unknown or missing field, or a value the config refuses.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"training settings must be a mapping of names to values, got {values!r}")
    return build(TrainConfig, values)
