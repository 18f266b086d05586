"""A pipeline's gradients are one process's, whatever the schedule; faults are seen; bytes are counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from equality import (
    CONFIG,
    Batch,
    Differs,
    Found,
    alone,
    assert_same_found,
    assert_same_weights,
    make_adamw,
    make_batch,
    make_batches,
    make_model,
    trained_alone,
)
from torch import Tensor

from scalelab.core.config import DecoderConfig
from scalelab.core.errors import ParallelError
from scalelab.cost.sharding import held_params
from scalelab.cost.traffic import pipeline_traffic
from scalelab.parallel.scratch.group import Group, Traffic
from scalelab.parallel.scratch.held import HoldingTrace
from scalelab.parallel.scratch.pipeline import Pipeline, summed_loss
from scalelab.parallel.scratch.schedules import Operation, Schedule, make_schedule
from scalelab.parallel.scratch.threads import run_threads
from scalelab.parallel.scratch.trace import Span, Trace, in_flight, of_rank

FOUR_LAYERS = dataclasses.replace(CONFIG, n_layers=4)
SIX_LAYERS = dataclasses.replace(CONFIG, n_layers=6)
ROPE = dataclasses.replace(
    FOUR_LAYERS, positions="rope", norm="rmsnorm", feed_forward="swiglu", d_ff=None, tie_embeddings=False,
    rope_skip_every=3,
)  # fmt: skip
# schedule, ranks, micro-batches, chunks, rows, config: sizes that divide and sizes that do not
WAYS: list[tuple[str, int, int, int, int, DecoderConfig]] = [
    ("gpipe", 4, 5, 1, 7, FOUR_LAYERS),
    ("1f1b", 4, 5, 1, 7, FOUR_LAYERS),
    ("1f1b", 3, 7, 1, 7, FOUR_LAYERS),
    ("1f1b", 4, 2, 1, 7, FOUR_LAYERS),
    ("1f1b", 2, 4, 1, 9, ROPE),
    ("1f1b", 1, 3, 1, 7, CONFIG),
    ("interleaved", 2, 4, 2, 7, FOUR_LAYERS),
    ("interleaved", 2, 5, 3, 7, SIX_LAYERS),
    ("interleaved", 3, 7, 2, 9, SIX_LAYERS),
    ("interleaved", 2, 3, 2, 7, ROPE),
    ("interleaved", 1, 3, 2, 7, CONFIG),
    ("zero-bubble", 4, 5, 1, 7, FOUR_LAYERS),
    ("zero-bubble", 3, 2, 1, 7, ROPE),
]
NAMES = [f"{w[0]}-p{w[1]}-m{w[2]}-v{w[3]}-{w[5].positions}" for w in WAYS]
MORE_LAYERS = {"1f1b": ("1f1b", 4, 5, 1, 7, FOUR_LAYERS), "interleaved": WAYS[8]}


def loss_in_double(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def gradients_by_name(pipeline: Pipeline) -> dict[str, Tensor]:
    named = pipeline.parameters_by_name().items()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def found_by_rank(
    group: Group,
    make: Callable[..., Pipeline],
    schedule: Schedule,
    config: DecoderConfig,
    batch: Batch,
    m: int,
) -> tuple[float | None, dict[str, Tensor], Traffic]:
    pipeline = make(make_model(config=config), group, v=1 + max(o.chunk for o in schedule[0]))
    loss = pipeline.step(batch.tokens, batch.targets, schedule, m)
    return None if loss is None else loss.item(), gradients_by_name(pipeline), group.traffic


def joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """All ranks' tensors under one roof; what two of them have must be the same bits."""
    whole: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.items():
            if name in whole and not torch.equal(whole[name], value):
                raise Differs(f"two ranks differ in {name}")
            whole[name] = value
    return whole


def piped(
    way: tuple[str, int, int, int, int, DecoderConfig], make: Callable[..., Pipeline] = Pipeline
) -> tuple[Found, list[Traffic]]:
    name, pp, m, v, rows, config = way
    schedule = make_schedule(name, pp, m, v=v)
    answers = run_threads(pp, found_by_rank, make, schedule, config, make_batch(rows), m)
    losses = [loss for loss, _, _ in answers if loss is not None]
    assert len(losses) == 1, "the last stage's rank knows the loss"
    return Found(losses[0], joined([part for _, part, _ in answers])), [sent for _, _, sent in answers]


