"""What would be silently wrong is refused or right: stale weights, idle ranks, second passes, bad tokens."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from typing import Any

import pytest
import torch
from cut_models import GPT, batch_of, lively
from equality import (
    CONFIG,
    alone,
    assert_same_tensors,
    make_batch,
    make_model,
    summed_loss,
)
from zero_runs import SETTINGS, STAGES

from scalelab.core.errors import ConfigError, DataError, ParallelError
from scalelab.parallel.scratch.bytes_held import kept_for_backward
from scalelab.parallel.scratch.data_parallel import Overlapped
from scalelab.parallel.scratch.fully_sharded import FullySharded
from scalelab.parallel.scratch.group import Group
from scalelab.parallel.scratch.pipeline import Pipeline
from scalelab.parallel.scratch.schedules import check_schedule, make_schedule
from scalelab.parallel.scratch.tensor_decoder import ParallelDecoder
from scalelab.parallel.scratch.threads import run_threads


def test_a_forward_pass_between_backward_and_step_leaves_no_old_weights() -> None:
    batch = make_batch()

    def work(group: Group, looks: bool) -> Any:
        zero = FullySharded(make_model(double=True), group, **SETTINGS)
        for _ in range(3):
            (summed_loss(zero.model, batch.cut(group.size)[group.rank]) / batch.n_targets).backward()
            if looks:
                summed_loss(zero.model, batch)
            zero.step()
        return zero.whole_weights()

    for looked, plain in zip(run_threads(2, work, True), run_threads(2, work, False), strict=True):
        assert_same_tensors(looked, plain, 1e-12)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_rank_without_rows_meets_the_others(stage: int) -> None:
    batch = make_batch(2)
    expected = alone(make_model(), batch)

    def work(group: Group) -> Any:
        zero = STAGES[stage](make_model(), group)
        own = batch.cut(group.size)[group.rank]
        if len(own.tokens):
            (summed_loss(zero.model, own) / batch.n_targets).backward()
        zero.reduce()
        return zero.whole_gradients()

    for found in run_threads(3, work):
        assert_same_tensors(found, expected.gradients, 1e-6)


def test_a_second_backward_pass_in_the_last_micro_batch_is_refused() -> None:
    batch = make_batch()

    def work(group: Group) -> None:
        model = make_model()
        overlapped = Overlapped(model, group)
        with overlapped.micro_batch(last=True):
            for piece in batch.cut(2):
                (summed_loss(model, piece) / batch.n_targets).backward()

    with pytest.raises(ParallelError, match="second backward pass"):
        run_threads(2, work)


@pytest.mark.parametrize("max_norm", [0.0, -1.0, float("nan")])
def test_norms_that_are_not_positive_are_refused(max_norm: float) -> None:
    batch = make_batch()

    def work(group: Group) -> None:
        zero = STAGES[1](make_model(), group)
        (summed_loss(zero.model, batch) / batch.n_targets).backward()
        zero.step(max_norm)

    with pytest.raises(ParallelError, match="max_norm must be positive"):
        run_threads(2, work)


def cut_loss(group: Group, tokens: torch.Tensor, targets: torch.Tensor, reduction: str) -> Any:
    model = ParallelDecoder(GPT, group, lively(GPT).state_dict())
    return model.loss(tokens, targets, reduction=reduction)  # type: ignore[arg-type]


def test_a_cut_decoder_refuses_what_a_whole_one_refuses() -> None:
    batch = batch_of()
    tokens, targets = batch.tokens, batch.targets
    beyond = tokens.clone()
    beyond[0, 0] = GPT.vocab_size
    for given, error, says in (
        ((beyond, targets, "sum"), DataError, "token ids must lie in"),
        ((-tokens - 1, targets, "sum"), DataError, "token ids must lie in"),
        ((tokens, targets[:, :1], "sum"), DataError, "of the tokens' shape"),
        ((tokens, targets.float(), "sum"), DataError, "whole numbers"),
        ((tokens, targets, "avg"), ConfigError, "reduction"),
    ):
        with pytest.raises(error, match=says):
            run_threads(2, cut_loss, *given)


def test_a_pipeline_refuses_a_batch_without_targets_and_an_empty_schedule() -> None:
    batch = make_batch(4)

    def work(group: Group) -> None:
        pipeline = Pipeline(make_model(config=CONFIG), group)
        pipeline.step(batch.tokens, torch.full_like(batch.targets, -100), make_schedule("1f1b", 2, 2), 2)

    with pytest.raises(DataError, match="none of"):
        run_threads(2, work)
    with pytest.raises(ParallelError, match="lacks"):
        check_schedule(((), ()), 2)


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_a_pipeline_refuses_tokens_that_its_model_cannot_read(positions: str) -> None:
    config = dataclasses.replace(CONFIG, positions=positions)
    long = torch.zeros(2, CONFIG.seq_len + 1, dtype=torch.long)

    def work(group: Group) -> None:
        Pipeline(make_model(config=config), group).step(long, long, make_schedule("1f1b", 2, 2), 2)

    with pytest.raises(DataError, match=f"{CONFIG.seq_len}"):
        run_threads(2, work)


def test_counting_what_is_kept_keeps_no_graph_alive() -> None:
    x = torch.randn(4, 4, requires_grad=True)
    with kept_for_backward() as kept:
        y = x.softmax(dim=-1)
    assert kept.n_bytes == 64
    alive = weakref.ref(y)
    del y
    gc.collect()
    assert alive() is None
