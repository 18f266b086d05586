"""Cross-entropy over a vocabulary that is cut over ranks, and the numbers that are easily a rank's own.

Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3. Taught in book/parallelism/tensor-parallel.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scalelab.lab.checks.answers import as_tuple
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.ranks import on_ranks
from scalelab.lab.checks.tensor_parallel.observing import largest, rank_by_rank, summed
from scalelab.models.loss import IGNORE_INDEX
from scalelab.parallel.scratch.group import Group
from scalelab.parallel.scratch.vocabulary import first_row

if TYPE_CHECKING:
    from jaxtyping import Float, Int
Collective = Callable[[Tensor], Tensor]


def cut_loss(
    logits: Float[Tensor, "N v"],
    targets: Int[Tensor, " N"],
    first: int,
    all_sum: Collective,
    all_max: Collective,
) -> tuple[Float[Tensor, ""], Float[Tensor, "N v"]]:
    """Mean cross-entropy of the targets that count, in nats, and its gradient at this rank's logits."""
    counts = targets != IGNORE_INDEX
    own = (targets >= first) & (targets < first + logits.shape[1])
    place = torch.where(own, targets - first, 0)[:, None]  # 0 stands in where another rank has it
    shifted = logits - all_max(logits.amax(1))[:, None]
    hit = all_sum(shifted.gather(1, place)[:, 0] * own)
    total = all_sum(shifted.exp().sum(1))
    loss = ((total.log() - hit) * counts).sum() / counts.sum()
    gradient = shifted.exp() / total[:, None]  # softmax, less 1 at the target
    gradient.scatter_add_(1, place, -own[:, None].to(logits.dtype))
    return loss, gradient * counts[:, None] / counts.sum()


def _build(
    *, top: str = "all", total: str = "all", target: str = "right", mean: str = "counted",
    ignored: str = "right", one: str = "right", divided: bool = True, times: str = "once",
) -> Answer:  # fmt: skip
    """The cut loss with the given faults; without any, the right one."""

    def answer(logits: Tensor, targets: Tensor, first: int, all_sum: Collective, all_max: Collective) -> Any:
        counts = targets != IGNORE_INDEX
        own = (targets >= first) & (targets < first + logits.shape[1])
        place = (targets - first).clamp(0, logits.shape[1] - 1)[:, None]
        highest = logits.amax(1)
        of_all = all_max(highest)
        shifts = {"own": highest, "none": torch.zeros_like(highest), "one": of_all.amax().expand_as(highest)}
        shift = shifts.get(top, of_all)
        shifted = logits - shift[:, None]
        found = shifted.gather(1, place)[:, 0]
        hit = found if target == "clamped" else found * own
        if target == "its rank enters":
            hit = all_sum(hit) if bool(own.any()) else hit
        elif target != "own alone":
            hit = all_sum(hit)
        exponentials = shifted.exp()
        own_sum = exponentials.sum(1)
        whole = own_sum if total == "own" else all_sum(own_sum)
        if top == "not put back":
            hit = hit + of_all
        if ignored == "loss":  # their ln Σ exp, of logits as they came
            hit = torch.where(counts, hit, -shift)
        n = {"counted": counts.sum(), "all": torch.tensor(len(targets)), "own": own.sum().clamp(min=1)}[mean]
        everywhere = torch.ones_like(counts)
        in_loss = everywhere if ignored.startswith("loss") else counts
        in_gradient = everywhere if ignored == "gradient" else counts
        n_ranks = all_sum(torch.ones_like(highest))[0] if times == "summed" else 1
        loss = ((whole.log() - hit) * in_loss).sum() / n * n_ranks
        gradient = exponentials / whole[:, None]
        taken = torch.ones_like(own) if one == "clamped" else own & (one != "not taken")
        gradient.scatter_add_(1, place, -taken[:, None].to(logits.dtype))
        gradient = gradient * in_gradient[:, None]
        return loss, (gradient / n if divided else gradient) * (-1 if times == "turned" else 1)

    return answer


