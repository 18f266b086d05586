"""A decoder cut over ranks equals one process, sends and holds what the cost model says; faults show."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cut_models import (
    CONFIGS,
    GPT,
    LLAMA,
    WAYS,
    batch_of,
    found_alone,
    found_by,
    found_on_way,
    lively,
    trained_on,
)
from equality import Differs, assert_same_found, assert_same_weights, trained_alone
from torch import Tensor

from scalelab.core.errors import DataError, ParallelError, WeightsError
from scalelab.cost.sharding import held_params
from scalelab.cost.traffic import tensor_parallel_traffic
from scalelab.models.loss import loss_nats
from scalelab.parallel.scratch import sequence_parallel, tensor_decoder, tensor_parallel, vocabulary
from scalelab.parallel.scratch.group import Group
from scalelab.parallel.scratch.tensor_decoder import ParallelDecoder, cut, join
from scalelab.parallel.scratch.threads import run_threads

# --- equal to one process ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_every_gradient_equal_one_process_on_every_rank(name: str, way: str, size: int) -> None:
    expected = found_alone(CONFIGS[name])
    for found in found_by(size, CONFIGS[name], **WAYS[way]):
        assert_same_found(found, expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_weights_equal_one_process_after_ten_adamw_steps(name: str, way: str) -> None:
    batches = [batch_of(seed=100 + step) for step in range(10)]
    expected = trained_alone(lively(CONFIGS[name], double=True), batches)
    for weights in run_threads(3, trained_on, CONFIGS[name], batches, WAYS[way]):
        assert_same_weights(weights, {k: v for k, v in expected.items() if k in weights})
        assert set(weights) == set(expected)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize("name", CONFIGS)
def test_parts_joined_are_the_whole_model_and_no_rank_has_more_than_its_share(name: str, size: int) -> None:
    config, weights = CONFIGS[name], lively(CONFIGS[name]).state_dict()
    parts = [cut(weights, config, rank, size) for rank in range(size)]
    joined = join(parts, config)
    assert list(joined) == list(weights)
    assert all(torch.equal(joined[key], weights[key]) for key in weights)
    for rank, part in enumerate(parts):
        held = sum(tensor.numel() for tensor in part.values())
        assert held == held_params(config, tp=size, tp_rank=rank).total


@pytest.mark.parametrize("size", [2, 3, 6])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CONFIGS)
def test_bytes_sent_equal_the_cost_model_on_every_rank(name: str, way: str, size: int) -> None:
    rows, time = batch_of().tokens.shape
    is_cut = "sequence" in way
    formula = tensor_parallel_traffic(
        CONFIGS[name], size, batch_size=rows, seq_len=time, sequence_parallel=is_cut,
        keeps_shards=way == "sequence",
    )  # fmt: skip
    sent = [traffic for _, traffic in run_threads(size, found_on_way, CONFIGS[name], WAYS[way])]
    assert tuple(traffic.n_bytes for traffic in sent) == formula.sent_bytes
    assert tuple(traffic.messages for traffic in sent) == formula.total.messages


def test_sequence_parallelism_sends_the_same_bytes_for_the_layers() -> None:
    config = dataclasses.replace(GPT, d_ff=36, seq_len=12)
    plain, cut_in_time = (
        tensor_parallel_traffic(config, 4, batch_size=3, seq_len=12, sequence_parallel=is_cut)
        for is_cut in (False, True)
    )
    for part in ("attention, forward", "attention, backward", "feed-forward, forward"):
        assert plain.parts[part].sent_bytes == cut_in_time.parts[part].sent_bytes


# --- the operators alone ----------------------------------------------------------------------------------


def through(group: Group, operator: Callable[..., Tensor], *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What an operator makes of rank + 1, the gradient it hands back for ones, and its input afterwards."""
    x = torch.full((2, 4, 3), float(group.rank + 1)).requires_grad_()
    y = operator(x, group, *args)
    y.backward(torch.full_like(y, float(group.rank + 1)))
    assert x.grad is not None
    return y.detach(), x.grad, x.detach()


def test_f_copies_and_sums_backward_and_g_sums_and_copies_backward() -> None:
    for rank, (y, back, x) in enumerate(run_threads(3, through, tensor_parallel.copy_to_ranks)):
        assert torch.equal(y, x)
        assert torch.equal(back, torch.full_like(x, 6.0))
        assert torch.equal(x, torch.full_like(x, rank + 1.0))
    for rank, (y, back, x) in enumerate(run_threads(3, through, tensor_parallel.sum_over_ranks)):
        assert torch.equal(y, torch.full_like(x, 6.0))
        assert torch.equal(back, torch.full_like(x, rank + 1.0))
        assert torch.equal(x, torch.full_like(x, rank + 1.0))


def test_f_leaves_the_gradient_alone_that_the_residual_branch_shares() -> None:
    def work(group: Group) -> Tensor:
        x = torch.full((3,), float(group.rank)).requires_grad_()
        y = x + tensor_parallel.copy_to_ranks(x, group)  # the sum hands both of its terms one tensor
        y.backward(torch.ones(3))
        assert x.grad is not None
        return x.grad

    for back in run_threads(3, work):
        assert torch.equal(back, torch.full((3,), 1.0 + 3.0))  # its own, and the sum of all


