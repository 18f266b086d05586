"""A feed-forward cut by columns and then by rows, and the cuts that look like it.

Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3, figure 3a. Taught in
book/parallelism/tensor-parallel.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.ranks import on_ranks
from scalelab.lab.checks.tensor_parallel.observing import (
    gradient_of,
    need_floats,
    normal,
    rank_by_rank,
    tried_on_its_rank,
)
from scalelab.lab.checks.tensor_parallel.operators import Operator, operators
from scalelab.parallel.scratch.group import Group

if TYPE_CHECKING:
    from jaxtyping import Float

Weights = tuple[Tensor, Tensor, Tensor, Tensor]

NAMES = ("up", "up's bias", "down", "down's bias")


def cut_feed_forward(
    x: Float[Tensor, "B T D"], weights: Weights, f: Operator, g: Operator, group: Group
) -> Float[Tensor, "B T D"]:
    """down · gelu(up · x), of which this rank computes its piece of the F numbers between."""
    up, up_bias, down, down_bias = weights  # whole: [F, D], [F], [D, F], [D]
    own_up = up.tensor_split(group.size)[group.rank]
    own_bias = up_bias.tensor_split(group.size)[group.rank]
    own_down = down.tensor_split(group.size, dim=1)[group.rank]
    wide = F.gelu(F.linear(f(x), own_up, own_bias))  # [B, T, F/p]
    return g(F.linear(wide, own_down)) + down_bias


def _build(
    *, entrance: str = "f", exit: str = "g", cut: str = "right", bias: str = "after the sum",
    up_bias: str = "own",
) -> Answer:  # fmt: skip
    """The cut feed-forward with the given faults; without any, the right one."""

    def answer(x: Tensor, weights: Weights, f: Operator, g: Operator, group: Group) -> Tensor:
        up, wide_bias, down, down_bias = weights
        if up_bias == "left out":
            wide_bias = torch.zeros_like(wide_bias)
        ways: dict[str, Operator] = {
            "f": f, "g": g, "none": lambda y: y, "mean": lambda y: g(y) / group.size,
            "g on rank 0": f if group.rank else g,
        }  # fmt: skip
        enter, leave = ways[entrance], ways[exit]
        own = slice(group.rank, None, group.size)
        if cut == "columns first":
            part = enter(x)[..., own] @ up[:, own].T + wide_bias
            partial = F.gelu(part) @ down.T
        else:
            split: Callable[..., Sequence[Tensor]] = torch.tensor_split
            if cut == "rounded up":
                split = torch.chunk
            rows, row_bias = (
                (whole[own] if cut == "do not meet" else split(whole, group.size)[group.rank])
                for whole in (up, wide_bias)
            )
            columns = split(down, group.size, dim=1)[group.rank]
            partial = F.gelu(F.linear(enter(x), rows, row_bias)) @ columns.T
        if bias == "every rank" or (bias == "rank 0" and group.rank == 0):
            partial = partial + down_bias
        if bias == "shares":
            partial = partial + down_bias / group.size
        whole = leave(partial)
        return whole + down_bias if bias == "after the sum" else whole

    return answer


MISTAKES = (
    Mistake(
        name="the bias of down is added on every rank",
        faults={"bias": "every rank"},
        message="The bias of down goes into every rank's part, and the sum of the parts then has it p "
        "times. Add it once, after g.",
    ),
    Mistake(
        name="the bias of down is added on rank 0",
        faults={"bias": "rank 0"},
        message="The result does not show it, but the bias of down has a gradient on rank 0 alone: after a "
        "step the ranks' copies of it differ. Add it after g, on every rank.",
    ),
    Mistake(
        name="a share of the bias of down on every rank",
        faults={"bias": "shares"},
        message="The result does not show it, but the gradient of the bias of down is p times too small: g "
        "hands the gradient to every part as it is, and the part has 1/p of the bias. Add it once, after g.",
    ),
    Mistake(
        name="the bias of down is left out",
        faults={"bias": "none"},
        message="The bias of down is not added.",
    ),
    Mistake(
        name="the bias of up is left out",
        faults={"up_bias": "left out"},
        message="The bias of up is not added. Each rank adds its own piece of it, before GELU.",
    ),
    Mistake(
        name="f is missing",
        faults={"entrance": "none"},
        message="The result does not show it, the gradient of x does: each rank hands back the share of its "
        "own rows. f(x) at the entrance sums these shares on the way back.",
    ),
    Mistake(
        name="g is missing",
        faults={"exit": "none"},
        message="Each rank returns what its own columns of down give. The parts must be summed: g at the "
        "exit.",
    ),
    Mistake(
        name="f and g have changed places",
        faults={"entrance": "g", "exit": "f"},
        message="x goes through g, which sums p copies of it, and the parts go through f, which sums "
        "nothing on the way forward. f at the entrance, g at the exit.",
    ),
    Mistake(
        name="the mean of the parts",
        faults={"exit": "mean"},
        message="The sum of the parts is divided by the number of ranks. They are parts of one sum, not "
        "copies.",
    ),
    Mistake(
        name="GELU of a part of a sum",
        faults={"cut": "columns first"},
        message="up is cut along D: each rank then has, for every one of the F numbers, a part of a sum, and "
        "GELU of a part is not a part of GELU. Cut up by its rows (F), so that a rank has whole sums.",
    ),
    Mistake(
        name="rows and columns that do not meet",
        faults={"cut": "do not meet"},
        message="The rows of up and the columns of down that a rank has are not the same of the F numbers. "
        "Cut both with tensor_split, up along its dimension 0 and down along its dimension 1.",
    ),
    Mistake(
        name="chunk for tensor_split",
        faults={"cut": "rounded up"},
        message="The pieces are those of torch.chunk, which rounds up: 7 numbers over 3 ranks are 3, 3 and "
        "1, and 4 over 3 are 2 and 2, with none for the last rank. tensor_split makes 3, 2, 2 and 2, 1, 1.",
    ),
    Mistake(
        name="a sum that only rank 0 enters",
        faults={"exit": "g on rank 0"},
        message="Only rank 0 calls g. A collective ends when every rank has entered it: call it on all of "
        "them, whatever the rank.",
    ),
)

HINTS = (
    "Cut up and its bias along F (dimension 0), down along F as well (its dimension 1). Between them "
    "everything works on each of the F numbers by itself.",
    "up.tensor_split(group.size)[group.rank] is this rank's piece; down.tensor_split(group.size, "
    "dim=1)[group.rank] the columns that belong to it. x enters through f, the product leaves through g.",
    "wide = F.gelu(F.linear(f(x), own_up, own_bias)); return g(F.linear(wide, own_down)) + down_bias.",
)


def _case(rng: np.random.Generator, size: int, n_wide: int) -> Case:
    d_model = int(rng.integers(3, 6))
    x, coefficients = normal(rng, 2, 2, 3, d_model)
    weights = (
        normal(rng, n_wide, d_model), normal(rng, n_wide), normal(rng, d_model, n_wide), normal(rng, d_model),
    )  # fmt: skip

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (torch.tensor(x), tuple(map(torch.tensor, weights)), torch.tensor(coefficients), size), {}

    return Case(about=f"{size} ranks, D = {d_model}, F = {n_wide}", make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    return _case(rng, 2, 2 * int(rng.integers(3, 6))), _case(rng, 3, int(rng.choice([7, 10])))


def _observe(answer: Answer, case: Case) -> Observation:
    (x, weights, coefficients, size), _ = case.make()

    def arguments(group: Group) -> tuple[Any, ...]:
        leaves = tuple(weight.clone().requires_grad_() for weight in weights)
        return (x.clone().requires_grad_(), leaves, *operators(group), group)

    def trial(of: Answer, own_x: Tensor, leaves: Weights, *rest: Any) -> dict[str, Any]:
        y = need_floats(of(own_x, leaves, *rest), "the result")
        found = {"result": y.detach().clone()}
        if y.shape == x.shape:
            if y.requires_grad:
                (y * coefficients).sum().backward()
            found["gradient of x"] = gradient_of(own_x)
            found |= {f"gradient of {n}": gradient_of(w) for n, w in zip(NAMES, leaves, strict=True)}
        return found

    return on_ranks(tried_on_its_rank(answer, trial), size, arguments, rank_by_rank)


EXERCISE = Exercise(
    name="cut_feed_forward",
    reference=cut_feed_forward,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    atol=1e-5,
)
