"""Data parallelism equals one process, whoever sends what when; the usual faults do not pass for equal."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from equality import (
    CONFIG,
    Batch,
    Differs,
    Found,
    alone,
    assert_same_found,
    assert_same_weights,
    gradients_of,
    make_adamw,
    make_batch,
    make_batches,
    make_model,
    summed_loss,
    trained_alone,
    weights_of,
)
from torch import nn

from scalelab.core.errors import ConfigError
from scalelab.cost import collectives as cost
from scalelab.cost import count_params
from scalelab.models import Decoder
from scalelab.parallel.scratch import data_parallel
from scalelab.parallel.scratch.collectives import ALL_REDUCE, ring_all_reduce
from scalelab.parallel.scratch.data_parallel import (
    Overlapped,
    copy_from_root,
    count_targets,
    make_buckets,
    own_rows,
    reduce_bucketed,
    reduce_each,
    trained,
)
from scalelab.parallel.scratch.group import Group, Traffic, n_bytes
from scalelab.parallel.scratch.threads import run_threads

WAYS = ("each", "bucketed", "overlapped")
LIMIT_BYTES = 4_000  # about ten buckets of the tests' model


class Replica:
    """A rank's copy of the model, and one of the three ways to add gradients up."""

    def __init__(
        self, group: Group, *, way: str, double: bool = False, all_reduce: Any = ring_all_reduce
    ) -> None:
        self.group, self.way, self.all_reduce = group, way, all_reduce
        self.model: Decoder = make_model(double=double, seed=3 + group.rank)  # the ranks begin apart
        if way == "overlapped":
            self.overlapped = Overlapped(self.model, group, bucket_bytes=LIMIT_BYTES, all_reduce=all_reduce)
        else:
            copy_from_root(self.model, group)
            self.buckets = make_buckets(trained(self.model), LIMIT_BYTES)

    def gradients(self, batch: Batch, pieces: int = 1) -> float:
        """Leave the whole batch's gradients; return its mean loss."""
        own = Batch(own_rows(batch.tokens, self.group), own_rows(batch.targets, self.group))
        n_targets = count_targets(own.targets, self.group)
        total = torch.zeros(1, dtype=self.model.token_embedding.weight.dtype)
        parts = [part for part in own.cut(pieces) if len(part.tokens)]
        for number, part in enumerate(parts):
            with self.micro_batch(last=number == len(parts) - 1):
                loss = self.loss(part, n_targets)
                loss.backward()
            total += loss.detach()
        if not parts:
            with self.micro_batch(last=True):
                pass
        self.reduce()
        ring_all_reduce(total, self.group)
        return float(total)

    def loss(self, part: Batch, n_targets: int) -> torch.Tensor:
        return summed_loss(self.model, part) / n_targets

    def micro_batch(self, *, last: bool) -> Any:
        return self.overlapped.micro_batch(last=last) if self.way == "overlapped" else nullcontext()

    def reduce(self) -> None:
        if self.way == "each":
            reduce_each(self.model, self.group, self.all_reduce)
        elif self.way == "bucketed":
            reduce_bucketed(self.buckets, self.group, self.all_reduce)


def found_on(group: Group, batch: Batch, make: Any, settings: dict[str, Any], pieces: int) -> Found:
    replica = make(group, **settings)
    return Found(replica.gradients(batch, pieces), gradients_of(replica.model))


def trained_on(
    group: Group, batches: list[Batch], make: Any, settings: dict[str, Any], pieces: int
) -> dict[str, torch.Tensor]:
    replica = make(group, double=True, **settings)
    optimizer = make_adamw(replica.model.parameters())
    for batch in batches:
        optimizer.zero_grad()  # to None: what a bucket of the step before holds must not stay
        replica.gradients(batch, pieces)
        optimizer.step()
    return weights_of(replica.model)


