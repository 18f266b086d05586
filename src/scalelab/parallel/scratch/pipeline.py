"""A pipeline gives each rank some of the layers; micro-batches follow each other through them.

A rank receives a micro-batch's stream from the rank before, computes its layers, sends the result on; later
it receives the gradient of that result, computes that of its layers, and sends the gradient of its input
back. Any schedule does: it is a list, and one loop does what the list says.

Condition of equality with one process: the loss is the SUM over a micro-batch's targets, divided by the count
of the whole batch, so that micro-batches of any size add up to its mean; no dropout, no statistics over a
batch. A tied input table has a copy on the first and one on the last rank, and both get the sum of their
gradients. Gradients are the same numbers added in another order, so they differ in last bits.
Source: Huang et al. 2018, arXiv:1811.06965, section 2.2; Narayanan et al. 2021, arXiv:2104.04473, section
2.2. Taught in book/parallelism/pipeline.md.
"""

from __future__ import annotations

import contextlib
import copy
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from scalelab.core.errors import DataError, ParallelError
from scalelab.models import Decoder, loss_nats
from scalelab.models.building import check_tokens
from scalelab.models.loss import IGNORE_INDEX
from scalelab.parallel.scratch.collectives import ring_all_reduce
from scalelab.parallel.scratch.group import Group, Pending
from scalelab.parallel.scratch.messages import Message, result_of, with_messages
from scalelab.parallel.scratch.schedules import Operation, Schedule, check_schedule, n_chunks, stage_of
from scalelab.parallel.scratch.stages import Stage
from scalelab.parallel.scratch.trace import Trace

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

Loss = Callable[["Tensor", "Tensor"], "Tensor"]  # (logits, targets) -> sum over targets
Pass = tuple[int, int]  # (micro-batch, chunk)


