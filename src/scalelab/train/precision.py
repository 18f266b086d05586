"""Lower precision is faster only where the machine makes it so: measure, store the choice, keep it.

Weights and optimiser stay in fp32; autocast runs matrix products in bf16 or fp16. What the switch brings
depends on the processor's units and on the model's width (the lab's recorded study has a table by width), so
no rule by device name can choose. fp16's range ends at 65,504 and 6e-8: its gradients need loss scaling.

Source: Micikevicius et al. 2017, arXiv:1710.03740. Taught in book/transformers/training.md.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from scalelab.core.errors import CheckpointError, TrainingError
from scalelab.core.seeding import RandomStream
from scalelab.train.config import Precision, PrecisionChoice, TrainConfig
from scalelab.train.optimizer import make_optimizer

LossFunction = Callable[[Tensor, Tensor], Tensor]  # tokens, targets [B, T] → summed loss, nats

WORTH_IT = 1.05  # below five per cent, a timing of a few steps cannot tell, and fp32 is the better number
TRIAL_S = 4.0
TRIAL_ROUNDS = 5
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecisionPlan:
    """Which precision a run trains in, and why.

    Attributes:
        asked: what the config says.
        precision: what is used.
        tokens_per_s: rates measured in the trial, by precision; empty when none was needed.
    """

    asked: PrecisionChoice
    precision: Precision
    tokens_per_s: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return {"asked": self.asked, "precision": self.precision, "tokens_per_s": dict(self.tokens_per_s)}

    def describe(self) -> str:
        """The choice in one line."""
        rates = ", ".join(f"{name} {rate:,.0f} tokens/s" for name, rate in self.tokens_per_s.items())
        return f"{self.precision} (measured: {rates})" if rates else self.precision


def plan_from_dict(values: Mapping[str, Any]) -> PrecisionPlan:
    """The plan that `PrecisionPlan.to_dict` wrote.

    Raises:
        CheckpointError: it does not describe one.
    """
    try:
        plan = PrecisionPlan(**values)
    except TypeError:
        raise CheckpointError(f"not a precision plan: {values!r}") from None
    if plan.precision not in _DTYPES:
        raise CheckpointError(f"unknown precision {plan.precision!r}; known: {', '.join(_DTYPES)}")
    return plan


def dtype_of(precision: Precision) -> torch.dtype:
    """The type that matrix products run in."""
    return _DTYPES[precision]


def check_precision(precision: PrecisionChoice, device: torch.device) -> None:
    """Refuse what this device cannot train in.

    Raises:
        TrainingError: fp16 without a GPU, or bf16 on a GPU that only emulates it.
    """
    if precision == "fp16" and device.type != "cuda":
        raise TrainingError(
            f"precision='fp16' needs a CUDA GPU, this run is on {device.type!r}: use 'fp32', 'bf16' or 'auto'"
        )
    if precision == "bf16" and device.type == "cuda" and not _has_bf16():
        raise TrainingError(
            "precision='bf16' needs a GPU of compute capability 8.0 or newer; "
            f"{torch.cuda.get_device_name(device)} only emulates it: use 'fp16' or 'auto'"
        )


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Run matrix products inside the block in this precision; everything delicate stays in fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


def make_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Loss scaling where fp16 needs it; elsewhere a scaler that passes everything through."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def measure_precision(
    model: nn.Module,
    config: TrainConfig,
    device: torch.device,
    loss_of: Callable[[nn.Module], LossFunction] | None = None,
    *,
    n_shares: int = 1,
) -> PrecisionPlan:
    """Settle the run's precision; "auto" takes a few training steps of each candidate and keeps the fastest.

    The trial trains a copy on random tokens drawn aside, so weights and random state stay untouched; it needs
    memory for the copy. Candidates take turns and each is judged by its fastest step, so that a passing
    disturbance does not decide. fp32 stays unless another is 5 % faster.

    Args:
        model: in training mode.
        config: batch, length, optimiser and the precision asked for.
        device: where to run.
        loss_of: makes the summed loss of a model; compiled runs pass their own.
        n_shares: processes that share a batch: the trial, which one of them makes alone, takes its share.

    Raises:
        TrainingError: the precision asked for does not exist on this device.
    """
    check_precision(config.precision, device)
    if config.precision != "auto":
        return PrecisionPlan(asked=config.precision, precision=config.precision)
    candidates = _candidates(device)
    share = config.batch_size // n_shares
    config = dataclasses.replace(config, batch_size=share, accumulate=min(config.accumulate, share))
    with RandomStream(config.seed, device):
        step = _trial_step(copy.deepcopy(model).to(device), config, device, loss_of or summed_loss)
        seconds = _fastest_step(step, candidates, device)
    micro_batch = -(-config.batch_size // config.accumulate)
    rates = {name: micro_batch * config.seq_len / seconds[name] for name in candidates}
    best = max(candidates, key=lambda name: rates[name] * (WORTH_IT if name == "fp32" else 1.0))
    return PrecisionPlan(
        asked="auto", precision=best, tokens_per_s={name: round(rate, 1) for name, rate in rates.items()}
    )


def summed_loss(model: nn.Module) -> LossFunction:
    """The model's loss, summed over the targets that count."""

    def loss(tokens: Tensor, targets: Tensor) -> Tensor:
        total: Tensor = model.loss(tokens, targets, reduction="sum")  # type: ignore[operator]
        return total

    return loss


def _candidates(device: torch.device) -> tuple[Precision, ...]:
    if device.type == "cuda":
        return ("fp32", "bf16") if _has_bf16() else ("fp32", "fp16")
    return ("fp32", "bf16") if device.type == "cpu" else ("fp32",)


def _has_bf16() -> bool:
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _trial_step(
    model: nn.Module,
    config: TrainConfig,
    device: torch.device,
    loss_of: Callable[[nn.Module], LossFunction],
) -> Callable[[Precision], None]:
    """One forward, backward and update of one micro-batch, as a function of the precision."""
    shape = (-(-config.batch_size // config.accumulate), config.seq_len)
    vocab_size: int = model.config.vocab_size  # type: ignore[union-attr, assignment]
    tokens = torch.randint(vocab_size, shape, device=device)
    optimizer = make_optimizer(model, config)
    loss = loss_of(model)

    def step(precision: Precision) -> None:
        with autocast(precision, device):
            value = loss(tokens, tokens) / tokens.numel()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def _fastest_step(
    step: Callable[[Precision], None], candidates: tuple[Precision, ...], device: torch.device
) -> dict[Precision, float]:
    """Seconds of each candidate's fastest step, after one that is not timed."""
    for name in candidates:
        step(name)
    seconds = dict.fromkeys(candidates, float("inf"))
    deadline = time.perf_counter() + TRIAL_S
    for _ in range(TRIAL_ROUNDS):
        for name in candidates:
            _synchronize(device)
            start = time.perf_counter()
            step(name)
            _synchronize(device)
            seconds[name] = min(seconds[name], time.perf_counter() - start)
        if time.perf_counter() > deadline:
            break
    return seconds


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