def assert_equal_gradients(
    size: int, batch: Batch, make: Any = Replica, pieces: int = 1, **settings: Any
) -> None:
    expected = alone(make_model(), batch)
    found = run_threads(size, found_on, batch, make, settings, pieces)
    for each in found:
        assert_same_found(each, expected)
        for name, gradient in each.gradients.items():
            assert torch.equal(gradient, found[0].gradients[name]), "replicas must not drift apart"


def assert_equal_training(size: int, make: Any = Replica, pieces: int = 1, **settings: Any) -> None:
    batches = make_batches()
    expected = trained_alone(make_model(double=True), batches)
    for each in run_threads(size, trained_on, batches, make, settings, pieces):
        assert_same_weights(each, expected)


# --- equality ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("size", "n_rows"), [(1, 3), (2, 7), (3, 7), (4, 8), (4, 3)])
def test_loss_and_gradients_equal_one_process(way: str, size: int, n_rows: int) -> None:
    """Of four ranks and three rows one has none: it sends zeros."""
    assert_equal_gradients(size, make_batch(n_rows), way=way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pieces", [2, 3])
def test_so_do_accumulated_ones(way: str, pieces: int) -> None:
    assert_equal_gradients(2, make_batch(7), way=way, pieces=pieces)


@pytest.mark.parametrize("name", ALL_REDUCE)
def test_any_all_reduce_will_do(name: str) -> None:
    assert_equal_gradients(3, make_batch(), way="overlapped", all_reduce=ALL_REDUCE[name])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("size", "pieces"), [(2, 1), (3, 2)])
def test_weights_after_ten_steps_equal_one_process(way: str, size: int, pieces: int) -> None:
    assert_equal_training(size, way=way, pieces=pieces)


def test_a_rank_that_does_not_use_a_parameter_still_takes_part() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ParameterList([torch.ones(3), torch.ones(3)])

    def work(group: Group) -> list[list[float]]:
        model = TwoHeads()
        overlapped = Overlapped(model, group, bucket_bytes=12)
        with overlapped.micro_batch(last=True):
            (model.heads[group.rank] * (1 + group.rank)).sum().backward()
        return [head.grad.tolist() for head in model.heads]

    assert run_threads(2, work) == [[[1.0] * 3, [2.0] * 3]] * 2


def test_a_frozen_parameter_is_left_alone_and_hooks_can_be_taken_off() -> None:
    def work(group: Group) -> tuple[Any, int]:
        model = nn.Linear(3, 1, dtype=torch.float64)
        model.bias.requires_grad_(False)
        overlapped = Overlapped(model, group)
        for last in (True, False):
            with overlapped.micro_batch(last=last):
                model(torch.ones(2, 3, dtype=torch.float64)).sum().backward()
        overlapped.remove()
        with group.counted() as count:
            model(torch.ones(2, 3, dtype=torch.float64)).sum().backward()
        return model.bias.grad, count.traffic.messages

    assert run_threads(2, work) == [(None, 0)] * 2


# --- faults -----------------------------------------------------------------------------------------------


class MeansOfMeans(Replica):
    """Each rank divides by its own targets, and the means are averaged."""

    def gradients(self, batch: Batch, pieces: int = 1) -> float:
        loss = super().gradients(batch, pieces)
        for parameter in self.model.parameters():
            parameter.grad /= self.group.size
        return loss

    def loss(self, part: Batch, n_targets: int) -> torch.Tensor:
        return summed_loss(self.model, part) / part.n_targets


class MeanTakenTwice(Replica):
    """The sum is divided by the ranks, though its terms are shares of the whole batch's mean already."""

    def gradients(self, batch: Batch, pieces: int = 1) -> float:
        loss = super().gradients(batch, pieces)
        for parameter in self.model.parameters():
            parameter.grad /= self.group.size
        return loss


class MicroBatchNotDivided(Replica):
    """Each micro-batch is divided by its own targets alone."""

    def loss(self, part: Batch, n_targets: int) -> torch.Tensor:
        return summed_loss(self.model, part) * (len(part.tokens) > 0) / max(part.n_targets, 1)


