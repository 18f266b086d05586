"""One gradient from all ranks' micro-batches, and the ways to weigh it wrongly or to leave others waiting.

Source: Li et al. 2020, arXiv:2006.15704, section 3. Taught in book/parallelism/data-parallel.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from scalelab.lab.checks.answers import Numbers, Rejected, as_numbers
from scalelab.lab.checks.data_parallel.meeting import that_meet
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import case_of
from scalelab.models.loss import IGNORE_INDEX
from scalelab.parallel.scratch.collectives import ring_all_reduce
from scalelab.parallel.scratch.group import Group

if TYPE_CHECKING:
    from jaxtyping import Int


def shared_gradients(
    model: nn.Module, micro_batches: Sequence[tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]], group: Group
) -> float:
    """Leave in every rank's `.grad` the gradient of the mean loss over the targets of all ranks.

    Args:
        model: tokens [B, T] to logits [B, T, V]; the same weights on every rank.
        micro_batches: this rank's (tokens, targets); -100 is no target. Another rank may have fewer, or none.

    Returns:
        The mean loss over the targets of all ranks, on every rank.
    """
    model.zero_grad()
    count = torch.tensor([float(sum(int((t != IGNORE_INDEX).sum()) for _, t in micro_batches))])
    ring_all_reduce(count, group)
    total = torch.zeros(1)
    for tokens, targets in micro_batches:
        loss = functional.cross_entropy(
            model(tokens).flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
        )
        (loss / count).backward()  # type: ignore[no-untyped-call]
        total += loss.detach() / count
    for parameter in model.parameters():
        if parameter.grad is None:  # a rank without rows adds nothing, but the others wait for it
            parameter.grad = torch.zeros_like(parameter)
        ring_all_reduce(parameter.grad, group)
    ring_all_reduce(total, group)
    return float(total)


def _build(
    *, divide: str = "whole", reduce: str = "gradients", returns: str = "whole", zero: bool = True
) -> Answer:
    """Shared gradients with the given faults; without any, the right ones."""

    def answer(model: nn.Module, micro_batches: Sequence[Any], group: Group) -> float:
        parameters = list(model.parameters())
        held = [torch.zeros_like(p) if zero or p.grad is None else p.grad.clone() for p in parameters]
        divisor = _divisor(micro_batches, group, divide)
        total = torch.zeros(1)
        for tokens, targets in micro_batches:
            loss = functional.cross_entropy(
                model(tokens).flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
            )
            new = torch.autograd.grad(loss / divisor, parameters)
            held = [h + n for h, n in zip(held, new, strict=True)]
            total += loss.detach() / divisor
            if reduce == "every micro-batch":
                _sum_all(held, group)
        if reduce == "gradients" or (reduce == "where there are any" and micro_batches):
            _sum_all(held, group)
        elif reduce == "twice":
            _sum_all(held, group)
            _sum_all(held, group)
        if divide in ("own, averaged", "whole, and averaged"):
            held = [h / group.size for h in held]
            total /= group.size
        for parameter, gradient in zip(parameters, held, strict=True):
            parameter.grad = gradient
        if returns == "whole":
            ring_all_reduce(total, group)
        return float(total)

    return answer


def _divisor(micro_batches: Sequence[Any], group: Group, divide: str) -> float:
    targets = [t for _, t in micro_batches]
    if divide == "positions":
        count = torch.tensor([float(sum(t.numel() for t in targets))])
    else:
        count = torch.tensor([float(sum(int((t != IGNORE_INDEX).sum()) for t in targets))])
    if divide.startswith("own"):
        return max(float(count), 1.0)
    ring_all_reduce(count, group)
    return float(count)


def _sum_all(tensors: list[Tensor], group: Group) -> None:
    for tensor in tensors:
        ring_all_reduce(tensor, group)


MISTAKES = (
    Mistake(
        name="ranks' means averaged",
        faults={"divide": "own, averaged"},
        message="Each rank divides by its own targets and the means are averaged, so a target on a rank with "
        "few weighs more than one on a rank with many. Divide every sum by the targets of all ranks.",
    ),
    Mistake(
        name="ranks' means added",
        faults={"divide": "own"},
        message="Each rank divides by its own targets and the means are added: the gradient grows with the "
        "ranks. Divide every sum by the targets of all ranks.",
    ),
    Mistake(
        name="mean taken twice",
        faults={"divide": "whole, and averaged"},
        message="The losses are divided by the targets of all ranks already, so their gradients are shares "
        "of the mean: add them. Dividing by the ranks once more makes the gradient too small.",
    ),
    Mistake(
        name="divided by all positions",
        faults={"divide": "positions"},
        message="Positions without a target (-100) are counted in the number divided by.",
    ),
    Mistake(
        name="never reduced",
        faults={"reduce": "never"},
        message="Each rank keeps its own share of the gradient: the replicas take different steps and are "
        "different models from now on. (Adding up the *loss*, even in place before backward, does not help: "
        "autograd knows nothing of messages.)",
    ),
    Mistake(
        name="reduced for every micro-batch",
        faults={"reduce": "every micro-batch"},
        message="The gradients are added up over the ranks after each micro-batch, so what the first has "
        "brought is added again after the second; and a rank with fewer micro-batches does not come. Add up "
        "once, after the last.",
    ),
    Mistake(
        name="reduced twice",
        faults={"reduce": "twice"},
        message="The gradients are added up over the ranks a second time: each is the ranks' number times "
        "too large.",
    ),
    Mistake(
        name="a rank without rows stays away",
        faults={"reduce": "where there are any"},
        message="A rank that has no micro-batch does not enter the all-reduce, and the others wait for it: "
        "it has to take part, with zeros.",
    ),
    Mistake(
        name="own loss returned",
        faults={"returns": "own"},
        message="The loss is this rank's share. The whole batch's is the sum over the ranks.",
    ),
    Mistake(
        name="gradients not zeroed beforehand",
        faults={"zero": False},
        message="What the step before left in param.grad is still in it: backward adds. Zero it first.",
    ),
)

HINTS = (
    "In this order: zero the gradients; count the targets of all ranks; backward for each micro-batch; then, "
    "once, add up the gradients over the ranks.",
    "The count is an all-reduce of one number. Divide each micro-batch's *sum* of losses by it; then "
    "gradients are added over the ranks and divided by nothing more.",
    "After the loop, for every parameter: if its grad is None, put zeros there (this rank had no rows); then "
    "ring_all_reduce(parameter.grad, group). The loss travels the same way.",
)


class _TinyModel(nn.Module):
    """A table, tanh and a head with a bias."""

    def __init__(self, embed: np.ndarray, head: np.ndarray) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.tensor(embed, dtype=torch.float32))  # [V, D]
        self.head = nn.Parameter(torch.tensor(head, dtype=torch.float32))  # [V, D]
        self.bias = nn.Parameter(torch.zeros(len(head)))  # [V]

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.tanh(self.embed[tokens]) @ self.head.T + self.bias  # [B, T, V]


def _case(about: str, rng: np.random.Generator, shares: list[list[int]], *, left_over: bool = False) -> Case:
    """One case; `shares` are the targets of each rank's micro-batches."""
    n_vocab, width, n_rows, n_positions = int(rng.integers(7, 11)), 3, 2, int(rng.integers(6, 9))
    embed, head = rng.standard_normal((n_vocab, width)), rng.standard_normal((n_vocab, width))
    batches: list[list[tuple[Tensor, Tensor]]] = []
    for counts in shares:
        batches.append([])
        for count in counts:
            targets = rng.integers(n_vocab, size=n_rows * n_positions)
            targets[rng.permutation(len(targets))[count:]] = IGNORE_INDEX
            tokens = torch.from_numpy(rng.integers(n_vocab, size=(n_rows, n_positions)))
            batches[-1].append((tokens, torch.from_numpy(targets).reshape(n_rows, n_positions)))
    old = rng.standard_normal((n_vocab, width)) if left_over else None
    told = " / ".join(" + ".join(map(str, counts)) or "none" for counts in shares)
    return case_of(f"{len(shares)} ranks with {told} targets{about}", embed, head, batches, old)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    few, many = int(rng.integers(1, 4)), int(rng.integers(8, 12))
    return (
        _case("", rng, [[many], [few]]),
        _case(", gradients left over from before", rng, [[few, many], [many, few]], left_over=True),
        _case("", rng, [[many, few], [few + 1], []]),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    (embed, head, batches, old), _ = case.make()
    models = [_TinyModel(embed, head) for _ in batches]

    def arguments(group: Group) -> tuple[Any, ...]:
        model = models[group.rank]
        if old is not None:
            model.embed.grad = torch.tensor(old, dtype=torch.float32)
        return model, batches[group.rank], group

    def read(losses: list[Any]) -> Observation:
        observed: dict[str, Numbers] = {}
        for rank, (model, loss) in enumerate(zip(models, losses, strict=True)):
            observed[f"rank {rank}'s loss"] = as_numbers(loss, "the loss")
            for name, parameter in model.named_parameters():
                if parameter.grad is None:
                    raise Rejected(
                        f"left no gradient in {name}.grad of rank {rank} (None): every rank takes the same "
                        "step, a rank without rows too",
                        name="no gradients",
                    )
                observed[f"rank {rank}'s {name}.grad"] = as_numbers(parameter.grad, f"{name}.grad")
        return observed

    return that_meet(answer, len(batches), arguments, read)


EXERCISE = Exercise(
    name="shared_gradients",
    reference=shared_gradients,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-3,
    atol=1e-6,
)
