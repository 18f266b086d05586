"""Checks of the tensor-parallel lab: right passes, usual mistakes are named, references equal torch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from scalelab.core.presets import preset
from scalelab.cost.communication import Link
from scalelab.cost.scaling import tensor_parallel_step
from scalelab.lab.checks import Exercise, exercises, judge
from scalelab.lab.checks.tensor_parallel.bill import layer_seconds
from scalelab.lab.checks.tensor_parallel.observing import largest, summed
from scalelab.lab.checks.tensor_parallel.operators import operators
from scalelab.lab.checks.tensor_parallel.vocabulary import cut_loss
from scalelab.models.loss import loss_nats
from scalelab.parallel.scratch.collectives import ring_all_reduce
from scalelab.parallel.scratch.group import Group
from scalelab.parallel.scratch.sequence_parallel import own_tokens, reduce_scatter_tokens
from scalelab.parallel.scratch.threads import run_threads
from scalelab.parallel.scratch.vocabulary import first_row

EXERCISES = exercises("parallelism/tensor-parallel")
SEEDS = (0, 1, 12345)


@pytest.fixture(params=list(EXERCISES))
def exercise(request: pytest.FixtureRequest) -> Exercise:
    return EXERCISES[request.param]


def test_there_are_five_exercises() -> None:
    assert list(EXERCISES) == ["operators", "cut_feed_forward", "cut_loss", "norm_gradients", "layer_seconds"]


def scaled(value: Any, factor: float) -> Any:
    """Every number of an answer times a factor, whatever it is made of."""
    if isinstance(value, tuple):
        return tuple(scaled(part, factor) for part in value)
    if callable(value):
        return lambda x: value(x) * factor
    return value * factor


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1.37])
def test_numbers_that_are_nan_infinite_or_off_by_a_factor_are_unknown_mistakes(
    exercise: Exercise, factor: float
) -> None:
    verdict = judge(exercise, lambda *args: scaled(exercise.reference(*args), factor), exercise.cases(0))
    assert verdict.outcome == "unknown mistake"
    assert "On " in verdict.message


UNLISTED: dict[str, list[Any]] = {
    "operators": [
        lambda group: (lambda x: 0 * x, lambda x: x * group.size),
        lambda group: (lambda x: -x, operators(group)[1]),
        lambda group: (lambda x: x.detach(), operators(group)[1]),
    ],
    "cut_feed_forward": [
        lambda x, w, f, g, group: x,
        lambda x, w, f, g, group: F.linear(F.gelu(F.linear(x, w[0], w[1])), w[2], w[3]),  # not cut at all
        lambda x, w, f, g, group: F.linear(F.relu(F.linear(f(x), w[0], w[1])), w[2], w[3]),
    ],
    "cut_loss": [
        lambda z, t, first, all_sum, all_max: (z.new_zeros(()), torch.zeros_like(z)),
        lambda z, t, first, all_sum, all_max: (all_sum(z.logsumexp(1).sum()), z.softmax(1)),
    ],
    "norm_gradients": [
        lambda x, w, back, group: (torch.zeros_like(x), torch.zeros_like(w)),
        lambda x, w, back, group: (w * reduce_scatter_tokens(back, group), w),
    ],
    "layer_seconds": [lambda *a: (0.0, 0.0), lambda n, d, t, f, a, b: (n / f, d / b)],
}


@pytest.mark.parametrize(("name", "number"), [(n, i) for n, a in UNLISTED.items() for i in range(len(a))])
def test_unlisted_mistakes_get_a_neutral_account(name: str, number: int) -> None:
    for seed in SEEDS:
        verdict = judge(EXERCISES[name], UNLISTED[name][number], EXERCISES[name].cases(seed))
        assert verdict.outcome == "unknown mistake", verdict.message
        assert "On " in verdict.message


@pytest.mark.parametrize(
    "answer", [None, 3, lambda: 1, lambda *a: None, lambda *a: "text", lambda *a: (1, "b"), lambda *a: 1j]
)
def test_answers_of_the_wrong_kind_get_a_precise_account(exercise: Exercise, answer: Any) -> None:
    verdict = judge(exercise, answer, exercise.cases(0))
    assert not verdict.right
    assert exercise.name in verdict.message


# --- waits in vain and other failures on several ranks ----------------------------------------------------


def test_a_sum_that_some_ranks_skip_is_told_with_who_waits_for_whom() -> None:
    def norm_gradients(x: Any, weight: Any, back: Any, group: Group) -> Any:
        if group.rank != 1:
            reduce_scatter_tokens(back, group)
        return x, weight

    verdict = judge(EXERCISES["norm_gradients"], norm_gradients, EXERCISES["norm_gradients"].cases(0))
    assert not verdict.right
    assert "rank 0 waits" in verdict.message.lower()
    assert "rank 1 has finished" in verdict.message.lower()


def test_sums_of_unequal_sizes_are_told_with_both_ranks() -> None:
    def answer(logits: Any, targets: Any, first: int, all_sum: Any, all_max: Any) -> Any:
        all_sum(torch.zeros(first + 4))
        return logits.sum(), logits

    verdict = judge(EXERCISES["cut_loss"], answer, EXERCISES["cut_loss"].cases(0))
    assert verdict.outcome == "broken"
    assert "rank" in verdict.message
    assert "same type and number of elements" in verdict.message


def test_an_error_in_a_backward_pass_quotes_the_learners_line() -> None:
    def broken(group: Group) -> Any:
        class Broken(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Any) -> Any:
                return x.view_as(x)

            @staticmethod
            def backward(ctx: Any, gradient: Any) -> Any:
                return gradient @ gradient.missing

        return Broken.apply, Broken.apply

    verdict = judge(EXERCISES["operators"], broken, EXERCISES["operators"].cases(0))
    assert verdict.outcome == "broken"
    assert "gradient.missing" in verdict.message


def test_an_in_place_sum_of_what_another_keeps_is_refused_by_autograd_itself() -> None:
    """`group.send` and `recv` see the tensor's own version counter, so autograd notices."""

    def work(group: Group) -> None:
        x = torch.ones(3, requires_grad=True)
        y = x.exp()  # keeps its result for backward
        ring_all_reduce(y, group)
        y.sum().backward()

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        run_threads(2, work)


