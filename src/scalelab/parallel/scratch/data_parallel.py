"""Data parallelism: every rank holds the whole model and some rows, and all add their gradients up.

The gradient of a sum is the sum of the gradients, whoever computes which term. So with the loss taken as the
SUM over a rank's targets, divided by the targets of the whole batch (all ranks, all micro-batches), the sum
of all ranks' gradients is one process's, to rounding. Condition: that divisor, the same weights at the
start, and no layer that looks across rows (batch norm does). Averaging ranks' mean losses instead is equal
only while every rank has as many targets.

Three ways to send, from plain to quick: each parameter for itself; in buckets, to save latency; in buckets
while the backward pass still goes on. Bytes are the same in all of them.
Source: Li et al. 2020, arXiv:2006.15704, section 3.2. Taught in book/parallelism/data-parallel.md.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from scalelab.core.checks import check_positive_int
from scalelab.core.errors import ParallelError
from scalelab.models.loss import IGNORE_INDEX
from scalelab.parallel.scratch.collectives import (
    AllReduce,
    ring_all_reduce,
    tree_all_reduce,
    tree_broadcast,
)
from scalelab.parallel.scratch.group import Group, Pending, n_bytes

BUCKET_BYTES = 25 * 1024 * 1024  # torch's


def copy_from_root(model: nn.Module, group: Group, *, root: int = 0) -> None:
    """Give every rank the root's parameters and buffers: ranks that begin apart never come together."""
    for tensor in (*model.parameters(), *model.buffers()):
        whole = tensor.detach().contiguous()
        tree_broadcast(whole, root, group)
        tensor.data.copy_(whole)


def own_rows(batch: Tensor, group: Group) -> Tensor:
    """This rank's rows [B / p, ...] of a batch [B, ...], the first B mod p ranks having one more."""
    return batch.tensor_split(group.size)[group.rank]


def count_targets(targets: Tensor, group: Group) -> int:
    """Targets of all ranks together: what each rank divides its summed loss by.

    Args:
        targets: this rank's, of all its micro-batches; -100 is none.
    """
    count = (targets != IGNORE_INDEX).sum().reshape(1)
    tree_all_reduce(count, group)  # eight bytes: latency is all it costs, and a tree has fewer steps
    return int(count)


# --- after the backward pass ------------------------------------------------------------------------------


def reduce_each(model: nn.Module, group: Group, all_reduce: AllReduce = ring_all_reduce) -> None:
    """Add up the gradients over the ranks, a parameter at a time. A rank without a gradient adds nothing."""
    for parameter in trained(model):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if not parameter.grad.is_contiguous():
            parameter.grad = parameter.grad.contiguous()
        all_reduce(parameter.grad, group)


@dataclass(frozen=True, eq=False, slots=True)
class Bucket:
    """Gradients that travel together.

    Attributes:
        parameters: whose. flat: room for all their gradients, one after the other. views: each one's part of
            it, in its shape.
    """

    parameters: tuple[nn.Parameter, ...]
    flat: Tensor
    views: tuple[Tensor, ...]

    def take(self, place: int) -> None:
        """Bring a parameter's gradient into the bucket, where it stays.

        Whoever sets gradients to None, as `zero_grad` does, makes autograd put the next one elsewhere: what
        is in the bucket would be the step before's.
        """
        parameter, view = self.parameters[place], self.views[place]
        if parameter.grad is None:
            view.zero_()  # this rank's rows had no use for it: it adds nothing, but has to take part
        elif parameter.grad.data_ptr() != view.data_ptr():
            view.copy_(parameter.grad)
        parameter.grad = view


def make_buckets(parameters: Iterable[nn.Parameter], limit_bytes: int = BUCKET_BYTES) -> list[Bucket]:
    """Parameters in buckets, the last first: about the order in which backward finds their gradients.

    Args:
        limit_bytes: no bucket of two parameters or more is larger.

    Raises:
        ConfigError: a limit that is no positive whole number.
    """
    check_positive_int("limit_bytes", limit_bytes)
    filled: list[list[nn.Parameter]] = []
    for parameter in reversed(list(parameters)):
        last = filled[-1] if filled else []
        alike = last and (last[0].dtype, last[0].device) == (parameter.dtype, parameter.device)
        if not alike or sum(map(n_bytes, last)) + n_bytes(parameter) > limit_bytes:
            filled.append([])
        filled[-1].append(parameter)
    return [_bucket(each) for each in filled]


