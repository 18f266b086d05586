"""The rule of speculative decoding: which drafts are kept, what replaces the first that is not.

The answer says how many drafts are kept and from what the next token is to be drawn, so that nothing of it is
left to chance and each mistake shows in the numbers.
Source: Leviathan et al. 2023, arXiv:2211.17192, algorithm 1; Chen et al. 2023, arXiv:2302.01318, algorithm 2.
Taught in book/transformers/inference.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalelab.lab.checks.answers import as_numbers, as_tuple, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

PARTS = ("the number kept", "the next distribution")


def accept_or_resample(
    p: Float[Tensor, "n+1 V"], q: Float[Tensor, "n V"], drafts: Int[Tensor, " n"], u: Float[Tensor, " n"]
) -> tuple[int, Float[Tensor, " V"]]:
    """How many drafts are kept, and what the token after them is drawn from."""
    for i, x in enumerate(drafts.tolist()):
        if u[i] * q[i, x] >= p[i, x]:  # kept with probability min(1, p/q)
            rest = (p[i] - q[i]).clamp(min=0)
            return i, rest / rest.sum()
    return len(drafts), p[-1]


def _build(
    *, accept: str = "right", count: str = "first refusal", rest: str = "right", bonus: str = "right",
    at: str = "right",
) -> Answer:  # fmt: skip
    """The rule with the given faults; without any, the right one."""

    def answer(p: Tensor, q: Tensor, drafts: Tensor, u: Tensor) -> tuple[int, Tensor]:
        n = len(drafts)
        places = torch.arange(n)
        p_x, q_x = p[places, drafts], q[places, drafts]
        ratio = {"q/p": q_x / p_x, "p": p_x, "1 - ratio": 1 - p_x / q_x}.get(accept, p_x / q_x)
        kept = u < ratio
        if accept == "greedy":
            kept = p[:-1].argmax(dim=-1) == drafts
        n_kept = int(kept.sum()) if count == "all" else int(kept.long().cumprod(0).sum())
        if n_kept == n:
            after = {"draft's": q[-1], "last place": p[n - 1], "residual": _positive(p[n] - q[-1])}
            return n_kept, after.get(bonus, p[n])
        place = min(n_kept + 1, n - 1) if at == "one on" else n_kept
        gap = p[n_kept] - q[place]
        left = {
            "p": p[n_kept],
            "q": q[n_kept],
            "absolute": gap.abs() / gap.abs().sum(),
            "unnormalised": gap.clamp(min=0),
            "negative": gap,
            "other way": _positive(-gap),
        }
        if rest == "without the draft":
            zeroed = p[n_kept].index_fill(0, drafts[n_kept], 0.0)
            return n_kept, zeroed / zeroed.sum()
        return n_kept, left.get(rest, _positive(gap))

    return answer


def _positive(gap: Tensor) -> Tensor:
    clamped = gap.clamp(min=0)
    return clamped / clamped.sum()


MISTAKES = (
    Mistake(
        name="accepted by q/p",
        faults={"accept": "q/p"},
        message="A draft is kept with q(x)/p(x). It is the other way round: where the target likes x better "
        "than the draft did, p/q is above 1 and x always stays.",
    ),
    Mistake(
        name="accepted with p",
        faults={"accept": "p"},
        message="A draft is kept with probability p(x). It has already been drawn with q(x): keep it with "
        "p(x)/q(x), or the two multiply.",
    ),
    Mistake(
        name="accepted and refused the other way round",
        faults={"accept": "1 - ratio"},
        message="Drafts are kept where they should be refused: keep where u < p(x)/q(x).",
    ),
    Mistake(
        name="accepted only if the likeliest",
        faults={"accept": "greedy"},
        message="A draft is kept if it is the target's likeliest token. That is the rule at temperature 0; "
        "here texts are to be *distributed* as the target's.",
    ),
    Mistake(
        name="counted past a refusal",
        faults={"count": "all"},
        message="Drafts after the first refused one are counted as well. They continue a text that no longer "
        "exists: stop at the first refusal.",
    ),
    Mistake(
        name="replaced from p",
        faults={"rest": "p"},
        message="A refused draft is replaced by a draw from p. Tokens that the draft proposes often then "
        "come too often: once as accepted drafts, once more here. Draw from max(0, p - q), normalised.",
    ),
    Mistake(
        name="replaced from p without the draft",
        faults={"rest": "without the draft"},
        message="The refused token is struck out of p. Others that q proposes too often are still too "
        "likely: take q off p everywhere, max(0, p - q).",
    ),
    Mistake(
        name="replaced from q",
        faults={"rest": "q"},
        message="A refused draft is replaced by another one of the draft's. The target should decide.",
    ),
    Mistake(
        name="residual of the wrong sign",
        faults={"rest": "other way"},
        message="The residual is max(0, q - p): what the draft gives too much. Draw from what it gives too "
        "little.",
    ),
    Mistake(
        name="absolute difference",
        faults={"rest": "absolute"},
        message="|p - q| also holds the tokens that the draft gives too much. Clamp at 0 instead.",
    ),
    Mistake(
        name="residual not clamped",
        faults={"rest": "negative"},
        message="p - q is negative where the draft gives too much, and sums to 0. Clamp at 0, then "
        "normalise.",
    ),
    Mistake(
        name="residual not normalised",
        faults={"rest": "unnormalised"},
        message="max(0, p - q) sums to the share of drafts that are refused. Divide by its sum.",
    ),
    Mistake(
        name="residual with the next place's draft",
        faults={"at": "one on"},
        message="The residual takes q from the place after the refused draft. Both belong to the refused "
        "place.",
    ),
    Mistake(
        name="no bonus token",
        faults={"bonus": "last place"},
        message="Where all drafts are kept, the next token is drawn from the target's distribution at the "
        "last draft's place. The pass gave one more, after the last draft: p[n].",
    ),
    Mistake(
        name="bonus from the draft",
        faults={"bonus": "draft's"},
        message="Where all drafts are kept, the next token is drawn from the draft model. The target has "
        "given its own for that place, p[n], at no cost.",
    ),
    Mistake(
        name="bonus from a residual",
        faults={"bonus": "residual"},
        message="Where all drafts are kept there is nothing to make up for: the next token is drawn from "
        "p[n] as it is.",
    ),
)

HINTS = (
    "Go through the drafts in order. Draft x at place i stays where u[i] < p[i, x] / q[i, x]. At the first "
    "that does not, return.",
    "The next token comes from max(0, p[i] - q[i]) over its sum after a refusal at place i, and from p[n] "
    "when none was refused.",
    "for i, x in enumerate(drafts.tolist()): if u[i] * q[i, x] >= p[i, x]: rest = (p[i] - "
    "q[i]).clamp(min=0); return i, rest / rest.sum(). After the loop: return len(drafts), p[-1].",
)


def _distributions(rng: np.random.Generator, n_rows: int, n_tokens: int) -> np.ndarray:
    weights = rng.uniform(0.15, 1.0, (n_rows, n_tokens)) ** 2
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _case(about: str, rng: np.random.Generator, verdicts: str) -> Case:
    """Drafts that p likes better than q (kept by a high u: "k", by a low one: "l"), or less ("u", "r")."""
    n_tokens, n = int(rng.integers(6, 9)), len(verdicts)
    p, q = _distributions(rng, n + 1, n_tokens), _distributions(rng, n, n_tokens)
    drafts, u = np.zeros(n, dtype=np.int64), np.zeros(n)
    for i, verdict in enumerate(verdicts):
        ratios = p[i] / q[i]
        while np.sort(ratios)[-2] < 1.2:  # two tokens that p likes better: one of them is not its likeliest
            q[i] = _distributions(rng, 1, n_tokens)[0]
            ratios = p[i] / q[i]
        by_ratio = [int(x) for x in np.argsort(ratios) if x != p[i].argmax()]
        drafts[i] = by_ratio[-1] if verdict in "kl" else by_ratio[0]
        ratio = ratios[drafts[i]]
        # Between the right rule's threshold and the wrong ones': each verdict has one reason.
        u[i] = {
            "k": 0.97,
            "l": 0.5 * min(1 / ratio, p[i, drafts[i]]),
            "u": 0.9 * ratio,
            "r": ratio + 0.5 * (1 - ratio),
        }[verdict]

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (torch.tensor(p), torch.tensor(q), torch.tensor(drafts), torch.tensor(u)), {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    return (
        _case("3 drafts, the second refused", rng, "lrk"),
        _case("3 drafts, the first refused", rng, "rku"),
        _case("2 drafts, both kept", rng, "ku"),
        _case("4 drafts, the last refused", rng, "ukkr"),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    parts = as_tuple(call(answer, *args), PARTS)
    return {name: as_numbers(part, name) for name, part in zip(PARTS, parts, strict=True)}


EXERCISE = Exercise(
    name="accept_or_resample",
    reference=accept_or_resample,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    atol=1e-6,
)