MISTAKES = (
    Mistake(
        name="each rank's own largest logit",
        faults={"top": "own"},
        message="Each rank takes its own largest logit off. Exponentials with different shifts cannot be "
        "added up: the largest of all ranks comes first, by all_max.",
    ),
    Mistake(
        name="no largest logit taken off",
        faults={"top": "none"},
        message="Nothing is taken off before exp, and e^89 is more than fp32 holds: large logits give inf or "
        "NaN. Take the largest of all ranks off.",
    ),
    Mistake(
        name="one largest logit for all places",
        faults={"top": "one"},
        message="A single largest logit is taken off at every place. Where a place's own are far below it, "
        "all of its exponentials are 0 and their logarithm is -inf: take that of each place, logits.amax(1).",
    ),
    Mistake(
        name="the largest logit not put back",
        faults={"top": "not put back"},
        message="ln Σ exp is of logits with the largest taken off, and the target's logit is as it came: the "
        "loss lacks the largest. Take it off both, or add it to the logarithm.",
    ),
    Mistake(
        name="each rank's own sum of exponentials",
        faults={"total": "own"},
        message="Each rank divides by the sum over its own share of the vocabulary. The probabilities then "
        "sum to one on every rank, and to p in all: all_sum the sums.",
    ),
    Mistake(
        name="a logit of another token stands in for the target's",
        faults={"target": "clamped"},
        message="Where the target is not in a rank's share, the logit at its first or last place is taken "
        "instead, and added. Only the rank that has the target gives its logit; the others give 0.",
    ),
    Mistake(
        name="the target's logit stays on its rank",
        faults={"target": "own alone"},
        message="The target's logit is known to one rank and missing in the loss of the others: all_sum it, "
        "with 0 on those that do not have it.",
    ),
    Mistake(
        name="a sum that only ranks with a target enter",
        faults={"target": "its rank enters"},
        message="all_sum is called only where one of the targets is in the rank's share. A collective ends "
        "when every rank has entered it: call it always, with zeros where there is nothing to give.",
    ),
    Mistake(
        name="targets that do not count are counted",
        faults={"mean": "all"},
        message="The sum is divided by all places. Those with -100 have no target: divide by the number of "
        "targets that count.",
    ),
    Mistake(
        name="divided by each rank's own targets",
        faults={"mean": "own"},
        message="The sum is divided by the number of targets in this rank's share. It is the mean of all of "
        "them, the same number on every rank.",
    ),
    Mistake(
        name="places without a target add to the loss",
        faults={"ignored": "loss"},
        message="Places with -100 add their ln Σ exp to the loss. Multiply by whether they count.",
    ),
    Mistake(
        name="places without a target add what is left of theirs",
        faults={"ignored": "loss, shifted"},
        message="Places with -100 add their ln Σ exp to the loss, less the largest logit. Multiply by "
        "whether they count.",
    ),
    Mistake(
        name="the loss summed over ranks",
        faults={"times": "summed"},
        message="The loss is summed over ranks at the end, and every rank has the whole of it already: it "
        "comes out p times as large.",
    ),
    Mistake(
        name="the gradient turned round",
        faults={"times": "turned"},
        message="The gradient has the wrong sign: softmax less 1 at the target, not the other way round.",
    ),
    Mistake(
        name="places without a target have a gradient",
        faults={"ignored": "gradient"},
        message="Places with -100 have no target and do not add to the loss, so their gradient is 0. Here "
        "they hand back their softmax.",
    ),
    Mistake(
        name="1 is taken off on every rank",
        faults={"one": "clamped"},
        message="The gradient is softmax less 1 at the target. Here the 1 is taken off on every rank, at "
        "some other token where the target is not in its share.",
    ),
    Mistake(
        name="1 is not taken off",
        faults={"one": "not taken"},
        message="The gradient is softmax alone: 1 is to be taken off at the target, on the rank that has it.",
    ),
    Mistake(
        name="the gradient of the sum",
        faults={"divided": False},
        message="The loss is a mean and the gradient that of the sum: divide it by the number of targets "
        "too.",
    ),
)

HINTS = (
    "Three numbers a place go through collectives: the largest logit (all_max), the sum of exponentials and "
    "the target's logit (all_sum). A rank that does not have the target gives 0.",
    "own = (targets >= first) & (targets < first + v); place = torch.where(own, targets - first, 0). "
    "shifted = logits - all_max(logits.amax(1))[:, None]; everything after that is of shifted.",
    "loss = ((total.log() - hit) * counts).sum() / counts.sum(). gradient = shifted.exp() / total[:, None], "
    "less 1 at place where own, times counts, divided by counts.sum().",
)


def _case(
    about: str, rng: np.random.Generator, size: int, *, scale: float = 1.0, only: int | None = None
) -> Case:
    """Logits of 6 places; the second has no target.

    Args:
        only: the rank whose share has all the targets; None: they lie anywhere, two on different ranks.
    """
    vocab = int(rng.integers(3 * size, 4 * size))
    logits = (scale * rng.standard_normal((6, vocab))).astype(np.float32)
    shares = np.array_split(np.arange(vocab), size)
    if only is None:
        targets = rng.integers(vocab, size=6)
        targets[[0, 2]] = shares[0][-1], shares[-1][0]
    else:
        targets = rng.choice(shares[only], 6)
    targets[1] = IGNORE_INDEX

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (torch.tensor(logits), torch.tensor(targets), size), {}

    return Case(about=f"{size} ranks, a vocabulary of {vocab}, {about}", make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    return (
        _case("targets on several ranks", rng, 2),
        _case("all targets on rank 1", rng, 3, only=1),
        _case("logits of several hundreds", rng, 3, scale=200.0),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    (logits, targets, size), _ = case.make()
    vocab = logits.shape[1]

    def arguments(group: Group) -> tuple[Any, ...]:
        own = logits.tensor_split(size, 1)[group.rank].clone()
        return own, targets.clone(), first_row(vocab, group), summed(group), largest(group)

    def read(answers: list[Any]) -> Observation:
        names = ("loss", "gradient")
        return rank_by_rank([dict(zip(names, as_tuple(got, names), strict=True)) for got in answers])

    return on_ranks(answer, size, arguments, read)


EXERCISE = Exercise(
    name="cut_loss",
    reference=cut_loss,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    atol=1e-5,
)
