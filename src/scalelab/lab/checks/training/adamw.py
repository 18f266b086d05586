"""One step of AdamW, and the ways its moments, corrections and decay go wrong.

Source: Loshchilov & Hutter 2017, arXiv:1711.05101, algorithm 2; Kingma & Ba 2014, arXiv:1412.6980.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalelab.lab.checks.answers import Rejected, as_numbers, as_tuple, call, describe
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

OUTPUTS = ("new_param", "new_m", "new_v")


def adamw_step(
    param: Float[Tensor, "*shape"],
    grad: Float[Tensor, "*shape"],
    m: Float[Tensor, "*shape"],
    v: Float[Tensor, "*shape"],
    step: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """The parameter and both moments after one step, the arguments left as they were.

    Args:
        param, grad: the parameter and its gradient. m, v: running means of the gradient and its square.
        step: 1 for the first step.
    """
    new_m = beta1 * m + (1 - beta1) * grad
    new_v = beta2 * v + (1 - beta2) * grad**2
    # Both start at 0, so the first means are too small, by exactly these factors.
    m_hat = new_m / (1 - beta1**step)
    v_hat = new_v / (1 - beta2**step)
    decayed = param * (1 - lr * weight_decay)
    return decayed - lr * m_hat / (v_hat.sqrt() + eps), new_m, new_v


def _build(
    *,
    decay: str = "decoupled",
    correct: str = "both",
    root: str = "eps outside",
    swap_betas: bool = False,
    forget_complement: bool = False,
    step_offset: int = 0,
    uphill: bool = False,
) -> Answer:
    """An AdamW step with the given faults; without any, the right one."""

    def answer(
        param: Tensor, grad: Tensor, m: Tensor, v: Tensor, step: int,
        *, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        if decay == "in the gradient":
            grad = grad + weight_decay * param
        if swap_betas:
            beta1, beta2 = beta2, beta1
        share1, share2 = (1.0, 1.0) if forget_complement else (1 - beta1, 1 - beta2)
        new_m = beta1 * m + share1 * grad
        new_v = beta2 * v + share2 * grad**2
        n = step + step_offset
        # As tensors: a factor of 0 then gives inf or NaN, as a learner's own tensors would.
        m_hat = new_m / torch.tensor(1 - beta1**n) if correct != "none" else new_m
        v_hat = new_v / torch.tensor(1 - beta2**n) if correct != "none" else new_v
        divisor = {"eps inside": (v_hat + eps).sqrt(), "none": v_hat + eps}.get(root, v_hat.sqrt() + eps)
        shrink = {"decoupled": lr * weight_decay, "not times lr": weight_decay}.get(decay, 0.0)
        sign = 1 if uphill else -1
        new_param = param * (1 - shrink) + sign * lr * m_hat / divisor
        return (new_param, m_hat, v_hat) if correct == "returned" else (new_param, new_m, new_v)

    return answer


MISTAKES = (
    Mistake(
        name="L2 in the gradient",
        faults={"decay": "in the gradient"},
        message="The decay is added to the gradient, so it is divided by √v with it: that is Adam with an L2 "
        "penalty. AdamW takes lr·weight_decay·param off the parameter itself.",
    ),
    Mistake(
        name="decay not multiplied by lr",
        faults={"decay": "not times lr"},
        message="The parameter shrinks by weight_decay each step; in AdamW it shrinks by lr·weight_decay, "
        "so that the schedule acts on both.",
    ),
    Mistake(
        name="no weight decay",
        faults={"decay": "none"},
        message="weight_decay is never used: this is Adam.",
    ),
    Mistake(
        name="no bias correction",
        faults={"correct": "none"},
        message="m and v start at 0 and are used as they are. Divide them by 1 - beta1**step and "
        "1 - beta2**step, or the first steps have the wrong size.",
    ),
    Mistake(
        name="eps inside the square root",
        faults={"root": "eps inside"},
        message="This divides by √(v + eps); AdamW divides by √v + eps, which is far smaller where v is.",
    ),
    Mistake(
        name="betas swapped",
        faults={"swap_betas": True},
        message="beta1 belongs to m, the mean of the gradient, and beta2 to v, the mean of its square.",
    ),
    Mistake(
        name="(1 - beta) forgotten",
        faults={"forget_complement": True},
        message="m = beta·m + grad is a sum that grows; a mean needs (1 - beta)·grad.",
    ),
    Mistake(
        name="correction with step + 1",
        faults={"step_offset": 1},
        message="step is 1 at the first step already; adding 1 corrects too little.",
    ),
    Mistake(
        name="correction with step - 1",
        faults={"step_offset": -1},
        message="step is 1 at the first step; with step - 1 the correction divides by 0 there.",
    ),
    Mistake(
        name="uphill",
        faults={"uphill": True},
        message="The update is added. It must be subtracted, or the loss climbs.",
    ),
    Mistake(
        name="returns the corrected averages",
        faults={"correct": "returned"},
        message="m_hat and v_hat serve this step only. Hand m and v on as they were before the correction, "
        "or the next step corrects them again.",
    ),
    Mistake(
        name="no square root",
        faults={"root": "none"},
        message="This divides by v + eps, which is in squares of the gradient; AdamW divides by √v + eps.",
    ),
)

HINTS = (
    "Two running means (of grad and of grad squared), two corrections, one update, and the decay apart "
    "from it.",
    "m_hat = m / (1 - beta1**step), v_hat likewise with beta2; then "
    "param - lr * m_hat / (sqrt(v_hat) + eps).",
    "The decay never meets the gradient: start from param * (1 - lr * weight_decay) and subtract Adam's "
    "update from that. Return new tensors.",
)


def _case(about: str, rng: np.random.Generator, step: int, weight_decay: float) -> Case:
    shape = (int(rng.integers(2, 5)), int(rng.integers(2, 5)))
    settings = {
        # Larger than in real training, so that eps, lr and decay each show in the third digit.
        "lr": float(rng.uniform(0.05, 0.2)),
        "beta1": float(rng.uniform(0.7, 0.85)),
        "beta2": float(rng.uniform(0.93, 0.97)),
        "eps": float(rng.uniform(0.01, 0.03)),
        "weight_decay": weight_decay,
    }
    param, grad = rng.standard_normal(shape) + 0.5, rng.standard_normal(shape)
    m = rng.standard_normal(shape) if step > 1 else np.zeros(shape)
    v = rng.uniform(0.2, 1.0, shape) if step > 1 else np.zeros(shape)

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (*(torch.tensor(a, dtype=torch.float32) for a in (param, grad, m, v)), step), dict(settings)

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    later = int(rng.integers(3, 9))
    return (
        _case("the first step, weight_decay 0", rng, 1, 0.0),
        _case("the first step with weight decay", rng, 1, float(rng.uniform(0.1, 0.5))),
        _case(f"step {later} with weight decay", rng, later, float(rng.uniform(0.1, 0.5))),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, kwargs = case.make()
    before = [tensor.clone() for tensor in args[:4]]
    outputs = as_tuple(call(answer, *args, **kwargs), OUTPUTS)
    for name, old, new in zip(("param", "grad", "m", "v"), before, args, strict=False):
        if not torch.equal(old, new):
            raise Rejected(
                f"changed {name} in place. Return new tensors: the lab compares old and new",
                name="changes its inputs",
            )
    for name, value in zip(OUTPUTS, outputs, strict=True):
        if not isinstance(value, torch.Tensor):
            raise Rejected(
                f"returned {describe(value)} for {name} ({type(value).__name__}), where a torch tensor of "
                f"param's shape {list(args[0].shape)} should be",
                name="returned the wrong kind of thing",
            )
    return {name: as_numbers(value, name) for name, value in zip(OUTPUTS, outputs, strict=True)}


EXERCISE = Exercise(
    name="adamw_step",
    reference=adamw_step,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    atol=1e-6,
)
