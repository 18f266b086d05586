"""Back-propagation of a two-layer net by hand, and the factors, transposes and sums that get lost in it.

Source: Rumelhart, Hinton & Williams 1986, Nature 323, 533. Taught in book/transformers/basics.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalelab.lab.checks.answers import as_numbers, as_tuple, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

OUTPUTS = ("dW1", "db1", "dW2", "db2")


def two_layer_gradients(
    x: Float[Tensor, "B D"],
    targets: Int[Tensor, " B"],
    W1: Float[Tensor, "D F"],
    b1: Float[Tensor, " F"],
    W2: Float[Tensor, "F V"],
    b2: Float[Tensor, " V"],
) -> tuple[Float[Tensor, "D F"], Float[Tensor, " F"], Float[Tensor, "F V"], Float[Tensor, " V"]]:
    """Gradients of the mean cross-entropy of softmax(tanh(x W1 + b1) W2 + b2), without autograd."""
    hidden = torch.tanh(x @ W1 + b1)  # [B, F]
    p = torch.softmax(hidden @ W2 + b2, dim=-1)  # [B, V]
    d_logits = p.clone()
    d_logits[torch.arange(len(x)), targets] -= 1
    d_logits /= len(x)  # the loss is a mean over the batch
    d_hidden = d_logits @ W2.t()  # [B, F]
    d_before = d_hidden * (1 - hidden**2)  # tanh' = 1 - tanh²
    return x.t() @ d_before, d_before.sum(dim=0), hidden.t() @ d_logits, d_logits.sum(dim=0)


def _build(
    *,
    mean: str = "once",
    sign: int = 1,
    bend: str = "right",
    bias: str = "sum",
    transposed: bool = False,
    target: bool = True,
    axis: int = -1,
    second: str = "hidden",
) -> Answer:
    """Gradients with the given faults; without any, the right ones."""

    def answer(x: Tensor, targets: Tensor, W1: Tensor, b1: Tensor, W2: Tensor, b2: Tensor) -> Any:
        before = x @ W1 + b1
        hidden = torch.tanh(before)
        d_logits = torch.softmax(hidden @ W2 + b2, dim=axis)
        if target:
            d_logits = d_logits - torch.nn.functional.one_hot(targets, len(b2)).to(d_logits.dtype)
        d_logits = sign * d_logits / {"once": len(x), "never": 1, "twice": len(x) ** 2}[mean]
        d_before = (d_logits @ W2.t()) * _bend(before, hidden, bend)
        d_first = x.t() @ d_before
        d_second = (before if second == "before the bend" else hidden).t() @ d_logits
        reduced = [g.mean(dim=0) if bias == "mean" else g.sum(dim=0) for g in (d_before, d_logits)]
        if transposed:
            d_first, d_second = d_first.t(), d_second.t()
        return d_first, reduced[0], d_second, reduced[1]

    return answer


def _bend(before: Tensor, hidden: Tensor, bend: str) -> Tensor:
    if bend == "left out":
        return torch.ones_like(hidden)
    if bend == "before the bend":
        return 1 - before**2
    if bend == "bent twice":
        return 1 - torch.tanh(hidden) ** 2
    if bend == "not squared":
        return 1 - hidden
    return 1 - hidden**2


MISTAKES = (
    Mistake(
        name="mean left out",
        faults={"mean": "never"},
        message="All four gradients are too large by the size of the batch: the loss is a mean, so p - y is "
        "divided by B.",
    ),
    Mistake(
        name="averaged twice",
        faults={"mean": "twice"},
        message="All four gradients are too small by the size of the batch: p - y was divided by B, and then "
        "something was once more.",
    ),
    Mistake(
        name="sign turned round",
        faults={"sign": -1},
        message="All four gradients have the wrong sign: the gradient at the logits is p - y, not y - p.",
    ),
    Mistake(
        name="targets never subtracted",
        faults={"target": False},
        message="p alone goes back. The gradient at the logits is p - y: subtract 1 at each row's target.",
    ),
    Mistake(
        name="softmax over the wrong axis",
        faults={"axis": 0},
        message="p sums to one over the batch. Each example's V probabilities must sum to one: dim=-1.",
    ),
    Mistake(
        name="derivative of tanh left out",
        faults={"bend": "left out"},
        message="dW1 and db1 lack the factor 1 - hidden²: the way back goes through tanh as well.",
    ),
    Mistake(
        name="derivative of tanh taken before the bend",
        faults={"bend": "before the bend"},
        message="1 - z² with z = x W1 + b1. The derivative of tanh at z is 1 - tanh(z)², so the square is of "
        "the hidden values.",
    ),
    Mistake(
        name="derivative of tanh taken of the hidden values",
        faults={"bend": "bent twice"},
        message="1 - tanh(hidden)² bends twice. hidden is tanh(z) already: 1 - hidden².",
    ),
    Mistake(
        name="derivative of tanh not squared",
        faults={"bend": "not squared"},
        message="1 - hidden, where 1 - hidden² should be.",
    ),
    Mistake(
        name="bias gradients averaged",
        faults={"bias": "mean"},
        message="db1 and db2 are means over the batch, and the mean is in p - y already. The bias is added "
        "to every row, so its gradient is the sum of the rows.",
        seen_in=("db1", "db2"),
    ),
    Mistake(
        name="weight gradients transposed",
        faults={"transposed": True},
        message="dW1 is [F, D] and dW2 is [V, F]. A gradient has the shape of what it belongs to: "
        "x.T @ d_before is [D, F].",
        seen_in=("dW1", "dW2"),
    ),
    Mistake(
        name="dW2 from the values before the bend",
        faults={"second": "before the bend"},
        message="W2 was multiplied by hidden = tanh(x W1 + b1), so dW2 is hidden.T @ d_logits.",
        seen_in=("dW2",),
    ),
)

HINTS = (
    "Write down all shapes first. Each gradient has the shape of its tensor, and often only one product of "
    "what you have gives that shape.",
    "Start at the logits: d_logits = (p - y) / B, [B, V]. From there dW2 = hidden.T @ d_logits, and the way "
    "on is d_logits @ W2.T.",
    "d_before = (d_logits @ W2.T) * (1 - hidden**2); dW1 = x.T @ d_before; each bias sums its rows: "
    ".sum(dim=0).",
)


def _case(about: str, rng: np.random.Generator, sizes: tuple[int, int, int, int]) -> Case:
    n_rows, d_model, d_ff, n_vocab = sizes
    arrays = (
        rng.standard_normal((d_model, d_ff)), rng.standard_normal(d_ff),
        rng.standard_normal((d_ff, n_vocab)), rng.standard_normal(n_vocab),
    )  # fmt: skip
    x, targets = rng.standard_normal((n_rows, d_model)), rng.integers(n_vocab, size=n_rows)

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        weights = tuple(torch.tensor(0.7 * array) for array in arrays)
        return (torch.tensor(x), torch.tensor(targets), *weights), {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    # Four sizes, all different: a transposed matrix then shows by its shape.
    sizes = tuple(int(size) for size in rng.permutation([3, 4, 5, 6]))
    n_rows, d_model, d_ff, n_vocab = sizes
    shapes = f"B, D, F, V = {n_rows}, {d_model}, {d_ff}, {n_vocab}"
    return (
        _case(f"1 example, D, F, V = {d_model}, {d_ff}, {n_vocab}", rng, (1, d_model, d_ff, n_vocab)),
        _case(shapes, rng, (n_rows, d_model, d_ff, n_vocab)),
        _case("B = 8 and D = F = V = 4", rng, (8, 4, 4, 4)),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, kwargs = case.make()
    with torch.no_grad():  # by hand: nothing is recorded that backward() could use
        outputs = as_tuple(call(answer, *args, **kwargs), OUTPUTS)
    return {name: as_numbers(value, name) for name, value in zip(OUTPUTS, outputs, strict=True)}


EXERCISE = Exercise(
    name="two_layer_gradients",
    reference=two_layer_gradients,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-6,
    atol=1e-10,
)
