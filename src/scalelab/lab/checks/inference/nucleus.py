"""Temperature and top-p: from logits to what is drawn from, and the ways to cut in the wrong place.

Source: Holtzman et al. 2019, arXiv:1904.09751, section 3.1. Taught in book/transformers/inference.md.
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


def top_p_filter(logits: Float[Tensor, "B V"], temperature: float, top_p: float) -> Float[Tensor, "B V"]:
    """Probabilities to draw from: tempered, cut to the fewest tokens with mass top_p, summing to one."""
    p = (logits / temperature).softmax(dim=-1)
    falling, ids = p.sort(dim=-1, descending=True)  # both [B, V]
    before = falling.cumsum(dim=-1) - falling  # mass of the likelier tokens
    kept = torch.zeros_like(p).scatter(-1, ids, falling.where(before < top_p, 0.0))
    return kept / kept.sum(dim=-1, keepdim=True)


def _build(
    *, cut: str = "right", order: str = "falling", temper: str = "before", normalised: bool = True,
    rows: str = "each its own",
) -> Answer:  # fmt: skip
    """Top-p with the given faults; without any, the right one."""

    def answer(logits: Tensor, temperature: float, top_p: float) -> Tensor:
        scale = {"before": 1 / temperature, "multiplied": temperature}.get(temper, 1.0)
        p = (logits * scale).softmax(dim=-1)
        sorted_p, ids = p.sort(dim=-1, descending=order == "falling")
        mass = sorted_p.cumsum(dim=-1)
        if cut == "one short":
            keep = mass <= top_p
        elif cut == "one short, never none":
            keep = mass <= top_p
            keep[:, 0] = True
        elif cut == "one too many":
            keep = (mass - sorted_p - sorted_p.roll(1, -1).index_fill(-1, torch.tensor([0]), 0.0)) < top_p
        elif cut == "each":
            keep = sorted_p >= 1 - top_p
        else:
            keep = mass - sorted_p < top_p
        if rows == "alike":
            keep = keep.any(dim=0).expand_as(keep)
        kept = torch.zeros_like(p).scatter(-1, ids, sorted_p * keep)
        if temper == "after":
            kept = kept ** (1 / temperature)
        return kept / kept.sum(dim=-1, keepdim=True) if normalised else kept

    return answer


MISTAKES = (
    Mistake(
        name="the token that crosses p is left out",
        faults={"cut": "one short"},
        message="Tokens are kept while the mass, their own included, stays within top_p. The kept ones then "
        "hold less than top_p, and none at all where the likeliest token alone is more. Ask for the mass "
        "*before* a token: it stays while that is below top_p.",
    ),
    Mistake(
        name="the token that crosses p is left out, but never the first",
        faults={"cut": "one short, never none"},
        message="The first token is kept by a rule of its own, and the others while the mass with them is "
        "within top_p. The set should be the smallest with *at least* top_p: the token that crosses belongs "
        "to it.",
    ),
    Mistake(
        name="one token too many",
        faults={"cut": "one too many"},
        message="The set goes one token beyond the one that crosses top_p: the mask was moved by one place "
        "twice.",
    ),
    Mistake(
        name="a threshold on each token",
        faults={"cut": "each"},
        message="Tokens with a probability of at least 1 - top_p are kept. Top-p is about the mass of the "
        "kept tokens together, which is why their number changes from place to place.",
    ),
    Mistake(
        name="as many tokens in every row",
        faults={"rows": "alike"},
        message="Every row keeps as many tokens as the row that needs most. Where one stops is a question of "
        "its own mass: keep a mask [B, V], not one number for all rows. (One number for all is top-k.)",
    ),
    Mistake(
        name="the unlikely end is kept",
        faults={"order": "rising"},
        message="The mass is summed from the unlikeliest token on. Sort with descending=True.",
    ),
    Mistake(
        name="temperature after the cut",
        faults={"temper": "after"},
        message="The set is chosen from the untempered probabilities. Temperature comes first: at a low one "
        "the set is smaller.",
    ),
    Mistake(
        name="multiplied by the temperature",
        faults={"temper": "multiplied"},
        message="The logits are multiplied by the temperature. Divide: a low temperature makes differences "
        "larger.",
    ),
    Mistake(
        name="temperature left out",
        faults={"temper": "none"},
        message="The temperature is not used.",
    ),
    Mistake(
        name="not normalised",
        faults={"normalised": False},
        message="What is kept sums to about top_p. Divide by its sum, or the numbers are no probabilities.",
    ),
)

HINTS = (
    "Four steps: divide by the temperature and take the softmax; sort; decide which stay; put them back in "
    "their places and divide by their sum.",
    "falling, ids = p.sort(dim=-1, descending=True); the mass before each token is falling.cumsum(-1) - "
    "falling; it stays while that is below top_p.",
    "kept = torch.zeros_like(p).scatter(-1, ids, falling * (before < top_p)); return kept / kept.sum(-1, "
    "keepdim=True).",
)


def _case(about: str, logits: np.ndarray, temperature: float, top_p: float) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (torch.tensor(logits, dtype=torch.float32), temperature, top_p), {}

    return Case(about=about, make=make)


def _shuffled_logits(rng: np.random.Generator, n_rows: int, n_tokens: int) -> np.ndarray:
    """Rows that fall by 0.35 to 0.65 a token, shuffled: no two alike, so that a cut has one right place.

    The first row falls 2.2 times as fast and the third half as fast, so that each keeps another number.
    """
    pace = np.array([2.2, 1.0, 0.5])[:n_rows, None]
    falling = -np.cumsum(rng.uniform(0.35, 0.65, (n_rows, n_tokens)) * pace, axis=1)
    return rng.permuted(falling, axis=1)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    n_tokens = int(rng.integers(10, 14))
    sure = _shuffled_logits(rng, 1, n_tokens)
    sure[0, int(rng.integers(n_tokens))] = 4.0
    return (
        _case(f"3 rows of {n_tokens} tokens, p = 0.7", _shuffled_logits(rng, 3, n_tokens), 1.0, 0.7),
        _case("temperature 0.5, p = 0.8", _shuffled_logits(rng, 3, n_tokens), 0.5, 0.8),
        _case("temperature 2, p = 0.6", _shuffled_logits(rng, 3, n_tokens), 2.0, 0.6),
        _case("one token that is nearly certain, p = 0.5", sure, 1.0, 0.5),
        _case("a tiny p of 0.01", _shuffled_logits(rng, 2, n_tokens), 1.0, 0.01),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return {"the probabilities": as_numbers(call(answer, *args), "the probabilities")}


EXERCISE = Exercise(
    name="top_p_filter",
    reference=top_p_filter,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    atol=1e-6,
)
