"""SwiGLU written out, and the ways to gate the wrong thing.

Source: Shazeer 2020, arXiv:2002.05202, eq. 6. Taught in book/transformers/block.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from scalelab.lab.checks.answers import as_numbers, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def swiglu(
    x: Float[Tensor, "*batch D"],
    w_gate: Float[Tensor, "F D"],
    w_up: Float[Tensor, "F D"],
    w_down: Float[Tensor, "D F"],
) -> Float[Tensor, "*batch D"]:
    """W_down (silu(W_gate x) ⊙ W_up x), where silu(z) = z · sigmoid(z)."""
    gate = x @ w_gate.T  # [..., F]
    return (gate * gate.sigmoid() * (x @ w_up.T)) @ w_down.T


def _build(*, swapped: bool = False, bend: str = "silu", at: str = "gate", join: str = "product") -> Answer:
    """A gated feed-forward with the given faults; without any, the right one."""
    bends: dict[str, Callable[[Tensor], Tensor]] = {
        "silu": F.silu,
        "sigmoid": torch.sigmoid,
        "gelu": F.gelu,
        "relu": F.relu,
        "none": lambda z: z,
    }

    def answer(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
        act = bends[bend]
        if swapped:
            w_gate, w_up = w_up, w_gate
        gate, up = x @ w_gate.T, x @ w_up.T
        if at == "product":
            return act(gate * up) @ w_down.T
        if at == "both":
            up = act(up)
        wide = {"product": act(gate) * up, "sum": act(gate) + up, "no up": act(gate)}[join]
        return wide @ w_down.T

    return answer


MISTAKES = (
    Mistake(
        name="gate and up swapped",
        faults={"swapped": True},
        message="The bend is on W_up's branch. It belongs to W_gate's; with random weights nobody would "
        "see the difference, with trained ones everybody does.",
    ),
    Mistake(
        name="both branches bent",
        faults={"at": "both"},
        message="silu is on both branches. One of the two stays as it is, so that the output can grow with "
        "the square of the input.",
    ),
    Mistake(
        name="product bent",
        faults={"at": "product"},
        message="The bend comes after the product. It belongs to the gate alone, before it.",
    ),
    Mistake(
        name="no product",
        faults={"join": "no up"},
        message="W_up is not used: this is the plain feed-forward part with silu as its bend.",
    ),
    Mistake(
        name="sum instead of product",
        faults={"join": "sum"},
        message="The branches are added. A gate multiplies: where it is near 0, nothing of the other branch "
        "passes.",
    ),
    Mistake(
        name="sigmoid instead of silu",
        faults={"bend": "sigmoid"},
        message="This is the older gated linear unit (GLU), whose gate lies between 0 and 1. silu(z) is z "
        "times the sigmoid of z.",
    ),
    Mistake(
        name="GELU instead of silu",
        faults={"bend": "gelu"},
        message="This is GEGLU. It is about as good, and another function: silu(z) = z · sigmoid(z).",
    ),
    Mistake(
        name="no bend",
        faults={"bend": "none"},
        message="The gate is not bent (this is called a bilinear layer): silu is missing.",
    ),
)

HINTS = (
    "Two widened copies of x; one of them goes through silu, then they are multiplied number by number, "
    "then brought back to D.",
    "Weights have the shape [outputs, inputs], so a map is x @ w.T; torch.nn.functional.silu is the bend.",
    "(F.silu(x @ w_gate.T) * (x @ w_up.T)) @ w_down.T.",
)


def _case(about: str, rng: np.random.Generator, shape: tuple[int, ...], wide: int, size: float) -> Case:
    width = shape[-1]
    drawn = [size * rng.standard_normal(shape), *(rng.standard_normal((wide, width)) for _ in range(2)),
             rng.standard_normal((width, wide))]  # fmt: skip

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(torch.tensor(part, dtype=torch.float32) for part in drawn), {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    width, wide = int(rng.integers(3, 7)), int(rng.integers(8, 14))
    return (
        _case("one vector, D = 3, F = 5", rng, (3,), 5, 1.0),
        _case(f"shape [2, 4, {width}], F = {wide}", rng, (2, 4, width), wide, 1.0),
        _case(f"large numbers, shape [2, {width}], F = {wide}", rng, (2, width), wide, 3.0),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return {"the result": as_numbers(call(answer, *args), "the result")}


EXERCISE = Exercise(
    name="swiglu",
    reference=swiglu,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-4,
    atol=1e-4,
)
