"""BERT's corruption of a text, and the ways to get its 80 / 10 / 10 wrong.

Source: Devlin et al. 2018, arXiv:1810.04805, section 3.1 and appendix A.1.
Taught in book/transformers/architectures.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalelab.lab.checks.answers import as_numbers, as_tuple, call, need_tensor
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

PARTS = ("inputs", "targets")
NONE = -100


def mask_tokens(
    ids: Int[Tensor, "B T"],
    luck: Float[Tensor, "B T"],
    fate: Float[Tensor, "B T"],
    drawn: Int[Tensor, "B T"],
    n_text: int,
    mask_id: int,
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Inputs and targets of masked language modelling, once all chance is drawn.

    Args:
        ids: below n_text they are text; the others are special.
        luck, fate: evenly drawn from 0 to 1. Text is chosen where luck is below 0.15. A chosen token becomes
            mask_id where its fate is below 0.8, `drawn` where it is below 0.9, and else stays as it is.
        drawn: text ids.

    Returns:
        what the model reads; and the original ids where a token was chosen, -100 elsewhere.
    """
    chosen = (luck < 0.15) & (ids < n_text)
    inputs = ids.clone()
    inputs[chosen & (fate < 0.9)] = drawn[chosen & (fate < 0.9)]
    inputs[chosen & (fate < 0.8)] = mask_id
    return inputs, ids.masked_fill(~chosen, NONE)


def _build(
    *,
    choice: str = "text",
    taught: str = "chosen",
    shares: str = "80/10/10",
    what: str = "original",
    shift: int = 0,
    nothing: int = NONE,
) -> Answer:
    """Masking with the given faults; without any, the right one."""

    def answer(
        ids: Tensor, luck: Tensor, fate: Tensor, drawn: Tensor, n_text: int, mask_id: int
    ) -> tuple[Tensor, Tensor]:
        chosen = (luck >= 0.15) if choice == "the others" else (luck < 0.15)
        if choice == "all but the ends":
            chosen[:, [0, -1]] = False
        elif choice == "one id too many":
            chosen = chosen & (ids <= n_text)
        elif choice != "specials too":
            chosen = chosen & (ids < n_text)
        hit = (ids < n_text) if shares == "of all" else chosen
        hidden = hit & (fate < (1.0 if shares == "all masked" else 0.8))
        swapped = hit & ~hidden & (fate < (1.0 if shares == "none stays" else 0.9))
        inputs = torch.where(hidden, mask_id, torch.where(swapped, drawn, ids))
        counted = {"chosen": chosen, "hidden": hidden & chosen, "all": torch.ones_like(chosen)}[taught]
        truth = inputs if what == "corrupted" else ids
        targets = torch.where(counted, truth, nothing)
        if shift:
            filling = torch.full_like(targets[:, :1], nothing)
            targets = torch.cat((targets[:, 1:], filling), dim=1)
        return inputs, targets

    return answer