def _bucket(parameters: list[nn.Parameter]) -> Bucket:
    sizes = [parameter.numel() for parameter in parameters]
    flat = parameters[0].detach().new_zeros(sum(sizes))
    parts = zip(torch.split(flat, sizes), parameters, strict=True)
    return Bucket(tuple(parameters), flat, tuple(part.view_as(parameter) for part, parameter in parts))


def reduce_bucketed(buckets: Iterable[Bucket], group: Group, all_reduce: AllReduce = ring_all_reduce) -> None:
    """Add up the gradients over the ranks, a bucket at a time."""
    for bucket in buckets:
        for place in range(len(bucket.parameters)):
            bucket.take(place)
        all_reduce(bucket.flat, group)


# --- during the backward pass -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Span:
    """When something was done, seconds on this rank's clock: "ready" is a moment, "sent" takes time."""

    what: str
    bucket: int
    begin_s: float
    end_s: float


class Overlapped:
    """Sends each bucket as soon as backward has filled it, behind the rest of the backward pass.

        for tokens, targets, last in micro_batches:
            with overlapped.micro_batch(last=last):
                (model.loss(tokens, targets, reduction="sum") / n_targets).backward()
        optimizer.step()

    Buckets leave in one order on all ranks, and one at a time: whichever is full first waits for those before
    it. A rank that has no row at all enters the block and does nothing: it sends zeros.

    Args:
        model: gets rank 0's parameters and buffers.
        bucket_bytes: of gradients that travel together. Too small pays latency too often; too large leaves
            nothing to hide it behind.
        all_reduce: of `collectives.py`.

    Attributes:
        buckets: in the order in which they leave.
        spans: what happened to them in the last micro-batch that sent.

    Raises:
        ConfigError: as `make_buckets`.
    """

    def __init__(
        self,
        model: nn.Module,
        group: Group,
        *,
        bucket_bytes: int = BUCKET_BYTES,
        all_reduce: AllReduce = ring_all_reduce,
    ) -> None:
        copy_from_root(model, group)
        self.buckets = make_buckets(trained(model), bucket_bytes)
        self.spans: list[Span] = []
        self._group, self._all_reduce = group, all_reduce
        self._sends = False
        self._missing: list[set[int]] = []
        self._sent: list[Pending] = []
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                partial(self._arrived, number, place)
            )
            for number, bucket in enumerate(self.buckets)
            for place, parameter in enumerate(bucket.parameters)
        ]

    @contextlib.contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Gradients found inside stay this rank's own; those of the last micro-batch are added up at its end.

        Earlier ones must not be: what has been added over the ranks once would be added again with the rest.

        Raises:
            ParallelError: out of a second backward pass in the last one.
        """
        self._sends = last
        if last:
            self._missing = [set(range(len(bucket.parameters))) for bucket in self.buckets]
            self._sent, self.spans = [], []
        try:
            yield
            if last:
                self._finish()
        finally:
            self._sends = False

    def remove(self) -> None:
        """Leave the model as a plain one."""
        for hook in self._hooks:
            hook.remove()

    def _arrived(self, number: int, place: int, parameter: nn.Parameter) -> None:
        """Called by autograd when a parameter's gradient is complete."""
        if not self._sends:
            return
        if place not in self._missing[number]:
            raise ParallelError(
                "a second backward pass in one micro-batch: its gradients would not be summed over ranks. "
                "Add the losses up and go backward once, or give each a micro_batch of its own"
            )
        self.buckets[number].take(place)
        self._missing[number].discard(place)
        if not self._missing[number]:
            now = time.perf_counter()
            self.spans.append(Span("ready", number, now, now))
        while len(self._sent) < len(self.buckets) and not self._missing[len(self._sent)]:
            self._send(len(self._sent))

    def _send(self, number: int) -> None:
        before = self._sent[-1] if self._sent else None

        def send() -> None:
            if before is not None:
                before.wait()
            begin = time.perf_counter()
            self._all_reduce(self.buckets[number].flat, self._group, tag=number + 1)
            self.spans.append(Span("sent", number, begin, time.perf_counter()))

        self._sent.append(self._group.background(send))

    def _finish(self) -> None:
        for number, missing in enumerate(self._missing):
            for place in missing:
                self.buckets[number].take(place)
        while len(self._sent) < len(self.buckets):
            self._send(len(self._sent))
        for pending in self._sent:
            pending.wait()


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that get a gradient; a tied one once."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