class ReducedEveryTime(Replica):
    """What earlier micro-batches have sent is sent again by later ones."""

    def micro_batch(self, *, last: bool) -> Any:
        return super().micro_batch(last=True)


class ReducedTwice(Replica):
    """All-reduce after the hooks have done it."""

    def reduce(self) -> None:
        reduce_each(self.model, self.group)


class NeverReduced(Replica):
    """A rank's own gradient taken for the batch's."""

    def micro_batch(self, *, last: bool) -> Any:
        return nullcontext()

    def reduce(self) -> None:
        pass


class LastBucketForgotten(Replica):
    """The bucket that never got full does not travel."""

    def reduce(self) -> None:
        reduce_bucketed(self.buckets[:-1], self.group)


@pytest.mark.parametrize(
    ("fault", "way"),
    [
        (MeansOfMeans, "each"),
        (MeansOfMeans, "overlapped"),
        (MeanTakenTwice, "bucketed"),
        (MicroBatchNotDivided, "overlapped"),
        (ReducedEveryTime, "overlapped"),
        (ReducedTwice, "overlapped"),
        (NeverReduced, "each"),
        (LastBucketForgotten, "bucketed"),
    ],
)
def test_a_planted_fault_differs(fault: type[Replica], way: str) -> None:
    with pytest.raises(Differs):
        assert_equal_gradients(2, make_batch(8), fault, pieces=2, way=way)
    with pytest.raises(Differs):
        assert_equal_training(2, fault, pieces=2, way=way)


@pytest.mark.parametrize("way", WAYS)
def test_ranks_that_begin_apart_differ(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_parallel, "tree_broadcast", lambda tensor, root, group: None)
    with pytest.raises(Differs):
        assert_equal_gradients(2, make_batch(), way=way)


@pytest.mark.parametrize("way", ["bucketed", "overlapped"])
def test_a_stale_bucket_differs_at_the_second_step(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take = data_parallel.Bucket.take

    def only_once(bucket: data_parallel.Bucket, place: int) -> None:
        """As if the gradient still lay in the bucket, where the first step has put it."""
        if bucket.views[place].any():
            bucket.parameters[place].grad = bucket.views[place]
        else:
            take(bucket, place)

    monkeypatch.setattr(data_parallel.Bucket, "take", only_once)
    assert_equal_gradients(2, make_batch(), way=way)  # the first step is right
    with pytest.raises(Differs):
        assert_equal_training(2, way=way)


# --- bytes ------------------------------------------------------------------------------------------------


def sent_by(group: Group, way: str, name: str, pieces: int) -> tuple[Traffic, list[int]]:
    """What gradients alone send; and elements of each tensor that travels."""
    replica = Replica(group, way=way, all_reduce=ALL_REDUCE[name])
    batch = make_batch(8)
    own = Batch(own_rows(batch.tokens, group), own_rows(batch.targets, group))
    with group.counted() as count:
        for number, part in enumerate(own.cut(pieces)):
            with replica.micro_batch(last=number == pieces - 1):
                summed_loss(replica.model, part).backward()
        replica.reduce()
    if way == "each":
        return count.traffic, [p.numel() for p in trained(replica.model)]
    buckets = replica.overlapped.buckets if way == "overlapped" else replica.buckets
    return count.traffic, [bucket.flat.numel() for bucket in buckets]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ALL_REDUCE)
@pytest.mark.parametrize("pieces", [1, 2])
def test_bytes_sent_are_those_of_the_model_however_many_micro_batches(
    way: str, name: str, pieces: int
) -> None:
    found = run_threads(3, sent_by, way, name, pieces)
    parts = found[0][1]
    assert sum(parts) == count_params(CONFIG)
    expected = [cost.all_reduce(n, 3, algorithm=name) for n in parts]
    for rank, (traffic, _) in enumerate(found):
        assert traffic.n_bytes == sum(each.sent_bytes[rank] for each in expected)
        assert traffic.messages == sum(each.messages[rank] for each in expected)


