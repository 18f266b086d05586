"""softmax(q kᵀ / √K) v, and the ways to scale, normalise and mask it wrongly.

Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1. Taught in book/transformers/attention.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalelab.lab.checks.answers import as_numbers, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def attention(
    q: Float[Tensor, "*batch T K"],
    k: Float[Tensor, "*batch S K"],
    v: Float[Tensor, "*batch S K"],
    is_causal: bool,
) -> Float[Tensor, "*batch T K"]:
    """Each query's weighted mean of the values; causal: query t sees keys 0 … t."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # [..., T, S]
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(
            1
        )  # key stands after query
        scores = scores.masked_fill(later, -math.inf)
    return scores.softmax(dim=-1) @ v


def _build(*, scale: str = "1/√K", softmax_over: str = "keys", mask: str = "before") -> Answer:
    """Attention with the given faults; without any, the right one."""

    def answer(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
        width = q.shape[-1]
        factor = {"none": 1.0, "1/K": 1 / width, "√K": math.sqrt(width)}.get(scale, 1 / math.sqrt(width))
        scores = factor * (q @ k.transpose(-2, -1))
        is_masked = is_causal and mask != "none"
        seen = _seen(scores.shape[-2], scores.shape[-1], mask)
        if is_masked and mask != "after":
            scores = scores.masked_fill(~seen, 0.0 if mask == "zero" else -math.inf)
        if softmax_over == "all":
            weights = scores.flatten(-2).softmax(-1).view_as(scores)
        else:
            weights = scores.softmax(dim=-2 if softmax_over == "queries" else -1)
        if is_masked and mask == "after":
            weights = weights * seen
        return weights @ v

    return answer


def _seen(n_queries: int, n_keys: int, mask: str) -> Tensor:
    everything = torch.ones(n_queries, n_keys, dtype=torch.bool)
    if mask == "upside down":
        return everything.triu()
    return everything.tril({"own place hidden": -1, "one ahead": 1}.get(mask, 0))


MISTAKES = (
    Mistake(
        name="no division by √K",
        faults={"scale": "none"},
        message="The scores are used as they are. Their spread is √K, so the wider a head, the nearer its "
        "softmax comes to picking one key.",
    ),
    Mistake(
        name="divided by K",
        faults={"scale": "1/K"},
        message="The scores are divided by K. A sum of K products spreads by √K: dividing by K makes all "
        "keys nearly equal.",
    ),
    Mistake(
        name="multiplied by √K",
        faults={"scale": "√K"},
        message="The scores are multiplied by √K, where they should be divided by it.",
    ),
    Mistake(
        name="softmax over the queries",
        faults={"softmax_over": "queries"},
        message="The weights sum to 1 over the queries (dim=-2). Each query shares out its own attention: "
        "they must sum to 1 over the keys, dim=-1.",
    ),
    Mistake(
        name="one softmax for all queries together",
        faults={"softmax_over": "all"},
        message="All T · S weights together sum to 1. Each query's own row must.",
    ),
    Mistake(
        name="mask after the softmax",
        faults={"mask": "after"},
        message="Later keys are struck out of the weights, and what is left no longer sums to 1: they had "
        "their part in the denominator. Mask the scores, with -inf, before the softmax.",
    ),
    Mistake(
        name="masked scores set to 0",
        faults={"mask": "zero"},
        message="A score of 0 is an ordinary score, with a weight of e⁰ before normalising. -inf gives a "
        "weight of 0.",
    ),
    Mistake(
        name="no mask",
        faults={"mask": "none"},
        message="With is_causal, query t must not see the keys after t.",
    ),
    Mistake(
        name="a query's own place hidden",
        faults={"mask": "own place hidden"},
        message="Query t must see key t. Here it does not, and the first query is left with no key at all: "
        "NaN. Hide what triu(1) marks, not triu(0).",
    ),
    Mistake(
        name="one place ahead seen",
        faults={"mask": "one ahead"},
        message="Query t sees key t + 1, the very token that it is to guess.",
    ),
    Mistake(
        name="mask upside down",
        faults={"mask": "upside down"},
        message="Each query sees its own and later places, and none before: the mask is transposed.",
    ),
)

HINTS = (
    "Three steps: scores of shape [..., T, S], weights that sum to 1 for each query, a weighted mean of "
    "values.",
    "scores = q @ k.transpose(-2, -1) / K**0.5; where is_causal, put -inf wherever the key's index is "
    "larger than the query's.",
    "hidden = torch.ones(T, S, dtype=torch.bool).triu(1); scores.masked_fill(hidden, "
    "-math.inf).softmax(dim=-1) @ v.",
)


def _case(about: str, rng: np.random.Generator, sizes: tuple[int, ...], n_keys: int, is_causal: bool) -> Case:
    *batch, n_queries, width = sizes
    shapes = [(*batch, n, width) for n in (n_queries, n_keys, n_keys)]
    # Spread of 1.5: a wrong scale or a wrong mask then shows in the first digit.
    arrays = [1.5 * rng.standard_normal(shape) for shape in shapes]

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        tensors = [torch.tensor(array, dtype=torch.float32) for array in arrays]
        return (*tensors, is_causal), {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    n_queries, n_keys = int(rng.integers(3, 6)), int(rng.integers(6, 9))
    width, n_heads = int(rng.integers(3, 8)), int(rng.integers(2, 4))
    return (
        _case(f"1 query and {n_keys} keys, no mask", rng, (1, 1, 1, width), n_keys, False),
        _case(
            f"{n_heads} heads, {n_queries} queries, {n_keys} keys, no mask",
            rng, (2, n_heads, n_queries, width), n_keys, False,
        ),
        _case(f"{n_heads} heads, {n_keys} places, causal", rng, (2, n_heads, n_keys, width), n_keys, True),
    )  # fmt: skip


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return {"the result": as_numbers(call(answer, *args), "the result")}


EXERCISE = Exercise(
    name="attention",
    reference=attention,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    atol=1e-6,
)