def test_gathering_and_scattering_are_each_others_backward_pass() -> None:
    for rank, (y, back, _) in enumerate(run_threads(3, through, sequence_parallel.scatter_sum)):
        assert y.shape == (2, 2 if rank == 0 else 1, 3)
        assert torch.equal(y, torch.full_like(y, 6.0))
        assert back[0, :, 0].tolist() == [1, 1, 2, 3]

    def gather(x: Tensor, group: Group) -> Tensor:
        return sequence_parallel.gather_tokens(sequence_parallel.own_tokens(x, group), group, 4)

    for rank, (y, back, _) in enumerate(run_threads(3, through, gather)):
        assert y[0, :, 0].tolist() == [1, 1, 2, 3]
        own = [6.0 if place == rank else 0.0 for place in (0, 0, 1, 2)]
        assert back[0, :, 0].tolist() == own


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_vocabulary_loss_equals_torchs_and_survives_large_logits(size: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = (300 * torch.randn(2, 5, 61, generator=draw)).to(dtype)  # e^300 is no number of fp32
    targets = torch.randint(61, (2, 5), generator=draw)
    targets[0, 1:3] = -100
    whole = logits.clone().requires_grad_()
    if dtype == torch.float64:
        expected = F.cross_entropy(whole.flatten(0, 1), targets.flatten(), reduction="none").view(2, 5)
    else:
        expected = loss_nats(whole, targets, "none")
    expected.pow(2).sum().backward()  # a gradient that differs from place to place

    def work(group: Group) -> tuple[Tensor, Tensor]:
        part = logits.tensor_split(size, -1)[group.rank].clone().requires_grad_()
        losses = vocabulary.vocabulary_loss(part, targets, vocabulary.first_row(61, group), group)
        losses.pow(2).sum().backward()
        assert part.grad is not None
        return losses.detach(), part.grad

    found = run_threads(size, work)
    assert whole.grad is not None
    for losses, _ in found:
        torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(torch.cat([back for _, back in found], -1), whole.grad)


def test_the_loss_never_gathers_logits() -> None:
    def work(group: Group) -> int:
        with group.counted() as sent:
            vocabulary.vocabulary_loss(torch.zeros(6, 1000), torch.zeros(6).long(), 1000 * group.rank, group)
        return sent.traffic.n_bytes

    assert run_threads(2, work) == [3 * 6 * 4] * 2  # a ring of two sends each of three all-reduces once


# --- planted faults ---------------------------------------------------------------------------------------


def _row_bias_before_the_sum(x: Tensor, linear: Any, borders: Any) -> Tensor:
    return borders.leave(F.linear(x, linear.weight, linear.bias))  # type: ignore[no-any-return]


def _fused_rows_in_one_go(
    name: str, config: Any, rank: int, size: int, right: Any = tensor_decoder.places
) -> Any:
    """Queries, keys and values cut as if the fused matrix were one: rank 0 gets queries, the last values."""
    if not name.endswith(".qkv.weight") and not name.endswith(".qkv.bias"):
        return right(name, config, rank, size)
    n_rows = (config.n_heads + 2 * config.kv_heads) * config.head_width
    return 0, torch.arange(n_rows).tensor_split(size)[rank]


def _columns_of_another_rank(
    name: str, config: Any, rank: int, size: int, right: Any = tensor_decoder.places
) -> Any:
    if not name.endswith(".out.weight"):
        return right(name, config, rank, size)
    return 1, torch.arange(config.n_heads * config.head_width).tensor_split(size)[(rank + 1) % size]


class _TorchsAllReduce(torch.autograd.Function):
    """As torch.distributed.nn.functional.all_reduce: a sum forward and another backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        total = x.clone().contiguous()
        tensor_parallel.ring_all_reduce(total, group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone().contiguous()
        tensor_parallel.ring_all_reduce(total, ctx.group)
        return total, None


def _twice(parameters: Any, group: Group, right: Any = sequence_parallel.sum_whole_gradients) -> None:
    found = list(parameters)
    right(found, group)
    right(found, group)


def _mean(parameters: Any, group: Group, right: Any = sequence_parallel.sum_whole_gradients) -> None:
    found = list(parameters)
    right(found, group)
    for parameter in found:
        parameter.grad /= group.size


def _own_gradient_alone(gradient: Tensor, group: Group) -> Tensor:
    return sequence_parallel.own_tokens(gradient, group).contiguous()


def _first_tokens(x: Tensor, group: Group) -> Tensor:
    return x[:, : tensor_parallel.share(x.shape[1], group)]


class _CutFromTheScatter(torch.autograd.Function):
    """ḡ whose backward pass puts this rank's gradient in its place and zeros elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group, ctx.n_tokens = group, x.shape[1]
        return sequence_parallel.reduce_scatter_tokens(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        whole = gradient.new_zeros((gradient.shape[0], ctx.n_tokens, gradient.shape[2]))
        sequence_parallel.own_tokens(whole, ctx.group).copy_(gradient)
        return whole, None


def nothing(*_: Any) -> None:
    return None


FAULTS: dict[str, tuple[str, Any, str, Any]] = {
    "f is missing": ("tensor", tensor_parallel, "copy_to_ranks", lambda x, group: x),
    "g is missing": ("tensor", tensor_parallel, "sum_over_ranks", lambda x, group: x),
    "g sums backward too, as torch's all_reduce does": (
        "tensor", tensor_parallel, "sum_over_ranks", _TorchsAllReduce.apply,
    ),
    "f sums forward too": ("tensor", tensor_parallel, "copy_to_ranks", _TorchsAllReduce.apply),
    "f and g have changed places": (
        "tensor", tensor_parallel, "copy_to_ranks", tensor_parallel.sum_over_ranks,
    ),
    "a mean instead of a sum": (
        "tensor", tensor_parallel, "sum_over_ranks",
        lambda x, group, right=tensor_parallel.sum_over_ranks: right(x, group) / group.size,
    ),
    "the row bias is added on every rank": (
        "tensor", tensor_parallel, "row_parallel", _row_bias_before_the_sum,
    ),
    "the fused matrix is cut in one go": ("tensor", tensor_decoder, "places", _fused_rows_in_one_go),
    "rows and columns that do not meet": ("tensor", tensor_decoder, "places", _columns_of_another_rank),
    "the largest logit of the rank's own": ("tensor", vocabulary, "ring_all_max", nothing),
    "the sum of the rank's own": ("tensor", vocabulary, "ring_all_reduce", nothing),
    "every shard begins at token 0": ("tensor", tensor_decoder, "first_row", lambda n, group: 0),
    "gradients of norms are not summed": ("sequence", tensor_decoder, "sum_whole_gradients", nothing),
    "gradients of norms are summed twice": ("sequence", tensor_decoder, "sum_whole_gradients", _twice),
    "gradients of norms are averaged": ("sequence", tensor_decoder, "sum_whole_gradients", _mean),
    "each rank keeps its own gradient of its tokens": (
        "sequence, gathered kept", sequence_parallel._GatherTokens, "backward",
        staticmethod(lambda ctx, gradient: (_own_gradient_alone(gradient, ctx.group), None, None)),
    ),
    "the scatter's gradient is not gathered": (
        "sequence", sequence_parallel, "scatter_sum", _CutFromTheScatter.apply,
    ),
    "every rank adds the first positions": ("sequence", tensor_decoder, "own_tokens", _first_tokens),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught_by_the_same_comparison(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    way, module, name, wrong = FAULTS[fault]
    monkeypatch.setattr(module, name, wrong)
    found = found_by(3, GPT, **WAYS[way])
    with pytest.raises(Differs):
        assert_same_found(found[0], found_alone(GPT))


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "size", "says"),
    [
        ({}, 5, "5 ranks do not divide n_heads=12"),
        ({"n_kv_heads": 4}, 3, "n_kv_heads=4"),
        ({"vocab_size": 2}, 3, "vocab_size=2"),
        ({"d_ff": 2}, 3, "d_ff=2"),
        ({"dropout": 0.1}, 2, "dropout=0.1"),
        ({"norm_position": "post"}, 2, "norm_position='post'"),
        ({"parallel_residual": True}, 2, "parallel_residual=True"),
        ({"positions": "alibi"}, 2, "positions='alibi'"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_its_value(changes: dict[str, Any], size: int, says: str) -> None:
    config = dataclasses.replace(GPT, **changes)
    with pytest.raises(ParallelError, match=says):
        run_threads(size, lambda group: ParallelDecoder(config, group, {}))


def test_other_weights_tokens_and_gradients_that_are_not_there_are_refused() -> None:
    weights = lively(GPT).state_dict()

    def with_weights_of_another(group: Group) -> None:
        ParallelDecoder(LLAMA, group, weights)

    def with_a_target_beyond(group: Group) -> None:
        model = ParallelDecoder(GPT, group, weights)
        model.loss(torch.zeros(1, 3).long(), torch.full((1, 3), 61))

    def with_few_tokens(group: Group) -> None:
        model = ParallelDecoder(GPT, group, weights, sequence_parallel=True)
        model.loss(torch.zeros(1, 2).long(), torch.zeros(1, 2).long())

    def before_backward(group: Group) -> None:
        ParallelDecoder(GPT, group, weights, sequence_parallel=True).finish_gradients()

    def with_too_many_tokens(group: Group) -> None:
        sequence_parallel.all_gather_tokens(torch.zeros(1, 2, 3), group, 9)

    for work, error, says in (
        (with_weights_of_another, WeightsError, "not the weights"),
        (with_a_target_beyond, DataError, r"\[0, 61\)"),
        (with_few_tokens, ParallelError, "2 tokens cannot be cut over 3"),
        (before_backward, ParallelError, "no gradient"),
        (with_too_many_tokens, ParallelError, "share would be 3"),
    ):
        with pytest.raises(error, match=says):
            run_threads(3, work)
