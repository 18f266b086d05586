"""Who may look at whom in an encoder, a decoder and a decoder with a prefix, and the leaks that masks have.

Source: Raffel et al. 2019, arXiv:1910.10683, figure 3. Taught in book/transformers/architectures.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalelab.lab.checks.answers import as_numbers, call, need_tensor
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

if TYPE_CHECKING:
    from jaxtyping import Bool
    from torch import Tensor

SHAPES = ("encoder", "decoder", "prefix")


def who_sees_whom(shape: str, n_prompt: int, n_answer: int) -> Bool[Tensor, "T T"]:
    """True where the token of the row may look at the token of the column; T = n_prompt + n_answer.

    Args:
        shape: "encoder": everyone sees everyone. "decoder": each sees itself and what came before. "prefix":
            as a decoder, but the prompt's tokens see all of the prompt.
    """
    length = n_prompt + n_answer
    seen = torch.ones(length, length, dtype=torch.bool)
    if shape == "encoder":
        return seen
    seen = seen.tril()
    if shape == "prefix":
        seen[:n_prompt, :n_prompt] = True
    return seen


def _build(
    *,
    past: str = "and itself",
    encoder: str = "all",
    prefix: str = "both ways",
    answer_sees: str = "prompt and past",
    means: str = "seen",
) -> Answer:
    """Masks with the given faults; without any, the right ones."""

    def answer(shape: str, n_prompt: int, n_answer: int) -> Tensor:
        length = n_prompt + n_answer
        ones = torch.ones(length, length, dtype=torch.bool)
        causal = {"and itself": ones.tril(), "alone": ones.tril(-1), "future": ones.triu()}[past]
        seen = ones if shape == "encoder" and encoder == "all" else causal
        if shape == "prefix":
            seen = _prefix(seen.clone(), n_prompt, prefix, answer_sees)
        return ~seen if means == "hidden" else seen

    return answer


def _prefix(seen: Tensor, n_prompt: int, prefix: str, answer_sees: str) -> Tensor:
    if prefix == "both ways":
        seen[:n_prompt, :n_prompt] = True
    elif prefix == "sees the answer":
        seen[:n_prompt] = True
    elif prefix == "exchanged":
        n_answer = len(seen) - n_prompt
        seen[:n_answer, :n_answer] = True
    elif prefix == "seen by all":
        seen[:, :n_prompt] = True
        seen[n_prompt:, n_prompt:] = True
    if answer_sees == "past alone":
        seen[n_prompt:, :n_prompt] = False
    return seen


MISTAKES = (
    Mistake(
        name="does not see itself",
        faults={"past": "alone"},
        message="In the causal mask a token does not see itself. It may: what it must predict is the token "
        "after it. The first token would see nobody, and a softmax over nobody is not a number.",
    ),
    Mistake(
        name="sees the future",
        faults={"past": "future"},
        message="The causal mask is upside down: each token sees itself and what comes after it, and could "
        "copy what it must predict. Rows look, columns are looked at.",
    ),
    Mistake(
        name="causal encoder",
        faults={"encoder": "causal"},
        message="The encoder has a causal mask. Its tokens see both sides; that is the point of it.",
    ),
    Mistake(
        name="prefix not bidirectional",
        faults={"prefix": "causal"},
        message="With shape 'prefix' the prompt's tokens see only what came before them, so this is a plain "
        "decoder. The prompt is given: it may be read both ways.",
    ),
    Mistake(
        name="prompt sees the answer",
        faults={"prefix": "sees the answer"},
        message="The prompt's tokens see the answer, and the answer's see the prompt: by this detour each "
        "predicts what it has been told.",
    ),
    Mistake(
        name="answer sees itself both ways",
        faults={"prefix": "seen by all"},
        message="The answer's tokens see all of the answer, later ones too: nothing is left to predict.",
    ),
    Mistake(
        name="prompt and answer exchanged",
        faults={"prefix": "exchanged"},
        message="The block that is read both ways has the answer's length. It belongs to the prompt, which "
        "comes first: seen[:n_prompt, :n_prompt].",
    ),
    Mistake(
        name="answer does not see the prompt",
        faults={"answer_sees": "past alone"},
        message="The answer's tokens see only the answer. They must see all of the prompt, or it was read in "
        "vain.",
    ),
    Mistake(
        name="True means hidden",
        faults={"means": "hidden"},
        message="The mask is inverted: True must mean that the column may be looked at (as in PyTorch's "
        "scaled_dot_product_attention; some other functions have it the other way round).",
    ),
)

HINTS = (
    "Draw the square for a prompt of 2 tokens and an answer of 2. Each row is a token that looks.",
    "torch.ones(T, T, dtype=torch.bool).tril() is the decoder's. A prefix mask differs from it in one square "
    "block.",
    "seen = torch.ones(T, T, dtype=torch.bool); for anything but an encoder seen = seen.tril(); for a prefix "
    "seen[:n_prompt, :n_prompt] = True.",
)


def _case(shape: str, n_prompt: int, n_answer: int) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (shape, n_prompt, n_answer), {}

    return Case(about=f"{shape!r} with a prompt of {n_prompt} and an answer of {n_answer}", make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    # Prompt and answer of other lengths, so that it shows which is which.
    sizes = [[int(n) for n in rng.permutation([2, 4, 6, 8])[:2]] for _ in SHAPES]
    return tuple(_case(shape, *size) for shape, size in zip(SHAPES, sizes, strict=True))


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    mask = call(answer, *args)
    numbers = as_numbers(mask, "the mask")
    need_tensor(
        mask, "the mask", "True and False"
    )  # numbers would be added to the scores, and 0 hide nothing
    return {"the mask": numbers}


EXERCISE = Exercise(
    name="who_sees_whom",
    reference=who_sees_whom,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
)
