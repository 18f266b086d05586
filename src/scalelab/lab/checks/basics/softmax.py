"""Softmax over the last axis without overflow, and the ways to take another axis or to lose the numbers.

Source: Blanchard, Higham & Higham 2021, IMA Journal of Numerical Analysis 41, 2311.
Taught in book/transformers/basics.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalelab.lab.checks.answers import as_numbers, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def softmax(logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
    """Probabilities of each row: p[b, i] = exp(z[b, i]) / sum over j of exp(z[b, j]).

    Args:
        logits: any finite numbers, however large.
    """
    # The largest exponent becomes exp(0) = 1, so nothing overflows and no sum is 0.
    shifted = logits - logits.max(dim=-1, keepdim=True).values
    grown = shifted.exp()
    return grown / grown.sum(dim=-1, keepdim=True)


def _build(
    *,
    axis: str = "last",
    shift: str = "row maximum",
    grow: str = "exp",
    divide: bool = True,
    log: bool = False,
) -> Answer:
    """A softmax with the given faults; without any, the right one."""

    def answer(logits: Tensor) -> Tensor:
        dims = {"last": (-1,), "first": (0,), "both": (0, 1)}[axis]
        grown = _grow(logits - _shift(logits, dims, shift), grow)
        total = grown.sum(dim=dims, keepdim=True)
        probabilities = grown / total if divide else grown
        return probabilities.log() if log else probabilities

    return answer


def _shift(logits: Tensor, dims: tuple[int, ...], shift: str) -> Tensor:
    if shift == "none":
        return torch.zeros_like(logits)
    if shift == "maximum of all":
        return logits.max().expand_as(logits)
    if shift == "row mean":
        return logits.mean(dim=dims, keepdim=True)
    return logits.amax(dim=dims, keepdim=True)


def _grow(shifted: Tensor, grow: str) -> Tensor:
    if grow == "powers of 2":
        return torch.pow(2.0, shifted)
    if grow == "nothing":
        return shifted
    return shifted.exp()


MISTAKES = (
    Mistake(
        name="softmax over the wrong axis",
        faults={"axis": "first"},
        message="The columns sum to one. Each row is one prediction, and its V entries must: the axis is the "
        "last one, dim=-1.",
    ),
    Mistake(
        name="softmax over the whole tensor",
        faults={"axis": "both"},
        message="All B·V entries together sum to one; each row must sum to one by itself.",
    ),
    Mistake(
        name="no maximum subtracted",
        faults={"shift": "none"},
        message="exp() of a logit of about 1,000 is inf, and inf / inf is NaN. Subtract each row's largest "
        "logit first: it changes nothing else.",
    ),
    Mistake(
        name="one maximum for all rows",
        faults={"shift": "maximum of all"},
        message="A row far below the largest logit of another row becomes exp(-2000) = 0 throughout, and "
        "0 / 0 is NaN. Each row needs its own maximum.",
    ),
    Mistake(
        name="mean subtracted, not maximum",
        faults={"shift": "row mean"},
        message="With the mean subtracted a logit far above it still overflows. Only the maximum makes sure "
        "that no exponent is above 0.",
    ),
    Mistake(
        name="powers of two",
        faults={"grow": "powers of 2"},
        message="This raises 2 to the logits. Softmax is defined with e; with 2, every distribution is "
        "flatter than it should be.",
    ),
    Mistake(
        name="no exponential",
        faults={"grow": "nothing"},
        message="The shifted logits themselves are divided by their sum. They are not positive: take exp() "
        "first.",
    ),
    Mistake(
        name="not divided by the sum",
        faults={"divide": False},
        message="These are exponentials that do not sum to one: divide each row by its sum.",
    ),
    Mistake(
        name="logarithm returned",
        faults={"log": True},
        message="This is the logarithm of the softmax. It is what a loss wants, and not what is asked here.",
    ),
)

HINTS = (
    "Sum one of your rows: it should give 1. Then try a row whose logits are 1000, 1001 and 1002.",
    "Adding the same number to all logits of a row changes no probability. Which number makes the largest "
    "exponent 0?",
    "z = logits - logits.max(dim=-1, keepdim=True).values; then z.exp() / z.exp().sum(dim=-1, keepdim=True). "
    "Without keepdim=True the shapes [B, V] and [B] do not line up row by row.",
)


def _case(about: str, logits: np.ndarray) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (torch.tensor(logits, dtype=torch.float32),), {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    n_rows, n_vocab = int(rng.integers(3, 6)), int(rng.integers(7, 12))
    plain = 1.5 * rng.standard_normal((n_rows, n_vocab))
    large = plain + 1000.0
    peaked = rng.standard_normal((2, n_vocab))
    peaked[:, :2] += float(rng.uniform(200, 300))  # far above the mean of the row
    apart = rng.standard_normal((2, n_vocab)) + np.array([[1000.0], [-1000.0]])
    return (
        _case(f"{n_rows} rows of {n_vocab} small logits", plain),
        _case("rows whose logits are all about 1,000", large),
        _case("rows with two logits far above the others", peaked),
        _case("one row about 1,000 and one about -1,000", apart),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, kwargs = case.make()
    return {"the probabilities": as_numbers(call(answer, *args, **kwargs), "the probabilities")}


EXERCISE = Exercise(
    name="softmax",
    reference=softmax,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-3,  # float32 keeps four digits of a logit of about 1,000 behind the point
    atol=1e-7,
)
