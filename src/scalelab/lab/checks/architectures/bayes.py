"""How a decoder fills a gap: Bayes' rule over candidates, and the ways to lose one of its factors.

Taught in book/transformers/architectures.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalelab.lab.checks.answers import as_numbers, call, need_tensor
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def gap_probabilities(log_left: Float[Tensor, " C"], log_right: Float[Tensor, "C R"]) -> Float[Tensor, " C"]:
    """Probabilities of the candidates for a gap, given both sides; they add up to 1.

    Args:
        log_left: log P(candidate | left).
        log_right: log P of each of the R tokens after the gap, given all before it, the candidate included.
    """
    return torch.softmax(log_left + log_right.sum(dim=1), dim=0)


def _build(
    *,
    left: str = "used",
    right: str = "all",
    average: str = "sum",
    combine: str = "product",
    result: str = "probabilities",
) -> Answer:
    """Bayes' rule with the given faults; without any, the right one."""

    def answer(log_left: Tensor, log_right: Tensor) -> Tensor:
        later = log_right[:, :1] if right == "the next" else log_right
        evidence = later.mean(1) if average == "mean" else later.sum(1)
        evidence = torch.zeros_like(evidence) if right == "none" else evidence
        prior = log_left if left == "used" else torch.zeros_like(log_left)
        score = prior + evidence
        if combine == "sum":
            score = (prior.exp() + evidence.exp()).log()
        if result == "joint":
            return score.exp()
        if result == "joint over its sum":
            return score.exp() / score.exp().sum()
        if result == "logarithms":
            return score.log_softmax(0)
        if result == "logarithms over their sum":
            return score / score.sum()
        return score.softmax(0)

    return answer


MISTAKES = (
    Mistake(
        name="left side alone",
        faults={"right": "none"},
        message="What comes after the gap makes no difference: this is the decoder's first guess, from the "
        "left. (log_right.sum() without a dim gives every candidate the same number: sum over dim 1.)",
    ),
    Mistake(
        name="right side alone",
        faults={"left": "unused"},
        message="P(candidate | left) is missing: a candidate that fits what follows and not what came before "
        "would win.",
    ),
    Mistake(
        name="only the next token",
        faults={"right": "the next"},
        message="Only the first token after the gap is used. All of them are evidence.",
    ),
    Mistake(
        name="mean instead of sum",
        faults={"average": "mean"},
        message="The logarithms of the later tokens are averaged. Probabilities of tokens that follow each "
        "other are multiplied, so their logarithms are added.",
    ),
    Mistake(
        name="probabilities added",
        faults={"combine": "sum"},
        message="The two factors are added. Bayes' rule multiplies them: log_left + log_right.sum(1).",
    ),
    Mistake(
        name="underflow",
        faults={"result": "joint over its sum"},
        message="The probabilities themselves are multiplied. Of many tokens the product is smaller than any "
        "float32 and becomes 0, and 0 over 0 is no number. Add the logarithms, and let softmax take the "
        "largest off before it takes exp.",
    ),
    Mistake(
        name="not normalised",
        faults={"result": "joint"},
        message="This is P(candidate, right | left), which does not add up to 1. Divide by the sum over "
        "candidates.",
    ),
    Mistake(
        name="logarithms returned",
        faults={"result": "logarithms"},
        message="These are logarithms of the right probabilities.",
    ),
    Mistake(
        name="logarithms divided by their sum",
        faults={"result": "logarithms over their sum"},
        message="Logarithms are divided by their sum, which makes the *least* likely candidate the largest. "
        "Take exp first.",
    ),
)

HINTS = (
    "P(x | left, right) is proportional to P(x | left) · P(right | left, x). The second is a product over "
    "the tokens on the right.",
    "In logarithms: log_left + log_right.sum(1), one number a candidate.",
    "torch.softmax(log_left + log_right.sum(dim=1), dim=0).",
)


def _case(about: str, rng: np.random.Generator, n_candidates: int, n_right: int) -> Case:
    log_left = np.log(rng.dirichlet(np.full(n_candidates + 1, 2.0))[:-1] + 0.02)
    log_right = np.log(rng.uniform(0.25, 0.95, size=(n_candidates, n_right)))

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (torch.tensor(log_left), torch.tensor(log_right)), {}

    return Case(about=about, make=make)


def _long_case(rng: np.random.Generator, n_candidates: int, n_right: int) -> Case:
    """As many unlikely tokens as a model meets, in its precision: their product is below any float32.

    All are multiples of 1/64, of which float32 holds sums exactly: in whatever order they are added.
    """
    log_left = np.log(rng.dirichlet(np.full(n_candidates + 1, 2.0))[:-1] + 0.02)
    each = rng.uniform(3.0, 5.0, (1, n_right)) + rng.uniform(0.0, 0.1, (n_candidates, n_right))
    left, right = (np.round(64 * logs) / 64 for logs in (log_left, -each))

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (torch.tensor(left, dtype=torch.float32), torch.tensor(right, dtype=torch.float32)), {}

    return Case(about=f"{n_candidates} candidates and {n_right} tokens after the gap, in float32", make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    n, length = int(rng.integers(3, 6)), int(rng.integers(3, 6))
    return (
        _case("2 candidates and 2 tokens after the gap", rng, 2, 2),
        _case(f"{n} candidates and {length} tokens after the gap", rng, n, length),
        _long_case(rng, 8, 60),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    found = call(answer, *args)
    need_tensor(found, "the probabilities", "real numbers")
    return {"the probabilities": as_numbers(found, "the probabilities")}


EXERCISE = Exercise(
    name="gap_probabilities",
    reference=gap_probabilities,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
)