def test_a_ring_sends_a_fraction_of_what_the_naive_ways_send() -> None:
    n = count_params(CONFIG) * 4
    busiest = {
        name: max(traffic.n_bytes for traffic, _ in run_threads(4, sent_by, "bucketed", name, 1))
        for name in ALL_REDUCE
    }
    assert busiest["all_to_all"] == busiest["parameter_server"] == 3 * n
    assert busiest["tree"] == 2 * n
    assert busiest["ring"] == pytest.approx(1.5 * n, rel=0.01)


@pytest.mark.parametrize("way", ["bucketed", "overlapped"])
def test_gradients_are_held_once(way: str) -> None:
    """Weights and gradients of four bytes each, and eight of AdamW's moments: buckets hold the gradients."""

    def held(group: Group) -> int:
        replica = Replica(group, way=way)
        optimizer = make_adamw(replica.model.parameters())
        for batch in make_batches(2):
            optimizer.zero_grad()
            replica.gradients(batch)
            optimizer.step()
        moments = [v for s in optimizer.state.values() for k, v in s.items() if k.startswith("exp_avg")]
        buckets = replica.overlapped.buckets if way == "overlapped" else replica.buckets
        tensors = [*replica.model.parameters(), *(p.grad for p in replica.model.parameters()), *moments]
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None
        }
        rooms = {b.flat.untyped_storage().data_ptr() for b in buckets}
        assert rooms <= set(storages)
        return sum(storages.values())

    assert run_threads(2, held) == [16 * count_params(CONFIG)] * 2


# --- buckets ----------------------------------------------------------------------------------------------


def test_buckets_hold_every_parameter_once_the_last_first_and_are_no_larger_than_asked() -> None:
    model = make_model()
    buckets = make_buckets(trained(model), LIMIT_BYTES)
    assert [id(p) for b in buckets for p in b.parameters] == [id(p) for p in reversed(trained(model))]
    assert all(n_bytes(b.flat) <= LIMIT_BYTES or len(b.parameters) == 1 for b in buckets)
    assert len(make_buckets(trained(model))) == 1
    with pytest.raises(ConfigError, match="limit_bytes"):
        make_buckets(trained(model), 0)


def test_types_do_not_share_a_bucket() -> None:
    parameters = [nn.Parameter(torch.zeros(2, dtype=dtype)) for dtype in (torch.float32, torch.float64)]
    assert [b.flat.dtype for b in make_buckets(parameters)] == [torch.float64, torch.float32]


@pytest.fixture
def slow_forward() -> Callable[[nn.Module], None]:
    """Makes the backward of each block take a while, so that what is sent behind it can be seen."""

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            time.sleep(0.1)
            return gradient

    def slow(model: nn.Module) -> None:
        for block in model.blocks:
            block.register_forward_hook(lambda _, __, out: Slow.apply(out))

    return slow


def test_buckets_leave_while_backward_goes_on(slow_forward: Callable[[nn.Module], None]) -> None:
    def work(group: Group) -> list[tuple[str, int, float]]:
        model = make_model()
        slow_forward(model)
        overlapped = Overlapped(model, group, bucket_bytes=LIMIT_BYTES)
        with overlapped.micro_batch(last=True):
            summed_loss(model, make_batch().cut(2)[group.rank]).backward()
        return [(s.what, s.bucket, s.end_s) for s in overlapped.spans]

    for spans in run_threads(2, work):
        sent = {number: end for what, number, end in spans if what == "sent"}
        ready = {number: end for what, number, end in spans if what == "ready"}
        assert list(sent) == sorted(sent) == sorted(ready)
        assert all(ready[number] < sent[number] for number in sent)
        assert sent[0] < ready[max(ready)], "the first bucket has arrived before the last is full"
