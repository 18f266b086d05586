"""ALiBi: a penalty on distance, steeper in some heads than in others, and the ways to penalise wrongly.

Source: Press et al. 2021, arXiv:2108.12409, section 3. Taught in book/transformers/attention.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalelab.lab.checks.answers import Numbers, Rejected, as_numbers, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def alibi_bias(n_heads: int, seq_len: int) -> Float[Tensor, "H T T"]:
    """What is added to the scores: -2^(-8h/H) · (t - s) for head h = 1 … H, and -inf where s > t."""
    slopes = 2.0 ** (-8 * torch.arange(1, n_heads + 1) / n_heads)  # [H]
    places = torch.arange(seq_len)
    distance = places[:, None] - places[None, :]  # [T, T]: query's place - key's place
    bias = -slopes[:, None, None] * distance
    return bias.masked_fill(distance < 0, -math.inf)


def _build(
    *, sign: float = -1.0, slopes: str = "right", later: str = "hidden", transposed: bool = False
) -> Answer:
    """A bias with the given faults; without any, the right one."""

    def answer(n_heads: int, seq_len: int) -> Tensor:
        number = torch.arange(1, n_heads + 1)
        power = {
            "from 0": 8 * (number - 1) / n_heads,
            "for 8 heads": number,
            "one": 0 * number + 8 / n_heads,
            "reversed": 8 * number.flip(0) / n_heads,
        }.get(slopes, 8 * number / n_heads)
        places = torch.arange(seq_len)
        distance = places[:, None] - places[None, :]
        if transposed:
            distance = -distance
        far = distance.abs() if later == "penalised" else distance
        bias = sign * (2.0**-power)[:, None, None] * far
        if later in ("penalised", "seen"):
            return bias
        hidden = distance <= 0 if later == "own hidden" else distance < 0
        return bias.masked_fill(hidden, 0.0 if later == "zero" else -math.inf)

    return answer


MISTAKES = (
    Mistake(
        name="farther is better",
        faults={"sign": 1.0},
        message="The bias grows with distance, so the farthest key is favoured. It is a penalty: negative.",
    ),
    Mistake(
        name="slopes from h = 0",
        faults={"slopes": "from 0"},
        message="The first slope is 2⁰ = 1. Heads count from 1: with H heads the slopes run from 2^(-8/H) "
        "to 2⁻⁸.",
    ),
    Mistake(
        name="slopes of eight heads",
        faults={"slopes": "for 8 heads"},
        message="The slopes are 2⁻¹, 2⁻², 2⁻³, …, which is right for 8 heads only. With H heads: 2^(-8h/H).",
    ),
    Mistake(
        name="one slope for all heads",
        faults={"slopes": "one"},
        message="All heads have the first one's slope. Steep heads look near, flat ones far; each has its "
        "own.",
    ),
    Mistake(
        name="heads in reverse",
        faults={"slopes": "reversed"},
        message="The steepest slope stands last. Head h = 1 has the steepest.",
    ),
    Mistake(
        name="later places rewarded",
        faults={"later": "seen"},
        message="Later keys are not hidden, and t - s is negative there, so they even gain. Put -inf where "
        "s > t.",
    ),
    Mistake(
        name="later places penalised, not hidden",
        faults={"later": "penalised"},
        message="This penalises |t - s| on both sides, which an encoder may do. Here s > t must be -inf.",
    ),
    Mistake(
        name="later places at 0",
        faults={"later": "zero"},
        message="A bias of 0 is the best there is: later keys must have -inf.",
    ),
    Mistake(
        name="own place hidden",
        faults={"later": "own hidden"},
        message="A query must see its own place, at distance 0; the first one has no other.",
    ),
    Mistake(
        name="queries and keys exchanged",
        faults={"transposed": True},
        message="The bias is transposed: rows are queries, columns are keys, and each query sees what is "
        "before it.",
    ),
)

HINTS = (
    "For each head a slope, for each pair of places a distance: the bias is minus their product, and -inf "
    "for keys that come later.",
    "slopes = 2.0 ** (-8 * torch.arange(1, H + 1) / H); distance[t, s] = t - s.",
    "(-slopes[:, None, None] * distance).masked_fill(distance < 0, -math.inf) has the shape [H, T, T].",
)


def _case(n_heads: int, seq_len: int) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (n_heads, seq_len), {}

    return Case(about=f"{n_heads} heads and {seq_len} places", make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    few, some = rng.choice(np.arange(2, 8), size=2, replace=False)  # not 8, whose slopes are the plain halves
    heads = (int(few), int(some), int(rng.integers(9, 17)))
    return tuple(_case(n_heads, int(rng.integers(5, 64))) for n_heads in heads)


def _observe(answer: Answer, case: Case) -> Observation:
    (n_heads, seq_len), _ = case.make()
    bias = as_numbers(call(answer, n_heads, seq_len), "the bias").values
    if bias.shape != (n_heads, seq_len, seq_len):
        raise Rejected(
            f"returned shape {list(bias.shape)}, and should return [H, T, T] = {[n_heads, seq_len, seq_len]}",
            name="returned the wrong shape",
        )
    # The same number added to a whole row changes no softmax: what counts is the distance to its diagonal.
    own = np.diagonal(bias, axis1=1, axis2=2)[:, :, None]
    return {"the bias": Numbers(bias - np.where(np.isfinite(own), own, 0.0))}


EXERCISE = Exercise(
    name="alibi_bias",
    reference=alibi_bias,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    atol=1e-6,
)
