"""The norm of a gradient that lies in pieces on several ranks, and the ways to take it of something else.

Source: Rajbhandari et al. 2019, arXiv:1910.02054 (pieces); Pascanu et al. 2013, arXiv:1211.5063 (clipping).
Taught in book/parallelism/sharding.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scalelab.lab.checks.answers import Rejected, as_numbers, check_signature, describe
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import case_of
from scalelab.lab.checks.ranks import on_ranks
from scalelab.parallel.scratch.collectives import ring_all_reduce
from scalelab.parallel.scratch.group import Group


def clip_pieces(pieces: Sequence[Tensor], max_norm: float, group: Group) -> float:
    """Scale this rank's pieces of the gradient so that the whole one's norm is at most `max_norm`.

    Args:
        pieces: of any sizes, some of them empty; changed in place. All ranks' together are the gradient.

    Returns:
        The whole gradient's norm before clipping, the same on every rank.
    """
    square = torch.stack([piece.square().sum() for piece in pieces]).sum()
    ring_all_reduce(square, group)  # squares can be added over ranks, norms cannot
    norm = float(square.sqrt())
    for piece in pieces:
        piece *= min(1.0, max_norm / norm)
    return norm


def _build(
    *,
    over: str = "squares",
    asks: str = "always",
    scales: str = "down",
    returns: str = "before",
) -> Answer:
    """A clipping with the given faults; without any, the right one."""

    def answer(pieces: Sequence[Tensor], max_norm: float, group: Group) -> float:
        square = torch.stack([piece.square().sum() for piece in pieces]).sum()
        own = float(square.sqrt())
        if (asks == "if its own is large" and own <= max_norm) or (asks == "rank 0" and group.rank):
            return own
        norm = _norm(square, over, group)
        if asks == "piece by piece, if not empty":
            square = torch.zeros(())
            for piece in pieces:
                if piece.numel():
                    part = piece.square().sum()
                    ring_all_reduce(part, group)
                    square += part
            norm = float(square.sqrt())
        factor = max_norm / norm if norm else 1.0
        factors = [factor] * len(pieces)
        if scales == "piece by piece":
            factors = [max_norm / max(float(piece.norm()), 1e-30) for piece in pieces]
        if scales != "up too":
            factors = [min(1.0, f) for f in factors]
        for piece, f in zip(pieces, factors, strict=True):
            if scales != "never":
                piece *= f
        return {"before": norm, "after": min(norm, max_norm), "own": own}[returns]

    return answer


def _norm(square: Tensor, over: str, group: Group) -> float:
    if over == "own":
        return float(square.sqrt())
    if over == "norms":
        total = square.sqrt()
        ring_all_reduce(total, group)
        return float(total)
    ring_all_reduce(square, group)
    if over == "mean of squares":
        square = square / group.size
    return float(square if over == "no root" else square.sqrt())


MISTAKES = (
    Mistake(
        name="each rank clips by its own norm",
        faults={"over": "own"},
        message="The norm is that of this rank's pieces: every rank finds another, and scales its part of "
        "the gradient by another factor, which turns the gradient. All need the norm of the whole.",
    ),
    Mistake(
        name="norms are added",
        faults={"over": "norms"},
        message="The ranks' norms are added, and that is more than the norm of the whole: squares can be "
        "added, so sum them over ranks and take the root after.",
    ),
    Mistake(
        name="squares are averaged",
        faults={"over": "mean of squares"},
        message="The sum of squares is divided by the number of ranks. Pieces are parts of one gradient, "
        "not copies of it: add.",
    ),
    Mistake(
        name="no root",
        faults={"over": "no root"},
        message="The sum of squares is taken for the norm: its root is missing.",
    ),
    Mistake(
        name="only ranks with a large norm ask",
        faults={"asks": "if its own is large"},
        message="A rank whose own pieces are small enough returns without the all-reduce, and the others "
        "wait for it. Whether to clip is not a rank's own decision: all enter the collective, always.",
    ),
    Mistake(
        name="small gradients are scaled up",
        faults={"scales": "up too"},
        message="max_norm / norm is more than 1 where the gradient is small already, and it is blown up: "
        "use min(1, max_norm / norm).",
    ),
    Mistake(
        name="each piece by its own norm",
        faults={"scales": "piece by piece"},
        message="Each piece is clipped to max_norm by itself: one factor for all keeps the direction.",
    ),
    Mistake(
        name="nothing is scaled",
        faults={"scales": "never"},
        message="The pieces are as before: scale them in place. piece *= factor changes the tensor, "
        "piece = piece * factor and pieces[i] = … make another one.",
    ),
    Mistake(
        name="norm after clipping returned",
        faults={"returns": "after"},
        message="The norm is that after clipping, which never exceeds max_norm and tells nothing: return "
        "the one from before.",
    ),
    Mistake(
        name="each rank returns its own norm",
        faults={"returns": "own"},
        message="The pieces are scaled by the whole gradient's norm, and what is returned is that of this "
        "rank's pieces: every rank returns another number.",
    ),
    Mistake(
        name="only rank 0 asks",
        faults={"asks": "rank 0", "over": "squares"},
        message="Rank 0 enters the all-reduce and the others do not, so it waits for ever. A collective is "
        "called by all ranks or by none.",
    ),
    Mistake(
        name="empty pieces are passed over",
        faults={"asks": "piece by piece, if not empty", "over": "squares"},
        message="There is an all-reduce for each piece that is not empty, and ranks do not have equally many "
        "of those: who has more waits for ever. Sum this rank's squares first, then enter one all-reduce.",
    ),
)

HINTS = (
    "What can be added over ranks? Not norms.",
    "Sum the squares of all pieces of this rank into one tensor, ring_all_reduce it on every rank, take "
    "its root.",
    "square = torch.stack([p.square().sum() for p in pieces]).sum(); ring_all_reduce(square, group); "
    "norm = float(square.sqrt()); then piece *= min(1.0, max_norm / norm) for each; return norm.",
)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    cases = []
    for size, max_norm, about in (
        (3, 2.5, "the whole above max_norm, one rank below it"),
        (4, 9.0, "the whole above max_norm, every rank below it"),
        (2, 50.0, "the whole below max_norm"),
    ):
        norms = {3: (6.0, 1.5, 4.0), 4: (5.0, 8.0, 6.5, 7.0), 2: (3.0, 4.0)}[size]
        pieces: list[list[Tensor]] = []
        for norm in norms:
            # Rank 0 has two empty pieces, the others one.
            second = int(rng.integers(1, 6)) if pieces else 0
            drawn = [torch.from_numpy(rng.standard_normal(n)) for n in (3, second, 0)]
            now = torch.cat(drawn).norm()
            pieces.append([(piece * (norm * rng.uniform(0.9, 1.1) / now)).float() for piece in drawn])
        cases.append(case_of(f"{size} ranks, {about}", size, pieces, max_norm))
    return tuple(cases)


def _observe(answer: Answer, case: Case) -> Observation:
    (size, pieces, max_norm), _ = case.make()
    check_signature(answer, (pieces[0], max_norm, None), {})

    def read(norms: list[Any]) -> Observation:
        for norm in norms:
            if as_numbers(norm, "the norm").values.size != 1:
                raise Rejected(f"returned {describe(norm)} for the norm, which is one number", name="no norm")
        flat = torch.cat([piece.reshape(-1) for own in pieces for piece in own])
        return {
            "the norm, by rank": as_numbers(torch.tensor([float(norm) for norm in norms]), "the norm"),
            "the pieces, end to end": as_numbers(flat, "the pieces"),
        }

    # A list of its own: what an answer puts into its slots is no change of the tensors.
    return on_ranks(answer, size, lambda group: (list(pieces[group.rank]), max_norm, group), read)


EXERCISE = Exercise(
    name="clip_pieces",
    reference=clip_pieces,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
)
