"""Bytes of weights, gradients and optimiser state on one rank, and the ways to cut the wrong ones.

Source: Rajbhandari et al. 2019, arXiv:1910.02054, sections 3.1 and 5. Taught in book/parallelism/sharding.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scalelab.lab.checks.answers import call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import case_of, numbers_of

NAMES = ("weights", "gradients", "optimiser")
SIZES = {"fp32": (4, 4, 8), "mixed": (2, 2, 12)}


def bytes_a_rank(
    n_params: int, stage: int, n_ranks: int, rank: int, precision: str
) -> tuple[float, float, float]:
    """Bytes of weights, gradients and AdamW's state on one of several ranks, under a stage of ZeRO.

    Args:
        n_params: of the model, one vector that is cut as torch.tensor_split cuts it.
        stage: 0 cuts nothing, 1 the optimiser's state, 2 gradients too, 3 weights too.
        precision: "fp32", or "mixed": 16-bit weights and gradients, and an fp32 copy of the weights besides.
    """
    weight, gradient, state = SIZES[precision]
    own = n_params // n_ranks + (rank < n_params % n_ranks)
    return (
        weight * (own if stage >= 3 else n_params),
        gradient * (own if stage >= 2 else n_params),
        state * (own if stage >= 1 else n_params),
    )


def _build(
    *,
    rest: str = "first",
    mixed: tuple[int, int, int] = (2, 2, 12),
    first_cut: tuple[int, int, int] = (3, 2, 1),
    alone: bool = False,
    order: int = 1,
    counts: str = "bytes",
) -> Answer:
    """A count with the given faults; without any, the right one.

    `first_cut`: the stage from which on each part is cut; `alone`: at that stage and at no later one.
    """

    def answer(n_params: int, stage: int, n_ranks: int, rank: int, precision: str) -> Any:
        sizes = SIZES["fp32"] if precision == "fp32" else mixed
        shares = {
            "first": n_params // n_ranks + (rank < n_params % n_ranks),
            "dropped": n_params // n_ranks,
            "real": n_params / n_ranks,
            "up": -(-n_params // n_ranks),
        }
        if counts == "numbers":
            sizes = (1, 1, 1)
        parts = [
            size * (shares[rest] if stage == first or (stage > first and not alone) else n_params)
            for size, first in zip(sizes, first_cut, strict=True)
        ]
        return tuple(parts[::order])

    return answer


MISTAKES = (
    Mistake(
        name="the remainder dropped",
        faults={"rest": "dropped"},
        message="n_params // n_ranks leaves some parameters without an owner: the first n_params % n_ranks "
        "ranks have one more.",
    ),
    Mistake(
        name="parts of a parameter",
        faults={"rest": "real"},
        message="n_params / n_ranks is no whole number here, and a parameter has one owner: the first "
        "n_params % n_ranks ranks have one more.",
    ),
    Mistake(
        name="every piece rounded up",
        faults={"rest": "up"},
        message="Rounding up gives every rank the largest piece, so that together they own more than "
        "there is: torch.tensor_split makes the last pieces one shorter.",
    ),
    Mistake(
        name="no fp32 weights in mixed precision",
        faults={"mixed": (2, 2, 8)},
        message="Adam's two moments are 8 bytes, but in mixed precision the optimiser also keeps the "
        "weights in fp32: updates are too small for 16 bits. 12 together.",
    ),
    Mistake(
        name="fp32 gradients in mixed precision",
        faults={"mixed": (2, 4, 12)},
        message="In mixed precision gradients come in 16 bits like the weights: 2 bytes.",
    ),
    Mistake(
        name="moments in 16 bits",
        faults={"mixed": (2, 2, 6)},
        message="Only weights and gradients are in 16 bits; the moments and the optimiser's weights stay "
        "in fp32: 4 + 4 + 4.",
    ),
    Mistake(
        name="weights cut before gradients",
        faults={"first_cut": (2, 3, 1)},
        message="Stage 2 cuts gradients, stage 3 weights: gradients can be dropped at once when they are "
        "summed, weights are needed all the time.",
    ),
    Mistake(
        name="each stage cuts one thing more than it does",
        faults={"first_cut": (2, 1, 1)},
        message="Stage 1 cuts the optimiser's state alone, stage 2 gradients too, stage 3 weights too.",
    ),
    Mistake(
        name="each stage begins anew",
        faults={"alone": True},
        message="Each stage cuts its own part here and leaves whole what the stages before it have cut. They "
        "go on: stage 2 cuts gradients besides the optimiser's state, stage 3 weights besides both.",
    ),
    Mistake(
        name="the optimiser's state is never cut",
        faults={"first_cut": (3, 2, 99)},
        message="The optimiser's state is whole at every stage: from stage 1 on it is cut, in all of them.",
    ),
    Mistake(
        name="numbers for bytes",
        faults={"counts": "numbers"},
        message="These are counts of numbers. A number has 4 bytes in fp32 and 2 in 16 bits, and the "
        "optimiser keeps two or three for each parameter.",
    ),
    Mistake(
        name="the three in another order",
        faults={"order": -1},
        message="The optimiser's state comes first and the weights last. The order is weights, gradients, "
        "optimiser state.",
    ),
)

HINTS = (
    "Bytes of a parameter first: (weight, gradient, optimiser) is (4, 4, 8) in fp32 and (2, 2, 12) mixed. "
    "Then which of the three are cut at this stage.",
    "This rank's share of n parameters is n // n_ranks, and one more on the first n % n_ranks ranks.",
    "own = n_params // n_ranks + (rank < n_params % n_ranks); weights: w * (own if stage >= 3 else "
    "n_params), gradients from stage 2 on, the optimiser's state from stage 1 on.",
)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    cases = []
    for stage, precision in (
        (0, "mixed"),
        (1, "mixed"),
        (2, "fp32"),
        (2, "mixed"),
        (3, "mixed"),
        (1, "fp32"),
    ):
        n_ranks = int(rng.integers(3, 9))
        n_params = n_ranks * int(rng.integers(100, 10_000)) + int(rng.integers(1, n_ranks))
        rest = n_params % n_ranks
        # Once on a rank that has one more, and once on one that has not.
        for rank in (int(rng.integers(rest)), int(rng.integers(rest, n_ranks))):
            about = f"{n_params:,} parameters, stage {stage}, rank {rank} of {n_ranks}, {precision}"
            cases.append(case_of(about, n_params, stage, n_ranks, rank, precision))
    return tuple(cases)


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return numbers_of(call(answer, *args), NAMES)


EXERCISE = Exercise(
    name="bytes_a_rank",
    reference=bytes_a_rank,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-9,
)
