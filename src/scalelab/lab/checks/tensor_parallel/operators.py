"""f and g, a copy and a sum whose backward passes are a sum and a copy, and the ways to sum once too often.

Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3. Taught in book/parallelism/tensor-parallel.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scalelab.lab.checks.answers import Rejected, as_tuple, describe
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.ranks import on_ranks
from scalelab.lab.checks.tensor_parallel.observing import (
    gradient_of,
    need_floats,
    normal,
    rank_by_rank,
    tried_on_its_rank,
)
from scalelab.parallel.scratch.collectives import ring_all_reduce
from scalelab.parallel.scratch.group import Group

Operator = Callable[[Tensor], Tensor]


def operators(group: Group) -> tuple[Operator, Operator]:
    """f and g of Megatron-LM for the ranks of a group, each a function of one tensor."""

    def total_of(x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)  # others may need x as it is
        ring_all_reduce(total, group)
        return total

    class Copy(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return total_of(gradient)

    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return total_of(x)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient

    return Copy.apply, Sum.apply


def _build(
    *, f_forward: str = "own", f_backward: str = "sum", g_forward: str = "sum", g_backward: str = "own",
    swapped: bool = False, entered_by: str = "all", hooked: bool = False,
) -> Answer:  # fmt: skip
    """The operators with the given faults; without any, the right ones."""

    def answer(group: Group) -> Any:
        def combined(x: Tensor, way: str) -> Tensor:
            if way == "own":
                return x.view_as(x)
            total = x if way == "in place" else x.clone(memory_format=torch.contiguous_format)
            ring_all_reduce(total, group)
            return total.div(group.size) if way == "mean" else total.view_as(total)

        def operator(forward_way: str, backward_way: str) -> Operator:
            class Made(torch.autograd.Function):
                @staticmethod
                def forward(ctx: Any, x: Tensor) -> Tensor:
                    return combined(x, forward_way)

                @staticmethod
                def backward(ctx: Any, gradient: Tensor) -> Tensor:
                    is_f = backward_way == f_backward and forward_way == f_forward
                    if is_f and entered_by == "rank 0" and group.rank:
                        return gradient
                    return combined(gradient, backward_way)

            return Made.apply

        def hook(x: Tensor) -> Tensor:
            x.register_hook(lambda gradient: combined(gradient, "sum"))  # type: ignore[no-untyped-call]
            return x

        f = hook if hooked else operator(f_forward, f_backward)
        g = operator(g_forward, g_backward)
        return (g, f) if swapped else (f, g)

    return answer


MISTAKES = (
    Mistake(
        name="f sums on the way forward",
        faults={"f_forward": "sum"},
        message="f hands on the sum of all ranks' x. Every rank has the same whole stream there: forward, f "
        "hands it on as it is.",
    ),
    Mistake(
        name="f does not sum backward",
        faults={"f_backward": "own"},
        message="f hands its gradient back as it came. Each rank's part of the region gives only its own "
        "share of the gradient of x: the shares must be summed over ranks.",
    ),
    Mistake(
        name="f averages backward",
        faults={"f_backward": "mean"},
        message="f hands back the mean of the ranks' gradients. They are shares of one gradient, not several "
        "estimates of it: they are summed, and nothing is divided.",
    ),
    Mistake(
        name="f sums the gradient in place",
        faults={"f_backward": "in place"},
        message="f's backward sums in the very tensor that it was given. Autograd hands the same tensor to "
        "the residual branch, x + f(x), which then carries the sum as well. Sum in a copy.",
    ),
    Mistake(
        name="f's sum takes in what is beside it",
        faults={"hooked": True},
        message="The gradient through f alone is right, and that through x + f(x) is not: what the residual "
        "branch sends back is summed too. A hook on x itself sees all that x gets. Put it on what f returns, "
        "a view of x.",
    ),
    Mistake(
        name="g does not sum",
        faults={"g_forward": "own"},
        message="g hands on each rank's own part. A row-parallel product gives every number in parts, one on "
        "each rank: forward, g sums them.",
    ),
    Mistake(
        name="g averages",
        faults={"g_forward": "mean"},
        message="g divides the sum by the number of ranks. The ranks hold parts of one sum, not copies.",
    ),
    Mistake(
        name="g sums in place",
        faults={"g_forward": "in place"},
        message="g's forward sums in the very tensor that it was given, behind autograd's back: whoever "
        "keeps that tensor for its own backward pass then finds other numbers there. Sum in a copy.",
    ),
    Mistake(
        name="g sums once more backward",
        faults={"g_backward": "sum"},
        message="g's backward sums the gradient over ranks. Every rank computes the same loss from the same "
        "sum, so each has the whole gradient already; summed again it is p times too large. (This is what "
        "torch.distributed.nn.functional.all_reduce does.)",
    ),
    Mistake(
        name="g divides backward",
        faults={"g_backward": "mean"},
        message="g's backward hands back the ranks' mean. What left the region as one sum comes back as one "
        "gradient, the same for every part: hand it back as it is.",
    ),
    Mistake(
        name="f and g have changed places",
        faults={"swapped": True},
        message="What is returned first sums forward, and what is returned second sums backward. f stands "
        "where the stream enters (a copy forward), g where it leaves (a sum forward): return f, g.",
    ),
    Mistake(
        name="a sum that only rank 0 enters",
        faults={"entered_by": "rank 0"},
        message="Only one rank calls ring_all_reduce, in g's forward or in f's backward. A collective ends "
        "when every rank has entered it: call it on all of them, whatever the rank.",
    ),
)

HINTS = (
    "Two classes derived from torch.autograd.Function, each with a static forward(ctx, x) and backward(ctx, "
    "gradient). One of the four methods of each pair communicates.",
    "f: forward returns x.view_as(x), backward the sum of gradients. g: forward returns the sum, backward "
    "the gradient as it is. ring_all_reduce(tensor, group) sums in place: give it a clone.",
    "total = x.clone(memory_format=torch.contiguous_format); ring_all_reduce(total, group); return total. "
    "Return (Copy.apply, Sum.apply).",
)


def _case(rng: np.random.Generator, size: int) -> Case:
    shape = (2, int(rng.integers(2, 5)), 3)
    arrays = normal(rng, 2, size, *shape)  # x and the gradient that comes back, of each rank

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (torch.tensor(arrays), size), {}

    return Case(about=f"{size} ranks with tensors of shape {list(shape)}", make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    return _case(rng, 2), _case(rng, int(rng.integers(3, 6)))


def _trial(answer: Answer, group: Group, x: Tensor, back: Tensor) -> dict[str, Any]:
    """Forward, backward, and backward beside a residual branch, of both operators."""
    found = {}
    pair = as_tuple(answer(group), ("f", "g"))
    for name, operator in zip(("f", "g"), pair, strict=True):
        if isinstance(operator, type) and issubclass(operator, torch.autograd.Function):
            raise Rejected(
                f"returned the class {operator.__name__} for {name}, and should return its .apply",
                name="returned the wrong kind of thing",
            )
        if not callable(operator):
            raise Rejected(
                f"returned {describe(operator)} for {name}, where a function of one tensor should be",
                name="returned the wrong kind of thing",
            )
        leaf = x.clone().requires_grad_()
        given = leaf * 1  # what a layer before has made, which autograd does not keep
        y = need_floats(operator(given), f"{name}(x)")
        found[f"{name}(x)"] = y.detach().clone()
        found[f"x after {name}"] = given.detach().clone()
        if y.shape != x.shape:
            continue
        if y.requires_grad:
            torch.autograd.backward(y, back)
        found[f"gradient through {name}"] = gradient_of(leaf)
        leaf = x.clone().requires_grad_()
        given = leaf * 1
        torch.autograd.backward(given + operator(given), back.clone())
        found[f"gradient through x + {name}(x)"] = gradient_of(leaf)
    return found


def _observe(answer: Answer, case: Case) -> Observation:
    ((x, back), size), _ = case.make()

    def trial(of: Answer, group: Group) -> dict[str, Any]:
        return _trial(of, group, x[group.rank].clone(), back[group.rank].clone())

    return on_ranks(tried_on_its_rank(answer, trial), size, lambda group: (group,), rank_by_rank)


EXERCISE = Exercise(
    name="operators",
    reference=operators,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    atol=1e-5,
)