@pytest.mark.parametrize("way", WAYS, ids=NAMES)
def test_loss_and_gradients_equal_one_process_for_every_schedule(way: Any) -> None:
    found, _ = piped(way)
    assert_same_found(found, alone(make_model(config=way[-1]), make_batch(way[4])))


@pytest.mark.parametrize("way", [WAYS[0], WAYS[1], WAYS[8], WAYS[9], WAYS[11]], ids=lambda way: way[0])
def test_weights_after_ten_steps_equal_one_process_in_double(way: Any) -> None:
    name, pp, m, v, rows, config = way
    schedule, batches = make_schedule(name, pp, m, v=v), make_batches(n_rows=rows)

    def train(group: Group) -> dict[str, Tensor]:
        pipeline = Pipeline(make_model(double=True, config=config), group, v=v, loss=loss_in_double)
        optimizer = make_adamw(pipeline.parameters())
        for batch in batches:
            optimizer.zero_grad()
            pipeline.step(batch.tokens, batch.targets, schedule, m)
            optimizer.step()
        return {name: p.detach().clone() for name, p in pipeline.parameters_by_name().items()}

    weights = joined(run_threads(pp, train))
    assert_same_weights(weights, trained_alone(make_model(double=True, config=config), batches))


# --- planted faults -----------------------------------------------------------------------------------------


class NotDivided(Pipeline):
    """Each micro-batch's loss is its sum."""

    def forward_pass(self, operation: Any, given: Any, run: Any) -> Any:
        run.count = 1
        return super().forward_pass(operation, given, run)


class MeanOfMeans(Pipeline):
    """Each micro-batch is divided by its own count, and all by their number."""

    def forward_pass(self, operation: Any, given: Any, run: Any) -> Any:
        run.count = int((run.targets[operation.micro_batch] != -100).sum()) * len(run.targets)
        return super().forward_pass(operation, given, run)


class TiedNotSummed(Pipeline):
    def sum_tied(self, earlier: Any) -> None:
        pass


class TiedTwice(Pipeline):
    def sum_tied(self, earlier: Any) -> None:
        super().sum_tied(earlier)
        super().sum_tied(earlier)


class GradientOfAnother(Pipeline):
    """The gradients of the first two micro-batches come to the wrong one."""

    def backward_pass(self, operation: Any, dy: Any, run: Any) -> Any:
        if self.group.rank == 0 and operation.micro_batch < 2:
            other = (1 - operation.micro_batch, operation.chunk)
            if other in run.kept and run.kept[other][1].shape == dy.shape:
                own = (operation.micro_batch, operation.chunk)
                run.kept[own], run.kept[other] = run.kept[other], run.kept[own]
        return super().backward_pass(operation, dy, run)


class StaleActivation(Pipeline):
    """The second rank computes its second micro-batch with what came for the first."""

    def forward_pass(self, operation: Any, given: Any, run: Any) -> Any:
        if self.group.rank == 1 and given is not None:
            if operation.micro_batch == 0:
                self.old = given.detach().clone()
            elif operation.micro_batch == 1 and self.old.shape == given.shape:
                with torch.no_grad():
                    given.copy_(self.old)
        return super().forward_pass(operation, given, run)


class GradientNotSent(Pipeline):
    """The last rank sends zeros back."""

    def backward_pass(self, operation: Any, dy: Any, run: Any) -> Any:
        given = super().backward_pass(operation, dy, run)
        return given if dy is not None or given is None else torch.zeros_like(given)


class Overwritten(Pipeline):
    """A micro-batch's gradients take the place of the others'."""

    def backward_pass(self, operation: Any, dy: Any, run: Any) -> Any:
        self.chunks[operation.chunk].zero_grad()
        return super().backward_pass(operation, dy, run)


@pytest.mark.parametrize("way", MORE_LAYERS.values(), ids=MORE_LAYERS)
@pytest.mark.parametrize(
    "fault",
    [NotDivided, MeanOfMeans, TiedNotSummed, TiedTwice, GradientOfAnother, StaleActivation, GradientNotSent,
     Overwritten],
)  # fmt: skip
def test_a_planted_fault_is_caught_by_the_same_comparison(fault: Any, way: Any) -> None:
    expected = alone(make_model(config=way[-1]), make_batch(way[4]))
    with pytest.raises(Differs):
        assert_same_found(piped(way, fault)[0], expected)