MISTAKES = (
    Mistake(
        name="loss on all tokens",
        faults={"taught": "all"},
        message="Every token is a target. Most of them stand uncovered in the input: the model would learn "
        "to copy. Only chosen tokens count, the others are -100.",
    ),
    Mistake(
        name="special tokens chosen",
        faults={"choice": "specials too"},
        message="Special tokens ([CLS], [SEP], padding: ids from n_text on) are chosen too. They are no text "
        "and teach nothing.",
    ),
    Mistake(
        name="only the ends are spared",
        faults={"choice": "all but the ends"},
        message="The first and the last place are spared, whatever stands there. Special tokens stand "
        "elsewhere too, padding for one: ask for ids below n_text.",
    ),
    Mistake(
        name="id n_text counted as text",
        faults={"choice": "one id too many"},
        message="Text ids are 0 to n_text - 1, and n_text is the first that is none (the end of a text): "
        "ids < n_text, not <=.",
    ),
    Mistake(
        name="kept and swapped tokens are no targets",
        faults={"taught": "hidden"},
        message="Only tokens that became the mask are targets. The ones swapped or left as they are must be "
        "told too: that is what keeps the model from trusting what it sees.",
    ),
    Mistake(
        name="80/10/10 of all tokens",
        faults={"shares": "of all"},
        message="The fate is applied to every text token and not only to the chosen ones: nine tokens in ten "
        "are gone.",
    ),
    Mistake(
        name="all chosen are masked",
        faults={"shares": "all masked"},
        message="Every chosen token becomes the mask. A model trained so has never had to say anything about "
        "a token it can see: a tenth is swapped, and a tenth stays.",
    ),
    Mistake(
        name="none stays as it is",
        faults={"shares": "none stays"},
        message="From a fate of 0.9 on, a chosen token stays as it is; here it is swapped.",
    ),
    Mistake(
        name="targets from the corrupted text",
        faults={"what": "corrupted"},
        message="The targets hold what the model reads, after corruption: it is asked to say [MASK]. They "
        "must hold the original.",
    ),
    Mistake(
        name="targets shifted",
        faults={"shift": 1},
        message="The targets are moved by one place, as for a decoder. An encoder tells the token at its own "
        "place.",
    ),
    Mistake(
        name="0 where there is no target",
        faults={"nothing": 0},
        message="Where nothing is to be told stands 0, which is a token. PyTorch's cross-entropy leaves out "
        "-100.",
    ),
    Mistake(
        name="the other 85 %",
        faults={"choice": "the others"},
        message="Chosen are the tokens whose luck is 0.15 or more: 85 % of them. It should be those below.",
    ),
)

HINTS = (
    "First decide which tokens are chosen: two conditions. Then what becomes of them, and, apart from that, "
    "what is to be told.",
    "chosen = (luck < 0.15) & (ids < n_text). Targets: ids where chosen, -100 elsewhere, whatever the fate.",
    "inputs = ids.clone(); inputs[chosen & (fate < 0.9)] = drawn[...] of the same places; then, over that, "
    "mask_id where chosen & (fate < 0.8).",
)


def _case(about: str, rng: np.random.Generator, n_rows: int, length: int) -> Case:
    """Rows of [CLS], text, [SEP], the end of a text and two places of padding."""
    n_text = int(rng.integers(40, 90))
    mask_id = n_text + 4
    ids = rng.integers(1, n_text, size=(n_rows, length))
    ids[:, 0], ids[:, -1] = n_text + 2, n_text + 3  # [CLS], [SEP]
    luck = rng.uniform(0.2, 1.0, size=ids.shape)
    fate = rng.uniform(0.0, 1.0, size=ids.shape)
    drawn = (ids + rng.integers(1, n_text - 1, size=ids.shape)) % n_text  # mostly another token
    # Of each fate at least one chosen token, and a special one that would be chosen.
    for row in range(n_rows):
        chosen, others = np.split(rng.permutation(np.arange(1, length - 1))[:7], [5])
        luck[row, chosen] = [*rng.uniform(0.01, 0.14, size=4), 0.145]
        luck[row, others] = 0.155
        fate[row, chosen] = [0.05, 0.79, 0.81, 0.89, 0.91]
        drawn[row, chosen[2:]] = (ids[row, chosen[2:]] + 1) % n_text
        luck[row, [0, -1]] = 0.05
        fate[row, [0, -1]] = [0.5, 0.85]
    end, pad = n_text, n_text + 1
    behind = ([end, pad, pad], [0.05, 0.05, 0.5], [0.3, 0.85, 0.95], [1, 2, 3])
    arrays = [
        np.hstack((array, np.tile(np.array(row, dtype=array.dtype), (n_rows, 1))))
        for array, row in zip((ids, luck, fate, drawn), behind, strict=True)
    ]
    given = [torch.tensor(array) for array in arrays]

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (*(tensor.clone() for tensor in given), n_text, mask_id), {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    length = int(rng.integers(12, 18))
    return (
        _case(f"1 text of {length} tokens, with padding", rng, 1, length),
        _case(f"3 texts of {length + 4} tokens, with padding", rng, 3, length + 4),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    parts = as_tuple(call(answer, *args), PARTS)
    for name, part in zip(PARTS, parts, strict=True):
        need_tensor(part, name, "whole numbers")
    return {name: as_numbers(part, name) for name, part in zip(PARTS, parts, strict=True)}


EXERCISE = Exercise(
    name="mask_tokens",
    reference=mask_tokens,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
)
