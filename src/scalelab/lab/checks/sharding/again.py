"""The backward pass of a checkpointed block: forward again, then back; and the ways in which "again" is not
so.

Source: Chen et al. 2016, arXiv:1604.06174. Taught in book/parallelism/sharding.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scalelab.lab.checks.answers import Rejected, as_numbers, call, check_signature
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation


def backward_again(
    block: Callable[[Tensor], Tensor], x: Tensor, random_state: Tensor, gradient: Tensor
) -> Tensor | None:
    """What autograd asks of a block of which it has kept the input alone.

    Args:
        block: x to y, with parameters and dropout. x: its input, as it was in the forward pass.
        random_state: torch's before that forward pass. gradient: of the loss, with respect to y.

    Returns:
        The gradient with respect to x. Those of the block's parameters are added to their `.grad`.
    """
    x = x.detach().requires_grad_()  # a leaf: backward ends here
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.set_rng_state(random_state)
        y = block(x)
    y.backward(gradient)  # type: ignore[no-untyped-call]
    return x.grad


def _build(
    *,
    state: str = "restored",
    uses: str = "gradient",
    parameters: str = "added",
    leaf: bool = True,
    afterwards: str = "as before",
) -> Answer:
    """Forward again and back with the given faults; without any, the right one."""

    def answer(block: Any, x: Tensor, random_state: Tensor, gradient: Tensor) -> Any:
        before = torch.get_rng_state()
        if state == "restored":
            torch.set_rng_state(random_state)
        is_training = block.training
        if state == "no dropout":
            block.eval()
        own = x.detach().requires_grad_() if leaf else x
        with torch.enable_grad():
            y = block(own)
        block.train(is_training)
        if afterwards != "as it came out":
            torch.set_rng_state(before if afterwards == "as before" else random_state)
        weights = {"gradient": gradient, "ones": torch.ones_like(gradient), "sum": gradient.sum()}[uses]
        weights = weights.expand_as(y)
        params = list(block.parameters())
        earlier = [] if leaf else [block.earlier]
        found = torch.autograd.grad(y, [own, *params, *earlier], weights, allow_unused=True)
        if parameters != "left out":
            for parameter, new in zip([*params, *earlier], found[1:], strict=True):
                if parameter.grad is not None and parameters == "added":
                    parameter.grad += new
                else:
                    parameter.grad = new
        return found[0]

    return answer


MISTAKES = (
    Mistake(
        name="other dropout",
        faults={"state": "left"},
        message="The second forward draws new random numbers, so dropout drops other numbers than the "
        "loss has seen: set torch's random state to `random_state` before it.",
    ),
    Mistake(
        name="no dropout the second time",
        faults={"state": "no dropout"},
        message="The second forward runs without dropout (eval mode), and the first one had it: these are "
        "gradients of another function.",
    ),
    Mistake(
        name="random state not put back",
        faults={"afterwards": "as it came out"},
        message="Torch's random state is left as the second forward made it, so whatever draws next gets "
        "other numbers than it would without recomputation. Put it back to what it was when your function "
        "began (torch.random.fork_rng does).",
    ),
    Mistake(
        name="put back to the wrong moment",
        faults={"afterwards": "as at the first forward"},
        message="The random state ends as `random_state`, that from before the first forward: whatever draws "
        "next repeats dropout's numbers. Put it back to what it was when your function began.",
    ),
    Mistake(
        name="gradient of a sum",
        faults={"uses": "ones"},
        message="`gradient` is not used: y.sum().backward() is right only where the loss is the sum of y. "
        "y.backward(gradient) goes on from what has come back so far.",
    ),
    Mistake(
        name="gradient summed first",
        faults={"uses": "sum"},
        message="Each element of y gets the sum of all incoming gradients, and should get its own: "
        "y.backward(gradient), or (y * gradient).sum().backward().",
    ),
    Mistake(
        name="parameters left out",
        faults={"parameters": "left out"},
        message="The gradient goes on to x, and the block's own parameters get none: "
        "torch.autograd.grad(y, x) gives no others. y.backward(gradient) adds to every .grad.",
    ),
    Mistake(
        name="parameters' gradients replaced",
        faults={"parameters": "replaced"},
        message="What earlier micro-batches have left in the parameters' .grad is overwritten: add to it.",
    ),
    Mistake(
        name="backward runs on",
        faults={"leaf": False},
        message="x is still tied to what came before it, and this backward runs on into that, which "
        "autograd will do once more itself: begin with x.detach().requires_grad_().",
    ),
)

HINTS = (
    "Three things: an input that is a leaf, the same random numbers, and a backward that begins with "
    "`gradient`.",
    "x.detach().requires_grad_() is a leaf. Inside a torch.autograd.Function gradients are off: "
    "torch.enable_grad() turns them on. torch.random.fork_rng() puts the random state back.",
    "x = x.detach().requires_grad_(); with torch.enable_grad(), torch.random.fork_rng(): "
    "torch.set_rng_state(random_state); y = block(x). Then y.backward(gradient); return x.grad.",
)


class _Block(nn.Module):
    """Two maps with dropout between, behind something `earlier` that is none of its own."""

    def __init__(self, width: int, wide: int, draw: np.random.Generator) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.from_numpy(draw.standard_normal((width, wide))).float())
        self.down = nn.Parameter(torch.from_numpy(draw.standard_normal((wide, width))).float())
        self._other = [torch.tensor(float(draw.uniform(1, 2)), requires_grad=True)]  # not a parameter

    @property
    def earlier(self) -> Tensor:
        return self._other[0]

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout((x @ self.up).tanh(), 0.5, self.training) @ self.down


def _case(about: str, rng: np.random.Generator, left_over: bool) -> Case:
    seed, n = int(rng.integers(2**31)), int(rng.integers(2, 5))
    width, wide = int(rng.integers(3, 6)), int(rng.integers(8, 13))

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        draw = np.random.default_rng(seed)
        block = _Block(width, wide, draw)
        values = torch.from_numpy(draw.standard_normal((n, width))).float()
        x = values * block.earlier  # what came before the block
        if left_over:
            for parameter in block.parameters():
                parameter.grad = torch.from_numpy(draw.standard_normal(tuple(parameter.shape))).float()
        gradient = torch.from_numpy(draw.standard_normal((n, width))).float()
        state = torch.Generator().manual_seed(seed % 1000).get_state()
        return (block, x, state, gradient), {"now": seed % 1000 + 1}

    return Case(about=f"{n} rows of {width} numbers, {about}", make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    return (
        _case("no gradients yet", rng, left_over=False),
        _case("gradients there from a micro-batch before", rng, left_over=True),
    )


_GRADIENTS_OFF = (
    "ran the block with gradients switched off, as they are inside of a backward pass, so there is "
    "nothing to go back through: put its forward into `with torch.enable_grad():`"
)
_RAN_ON = (
    "ran backward on into what came before x, which autograd will do once more itself, and x.grad is None "
    "as x is no leaf: begin with x = x.detach().requires_grad_()"
)
_NO_GRADIENT = (
    "returned None for the gradient of x. Is the return missing? Or is it x.grad of an x that requires no "
    "gradient? x.detach().requires_grad_() does"
)


def _observe(answer: Answer, case: Case) -> Observation:
    args, settings = case.make()
    block = args[0]
    check_signature(answer, args, {})

    def run() -> tuple[Any, float]:
        torch.manual_seed(settings["now"])
        with torch.no_grad():  # as inside of a torch.autograd.Function's backward
            try:
                found = answer(*args)
            except RuntimeError as error:
                if "does not require grad" in str(error):
                    raise Rejected(_GRADIENTS_OFF, name="gradients are switched off", ran=False) from error
                raise
        return found, float(torch.rand(()))

    found, drawn = call(run)
    if found is None and block.earlier.grad is not None:
        raise Rejected(_RAN_ON, name="backward runs on")
    if found is None:
        raise Rejected(_NO_GRADIENT, name="returned the wrong kind of thing")
    observed = {"the gradient of x": as_numbers(found, "the gradient of x")}
    for name, parameter in block.named_parameters():
        grad = torch.full((), torch.nan) if parameter.grad is None else parameter.grad
        observed[f"{name}.grad"] = as_numbers(grad.expand(parameter.shape), f"{name}.grad")
    earlier = block.earlier.grad
    observed["the gradient of what came before x"] = as_numbers(
        0.0 if earlier is None else float(earlier), "the gradient of what came before x"
    )
    observed["the next random number"] = as_numbers(drawn, "the next random number")
    if not block.training:
        raise Rejected("left the block in eval mode, and training goes on", name="left in eval mode")
    return observed


EXERCISE = Exercise(
    name="backward_again",
    reference=backward_again,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
)