# --- bytes, order, memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS, ids=NAMES)
def test_each_boundary_carries_the_stream_there_and_back_once_a_micro_batch(way: Any) -> None:
    _, pp, m, v, rows, config = way
    _, sent = piped(way)
    stream = rows * 12 * config.d_model * 4
    table = config.vocab_size * config.d_model * 4 if config.tie_embeddings and pp > 1 else 0
    for rank, traffic in enumerate(sent):
        # A chunk sends forward unless it is the last stage, and backward unless it is the first.
        ways_out = sum((c * pp + rank < v * pp - 1) + (c * pp + rank > 0) for c in range(v)) if pp > 1 else 0
        tied = table if rank in (0, pp - 1) else 0
        assert traffic.n_bytes == ways_out * stream + tied
        assert traffic.messages == ways_out * m + 2 * (tied > 0)


@pytest.mark.parametrize("way", WAYS, ids=NAMES)
def test_what_ranks_send_equals_the_cost_model_to_the_byte(way: Any) -> None:
    name, pp, m, v, _, config = way
    _, sent = piped((name, pp, m, v, 2 * m, config))
    formula = pipeline_traffic(config, pp, n_micro_batches=m, micro_batch_size=2, seq_len=12, v=v)
    assert tuple(traffic.n_bytes for traffic in sent) == formula.total.sent_bytes
    assert tuple(traffic.messages for traffic in sent) == formula.total.messages


@pytest.mark.parametrize("way", WAYS, ids=NAMES)
def test_ranks_hold_the_parameters_that_the_cost_model_says(way: Any) -> None:
    _, pp, _, v, _, config = way

    def count(group: Group) -> int:
        return sum(p.numel() for p in Pipeline(make_model(config=config), group, v=v).parameters())

    held = [held_params(config, pp=pp, pp_rank=rank, v=v).total for rank in range(pp)]
    assert run_threads(pp, count) == held


@pytest.mark.parametrize(
    ("name", "v", "held"),
    [("gpipe", 1, [6, 6, 6, 6]), ("1f1b", 1, [4, 3, 2, 1]), ("zero-bubble", 1, [4, 4, 4, 4])],
)
def test_a_trace_records_the_schedules_order_and_what_ranks_hold(name: str, v: int, held: list[int]) -> None:
    schedule = make_schedule(name, 4, 6, v=v)

    def traced(group: Group) -> list[Span]:
        trace = Trace(group.rank)
        batch = make_batch(6)
        Pipeline(make_model(config=FOUR_LAYERS), group).step(
            batch.tokens, batch.targets, schedule, 6, trace=trace
        )
        return trace.spans

    spans = [span for own in run_threads(4, traced) for span in own]
    for rank in range(4):
        assert tuple(of_rank(spans, rank)) == schedule[rank]
    assert [in_flight(of_rank(spans, rank)) for rank in range(4)] == held


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "zero-bubble"])
def test_bytes_held_are_those_of_one_pass_times_the_passes_in_flight(name: str) -> None:
    schedule, batch = make_schedule(name, 4, 6), make_batch(12)

    def work(group: Group) -> tuple[dict[tuple[int, int], int], int]:
        pipeline = Pipeline(make_model(config=FOUR_LAYERS), group)
        trace = HoldingTrace(group.rank, pipeline.parameters())
        pipeline.step(batch.tokens, batch.targets, schedule, 6, trace=trace)
        return trace.pass_bytes, trace.most_bytes

    for rank, (passes, most) in enumerate(run_threads(4, work)):
        assert len(set(passes.values())) == 1, "even micro-batches leave equally much"
        assert most == in_flight(schedule[rank]) * passes[0, 0]


