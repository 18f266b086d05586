"""A bigram model by counting, with its loss in nats, and the ways to count and normalise wrongly.

Taught in book/transformers/basics.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalelab.lab.checks.answers import as_numbers, as_tuple, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

OUTPUTS = ("probabilities", "loss")


def bigram_by_counting(
    tokens: Int[Tensor, " T"], vocab_size: int, add: float
) -> tuple[Float[Tensor, "V V"], Float[Tensor, ""]]:
    """How often each token followed each other one, as probabilities, and what the text costs by them.

    Args:
        tokens: one running text. vocab_size: V.
        add: put on the count of every pair; with 0 the row of a token that is never followed is 0/0.

    Returns:
        probabilities[a, b]: of b after a, float64. loss: the text's own, mean over its T-1 pairs, nats.
    """
    before, after = tokens[:-1], tokens[1:]
    # Each pair is one number below V², so that one pass counts them all.
    counts = torch.bincount(before * vocab_size + after, minlength=vocab_size**2)
    counts = counts.view(vocab_size, vocab_size).double() + add  # [V, V]
    probabilities = counts / counts.sum(dim=1, keepdim=True)
    return probabilities, -probabilities[before, after].log().mean()


def _build(
    *,
    pairs: str = "neighbours",
    repeats: bool = True,
    transpose: bool = False,
    normalise: str = "rows",
    loss: str = "mean of pairs",
    unit: str = "nats",
) -> Answer:
    """A bigram counter with the given faults; without any, the right one."""

    def answer(tokens: Tensor, vocab_size: int, add: float) -> tuple[Tensor, Tensor]:
        before, after = _pairs(tokens, pairs)
        counts = torch.bincount(before * vocab_size + after, minlength=vocab_size**2)
        counts = counts.view(vocab_size, vocab_size).double()
        if not repeats:
            counts = counts.clamp(max=1)
        probabilities = _normalise(counts, add, normalise)
        value = _loss(probabilities, before, after, loss)
        if transpose:
            probabilities = probabilities.t()
        return probabilities, value / math.log(2) if unit == "bits" else value

    return answer


def _pairs(tokens: Tensor, pairs: str) -> tuple[Tensor, Tensor]:
    if pairs == "round the end":
        return tokens, tokens.roll(-1)
    if pairs == "two apart":
        return tokens[:-2], tokens[2:]
    return tokens[:-1], tokens[1:]


def _normalise(counts: Tensor, add: float, normalise: str) -> Tensor:
    if normalise == "sum without add":
        return (counts + add) / counts.sum(dim=1, keepdim=True)
    counts = counts + add
    if normalise == "columns":
        return counts / counts.sum(dim=0, keepdim=True)
    if normalise == "whole table":
        return counts / counts.sum()
    return counts / counts.sum(dim=1, keepdim=True)


def _loss(probabilities: Tensor, before: Tensor, after: Tensor, loss: str) -> Tensor:
    nats = -probabilities[before, after].log()
    if loss == "sum":
        return nats.sum()
    if loss == "log of the mean":
        return -probabilities[before, after].mean().log()
    if loss == "perplexity":
        return nats.mean().exp()
    if loss == "negative":
        return -nats.mean()
    return nats.mean()


MISTAKES = (
    Mistake(
        name="rows and columns swapped",
        faults={"transpose": True},
        message="probabilities[a, b] holds the probability of a after b. The row must be the token that "
        "comes first, so that each row sums to one.",
        seen_in=("probabilities",),
    ),
    Mistake(
        name="columns normalised",
        faults={"normalise": "columns"},
        message="Each column sums to one: that answers what came before b. Divide each row by its own sum.",
    ),
    Mistake(
        name="whole table normalised",
        faults={"normalise": "whole table"},
        message="The whole table sums to one: these are probabilities of pairs. Of the next token, given the "
        "one before, each row must sum to one.",
    ),
    Mistake(
        name="repeats counted once",
        faults={"repeats": False},
        message="Every pair that occurs has count 1, however often it occurs: counts[before, after] += 1 "
        "writes to a repeated place only once. Use bincount, or index_put_ with accumulate=True.",
    ),
    Mistake(
        name="last token paired with the first",
        faults={"pairs": "round the end"},
        message="There are T pairs, and a text of T tokens has T-1: roll() puts the first token after the "
        "last.",
    ),
    Mistake(
        name="pairs two apart",
        faults={"pairs": "two apart"},
        message="tokens[t] is paired with tokens[t + 2]; the pairs are neighbours, tokens[:-1] and "
        "tokens[1:].",
    ),
    Mistake(
        name="add left out of the sum",
        faults={"normalise": "sum without add"},
        message="add is in the counts and not in what they are divided by, so rows sum to more than one.",
    ),
    Mistake(
        name="bits rather than nats",
        faults={"unit": "bits"},
        message="The loss is in bits (base-2 logarithm); nats, by the natural logarithm, are asked for.",
    ),
    Mistake(
        name="sum instead of mean",
        faults={"loss": "sum"},
        message="The losses of all pairs are summed: the figure would grow with the text. Take their mean.",
    ),
    Mistake(
        name="logarithm of the mean",
        faults={"loss": "log of the mean"},
        message="The probabilities are averaged first and the logarithm is taken last. A text's probability "
        "is a product, so the logarithms are what is averaged.",
    ),
    Mistake(
        name="perplexity returned",
        faults={"loss": "perplexity"},
        message="This is exp(loss), the perplexity; the loss itself is asked for.",
    ),
    Mistake(
        name="sign of the loss",
        faults={"loss": "negative"},
        message="The loss is negative: a logarithm of a probability is, and the loss is minus its mean.",
    ),
)

HINTS = (
    "Take the text 0 1 0 1 1 and count its four pairs on paper: (0,1) twice, (1,0) once, (1,1) once.",
    "before = tokens[:-1], after = tokens[1:]. Count, add, divide each row by its sum; then look up the "
    "probability of each pair of the text.",
    "torch.bincount(before * V + after, minlength=V * V).view(V, V) counts all pairs at once; the loss is "
    "-probabilities[before, after].log().mean().",
)


def _case(about: str, rng: np.random.Generator, n_tokens: int, n_vocab: int, add: float) -> Case:
    # Every token is followed by something, and common ones far more often than rare ones.
    weights = 1.0 / np.arange(1, n_vocab + 1) ** 1.2
    order = rng.permutation(n_vocab)
    drawn = order[rng.choice(n_vocab, size=n_tokens, p=weights / weights.sum())]
    text = np.concatenate([rng.permutation(n_vocab), drawn])
    if text[-1] == text[0]:  # or the pair round the end would be one like the others
        text = np.append(text, (text[0] + 1) % n_vocab)

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (torch.tensor(text), n_vocab, add), {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    n_vocab, n_tokens = int(rng.integers(4, 7)), int(rng.integers(40, 70))
    return (
        _case(f"about {n_tokens} tokens, V = {n_vocab}, add = 0", rng, n_tokens, n_vocab, 0.0),
        _case(f"about {n_tokens} tokens, V = {n_vocab}, add = 1", rng, n_tokens, n_vocab, 1.0),
        _case("fewer tokens, V = 8, add = 0.5", rng, int(rng.integers(20, 30)), 8, 0.5),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, kwargs = case.make()
    outputs = as_tuple(call(answer, *args, **kwargs), OUTPUTS)
    return {name: as_numbers(value, name) for name, value in zip(OUTPUTS, outputs, strict=True)}


EXERCISE = Exercise(
    name="bigram_by_counting",
    reference=bigram_by_counting,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
)
