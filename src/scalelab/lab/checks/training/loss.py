"""The loss of next-token prediction, and the ways to shift, flatten and average it wrongly.

Taught in book/transformers/training.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from scalelab.lab.checks.answers import Rejected, as_numbers, call, describe
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


def next_token_loss(
    logits: Float[Tensor, "B T V"], tokens: Int[Tensor, "B T"], pad_id: int
) -> Float[Tensor, ""]:
    """Mean cross-entropy of each token given those before it, nats.

    Args:
        logits: logits[:, t] is the prediction made after reading tokens[:, t].
        tokens: what was read. pad_id: the token that fills up short rows and is no target.
    """
    predictions = logits[:, :-1]  # [B, T-1, V]; nothing is left to check the last one against
    targets = tokens[:, 1:]  # [B, T-1]
    return functional.cross_entropy(
        predictions.reshape(-1, predictions.shape[-1]), targets.reshape(-1), ignore_index=pad_id
    )


def _build(
    *,
    shift: int = 1,
    through: str = "logits",
    flatten: str = "rows",
    padding: str = "left out",
    average: str = "positions",
    unit: str = "nats",
) -> Answer:
    """A next-token loss with the given faults; without any, the right one."""

    def answer(logits: Tensor, tokens: Tensor, pad_id: int) -> Tensor:
        predictions, targets = _shifted(logits, tokens, shift)
        n_rows, n_positions, n_vocab = predictions.shape
        if flatten == "V and T":
            predictions = predictions.transpose(1, 2)
        if flatten == "B and T":
            targets = targets.t()
        predictions = predictions.reshape(-1, n_vocab)  # [B*(T-1), V]
        targets = targets.reshape(-1)  # [B*(T-1)]
        log_p = _log_probabilities(predictions, through)
        nats = -log_p.gather(1, targets[:, None])[:, 0]
        counted = (targets != pad_id).to(nats.dtype)
        if padding == "counted":
            counted = torch.ones_like(counted)
        loss = _average(nats, counted, average, (n_rows, n_positions))
        return loss / math.log(2) if unit == "bits" else loss

    return answer


def _shifted(logits: Tensor, tokens: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    if shift == 0:
        return logits, tokens
    if shift == 1:
        return logits[:, :-1], tokens[:, 1:]
    return logits[:, 1:], tokens[:, :-1]


def _log_probabilities(predictions: Tensor, through: str) -> Tensor:
    if through == "softmax":
        return predictions.softmax(-1).log_softmax(-1)
    if through == "no log":
        return predictions.softmax(-1)
    return predictions.log_softmax(-1)


def _average(nats: Tensor, counted: Tensor, average: str, shape: tuple[int, int]) -> Tensor:
    if average == "sum":
        return (nats * counted).sum()
    if average == "all positions":
        return (nats * counted).sum() / nats.numel()
    if average == "rows first":
        nats, counted = nats.view(shape), counted.view(shape)
        return ((nats * counted).sum(1) / counted.sum(1)).mean()
    return (nats * counted).sum() / counted.sum()


MISTAKES = (
    Mistake(
        name="no shift",
        faults={"shift": 0},
        message="Each prediction is scored on the token just read, which the model has seen: "
        "logits[:, t] must meet tokens[:, t + 1].",
    ),
    Mistake(
        name="shift in the wrong direction",
        faults={"shift": -1},
        message="logits[:, t] meets tokens[:, t - 1], so the model is asked for the past; "
        "it must meet tokens[:, t + 1].",
    ),
    Mistake(
        name="softmax twice",
        faults={"through": "softmax"},
        message="The logits have gone through softmax and then through cross_entropy, which applies "
        "softmax itself: the loss can then never come near 0.",
    ),
    Mistake(
        name="no logarithm",
        faults={"through": "no log"},
        message="This averages probabilities, not their logarithms: the loss lies between -1 and 0.",
    ),
    Mistake(
        name="flattened across V and T",
        faults={"flatten": "V and T"},
        message="transpose and then reshape mixes vocabulary and time: each row of the flattened logits "
        "must be the V logits of one position.",
    ),
    Mistake(
        name="flattened across B and T",
        faults={"flatten": "B and T"},
        message="Logits are flattened row by row and targets column by column, so most predictions meet "
        "the target of another position.",
    ),
    Mistake(
        name="padding counted",
        faults={"padding": "counted"},
        message="Positions whose target is pad_id are no predictions, and they are in the mean.",
    ),
    Mistake(
        name="divided by all positions",
        faults={"average": "all positions"},
        message="Padding adds nothing to the sum, which is right, but it is counted in what is divided by.",
    ),
    Mistake(
        name="averaged row by row",
        faults={"average": "rows first"},
        message="This is the mean of each row's mean, so a token in a short row weighs more than one in a "
        "long row.",
    ),
    Mistake(
        name="sum instead of mean",
        faults={"average": "sum"},
        message="The losses are summed: the figure would grow with the batch.",
    ),
    Mistake(
        name="bits rather than nats",
        faults={"unit": "bits"},
        message="The value is in bits (base-2 logarithm); nats, by the natural logarithm, are asked for.",
    ),
)

HINTS = (
    "Write down which token logits[0, 0] is a guess of. It is not tokens[0, 0].",
    "Drop the last prediction (nothing to compare it with) and the first token (nobody predicted it): "
    "logits[:, :-1] and tokens[:, 1:].",
    "torch.nn.functional.cross_entropy takes [N, V] raw logits and [N] targets, applies log-softmax itself, "
    "averages, and leaves out the targets equal to ignore_index.",
)


def _case(about: str, rng: np.random.Generator, sizes: tuple[int, int, int], lengths: list[int]) -> Case:
    """A case with rows of the given lengths, filled up with a pad_id that is an ordinary vocabulary entry."""
    n_rows, n_positions, n_vocab = sizes
    pad_id = int(rng.integers(n_vocab))
    # Far-apart logits: softmax twice, or a wrong row, then shows in the first digit.
    logits = 3.0 * rng.standard_normal(sizes)
    tokens = (pad_id + rng.integers(1, n_vocab, size=(n_rows, n_positions))) % n_vocab
    for row, length in enumerate(lengths):
        tokens[row, length:] = pad_id

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        # float32, and part of a graph: what a model gives.
        return (
            torch.tensor(logits, dtype=torch.float32, requires_grad=True),
            torch.tensor(tokens),
            pad_id,
        ), {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    n_rows, n_positions = int(rng.integers(3, 6)), int(rng.integers(6, 10))
    n_vocab = int(rng.integers(11, 20))
    lengths = [n_positions, *(int(length) for length in rng.integers(3, n_positions - 1, n_rows - 1))]
    sizes = (n_rows, n_positions, n_vocab)
    return (
        _case("1 sequence of 2 tokens (one prediction)", rng, (1, 2, n_vocab), [2]),
        _case(f"{n_rows} sequences of {n_positions} tokens, no padding", rng, sizes, [n_positions] * n_rows),
        _case(f"{n_rows} sequences of {min(lengths)} to {n_positions} tokens, padded", rng, sizes, lengths),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, kwargs = case.make()
    loss = call(answer, *args, **kwargs)
    numbers = as_numbers(loss, "the loss")
    if not (isinstance(loss, torch.Tensor) and loss.requires_grad):
        raise Rejected(
            f"returned {describe(loss)} that is cut off from the logits (by .item(), .detach() or no_grad?): "
            "backward() could not train anything with it",
            name="loss cut off from the graph",
        )
    return {"the loss": numbers}


EXERCISE = Exercise(
    name="next_token_loss",
    reference=next_token_loss,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
)