def summed_loss(logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Cross-entropy summed over the targets that count, in fp32 or better."""
    return loss_nats(logits, targets, reduction="sum")


class Pipeline(nn.Module):
    """This rank's part of a decoder, and a step of training through all parts.

    Args:
        model: the whole decoder, the same on every rank; it stays as it is. (A model too large for one rank
            would be built stage by stage.)
        v: chunks of layers a rank; with more than one, only interleaved schedules fit.
        loss: sums over a micro-batch's targets.

    Attributes:
        chunks: this rank's stages, in order.

    Raises:
        ParallelError: fewer layers than stages.
    """

    def __init__(self, model: Decoder, group: Group, *, v: int = 1, loss: Loss = summed_loss) -> None:
        super().__init__()
        own = copy.deepcopy(model)
        n_stages = v * group.size
        self.group, self.loss_of = group, loss
        self.width, self.seq_len = model.config.d_model, model.config.seq_len
        self.is_tied = model.config.tie_embeddings and group.size > 1
        self.chunks = nn.ModuleList(
            Stage(own, stage_of(group.rank, chunk, group.size), n_stages) for chunk in range(v)
        )

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """This rank's parameters under the names of the whole model."""
        return {
            name.split(".", 2)[2]: parameter
            for name, parameter in self.named_parameters()  # chunks.0.blocks.…
        }

    def step(
        self,
        tokens: Int[Tensor, "B T"],
        targets: Int[Tensor, "B T"],
        schedule: Schedule,
        n_micro_batches: int,
        *,
        trace: Trace | None = None,
    ) -> Float[Tensor, ""] | None:
        """Forward and backward of a batch; gradients are added to those that are there.

        Args:
            tokens, targets: the whole batch, on every rank (only the first stage reads tokens, only the last
                targets). Its rows are cut as torch.tensor_split does: sizes may differ by one.
            trace: records each operation, without the time that it waited for its input.

        Returns:
            The batch's loss, nats per target, on the rank of the last stage; None elsewhere.

        Raises:
            ParallelError: a schedule for other ranks, micro-batches or chunks, or one that cannot run; fewer
                rows than micro-batches.
            DataError: no target in the batch counts; tokens that the model cannot read.
        """
        self._check(tokens, schedule, n_micro_batches)
        earlier = self._set_tied_aside()
        count = int((targets != IGNORE_INDEX).sum())
        if not count:
            raise DataError(f"none of {targets.numel()} targets counts (all are {IGNORE_INDEX})")
        run = _Run(tokens.tensor_split(n_micro_batches), targets.tensor_split(n_micro_batches), count)
        for action in with_messages(schedule)[self.group.rank]:
            if isinstance(action, Message):
                self._begin(action, run)
            else:
                given = self._wait_for_input(action, run)
                self._settle(trace)
                with trace.span(action) if trace else contextlib.nullcontext():
                    result = self._do(action, given, run)
                    self._settle(trace)
                self._hand_on(action, result, run)
        for pending, _ in run.sending:
            pending.wait()
        self.sum_tied(earlier)
        return run.loss

    # --- what an operation does ---------------------------------------------------------------------------

    def _do(self, operation: Operation, given: Tensor | None, run: _Run) -> Tensor | None:
        """One pass of one micro-batch through one chunk: from its input to its result."""
        if operation.kind == "F":
            return self.forward_pass(operation, given, run)
        if operation.kind == "W":
            self.weights_pass(operation, run)
            return None
        return self.backward_pass(operation, given, run)

    def forward_pass(self, operation: Operation, given: Tensor | None, run: _Run) -> Tensor | None:
        """The stream after this chunk's layers; keeps what the way back needs."""
        micro_batch, chunk = operation.micro_batch, operation.chunk
        stage = self.chunks[chunk]
        x = run.tokens[micro_batch] if given is None else given.requires_grad_()
        y = stage(x)
        if stage.is_last:
            y = self.loss_of(y, run.targets[micro_batch]) / run.count
            run.loss = y.detach() if run.loss is None else run.loss + y.detach()
        run.kept[micro_batch, chunk] = (x, y, None)
        return None if stage.is_last else y.detach()

    def backward_pass(self, operation: Operation, dy: Tensor | None, run: _Run) -> Tensor | None:
        """The gradient of this chunk's input; those of its weights too (B), or not yet (I)."""
        place = (operation.micro_batch, operation.chunk)
        x, y, _ = run.kept.pop(place)
        is_first = self.chunks[operation.chunk].is_first
        if operation.kind == "B":
            torch.autograd.backward(y, dy)
            return None if is_first else x.grad
        run.kept[place] = (x, y, dy)  # W needs them still
        if is_first:
            return None  # tokens have no gradient
        return torch.autograd.grad(y, x, dy, retain_graph=True)[0]

    def weights_pass(self, operation: Operation, run: _Run) -> None:
        """The gradients of this chunk's weights.

        Autograd goes the whole way back once more: right, and no faster than B. Engines keep what I has
        computed on its way, at each matrix.
        """
        _, y, dy = run.kept.pop((operation.micro_batch, operation.chunk))
        torch.autograd.backward(y, dy, inputs=list(self.chunks[operation.chunk].parameters()))

    def sum_tied(self, earlier: Tensor | None) -> None:
        """First and last rank add up this step's gradients of their copies of the input table.

        Args:
            earlier: what earlier steps left, which is a sum already.
        """
        if not self.is_tied or self._tied is None:
            return
        gradient = self._tied.grad
        assert gradient is not None, "both have gone backward"
        ring_all_reduce(gradient, self.group.subgroup([0, self.group.size - 1]))
        if earlier is not None:
            gradient += earlier

    def _set_tied_aside(self) -> Tensor | None:
        """What earlier steps left as the gradient of a tied table, which this step begins without."""
        if not self.is_tied or self._tied is None:
            return None
        earlier, self._tied.grad = self._tied.grad, None
        return earlier

    @property
    def _tied(self) -> nn.Parameter | None:
        """This rank's copy of a tied table; None between first and last."""
        return self.parameters_by_name().get("token_embedding.weight")

    # --- messages -----------------------------------------------------------------------------------------

    def _begin(self, message: Message, run: _Run) -> None:
        """Begin to send or to receive; the other side does so at the same place of the order."""
        if message.source == self.group.rank:
            tensor = run.leaving.pop(message.made_by)
            run.sending.append((self.group.isend(tensor, message.to), tensor))
            while len(run.sending) > 2 * self.group.size:  # none is kept longer than it needs to travel
                run.sending.popleft()[0].wait()
            return
        rows, length = run.tokens[message.used_by.micro_batch].shape
        weight = next(self.parameters())
        tensor = torch.empty(rows, length, self.width, dtype=weight.dtype, device=weight.device)
        run.arriving[message.used_by] = (self.group.irecv(tensor, message.source), tensor)

    def _wait_for_input(self, operation: Operation, run: _Run) -> Tensor | None:
        """What another stage sent for this operation; None where it needs nothing from one."""
        if operation not in run.arriving:
            return None
        pending, tensor = run.arriving.pop(operation)
        if pending is not None:
            pending.wait()
        return tensor

    def _settle(self, trace: Trace | None) -> None:
        """Where a device works behind the program's back, let it end before the clock is read."""
        weight = next(self.parameters())
        if trace is not None and weight.is_cuda:
            torch.cuda.synchronize(weight.device)

    def _hand_on(self, operation: Operation, result: Tensor | None, run: _Run) -> None:
        """Lay the result out for its message, or for this rank's own next chunk."""
        message = result_of(self.group.rank, operation, self.group.size, len(self.chunks))
        if message is None:
            return
        assert result is not None, "a pass whose result somebody waits for gives one"
        if message.to == self.group.rank:
            run.arriving[message.used_by] = (None, result)
        else:
            run.leaving[operation] = result.contiguous()

    def _check(self, tokens: Tensor, schedule: Schedule, n_micro_batches: int) -> None:
        if len(schedule) != self.group.size or n_chunks(schedule) != len(self.chunks):
            raise ParallelError(
                f"the schedule is for {len(schedule)} ranks of {n_chunks(schedule)} chunks, and there are "
                f"{self.group.size} ranks of {len(self.chunks)}"
            )
        check_schedule(schedule, n_micro_batches)
        check_tokens(tokens, self.seq_len, self.seq_len)
        if len(tokens) < n_micro_batches:
            raise ParallelError(f"{len(tokens)} rows cannot be cut into {n_micro_batches} micro-batches")


@dataclass
class _Run:
    """What one step has under way on one rank.

    Attributes:
        tokens, targets: of each micro-batch. count: targets of the whole batch.
        kept: what the way back needs of each pass: input, result, and for W the result's gradient.
        arriving: what each operation waits for. leaving: results until their message begins.
        sending: messages on their way, oldest first, with the tensors that must stay until then.
    """

    tokens: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    count: int
    loss: Tensor | None = None
    kept: dict[Pass, tuple[Tensor, Tensor, Tensor | None]] = field(default_factory=dict)
    arriving: dict[Operation, tuple[Pending | None, Tensor]] = field(default_factory=dict)
    leaving: dict[Operation, Tensor] = field(default_factory=dict)
    sending: deque[tuple[Pending, Tensor]] = field(default_factory=deque)
