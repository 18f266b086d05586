"""Rotary positions: pairs of numbers turned by angles that grow with the place, and the ways to turn wrongly.

Source: Su et al. 2021, arXiv:2104.09864, eq. 15 and 34; halves are paired, as in `transformers`.
Taught in book/transformers/attention.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalelab.lab.checks.answers import as_numbers, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

BASE = 10_000.0


def rotate(x: Float[Tensor, "*batch T K"], positions: Int[Tensor, " T"]) -> Float[Tensor, "*batch T K"]:
    """Number i of each vector turned together with number i + K/2, by position · 10000^(-2i/K)."""
    width = x.shape[-1]
    frequencies = BASE ** (-torch.arange(0, width, 2, device=x.device) / width)  # [K/2]
    angles = positions[:, None] * frequencies  # [T, K/2]
    cos, sin = angles.cos(), angles.sin()
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


def _build(
    *,
    pairs: str = "halves",
    sign: float = 1.0,
    places: str = "given",
    frequency: str = "2i/K",
    formula: str = "rotation",
) -> Answer:
    """A rotation with the given faults; without any, the right one."""

    def answer(x: Tensor, positions: Tensor) -> Tensor:
        width = x.shape[-1]
        pair = torch.arange(width // 2)
        power = {"i/K": pair / width, "4i/K": 4 * pair / width, "one": 0 * pair}.get(
            frequency, 2 * pair / width
        )
        if places == "ignored":
            positions = torch.arange(x.shape[-2])
        positions = positions + (1 if places == "from 1" else 0)
        angles = sign * positions[:, None] * BASE**-power
        cos, sin = angles.cos(), angles.sin()
        if formula == "swapped":
            cos, sin = sin, cos
        first, second = (x[..., 0::2], x[..., 1::2]) if pairs == "neighbours" else x.chunk(2, dim=-1)
        lower = -first if formula == "slip" else first
        turned = (first * cos - second * sin, lower * sin + second * cos)
        if pairs == "neighbours":
            return torch.stack(turned, dim=-1).flatten(-2)
        return torch.cat(turned, dim=-1)

    return answer


MISTAKES = (
    Mistake(
        name="neighbours paired",
        faults={"pairs": "neighbours"},
        message="Numbers 2i and 2i + 1 are turned together. That is the paper's order, and a sound model, "
        "but weights trained with the other are of no use to it: here i goes with i + K/2.",
    ),
    Mistake(
        name="turned backwards",
        faults={"sign": -1.0},
        message="The angle has the wrong sign: (a, b) becomes (a cos - b sin, a sin + b cos).",
    ),
    Mistake(
        name="positions counted from 1",
        faults={"places": "from 1"},
        message="1 is added to the positions. Between a query and a key that are both so turned nothing "
        "changes, and a cache of keys turned otherwise is off by one.",
    ),
    Mistake(
        name="positions not used",
        faults={"places": "ignored"},
        message="Places are counted 0, 1, 2, … whatever `positions` says. A token that is generated later "
        "than the others stands at a later place.",
    ),
    Mistake(
        name="one frequency for all pairs",
        faults={"frequency": "one"},
        message="Every pair turns by the position itself. Pair i should turn by position · 10000^(-2i/K).",
    ),
    Mistake(
        name="exponent i/K",
        faults={"frequency": "i/K"},
        message="The exponent is -i/K, i being the number of the pair; it should be -2i/K. (With "
        "torch.arange(0, K, 2) the 2 is in already, with torch.arange(K // 2) it is not.)",
    ),
    Mistake(
        name="exponent 4i/K",
        faults={"frequency": "4i/K"},
        message="The exponent is -4i/K: the 2 is in twice, or K/2 stands where K should.",
    ),
    Mistake(
        name="sine and cosine swapped",
        faults={"formula": "swapped"},
        message="At position 0 nothing should turn: cos 0 = 1 must multiply each number by itself.",
    ),
    Mistake(
        name="no rotation but a mirror",
        faults={"formula": "slip"},
        message="The second line has the wrong sign, a cos - b sin and b cos - a sin: lengths change with "
        "the position. It is b cos + a sin.",
    ),
)

HINTS = (
    "K/2 pairs, each with an angle of its own: at position 0 nothing moves, at position 1 the first pair "
    "turns by one radian.",
    "frequencies = 10_000.0 ** (-torch.arange(0, K, 2) / K); angles = positions[:, None] * frequencies, of "
    "shape [T, K/2].",
    "a, b = x.chunk(2, dim=-1); return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).",
)


def _case(about: str, rng: np.random.Generator, sizes: tuple[int, ...], first: int) -> Case:
    x = rng.standard_normal(sizes)

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (torch.tensor(x, dtype=torch.float32), torch.arange(first, first + sizes[-2])), {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    time, later = int(rng.integers(4, 8)), int(rng.integers(5, 30))
    width = 2 * int(rng.integers(3, 6))
    return (
        _case("positions 0 and 1, K = 4", rng, (2, 4), 0),
        _case(f"positions 0 … {time - 1}, K = {width}", rng, (2, 3, time, width), 0),
        _case(f"positions {later} … {later + time - 1}, K = {width}", rng, (1, 2, time, width), later),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return {"the result": as_numbers(call(answer, *args), "the result")}


EXERCISE = Exercise(
    name="rotate",
    reference=rotate,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    atol=1e-5,
)
