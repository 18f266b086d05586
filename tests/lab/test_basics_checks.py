"""Claims about the checks of the lab basics: right answers pass, each usual mistake is named, others told."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from scalelab.lab.checks import Exercise, exercises, judge

EXERCISES = exercises("transformers/basics")
SEEDS = (0, 1, 2, 12345)


@pytest.fixture(params=list(EXERCISES))
def exercise(request: pytest.FixtureRequest) -> Exercise:
    return EXERCISES[request.param]


@pytest.mark.parametrize(
    "answer",
    [
        None,
        lambda: 1,
        lambda *a, **k: None,
        lambda *a, **k: "text",
        lambda *a, **k: [],
        lambda *a, **k: ("a", "b"),
        lambda *a, **k: (None, None, None, None),
        lambda *a, **k: True,
        lambda *a, **k: 1 / 0,
    ],
)
def test_answers_of_the_wrong_kind_get_a_precise_account(exercise: Exercise, answer: Any) -> None:
    verdict = judge(exercise, answer, exercise.cases(0))
    assert verdict.outcome == "broken"
    assert exercise.name in verdict.message
    assert verdict.mistakes


# Right answers in other words: a check asks what is computed, not how it is written.


def counting_by_a_loop(tokens: Any, vocab_size: int, add: float) -> Any:
    table = np.full((vocab_size, vocab_size), float(add))
    for a, b in itertools.pairwise(tokens.tolist()):
        table[a, b] += 1
    table /= table.sum(1, keepdims=True)
    pairs = list(itertools.pairwise(tokens.tolist()))
    return table, -sum(math.log(table[pair]) for pair in pairs) / len(pairs)


def counting_without_repeats(tokens: Any, vocab_size: int, add: float) -> Any:
    counts = torch.zeros(vocab_size, vocab_size, dtype=torch.float64)
    counts[tokens[:-1], tokens[1:]] += 1  # what many write first: repeated places are written once
    counts += add
    probabilities = counts / counts.sum(1, keepdim=True)
    return probabilities, -probabilities[tokens[:-1], tokens[1:]].log().mean()


def gradient_by_autograd(logits: Any, counts: Any) -> Any:
    with torch.enable_grad():
        table = logits.clone().requires_grad_()
        loss = -(counts * functional.log_softmax(table, 1)).sum() / counts.sum()
        return loss.detach(), torch.autograd.grad(loss, table)[0]


def net_by_autograd(x: Any, targets: Any, *weights: Any) -> Any:
    with torch.enable_grad():
        W1, b1, W2, b2 = leaves = [w.clone().requires_grad_() for w in weights]
        loss = functional.cross_entropy(torch.tanh(x @ W1 + b1) @ W2 + b2, targets)
        return torch.autograd.grad(loss, leaves)


def test_right_answers_written_otherwise_pass() -> None:
    def net(x: Any, targets: Any, W1: Any, b1: Any, W2: Any, b2: Any) -> Any:
        return net_by_autograd(x, targets, W1, b1, W2, b2)

    for seed in SEEDS:
        for name, answer in {
            "softmax": lambda logits: logits.double().log_softmax(-1).exp(),
            "bigram_by_counting": counting_by_a_loop,
            "bigram_gradient": gradient_by_autograd,
            "two_layer_gradients": net,
        }.items():
            verdict = judge(EXERCISES[name], answer, EXERCISES[name].cases(seed))
            assert verdict.right, verdict.message


def test_the_classic_slip_of_indexed_addition_is_named() -> None:
    exercise = EXERCISES["bigram_by_counting"]
    assert judge(exercise, counting_without_repeats, exercise.cases(0)).mistakes == ("repeats counted once",)


def test_backward_is_told_that_nothing_was_recorded() -> None:
    def by_backward(logits: Any, counts: Any) -> Any:
        loss = -(counts * functional.log_softmax(logits, 1)).sum() / counts.sum()
        loss.backward()
        return loss, logits.grad

    verdict = judge(EXERCISES["bigram_gradient"], by_backward, EXERCISES["bigram_gradient"].cases(0))
    assert verdict.outcome == "broken"
    assert "does not require grad" in verdict.message


UNLISTED: dict[str, list[Any]] = {
    "softmax": [lambda z: torch.sigmoid(z), lambda z: (z - z.amax(-1, keepdim=True)).div(2).softmax(-1)],
    "bigram_by_counting": [
        lambda tokens, v, add: (torch.full((v, v), 1 / v), torch.tensor(math.log(v))),
        lambda tokens, v, add: counting_by_a_loop(tokens, v, add + 0.1),
    ],
    "bigram_gradient": [
        lambda z, c: (torch.tensor(0.0), torch.zeros_like(z)),
        lambda z, c: (gradient_by_autograd(z, c)[0], 2 * gradient_by_autograd(z, c)[1]),
    ],
    "two_layer_gradients": [
        lambda x, y, W1, b1, W2, b2: tuple(torch.zeros_like(w) for w in (W1, b1, W2, b2)),
        lambda x, y, W1, b1, W2, b2: tuple(2 * g for g in net_by_autograd(x, y, W1, b1, W2, b2)),
    ],
}


@pytest.mark.parametrize(("name", "number"), [(n, i) for n, a in UNLISTED.items() for i in range(len(a))])
def test_unlisted_mistakes_get_a_neutral_account(name: str, number: int) -> None:
    for seed in SEEDS:
        verdict = judge(EXERCISES[name], UNLISTED[name][number], EXERCISES[name].cases(seed))
        assert verdict.outcome == "unknown mistake", verdict.message
        assert "On " in verdict.message
        assert "should be" in verdict.message


# What the lab hands back when an answer is wrong is held against torch.


def test_softmax_equals_torchs() -> None:
    torch.manual_seed(0)
    logits = 30 * torch.randn(5, 11, dtype=torch.float64)
    got = EXERCISES["softmax"].reference(logits)
    torch.testing.assert_close(got, torch.softmax(logits, -1), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("add", [0.5, 1.0])
def test_counted_loss_equals_torchs_cross_entropy_of_the_tables_logarithms(add: float) -> None:
    torch.manual_seed(1)
    tokens = torch.randint(6, (200,))
    probabilities, loss = EXERCISES["bigram_by_counting"].reference(tokens, 6, add)
    expected = functional.cross_entropy(probabilities.log()[tokens[:-1]], tokens[1:])
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(6, dtype=torch.float64))


def test_bigram_gradient_equals_autograd_over_the_texts_own_pairs() -> None:
    torch.manual_seed(2)
    tokens, n_vocab = torch.randint(5, (300,)), 5
    logits = torch.randn(n_vocab, n_vocab, dtype=torch.float64, requires_grad=True)
    expected = functional.cross_entropy(logits[tokens[:-1]], tokens[1:])
    expected.backward()
    counts = torch.bincount(tokens[:-1] * n_vocab + tokens[1:], minlength=n_vocab**2).view(n_vocab, n_vocab)
    loss, gradient = EXERCISES["bigram_gradient"].reference(logits.detach(), counts.double())
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-12, atol=1e-12)


def test_the_counted_table_is_where_the_gradient_vanishes() -> None:
    torch.manual_seed(3)
    counts = torch.randint(1, 50, (6, 6)).double()
    logits = (counts / counts.sum(1, keepdim=True)).log() + torch.randn(6, 1).double()  # rows shifted at will
    _, gradient = EXERCISES["bigram_gradient"].reference(logits, counts)
    assert gradient.abs().max() < 1e-15


@pytest.mark.parametrize("sizes", [(1, 3, 4, 5), (8, 4, 4, 4), (16, 7, 9, 3)])
def test_two_layer_gradients_equal_autograd_to_1e_10(sizes: tuple[int, int, int, int]) -> None:
    torch.manual_seed(4)
    n_rows, d_model, d_ff, n_vocab = sizes
    x, targets = torch.randn(n_rows, d_model).double(), torch.randint(n_vocab, (n_rows,))
    shapes = ((d_model, d_ff), (d_ff,), (d_ff, n_vocab), (n_vocab,))
    weights = [torch.randn(shape).double() for shape in shapes]
    ours = EXERCISES["two_layer_gradients"].reference(x, targets, *weights)
    for got, expected in zip(ours, net_by_autograd(x, targets, *weights), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
