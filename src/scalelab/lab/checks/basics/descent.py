"""The bigram table's loss and gradient from counts, and the ways to lose its sign, its mean or its weights.

Taught in book/transformers/basics.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalelab.lab.checks.answers import as_numbers, as_tuple, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

OUTPUTS = ("loss", "gradient")


def bigram_gradient(
    logits: Float[Tensor, "V V"], counts: Float[Tensor, "V V"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "V V"]]:
    """Mean loss over all pairs of a text, nats, and its gradient with respect to the table of logits.

    Args:
        logits: row a is the model's guess of what follows token a. counts: counts[a, b] of the pair (a, b).
    """
    n_pairs = counts.sum()
    log_p = logits - logits.logsumexp(dim=1, keepdim=True)  # [V, V]
    loss = -(counts * log_p).sum() / n_pairs
    # p - y of every pair, summed: row a was asked as often as a was followed by anything.
    gradient = (counts.sum(dim=1, keepdim=True) * log_p.exp() - counts) / n_pairs
    return loss, gradient


def _build(
    *,
    sign: int = 1,
    axis: int = 1,
    part: str = "p - y",
    divide: str = "pairs",
    loss: str = "cross-entropy",
) -> Answer:
    """A bigram gradient with the given faults; without any, the right one."""

    def answer(logits: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        n_pairs, rows = counts.sum(), counts.sum(dim=1, keepdim=True)
        log_p = logits - logits.logsumexp(dim=axis, keepdim=True)
        value = -(counts * log_p).sum() / n_pairs
        if loss == "mean of cells":
            value = -(counts / rows * log_p).sum() / len(counts)
        gradient = sign * _gradient(log_p.exp(), counts, part)
        if divide == "rows":
            gradient = gradient / rows
        elif divide == "pairs":
            gradient = gradient / n_pairs
        elif divide == "cells":
            gradient = gradient / counts.numel()
        return value, gradient

    return answer


def _gradient(p: Tensor, counts: Tensor, part: str) -> Tensor:
    rows = counts.sum(dim=1, keepdim=True)
    if part == "y alone":
        return -counts
    if part == "p unweighted":
        return p - counts
    if part == "diagonal of softmax":
        return (rows * p - counts) * p * (1 - p)
    return rows * p - counts


MISTAKES = (
    Mistake(
        name="sign turned round",
        faults={"sign": -1},
        message="This is y - p, the way downhill. The gradient points uphill, p - y; the step subtracts it.",
        seen_in=("gradient",),
    ),
    Mistake(
        name="not divided by the number of pairs",
        faults={"divide": "nothing"},
        message="This is the gradient of the summed loss. The loss is a mean over pairs, and so is its "
        "gradient: divide by counts.sum().",
        seen_in=("gradient",),
    ),
    Mistake(
        name="divided row by row",
        faults={"divide": "rows"},
        message="Each row is divided by its own count, so a token seen once pulls as hard as one seen a "
        "million times. The loss is a mean over all pairs: divide by counts.sum().",
        seen_in=("gradient",),
    ),
    Mistake(
        name="divided by the number of cells",
        faults={"divide": "cells"},
        message="Divided by V·V, the cells of the table. The mean is over the pairs of the text.",
        seen_in=("gradient",),
    ),
    Mistake(
        name="p left out",
        faults={"part": "y alone"},
        message="Only -y is there. The log-sum-exp has a gradient too, and it is p: without it every logit "
        "that was ever seen grows for ever.",
        seen_in=("gradient",),
    ),
    Mistake(
        name="p not multiplied by the row's count",
        faults={"part": "p unweighted"},
        message="p is in once and y as often as the row was seen. Row a was asked counts[a].sum() times, and "
        "each time its p is in the gradient.",
        seen_in=("gradient",),
    ),
    Mistake(
        name="softmax differentiated twice",
        faults={"part": "diagonal of softmax"},
        message="p - y is multiplied by p(1 - p). It holds softmax's derivative already: logarithm and "
        "softmax together give p - y, and nothing more.",
        seen_in=("gradient",),
    ),
    Mistake(
        name="softmax over the wrong axis",
        faults={"axis": 0},
        message="The columns of p sum to one. Row a holds the guesses of what follows a, so each row must.",
    ),
    Mistake(
        name="every row weighted alike",
        faults={"loss": "mean of cells"},
        message="The loss is averaged over rows, rare tokens as heavily as common ones. Weight each cell by "
        "its count and divide by counts.sum().",
        seen_in=("loss",),
    ),
)

HINTS = (
    "For one pair (a, b) the gradient touches row a alone, and there it is p - y: the row's softmax, minus 1 "
    "at place b.",
    "Add that up over all pairs. Row a is asked counts[a].sum() times, and its place b is the answer "
    "counts[a, b] times.",
    "gradient = (counts.sum(1, keepdim=True) * p - counts) / counts.sum(); the loss is "
    "-(counts * log_p).sum() / counts.sum(), with log_p from logits.log_softmax(1).",
)


def _case(about: str, rng: np.random.Generator, n_vocab: int, spread: float) -> Case:
    logits = spread * rng.standard_normal((n_vocab, n_vocab))
    # Rows asked 3 to 300 times: what treats them alike then shows in the first digit.
    often = rng.permutation(np.geomspace(3, 300, n_vocab))
    counts = np.maximum(rng.poisson(often[:, None] * rng.dirichlet(np.ones(n_vocab), n_vocab)), 0)
    counts[np.arange(n_vocab), rng.integers(n_vocab, size=n_vocab)] += 1  # no row is empty
    counts[0, 0] += counts.sum() == n_vocab**2

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (torch.tensor(logits), torch.tensor(counts, dtype=torch.float64)), {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    n_vocab = int(rng.integers(4, 8))
    return (
        _case(f"V = {n_vocab}, all logits 0", rng, n_vocab, 0.0),
        _case(f"V = {n_vocab}, logits of size 1", rng, n_vocab, 1.0),
        _case("V = 9, logits of size 3", rng, 9, 3.0),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, kwargs = case.make()
    with torch.no_grad():  # by hand: nothing is recorded that backward() could use
        outputs = as_tuple(call(answer, *args, **kwargs), OUTPUTS)
    return {name: as_numbers(value, name) for name, value in zip(OUTPUTS, outputs, strict=True)}


EXERCISE = Exercise(
    name="bigram_gradient",
    reference=bigram_gradient,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-5,  # float32 inside is accurate enough
    atol=1e-7,
)
