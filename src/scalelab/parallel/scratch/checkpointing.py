"""Activation checkpointing: keep a part's inputs, and compute what is inside once more for backward.

Full: each block keeps its input alone, and costs one more forward pass, a third of the work. Selective: only
parts that keep much for little work are made again, as attention's scores, softmax and dropout are.

Equal bit for bit, on one condition: the second forward does what the first did. So dropout's random numbers
are drawn from the same state, and autocast is as it was; a module that counts its calls (batch norm's running
means) would count twice.
Source: Chen et al. 2016, arXiv:1604.06174; Korthikanti et al. 2022, arXiv:2205.05198, section 5 (selective).
Taught in book/parallelism/sharding.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def recompute(modules: nn.Module | Iterable[nn.Module]) -> None:
    """From now on these modules keep only their inputs for backward, and do their forward again there.

    `recompute(model.blocks)` is full checkpointing; `recompute(block.feed_forward for block in model.blocks)`
    is selective.

    Args:
        modules: one, several, or a ModuleList's members; each takes tensors and anything else by position,
            and returns one tensor. Only tensors that are arguments themselves get gradients, not those inside
            of another argument.
    """
    if isinstance(modules, nn.Module) and not isinstance(modules, nn.ModuleList):
        modules = [modules]
    for module in modules:
        # Inside of the call, so that a module's hooks (FullySharded's) stand around both forwards.
        module.forward = partial(recomputed, module.forward)


def recomputed(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """function(*args), of which autograd keeps the arguments alone.

    Where no argument requires a gradient autograd would not come back here: the call is then an ordinary one.
    """
    if not torch.is_grad_enabled() or not any(isinstance(a, Tensor) and a.requires_grad for a in args):
        return function(*args)
    result: Tensor = _Recomputed.apply(function, *args)  # type: ignore[no-untyped-call]
    return result


class _Recomputed(torch.autograd.Function):
    """Forward without keeping; backward: forward again, keeping, and then its backward."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *args: Any) -> Tensor:  # no gradient mode in here
        tensors = [a for a in args if isinstance(a, Tensor)]
        ctx.function = function
        ctx.others = [None if isinstance(a, Tensor) else a for a in args]
        ctx.is_tensor = [isinstance(a, Tensor) for a in args]
        ctx.save_for_backward(*tensors)
        ctx.surroundings = _Surroundings(tensors[0].device)
        return function(*args)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        kept = iter(ctx.saved_tensors)
        args = [
            # A leaf of its own, or this backward would run on into what came before.
            next(kept).detach().requires_grad_(needed) if is_tensor else other
            for is_tensor, other, needed in zip(
                ctx.is_tensor, ctx.others, ctx.needs_input_grad[1:], strict=True
            )
        ]
        with torch.enable_grad(), ctx.surroundings.again():
            result = ctx.function(*args)
        torch.autograd.backward(result, gradient)  # adds to the parameters' .grad
        return None, *(a.grad if isinstance(a, Tensor) else None for a in args)


class _Surroundings:
    """What a forward pass depends on beside its arguments: random states, and autocast."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self.autocast = torch.autocast(
            device.type,
            dtype=torch.get_autocast_dtype(device.type),
            enabled=torch.is_autocast_enabled(device.type),
        )

    @contextmanager
    def again(self) -> Iterator[None]:
        """The same once more; random states are as before afterwards."""
        with torch.random.fork_rng([] if self.cuda is None else [self.device]), self.autocast:
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda, self.device)
            yield