def test_bytes_that_autograd_keeps_are_counted_once_and_without_weights() -> None:
    weight = torch.nn.Parameter(torch.ones(8, 8))
    trace = HoldingTrace(0, [weight])
    x = torch.ones(4, 8, requires_grad=True)
    with trace.span(Operation("F", 0)):
        y = (x @ weight).tanh()  # keeps x (and the weight), and its own result
        (x * x).sum()  # keeps x twice more
    assert trace.pass_bytes == {(0, 0): 2 * 4 * 8 * 4}
    with trace.span(Operation("B", 0)):
        y.sum().backward()
    assert trace.most_bytes == 2 * 4 * 8 * 4


def test_gradients_are_added_to_those_that_are_there() -> None:
    """Two steps without clearing are an accumulation over both batches."""
    way = WAYS[1]
    schedule = make_schedule("1f1b", 4, 5)
    batch = make_batch(7)

    def twice(group: Group) -> dict[str, Tensor]:
        pipeline = Pipeline(make_model(config=way[-1]), group)
        for _ in range(2):
            pipeline.step(batch.tokens, batch.targets, schedule, 5)
        return gradients_by_name(pipeline)

    once = alone(make_model(config=way[-1]), batch).gradients
    found = joined(run_threads(4, twice))
    for name, value in once.items():
        torch.testing.assert_close(found[name], 2 * value, rtol=1e-4, atol=1e-6)


def test_a_batch_without_targets_in_some_micro_batches_is_no_exception() -> None:
    batch = make_batch(6)
    batch.targets[:2] = -100
    schedule = make_schedule("1f1b", 2, 3)

    def work(group: Group) -> tuple[float | None, dict[str, Tensor], Traffic]:
        return found_by_rank(group, Pipeline, schedule, CONFIG, batch, 3)

    answers = run_threads(2, work)
    expected = alone(make_model(), batch)
    assert_same_found(Found(answers[1][0] or 0.0, joined([a[1] for a in answers])), expected)


# --- mistakes of a user -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranks", "layers", "v", "schedule", "m", "rows", "words"),
    [
        (2, 2, 1, make_schedule("1f1b", 3, 4), 4, 7, "for 3 ranks of 1 chunks, and there are 2 ranks of 1"),
        (2, 4, 1, make_schedule("interleaved", 2, 4, v=2), 4, 7, "of 2 chunks"),
        (2, 2, 1, make_schedule("1f1b", 2, 4), 5, 7, "lacks B4"),
        (2, 2, 1, make_schedule("1f1b", 2, 4), 3, 7, "has B3"),
        (2, 2, 1, make_schedule("1f1b", 2, 9), 9, 7, "7 rows cannot be cut into 9"),
        (3, 2, 1, make_schedule("1f1b", 3, 4), 4, 7, "2 layers cannot be cut into 3 stages"),
        (2, 2, 2, make_schedule("interleaved", 2, 4, v=2), 4, 7, "2 layers cannot be cut into 4 stages"),
    ],
)
def test_what_cannot_be_run_is_refused_with_its_numbers(
    ranks: int, layers: int, v: int, schedule: Schedule, m: int, rows: int, words: str
) -> None:
    config = dataclasses.replace(CONFIG, n_layers=layers)
    batch = make_batch(rows)

    def work(group: Group) -> None:
        Pipeline(make_model(config=config), group, v=v).step(batch.tokens, batch.targets, schedule, m)

    with pytest.raises(ParallelError, match=words):
        run_threads(ranks, work)


def test_positions_that_stages_do_not_know_are_refused() -> None:
    config = dataclasses.replace(CONFIG, positions="alibi")
    with pytest.raises(ParallelError, match="alibi"):
        run_threads(2, lambda group: Pipeline(make_model(config=config), group))


def test_the_model_given_stays_as_it_is() -> None:
    model, batch = make_model(), make_batch(4)
    before = {name: p.clone() for name, p in model.named_parameters()}

    def work(group: Group) -> None:
        Pipeline(model, group).step(batch.tokens, batch.targets, make_schedule("1f1b", 2, 2), 2)

    run_threads(2, work)
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_loss_is_summed_in_single_precision_at_least(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    targets = torch.tensor([[0, 1, -100], [2, 3, 4]])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = torch.nn.functional.cross_entropy(
        logits.to(wide).flatten(0, 1), targets.flatten(), reduction="sum"
    )
    assert summed_loss(logits, targets).dtype == wide
    assert torch.equal(summed_loss(logits, targets), expected)
