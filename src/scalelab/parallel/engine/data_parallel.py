"""What all layouts share: each process takes its rows, and all of them decide together.

Rows are a contiguous share of each batch; processes that deal out layers between them take the same rows.
Numbers travel through the process group that is passed in, which for `Replicated` may be some of the
processes. Taught in book/transformers/training.md.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from scalelab.core.config import ModelConfig
from scalelab.parallel.engine.layout import Layout
from scalelab.train.config import TrainConfig
from scalelab.train.passes import Share, one_by_one
from scalelab.train.precision import LossFunction

Answer = TypeVar("Answer")
Announce = Callable[[BaseException], None]
CPU = torch.device("cpu")


class SummedLoss(nn.Module):
    """A model's summed loss as a module's forward, which is where torch's engines put their hooks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = self.model.loss(tokens, targets, reduction="sum")  # type: ignore[operator]
        return loss


class DataParallel:
    """The half of a strategy that does not depend on who holds which weights.

    Args:
        layout: the axes.
        group: all processes; tensors on the CPU must be able to travel through it.
        device: where this process computes.
        announce: tells the other processes of an error, without waiting for them; None: they see it when
            this process ends.

    Attributes:
        rank, n_processes, n_shares, n_parts, layout, can_compile, device: as in `scalelab.train.Strategy`.
    """

    can_compile = True

    def __init__(
        self,
        layout: Layout,
        group: dist.ProcessGroup,
        device: torch.device,
        *,
        announce: Announce | None = None,
    ) -> None:
        assert layout.n_processes == group.size(), "parse_layout holds the two against each other"
        self.device = device
        self.rank = group.rank()
        self.n_processes = group.size()
        self.n_shares = layout.n_shares
        self.n_parts = layout.n_parts
        self._share = layout.share_of(self.rank)
        self.layout = str(layout)
        self._group = group
        self._announce = announce
        self._engine: nn.Module | None = None

    def loss_function(self, model: nn.Module) -> LossFunction:
        """The placed model's loss, through the engine, so that its hooks run."""
        engine = self._engine
        assert engine is not None, "a model is placed before its loss is asked for"

        def loss(tokens: Tensor, targets: Tensor) -> Tensor:
            total: Tensor = engine(tokens, targets)
            return total

        return loss

    def check(self, model: ModelConfig, config: TrainConfig) -> None:
        """Rows alone are dealt out: any model will do."""

    def forward_and_back(self, share: Share, loss_function: LossFunction) -> Tensor:
        """Each micro-batch in its turn, in the context that the engine needs for it."""
        return one_by_one(share, loss_function, self.device, self._micro_batch)

    def _micro_batch(self, last: bool) -> AbstractContextManager[object]:
        """Around each micro-batch; gradients must be reduced by the end of the last."""
        return contextlib.nullcontext()

    def share(self, batch: np.ndarray) -> np.ndarray:
        """This process's rows [B / n_shares, T] of a batch [B, T]."""
        return np.split(batch, self.n_shares)[self._share]

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        summed = value.clone()
        dist.all_reduce(summed, op=dist.ReduceOp.SUM, group=self._group)
        return summed

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """True where it is true for any process; by the CPU, so that no accelerator is waited for."""
        together = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(together, op=dist.ReduceOp.MAX, group=self._group)
        return tuple(bool(flag) for flag in together.tolist())

    def decide(self, action: Callable[[], Answer]) -> Answer:
        """Rank 0's answer or error, on every process."""
        outcome: list[Any] = [None]
        original: BaseException | None = None
        if self.rank == 0:
            try:
                outcome[0] = (True, action())
            except BaseException as raised:  # the others wait, and would wait for ever
                original = raised
                outcome[0] = (False, _that_travels(raised))
        dist.broadcast_object_list(outcome, group_src=0, group=self._group, device=CPU)
        is_answer, found = outcome[0]
        if is_answer:
            answer: Answer = found
            return answer
        if original is None or original is found:
            raise found
        raise found from original  # the words that all others see, and where they come from

    def gather(self, value: Answer) -> list[Answer]:
        """Every process's value, in order of rank."""
        values: list[Any] = [None] * self.n_processes
        dist.all_gather_object(values, value, group=self._group)
        return values

    def announce(self, error: BaseException) -> None:
        """Tell the other processes of an error, if there is a way to."""
        if self._announce is not None:
            self._announce(error)


def _that_travels(error: BaseException) -> BaseException:
    """The error, or one with its words where it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