# --- other right ways -------------------------------------------------------------------------------------


def test_other_right_ways_pass() -> None:
    def by_hooks(group: Group) -> Any:
        """f by a hook on the gradient, g as a sum whose gradient is that of a detached difference."""

        def f(x: Any) -> Any:
            y = x.view_as(x)
            y.register_hook(summed(group))
            return y

        def g(x: Any) -> Any:
            return x + (summed(group)(x) - x).detach()

        return f, g

    def bias_on_each_by_its_share(x: Any, weights: Any, f: Any, g: Any, group: Group) -> Any:
        up, up_bias, down, down_bias = (w.chunk(1)[0] for w in weights)
        rows = torch.arange(len(up)).tensor_split(group.size)[group.rank]
        wide = F.gelu(f(x) @ up[rows].T + up_bias[rows])
        return g(wide @ down.T[rows]) + down_bias

    def loss_from_the_logsumexp(z: Any, targets: Any, first: int, all_sum: Any, all_max: Any) -> Any:
        top = all_max(z.amax(1))
        total = top + all_sum((z - top[:, None]).exp().sum(1)).log()
        own = ((targets - first) >= 0) & (targets - first < z.shape[1])
        one_hot = torch.zeros_like(z)
        one_hot[own.nonzero()[:, 0], (targets - first)[own]] = 1.0
        counts = (targets >= 0).float()
        loss = (counts * (total - all_sum((z * one_hot).sum(1)))).sum() / counts.sum()
        return loss, ((z - total[:, None]).exp() - one_hot) * counts[:, None] / counts.sum()

    def by_hand(x: Any, weight: Any, back: Any, group: Group) -> Any:
        mine = own_tokens(summed(group)(back), group)
        inverse = (x.square().mean(-1, keepdim=True) + 1e-5) ** -0.5
        unit = x * inverse
        to_x = inverse * (mine * weight - unit * (mine * weight * unit).mean(-1, keepdim=True))
        return to_x, summed(group)((mine * unit).sum((0, 1)))

    for name, answer in (
        ("operators", by_hooks),
        ("cut_feed_forward", bias_on_each_by_its_share),
        ("cut_loss", loss_from_the_logsumexp),
        ("norm_gradients", by_hand),
    ):
        for seed in SEEDS:
            verdict = judge(EXERCISES[name], answer, EXERCISES[name].cases(seed))
            assert verdict.right, verdict.message


