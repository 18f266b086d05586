"""The backward pass of a norm that sees only its rank's tokens, and whose gradients are easily left there.

Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2. Taught in
book/parallelism/tensor-parallel.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalelab.lab.checks.answers import as_tuple
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.ranks import on_ranks
from scalelab.lab.checks.tensor_parallel.observing import normal, rank_by_rank, summed
from scalelab.parallel.scratch.collectives import ring_all_reduce
from scalelab.parallel.scratch.group import Group
from scalelab.parallel.scratch.sequence_parallel import own_tokens, reduce_scatter_tokens

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

EPS = 1e-5


def norm(x: Float[Tensor, "B T D"], weight: Float[Tensor, " D"]) -> Float[Tensor, "B T D"]:
    """RMSNorm: each token divided by the root of its mean square, times the weight."""
    return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)


def norm_gradients(
    x: Float[Tensor, "B t D"], weight: Float[Tensor, " D"], back: Float[Tensor, "B T D"], group: Group
) -> tuple[Float[Tensor, "B t D"], Float[Tensor, " D"]]:
    """Gradients of this rank's tokens and of the whole weight, from what its products send back for all."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    torch.autograd.backward(norm(x, weight), reduce_scatter_tokens(back, group))
    assert x.grad is not None
    assert weight.grad is not None
    ring_all_reduce(weight.grad, group)
    return x.grad, weight.grad


def _build(
    *, back_of: str = "summed", weight_of: str = "summed", scale: str = "right", normed: bool = True,
    entered_by: str = "all",
) -> Answer:  # fmt: skip
    """The backward pass with the given faults; without any, the right one."""

    def answer(x: Tensor, weight: Tensor, back: Tensor, group: Group) -> Any:
        if back_of == "twice":
            back = summed(group)(back)
        if back_of == "own":
            mine = own_tokens(back, group)
        elif back_of == "ones":
            mine = torch.ones_like(x)
        elif back_of == "first":
            mine = summed(group)(back)[:, : x.shape[1]]
        else:
            mine = reduce_scatter_tokens(back, group) / (group.size if back_of == "mean" else 1)
        inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)
        unit = x * inverse
        along = (mine * weight * unit).mean(-1, keepdim=True)
        gradient = inverse * (mine * weight - (0 if scale == "constant" else unit * along))
        own_weight = (mine * (unit if normed else x)).sum((0, 1))
        if entered_by == "rank 0" and group.rank:
            return gradient, own_weight
        for _ in range({"own": 0, "twice": 2}.get(weight_of, 1)):
            own_weight = summed(group)(own_weight)
        own_weight = own_weight / (group.size if weight_of == "mean" else 1)
        return mine.clone() if scale == "no norm" else gradient, own_weight

    return answer


MISTAKES = (
    Mistake(
        name="each rank's own share of what comes back",
        faults={"back_of": "own"},
        message="The rank takes its own tokens of what its own products send back. Every rank has "
        "multiplied every token by its share of the weights: what all of them send back for these tokens is "
        "to be summed.",
    ),
    Mistake(
        name="the mean of what comes back",
        faults={"back_of": "mean"},
        message="What the ranks send back is divided by their number. These are shares of one gradient: sum "
        "them.",
    ),
    Mistake(
        name="what comes back summed twice",
        faults={"back_of": "twice"},
        message="What the ranks send back is all-reduced and then reduce-scattered, which sums once more: it "
        "is p times too large. reduce_scatter_tokens sums and cuts.",
    ),
    Mistake(
        name="what comes back is not used",
        faults={"back_of": "ones"},
        message="`back` is not used: norm(x, weight).sum().backward() is right only where the loss is the "
        "sum. norm(x, weight).backward(…) goes on from what has come back.",
    ),
    Mistake(
        name="every rank takes the first tokens",
        faults={"back_of": "first"},
        message="The sum is right, and every rank then takes its first tokens. Rank r has piece r: "
        "reduce_scatter_tokens hands it over (and sends half as much).",
    ),
    Mistake(
        name="the weight's gradient stays on its rank",
        faults={"weight_of": "own"},
        message="The weight's gradient is that of the rank's own tokens. The weight has seen the others' "
        "tokens on the other ranks: sum over ranks, or the copies of it drift apart at the first step.",
    ),
    Mistake(
        name="the weight's gradient averaged",
        faults={"weight_of": "mean"},
        message="The weight's gradient is divided by the number of ranks. Each rank has seen other tokens "
        "of the same loss: their gradients add up.",
    ),
    Mistake(
        name="the weight's gradient summed twice",
        faults={"weight_of": "twice"},
        message="The weight's gradient is summed over ranks, and the sum once more: it is p times too large.",
    ),
    Mistake(
        name="a sum that only rank 0 enters",
        faults={"entered_by": "rank 0"},
        message="Only one rank calls ring_all_reduce. A collective ends when every rank has entered it, and "
        "every rank needs the sum: its copy of the weight takes the same step.",
    ),
    Mistake(
        name="not taken through the norm",
        faults={"scale": "no norm"},
        message="What is returned for x is the gradient of what the norm has made. Take it back through the "
        "norm: norm(x, weight).backward(…).",
    ),
    Mistake(
        name="the root mean square taken for a constant",
        faults={"scale": "constant"},
        message="The gradient of x is that of a division by a constant. The root mean square depends on x "
        "too: let autograd do it.",
    ),
    Mistake(
        name="the weight meets x before it is normed",
        faults={"normed": False},
        message="The weight's gradient is a sum of products with x itself. The weight multiplies x divided "
        "by its root mean square.",
    ),
)

HINTS = (
    "Two collectives: one brings what all ranks send back for this rank's tokens, the other sums the "
    "weight's gradient. Between them autograd does the norm, on this rank's tokens alone.",
    "reduce_scatter_tokens(back, group) has the shape of x. norm(x, weight).backward(that) leaves gradients "
    "at x and weight, where both are leaves: x.clone().requires_grad_().",
    "After backward: ring_all_reduce(weight.grad, group), in place; return x.grad, weight.grad.",
)


def _case(rng: np.random.Generator, size: int, n_tokens: int) -> Case:
    d_model = int(rng.integers(3, 6))
    x, weight = normal(rng, 2, n_tokens, d_model), normal(rng, d_model)
    backs = normal(rng, size, 2, n_tokens, d_model)

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (torch.tensor(x), torch.tensor(weight), torch.tensor(backs), size), {}

    return Case(about=f"{size} ranks, T = {n_tokens}, D = {d_model}", make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    return _case(rng, 2, 2 * int(rng.integers(2, 5))), _case(rng, 3, int(rng.choice([4, 5, 7, 8])))


def _observe(answer: Answer, case: Case) -> Observation:
    (x, weight, backs, size), _ = case.make()

    def arguments(group: Group) -> tuple[Any, ...]:
        return own_tokens(x, group).clone(), weight.clone(), backs[group.rank].clone(), group

    def read(answers: list[Any]) -> Observation:
        names = ("gradient of x", "gradient of the weight")
        return rank_by_rank([dict(zip(names, as_tuple(got, names), strict=True)) for got in answers])

    return on_ranks(answer, size, arguments, read)


EXERCISE = Exercise(
    name="norm_gradients",
    reference=norm_gradients,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    atol=1e-5,
)
