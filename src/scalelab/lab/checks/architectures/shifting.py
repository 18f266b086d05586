"""What a decoder reads while it learns to write a target, and the ways to let it see the answer.

Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.1 ("offset by one position").
Taught in book/transformers/architectures.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalelab.lab.checks.answers import as_numbers, call, need_tensor
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

NONE = -100


def shift_right(targets: Int[Tensor, "B T"], start_id: int) -> Int[Tensor, "B T"]:
    """The decoder's input: start_id, then the targets without the last; -100, no token, reads start_id."""
    start = torch.full_like(targets[:, :1], start_id)
    shifted = torch.cat((start, targets[:, :-1]), dim=1)
    return shifted.masked_fill(shifted == NONE, start_id)


def _build(
    *, move: str = "right", first: str = "start", filling: str = "start", length: str = "the same"
) -> Answer:
    """Shifting with the given faults; without any, the right one."""

    def answer(targets: Tensor, start_id: int) -> Tensor:
        begin = targets[:, -1:] if first == "last" else torch.full_like(targets[:, :1], start_id)
        begin = targets[:, :1] if first == "twice" else begin
        kept = targets if length == "one more" else targets[:, :-1]
        shifted = torch.cat((begin, kept), dim=1)
        if move == "not":
            shifted = targets
        elif move == "left":
            shifted = torch.cat((targets[:, 1:], begin), dim=1)
        if filling == "left in":
            return shifted
        return shifted.masked_fill(shifted == NONE, 0 if filling == "zero" else start_id)

    return answer


MISTAKES = (
    Mistake(
        name="not shifted",
        faults={"move": "not"},
        message="The decoder reads the target itself: at each place it sees the very token it must predict. "
        "The loss falls to nothing in training, and the model cannot write a word.",
    ),
    Mistake(
        name="shifted to the left",
        faults={"move": "left"},
        message="The targets are moved to the left, so that each place reads the token after the one it must "
        "predict. They move to the right.",
    ),
    Mistake(
        name="rolled round",
        faults={"first": "last"},
        message="The last token has come round to the front (torch.roll does that). The first place reads "
        "start_id.",
    ),
    Mistake(
        name="no start token",
        faults={"first": "twice"},
        message="The first place reads the first target, which it must predict. It reads start_id.",
    ),
    Mistake(
        name="-100 left in",
        faults={"filling": "left in"},
        message="-100 is a sign for the loss and no row of the token table: looking it up fails, or finds "
        "another token's row. Replace it by start_id.",
    ),
    Mistake(
        name="-100 becomes 0",
        faults={"filling": "zero"},
        message="-100 is replaced by 0, which is a token of the text here. start_id is asked for.",
    ),
    Mistake(
        name="one token too long",
        faults={"length": "one more"},
        message="The start token is put in front and nothing is taken away: inputs and targets must have the "
        "same length, so the last target is dropped.",
    ),
)

HINTS = (
    "The place that predicts targets[:, t] may read targets[:, :t] and nothing more. What does the place "
    "that predicts targets[:, 0] read?",
    "Join a column of start_id and targets[:, :-1] along dim 1.",
    "torch.cat((torch.full_like(targets[:, :1], start_id), targets[:, :-1]), dim=1), then .masked_fill(... "
    "== -100, start_id).",
)


def _case(about: str, rng: np.random.Generator, lengths: list[int]) -> Case:
    width, start_id = max(lengths) + (1 if len(lengths) > 1 else 0), int(rng.integers(50, 90))
    targets = np.full((len(lengths), width), NONE)
    for row, length in enumerate(lengths):
        targets[row, :length] = rng.choice(np.arange(1, 50), size=length, replace=False)
    if len(lengths) > 1:
        targets[0, -1] = int(rng.integers(1, 50))  # one row is full

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (torch.tensor(targets), start_id), {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    long, short = int(rng.integers(6, 9)), int(rng.integers(2, 4))
    return (
        _case(f"1 target of {long} tokens", rng, [long]),
        _case(f"3 targets, the shortest of {short} tokens", rng, [long, short, short + 1]),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    found = call(answer, *args)
    need_tensor(found, "the decoder's input", "whole numbers")
    return {"the decoder's input": as_numbers(found, "the decoder's input")}


EXERCISE = Exercise(
    name="shift_right",
    reference=shift_right,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
)