# --- no message says what is not so -----------------------------------------------------------------------


def verdict_on(name: str, answer: Any) -> Any:
    return judge(EXERCISES[name], answer, EXERCISES[name].cases(0))


def test_a_rank_alone_in_the_forward_sum_is_not_told_of_the_backward_one_only() -> None:
    def only_first(group: Group) -> Any:
        f, g = operators(group)
        return f, g if group.rank == 0 else lambda x: x.view_as(x)

    verdict = verdict_on("operators", only_first)
    assert verdict.mistakes == ("a sum that only rank 0 enters",)
    assert "in g's forward or in f's backward" in verdict.message


def test_a_class_in_place_of_its_apply_is_told() -> None:
    class Copy(torch.autograd.Function):
        pass

    assert ".apply" in verdict_on("operators", lambda group: (Copy, Copy)).message


def bill(latencies: Any, tensors: Any) -> Any:
    """Four sums of so many latencies and so many times the tensor, each a function of t."""

    def answer(n: int, d: int, t: int, flops: float, latency: float, speed: float) -> Any:
        one = latencies(t) * latency + tensors(t) * 2 * n * d / speed
        return layer_seconds(n, d, t, flops, latency, speed)[0], 4 * one

    return answer


def test_half_a_ring_is_told_from_two_sums_only_where_the_numbers_are() -> None:
    half = verdict_on("layer_seconds", bill(lambda t: t - 1, lambda t: (t - 1) / t))
    assert half.mistakes == ("half of the sums",)
    assert "an all-gather follows the reduce-scatter" in half.message
    late = verdict_on("layer_seconds", bill(lambda t: t - 1, lambda t: 2 * (t - 1) / t))
    assert late.mistakes == ("half of the latencies",)
    whole = verdict_on("layer_seconds", bill(lambda t: 2 * (t - 1), lambda t: 2 * (t - 1)))
    assert whole.mistakes == ("the whole tensor in every step",)


@pytest.mark.parametrize("seed", range(6))
def test_chunk_is_refused_on_every_variant_and_named(seed: int) -> None:
    def chunked(x: Any, weights: Any, f: Any, g: Any, group: Group) -> Any:
        up, up_bias, down, down_bias = weights
        rows, bias = (w.chunk(group.size)[group.rank] for w in (up, up_bias))
        columns = down.chunk(group.size, dim=1)[group.rank]
        return g(F.gelu(f(x) @ rows.T + bias) @ columns.T) + down_bias

    exercise = EXERCISES["cut_feed_forward"]
    assert judge(exercise, chunked, exercise.cases(seed)).mistakes == ("chunk for tensor_split",)


# --- references against others' code ----------------------------------------------------------------------


def test_the_cut_loss_and_its_gradient_equal_torchs() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(7, 23, generator=draw), torch.randint(23, (7,), generator=draw)
    targets[3] = -100
    whole = logits.clone().requires_grad_()
    expected = loss_nats(whole, targets)
    expected.backward()

    def work(group: Group) -> Any:
        own = logits.tensor_split(group.size, 1)[group.rank]
        return cut_loss(own, targets, first_row(23, group), summed(group), largest(group))

    found = run_threads(4, work)
    for loss, _ in found:
        torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(torch.cat([gradient for _, gradient in found], 1), whole.grad)


@pytest.mark.parametrize("t", [2, 4, 8])
def test_the_bill_equals_the_cost_models_for_a_layer_of_gpt(t: int) -> None:
    """Its formula has 12 D² weights and no head, so the two differ by what it leaves out."""
    config = preset("gpt3-175b")
    link = Link(latency_s=5e-6, bytes_per_s=2e11)
    setting = {"batch_size": 1, "seq_len": 2048, "flops_per_s": 2e14, "link": link}
    step = tensor_parallel_step(config, t, **setting)
    compute, talk = layer_seconds(2048, config.d_model, t, 2e14, link.latency_s, link.bytes_per_s)
    assert config.n_layers * talk == pytest.approx(step.communication_s, rel=0.02)
    assert config.n_layers * compute == pytest.approx(step.compute_s, rel=0.05)
