"""LayerNorm and RMSNorm written out, and the ways to take the wrong mean of the wrong thing.

Source: Ba et al. 2016, arXiv:1607.06450, eq. 4; Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4.
Taught in book/transformers/block.md.
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

EPS = 1e-3  # large, so that where it stands can be seen


def layer_norm(
    x: Float[Tensor, "*batch D"], gain: Float[Tensor, " D"], bias: Float[Tensor, " D"], eps: float
) -> Float[Tensor, "*batch D"]:
    """Each vector less its mean, over its standard deviation, times the gain, plus the bias."""
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + eps).sqrt() * gain + bias


def rms_norm(
    x: Float[Tensor, "*batch D"], gain: Float[Tensor, " D"], eps: float
) -> Float[Tensor, "*batch D"]:
    """Each vector over its root mean square, times the gain."""
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * gain


def _over(x: Tensor, axis: str) -> Any:
    """The dimensions that a mean is taken over."""
    return {"width": -1, "time": -2, "all": tuple(range(x.ndim))}[axis]


def _divisor(squares: Tensor, eps: float, where: str, root: bool) -> Tensor:
    if where == "outside":
        return squares.sqrt() + eps
    inside = squares + (0.0 if where == "none" else eps)
    return inside.sqrt() if root else inside


def _build_layer_norm(
    *,
    axis: str = "width",
    centre: bool = True,
    unbiased: bool = False,
    eps_at: str = "inside",
    root: bool = True,
    gain_at: str = "after",
    add_bias: bool = True,
) -> Answer:
    """A LayerNorm with the given faults; without any, the right one."""

    def answer(x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
        over = _over(x, axis)
        if gain_at == "before":
            x = x * gain
        count = 1
        for dim in over if isinstance(over, tuple) else (over,):
            count *= x.shape[dim]
        centred = x - x.mean(over, keepdim=True)
        variance = centred.square().sum(over, keepdim=True) / (count - unbiased)
        out = (centred if centre else x) / _divisor(variance, eps, eps_at, root)
        out = out * gain if gain_at == "after" else out
        return out + bias if add_bias else out

    return answer


def _build_rms_norm(
    *,
    axis: str = "width",
    centre: bool = False,
    mean: bool = True,
    eps_at: str = "inside",
    root: bool = True,
    gain_at: str = "after",
) -> Answer:
    """An RMSNorm with the given faults; without any, the right one."""

    def answer(x: Tensor, gain: Tensor, eps: float) -> Tensor:
        over = _over(x, axis)
        if centre:
            x = x - x.mean(over, keepdim=True)
        if gain_at == "before":
            x = x * gain
        squares = x.square()
        size = squares.mean(over, keepdim=True) if mean else squares.sum(over, keepdim=True)
        out = x / _divisor(size, eps, eps_at, root)
        if gain_at == "plus one":
            return out * (1 + gain)
        return out * gain if gain_at == "after" else out

    return answer


SHARED = (
    Mistake(
        name="over time",
        faults={"axis": "time"},
        message="The mean runs over the tokens of a text. A norm looks at one token's vector at a time: "
        "dim=-1. Over time, a token would even be told about later ones.",
    ),
    Mistake(
        name="over everything",
        faults={"axis": "all"},
        message="One mean was taken over the whole batch. Each token's vector has one of its own: "
        "dim=-1, keepdim=True.",
    ),
    Mistake(
        name="eps outside the root",
        faults={"eps_at": "outside"},
        message="eps is added to the root. It belongs under it, beside the mean of squares.",
    ),
    Mistake(
        name="no eps",
        faults={"eps_at": "none"},
        message="eps is not used: a vector without any spread is divided by zero.",
    ),
    Mistake(
        name="no root",
        faults={"root": False},
        message="It divides by the mean of squares instead of its root, so the result's size depends on "
        "the input's.",
    ),
    Mistake(
        name="no gain",
        faults={"gain_at": "never"},
        message="The gain, one number for each of the D channels, is not used.",
    ),
    Mistake(
        name="gain before the norm",
        faults={"gain_at": "before"},
        message="The gain multiplies what goes in, so it changes what is normed. It multiplies the result.",
    ),
)

LAYER_MISTAKES = (
    *SHARED,
    Mistake(
        name="unbiased variance",
        faults={"unbiased": True},
        message="The sum of squares is divided by D - 1, which torch's var and std do unless told "
        "otherwise. LayerNorm divides by D.",
    ),
    Mistake(
        name="mean not subtracted",
        faults={"centre": False},
        message="The mean is taken out of the variance and left in the result: divide x - mean, not x.",
    ),
    Mistake(name="no bias", faults={"add_bias": False}, message="The bias is not added."),
)

RMS_MISTAKES = (
    *SHARED,
    Mistake(
        name="mean subtracted",
        faults={"centre": True},
        message="This is LayerNorm without its bias. RMSNorm leaves the mean where it is.",
    ),
    Mistake(
        name="sum instead of mean",
        faults={"mean": False},
        message="It divides by the vector's length: the result has length 1, and its numbers shrink as D "
        "grows. With the mean of squares, their typical size is 1.",
    ),
    Mistake(
        name="gain plus one",
        faults={"gain_at": "plus one"},
        message="It multiplies by 1 + gain. Some models store their gains so (Gemma); this one, like Llama, "
        "starts them at 1.",
    ),
)

LAYER_HINTS = (
    "Three steps for each vector by itself: take its mean away, divide by its standard deviation, then gain "
    "and bias. Try it by hand on (1, 3): the mean is 2, the variance 1.",
    "mean(-1, keepdim=True) keeps a dimension of size 1 to subtract from x; the variance is the mean of "
    "squares of what is left, divided by D and not by D - 1.",
    "centred = x - x.mean(-1, keepdim=True); centred / (centred.square().mean(-1, keepdim=True) + "
    "eps).sqrt() * gain + bias.",
)
RMS_HINTS = (
    "LayerNorm with two things left out: nothing is subtracted, and nothing is added.",
    "Root, mean, square, read from right to left: square x, take the mean over the last dimension, then "
    "the root, with eps under it.",
    "x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * gain.",
)


def _case(about: str, rng: np.random.Generator, shape: tuple[int, ...], size: float, n_given: int) -> Case:
    values = size * (rng.standard_normal(shape) + 0.7)
    values[..., -1, :] = 0.5  # the last token's numbers are all equal, so it has no spread; exact in fp32
    # Signs of both kinds, none near zero, or a gain would hide what it multiplies.
    given = [rng.uniform(0.4, 2.0, shape[-1]) * rng.choice((-1.0, 1.0), shape[-1]) for _ in range(n_given)]

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        tensors = [torch.tensor(part, dtype=torch.float32) for part in (values, *given)]
        return (*tensors, EPS), {}

    return Case(about=about, make=make)


def _draw(n_given: int) -> Any:
    def draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
        time, width = int(rng.integers(3, 6)), int(rng.integers(5, 9))
        return (
            _case(f"one text of {time} tokens, D = {width}", rng, (time, width), 1.0, n_given),
            _case("small numbers, shape [2, 4, 6]", rng, (2, 4, 6), 0.03, n_given),
            _case("a mean of 7, shape [2, 3, 7]", rng, (2, 3, 7), 10.0, n_given),
        )

    return draw_cases


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return {"the result": as_numbers(call(answer, *args), "the result")}


LAYER_NORM = Exercise(
    name="layer_norm",
    reference=layer_norm,
    build=_build_layer_norm,
    mistakes=LAYER_MISTAKES,
    hints=LAYER_HINTS,
    draw_cases=_draw(2),
    observe=_observe,
    rtol=1e-3,
    atol=1e-4,
)
RMS_NORM = Exercise(
    name="rms_norm",
    reference=rms_norm,
    build=_build_rms_norm,
    mistakes=RMS_MISTAKES,
    hints=RMS_HINTS,
    draw_cases=_draw(1),
    observe=_observe,
    rtol=1e-3,
    atol=1e-4,
)
