"""How a run is spread over processes, behind one small protocol; one process is the default.

The loop asks a strategy where to put the model, which rows of a batch are its own, how to go forward and back
through them, what a number's total is, what all processes decide together, and what to save. Whatever answers
these, the loop stays the same.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from scalelab.core.config import ModelConfig
from scalelab.core.errors import TrainingError
from scalelab.train.config import TrainConfig
from scalelab.train.passes import Share, one_by_one
from scalelab.train.precision import LossFunction, summed_loss
from scalelab.train.state import load_model_tensors, load_optimizer_tensors, model_tensors, optimizer_tensors

Answer = TypeVar("Answer")


class Strategy(Protocol):
    """What the training loop needs to know of the world.

    The loop's contract: each process's loss is summed over its targets and divided by the whole batch's
    count, so after the last micro-batch's backward pass `.grad` must hold the *sum* over processes, not their
    mean. What moves between processes must be asked for by all of them, in the same order: whoever asks
    alone waits for ever.

    Attributes:
        device: where this process computes.
        rank, n_processes: which process this is, of how many; rank 0 writes files and speaks.
        n_shares: parts that a batch's rows are cut into; its size must be a multiple of it.
        n_parts: parts that weights and optimiser are cut into, of which each process holds one.
        layout: the axes, as in "dp_replicate=2"; "" for one process.
        can_compile: whether the loss may go through `torch.compile`.
    """

    device: torch.device
    rank: int
    n_processes: int
    n_shares: int
    n_parts: int
    layout: str
    can_compile: bool

    def check(self, model: ModelConfig, config: TrainConfig) -> None:
        """Refuse what this layout cannot train, before anything is placed."""
        ...

    def place(self, model: nn.Module) -> nn.Module:
        """The model on its device, sharded where it is; the optimiser is built on what comes back."""
        ...

    def loss_function(self, model: nn.Module) -> LossFunction:
        """The placed model's loss, summed over this process's targets."""
        ...

    def share(self, batch: np.ndarray) -> np.ndarray:
        """This process's rows of a batch [B, T]."""
        ...

    def forward_and_back(self, share: Share, loss_function: LossFunction) -> Tensor:
        """Add a share's gradients to `.grad`, reduced when this returns; the share's loss, for `total`."""
        ...

    def total(self, value: Tensor) -> Tensor:
        """The sum of a number over the shares of a batch, each counted once."""
        ...

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag as all processes shall see it: true where it is true for any of them."""
        ...

    def decide(self, action: Callable[[], Answer]) -> Answer:
        """What rank 0 finds when it does this alone; every process gets the answer, or rank 0's error."""
        ...

    def gather(self, value: Answer) -> list[Answer]:
        """Every process's value, in order of rank."""
        ...

    def announce(self, error: BaseException) -> None:
        """Tell the other processes of an error that is on its way, and wait for none of them."""
        ...

    def clip(self, model: nn.Module, max_norm: float) -> Tensor:
        """Scale gradients so that their global norm is at most `max_norm`; returns the norm before."""
        ...

    def weights(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The whole model's tensors and aliases, on rank 0; elsewhere none."""
        ...

    def optimizer_state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """The whole optimiser's tensors, on rank 0; elsewhere none."""
        ...

    def load(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        weights: tuple[Mapping[str, Tensor], Mapping[str, str]],
        optimizer_state: Mapping[str, Tensor],
    ) -> None:
        """Put stored tensors in place."""
        ...


class SingleProcess:
    """One process on one device: nothing to reduce, nothing to gather.

    Args:
        device: "cpu", "cuda", "cuda:1" …; None: the first GPU if there is one, else the CPU.

    Raises:
        TrainingError: the device does not exist here.
    """

    rank = 0
    n_processes = 1
    n_shares = 1
    n_parts = 1
    layout = ""
    can_compile = True

    def __init__(self, device: torch.device | str | None = None) -> None:
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.device = torch.device(device)
        except RuntimeError as error:
            raise TrainingError(f"unknown device {device!r}: {str(error).splitlines()[0]}") from None
        if self.device.type == "cuda" and (self.device.index or 0) >= torch.cuda.device_count():
            raise TrainingError(
                f"device {device!r} is not there: {torch.cuda.device_count()} CUDA devices found; use 'cpu'"
            )

    def check(self, model: ModelConfig, config: TrainConfig) -> None:
        """Everything fits one process, as far as a layout is concerned."""

    def place(self, model: nn.Module) -> nn.Module:
        return model.to(self.device)

    def loss_function(self, model: nn.Module) -> LossFunction:
        return summed_loss(model)

    def share(self, batch: np.ndarray) -> np.ndarray:
        return batch

    def forward_and_back(self, share: Share, loss_function: LossFunction) -> Tensor:
        return one_by_one(share, loss_function, self.device, lambda last: contextlib.nullcontext())

    def total(self, value: Tensor) -> Tensor:
        return value

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        return flags

    def decide(self, action: Callable[[], Answer]) -> Answer:
        return action()

    def gather(self, value: Answer) -> list[Answer]:
        return [value]

    def announce(self, error: BaseException) -> None:
        """Nobody to tell."""

    def clip(self, model: nn.Module, max_norm: float) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)

    def weights(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
        return model_tensors(model)

    def optimizer_state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        return optimizer_tensors(model, optimizer)

    def load(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        weights: tuple[Mapping[str, Tensor], Mapping[str, str]],
        optimizer_state: Mapping[str, Tensor],
    ) -> None:
        load_model_tensors(model, *weights)
        load_optimizer_tensors(model, optimizer, optimizer_state)


def rank_0_first(strategy: Strategy, action: Callable[[], Answer]) -> Answer:
    """What this process finds, after rank 0 has found it: what that leaves on disk, the others read.

    Raises:
        Whatever the action raises on rank 0, on every process.
    """
    found: list[Answer] = []
    strategy.decide(lambda: found.append(action()))
    return found[0] if strategy.rank == 0 else action()
