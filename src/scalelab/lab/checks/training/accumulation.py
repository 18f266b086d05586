"""One gradient from several micro-batches, and the ways to weigh, unscale and clip it wrongly.

Taught in book/transformers/training.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from scalelab.lab.checks.answers import Rejected, as_numbers, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.models.loss import IGNORE_INDEX

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor


def accumulate_gradients(
    model: nn.Module,
    micro_batches: Sequence[tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]],
    *,
    clip_norm: float,
    loss_scale: float,
) -> float:
    """Leave in every `param.grad` the clipped gradient of the mean loss over all target tokens.

    Args:
        model: tokens [B, T] to logits [B, T, V]. micro_batches: (tokens, targets); -100 is no target.
        clip_norm: the largest global norm that is left as it is.
        loss_scale: multiplies each loss before backward, as in fp16; the gradients are divided after.

    Returns:
        The global norm of the true gradient, before clipping.
    """
    model.zero_grad()
    n_targets = sum(int((targets != IGNORE_INDEX).sum()) for _, targets in micro_batches)
    for tokens, targets in micro_batches:
        logits = model(tokens)  # [B, T, V]
        loss_sum = functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
        )
        # One divisor for all, so every token weighs the same, in whichever micro-batch it stands.
        (loss_sum / n_targets * loss_scale).backward()  # type: ignore[no-untyped-call]
    for param in model.parameters():
        if param.grad is not None:
            param.grad /= loss_scale
    return float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm))


def _build(
    *,
    zero: str = "before",
    average: str = "tokens",
    again: bool = False,
    unscale: str = "before clipping",
    clip: str = "at the end",
    shift_again: bool = False,
) -> Answer:
    """An accumulation with the given faults; without any, the right one.

    Gradients are held outside the model, so that every order of adding, unscaling and clipping can be had.
    """

    def answer(
        model: nn.Module, micro_batches: Sequence[Any], *, clip_norm: float, loss_scale: float
    ) -> float:
        parameters = list(model.parameters())
        held = [
            torch.zeros_like(p) if zero != "never" or p.grad is None else p.grad.clone() for p in parameters
        ]
        divisor = _divisor(micro_batches, average) * (len(micro_batches) if again else 1)
        norm = 0.0
        for tokens, targets in micro_batches:
            share = loss_scale / divisor
            new = _scaled_gradient(model, parameters, tokens, targets, average, share, shift_again)
            if clip == "each alone":
                new, norm = _clip(new, clip_norm * (loss_scale if unscale == "before clipping" else 1))
            if zero == "in the loop":
                held = [torch.zeros_like(h) for h in held]
            held = [h + n for h, n in zip(held, new, strict=True)]
            if unscale == "in the loop":
                held = [h / loss_scale for h in held]
            if clip == "in the loop":
                held, norm = _clip(held, clip_norm * (loss_scale if unscale == "before clipping" else 1))
        if unscale == "before clipping":
            held = [h / loss_scale for h in held]
        if clip in ("at the end", "norm after"):
            held, norm = _clip(held, clip_norm)
            if clip == "norm after":
                _, norm = _clip(held, math.inf)
        elif clip == "never":
            _, norm = _clip(held, math.inf)
        if unscale == "after clipping":
            held = [h / loss_scale for h in held]
        for param, gradient in zip(parameters, held, strict=True):
            param.grad = gradient
        return norm

    return answer


def _divisor(micro_batches: Sequence[Any], average: str) -> int:
    if average == "tokens":
        return sum(int((targets != IGNORE_INDEX).sum()) for _, targets in micro_batches)
    if average == "all positions":
        return sum(int(targets.numel()) for _, targets in micro_batches)
    if average == "micro-batches":
        return len(micro_batches)
    return 1  # sums of means, or of token losses, that nobody divides


def _scaled_gradient(
    model: nn.Module,
    parameters: list[Any],
    tokens: Tensor,
    targets: Tensor,
    average: str,
    factor: float,
    shift_again: bool,
) -> list[Tensor]:
    logits = model(tokens)
    if shift_again:
        logits, targets = logits[:, :-1], targets[:, 1:]
    by_mean = average in ("micro-batches", "sum of means")
    loss = functional.cross_entropy(
        logits.flatten(0, 1),
        targets.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="mean" if by_mean else "sum",
    )
    return list(torch.autograd.grad(loss * factor, parameters))


def _clip(gradients: list[Tensor], clip_norm: float) -> tuple[list[Tensor], float]:
    norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients])))
    factor = min(1.0, clip_norm / (norm + 1e-6))  # torch's own epsilon
    return [g * factor for g in gradients], norm


GRADIENTS = ("embed.grad", "head.grad", "bias.grad")

MISTAKES = (
    Mistake(
        name="undivided",
        faults={"average": "sum of means"},
        message="The micro-batches' mean losses are added and never divided, so the gradient grows with "
        "their number.",
    ),
    Mistake(
        name="summed over tokens",
        faults={"average": "sum of tokens"},
        message="The losses of all tokens are summed and never divided: the gradient grows with the tokens.",
    ),
    Mistake(
        name="divided twice",
        faults={"again": True},
        message="The mean over all target tokens is divided by the number of micro-batches once more.",
    ),
    Mistake(
        name="unequal token counts averaged equally",
        faults={"average": "micro-batches"},
        message="Each micro-batch's mean weighs the same, though some hold more targets than others. "
        "Divide sums by the number of all targets.",
    ),
    Mistake(
        name="divided by all positions",
        faults={"average": "all positions"},
        message="Positions without a target (-100) are counted in the number divided by.",
    ),
    Mistake(
        name="clipped in the loop",
        faults={"clip": "in the loop"},
        seen_in=GRADIENTS,
        message="The gradient is clipped after every micro-batch; what counts is the norm of the whole. "
        "Clip once, at the end.",
    ),
    Mistake(
        name="clipped per micro-batch",
        faults={"clip": "each alone"},
        seen_in=GRADIENTS,
        message="Each micro-batch's gradient is clipped by itself and then added; what counts is the norm of "
        "the whole. Clip once, at the end.",
    ),
    Mistake(
        name="clipped before unscaling",
        faults={"unscale": "after clipping"},
        seen_in=GRADIENTS,
        message="The gradients are clipped while they still carry loss_scale, and shrink again when it is "
        "taken out. Unscale first.",
    ),
    Mistake(
        name="never unscaled",
        faults={"unscale": "never"},
        message="The gradients still carry loss_scale: divide them by it before clipping.",
    ),
    Mistake(
        name="unscaled in the loop",
        faults={"unscale": "in the loop"},
        message="The gradients are divided by loss_scale after every micro-batch, so the first is divided "
        "as often as there are micro-batches. Unscale once.",
    ),
    Mistake(
        name="never clipped",
        faults={"clip": "never"},
        message="clip_norm is not used: the gradient keeps its full norm.",
    ),
    Mistake(
        name="gradients not zeroed beforehand",
        faults={"zero": "never"},
        message="What the step before left in param.grad is still in it: backward adds. Zero it first.",
    ),
    Mistake(
        name="zeroed in the loop",
        faults={"zero": "in the loop"},
        message="The gradients are zeroed for every micro-batch, so only the last one's is left. Zero them "
        "once, before the loop.",
    ),
    Mistake(
        name="norm after clipping returned",
        faults={"clip": "norm after"},
        message="The norm is taken when the gradient is clipped already, so it never exceeds clip_norm and "
        "tells nothing. clip_grad_norm_ returns the one from before.",
    ),
    Mistake(
        name="targets shifted again",
        faults={"shift_again": True},
        message="targets[:, t] is the token after tokens[:, t] already: logits[:, t] must meet "
        "targets[:, t].",
    ),
)

HINTS = (
    "Five things in order: zero the gradients, count all targets, backward once per micro-batch, unscale, "
    "clip.",
    "Use reduction='sum' and divide each micro-batch's loss by the number of targets in all of them "
    "(targets != -100), then multiply by loss_scale and call backward().",
    "After the loop: divide every param.grad by loss_scale, then "
    "return float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)).",
)


class _TinyModel(nn.Module):
    """The smallest language model that has several parameters: a table, tanh, a head with a bias."""

    def __init__(self, embed: np.ndarray, head: np.ndarray) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.tensor(embed, dtype=torch.float32))  # [V, D]
        self.head = nn.Parameter(torch.tensor(head, dtype=torch.float32))  # [V, D]
        self.bias = nn.Parameter(torch.zeros(len(head)))  # [V]
        self.largest_batch = 0
        self.events: list[tuple[str, int]] = []  # ("forward" or "backward", number of the forward)
        self.logit_gradient = 0.0  # sum of the absolute gradients that came back to the logits

    def forward(self, tokens: Tensor) -> Tensor:
        self.largest_batch = max(self.largest_batch, tokens.numel())
        logits = torch.tanh(self.embed[tokens]) @ self.head.T + self.bias  # [B, T, V]
        number = len(self.events)
        self.events.append(("forward", number))

        def note(gradient: Tensor) -> None:
            self.events.append(("backward", number))
            self.logit_gradient += float(gradient.abs().sum())

        if logits.requires_grad:
            logits.register_hook(note)  # type: ignore[no-untyped-call]
        return logits

    def graphs_held_at_once(self) -> int:
        """The most forwards that waited together for the backward they got later."""
        backwards = {number for kind, number in self.events if kind == "backward"}
        waiting: set[int] = set()
        most = 0
        for kind, number in self.events:
            if kind == "forward" and number in backwards:
                waiting.add(number)
            elif kind == "backward":
                waiting.discard(number)
            most = max(most, len(waiting))
        return most


def _case(
    about: str, rng: np.random.Generator, *, clip_norm: float, loss_scale: float, left_over: bool = False
) -> Case:
    n_vocab, width, n_positions = int(rng.integers(7, 12)), 4, int(rng.integers(5, 9))
    n_rows = int(rng.integers(2, 4))
    embed, head = rng.standard_normal((n_vocab, width)), rng.standard_normal((n_vocab, width))
    # Of every micro-batch fewer positions have a target, the last one only two.
    counts = [n_rows * n_positions, n_rows * n_positions // 2, 2]
    batches = []
    for count in counts:
        tokens = rng.integers(n_vocab, size=(n_rows, n_positions))
        targets = rng.integers(n_vocab, size=n_rows * n_positions)
        targets[rng.permutation(n_rows * n_positions)[count:]] = IGNORE_INDEX
        batches.append((tokens, targets.reshape(n_rows, n_positions)))
    old = [rng.standard_normal(shape) for shape in ((n_vocab, width), (n_vocab, width), (n_vocab,))]

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        model = _TinyModel(embed, head)
        if left_over:
            for param, values in zip(model.parameters(), old, strict=True):
                param.grad = torch.tensor(values, dtype=torch.float32)
        pairs = [(torch.tensor(tokens), torch.tensor(targets)) for tokens, targets in batches]
        return (model, pairs), {"clip_norm": clip_norm, "loss_scale": loss_scale}

    return Case(
        about=f"3 micro-batches with {counts[0]}, {counts[1]} and {counts[2]} targets, {about}", make=make
    )


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    scale = float(2 ** rng.integers(6, 11))
    return (
        _case("no scaling, nothing to clip", rng, clip_norm=1e9, loss_scale=1.0),
        _case("gradients left over from before", rng, clip_norm=1e9, loss_scale=1.0, left_over=True),
        # The true norm is near 0.4: 4 never clips it, and clips the scaled one.
        _case(f"loss_scale {scale:g}, norm below clip_norm", rng, clip_norm=4.0, loss_scale=scale),
        _case(f"loss_scale {scale:g}, norm above clip_norm", rng, clip_norm=0.05, loss_scale=scale),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    (model, batches), settings = case.make()
    norm = call(answer, model, batches, **settings)
    if model.largest_batch > max(tokens.numel() for tokens, _ in batches):
        raise Rejected(
            f"put {model.largest_batch} tokens through the model at once, more than any micro-batch holds: "
            "accumulating is what one does when they do not fit",
            name="one big batch",
        )
    if model.graphs_held_at_once() > 1:
        raise Rejected(
            f"held the graphs of {model.graphs_held_at_once()} micro-batches at once, which takes the memory "
            "of one big batch: call backward() for each before the next goes forward",
            name="backward only after the loop",
        )
    if _ignores_loss_scale(answer, case, model.logit_gradient):
        raise Rejected(
            "called backward() on a loss without loss_scale in it, so small gradients would be lost in fp16: "
            "multiply each loss by it before backward(), and divide the gradients by it after",
            name="loss never scaled",
        )
    observed = {"the norm": as_numbers(norm, "the norm")}
    for name, param in model.named_parameters():
        if param.grad is None:
            raise Rejected(
                f"left no gradient in {name}.grad (None): was backward() called?", name="no gradients"
            )
        observed[f"{name}.grad"] = as_numbers(param.grad, f"{name}.grad")
    return observed


def _ignores_loss_scale(answer: Answer, case: Case, gradient: float) -> bool:
    """Whether the same gradient comes back to the logits (`gradient`) when loss_scale is 1."""
    (model, batches), settings = case.make()
    if settings["loss_scale"] == 1 or gradient == 0:
        return False
    call(answer, model, batches, **{**settings, "loss_scale": 1.0})
    return math.isclose(model.logit_gradient, gradient, rel_tol=1e-3)


EXERCISE = Exercise(
    name="accumulate_gradients",
    reference=accumulate_gradients,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-3,
    atol=1e-6,
)
