"""The order in which a rank of 1F1B goes forward and back, and the orders that hold too much or stand still.

Source: Narayanan et al. 2021, arXiv:2104.04473, section 2.2.1. Taught in book/parallelism/pipeline.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scalelab.lab.checks.answers import Numbers, Rejected, call, describe
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import case_of


def one_f_one_b(rank: int, pp: int, m: int) -> list[tuple[str, int]]:
    """What a rank does: ("F", i) and ("B", i) for each micro-batch i."""
    ahead = min(pp - 1 - rank, m)
    order = [("F", i) for i in range(ahead)]
    for i in range(ahead, m):
        order += [("F", i), ("B", i - ahead)]
    return order + [("B", i) for i in range(m - ahead, m)]


def _build(
    *, ahead: str = "ranks behind", capped: bool = True, back: str = "oldest",
    rest: str = "done",
) -> Answer:  # fmt: skip
    """An order with the given faults; without any, the right one."""

    def answer(rank: int, pp: int, m: int) -> list[tuple[str, int]]:
        n = {
            "all": m,
            "alike": pp - 1,
            "ranks before": rank,
            "one more": pp - rank,
            "one less": max(0, pp - 2 - rank),
        }.get(ahead, pp - 1 - rank)
        n = min(n, m) if capped else n
        forward = list(range(n))
        order: list[tuple[str, int]] = [("F", i) for i in forward]
        held = list(forward)

        def go_back() -> tuple[str, int]:
            return "B", held.pop(-1 if back == "newest" else 0)

        for i in range(n, m):
            held.append(i)
            order += [("F", i), go_back()]
        if rest == "done":
            while held:
                order.append(go_back())
        return order

    return answer


MISTAKES = (
    Mistake(
        name="all forward first",
        faults={"ahead": "all"},
        message="All micro-batches go forward before any goes back: GPipe. It idles as little, and holds "
        "all m micro-batches' activations at once. Go back as soon as the first gradient can be there.",
    ),
    Mistake(
        name="every rank as far ahead as the first",
        faults={"ahead": "alike"},
        message="Every rank does pp - 1 forward passes before its first backward one. A rank needs as many "
        "as there are ranks behind it, and the last none: it can go back at once.",
    ),
    Mistake(
        name="as far ahead as there are ranks before",
        faults={"ahead": "ranks before"},
        message="`rank` forward passes come first: none on rank 0, which then waits for the gradient of its "
        "only micro-batch, and the most on the last rank, which could go back at once. Count the ranks "
        "*behind*: pp - 1 - rank.",
    ),
    Mistake(
        name="one forward pass too many",
        faults={"ahead": "one more"},
        message="pp - rank forward passes come first, and then pairs of forward and backward. The first "
        "pair brings one forward pass itself, so pp - 1 - rank before it are enough; this holds one "
        "micro-batch more.",
    ),
    Mistake(
        name="one forward pass too few",
        faults={"ahead": "one less"},
        message="Too few forward passes come first: the rank asks for a gradient that is a stage's time "
        "away and idles at every micro-batch. There are pp - 1 - rank ranks behind it to be filled, and "
        "then each pair begins with the forward pass.",
    ),
    Mistake(
        name="the newest micro-batch goes back first",
        faults={"back": "newest"},
        message="The latest micro-batch goes back first. Its gradient is the last to arrive; the oldest has "
        "been through all stages and is on its way back.",
    ),
    Mistake(
        name="the last backward passes are missing",
        faults={"rest": "left"},
        message="The order ends with the last forward pass, and the micro-batches that are still held never "
        "go back. As many backward passes follow as forward ones came first.",
    ),
    Mistake(
        name="more forward passes than micro-batches",
        faults={"capped": False},
        message="With fewer micro-batches than stages, forward passes are listed of micro-batches that are "
        "none. At most m go ahead.",
    ),
)

HINTS = (
    "Three parts: forward passes until the ranks behind are filled; then one forward, one backward, while "
    "there are micro-batches; then the backward passes that are left.",
    "ahead = min(pp - 1 - rank, m). In the steady part, F of micro-batch i goes with B of micro-batch i - "
    "ahead.",
    'order = [("F", i) for i in range(ahead)]; for i in range(ahead, m): order += [("F", i), ("B", i - '
    'ahead)]; then [("B", i) for i in range(m - ahead, m)].',
)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    pp = int(rng.integers(4, 7))
    sizes = ((pp, pp + int(rng.integers(3, 9))), (pp + 1, pp + 1), (pp, int(rng.integers(2, pp - 1))))
    return tuple(case_of(f"{p} ranks and {m} micro-batches", p, m) for p, m in sizes)


def _observe(answer: Answer, case: Case) -> Observation:
    (pp, m), _ = case.make()
    found: dict[str, Numbers] = {}
    for rank in range(pp):
        passes = _passes(call(answer, rank, pp, m), rank)
        kinds = np.array([{"F": 0.0, "B": 1.0}[kind] for kind, _ in passes])
        numbers = np.array([float(i) for _, i in passes])
        found[f"rank {rank}'s pass (0: forward, 1: backward)"] = Numbers(kinds, "place")
        found[f"rank {rank}'s micro-batch"] = Numbers(numbers, "place")
    return found


def _passes(order: Any, rank: int) -> list[tuple[str, int]]:
    if not isinstance(order, list | tuple):
        raise Rejected(
            f"returned {describe(order)} for rank {rank}, where a list of passes should be",
            name="returned the wrong kind of thing",
        )
    for entry in order:
        is_pass = isinstance(entry, tuple | list) and len(entry) == 2 and entry[0] in ("F", "B")
        if not is_pass or isinstance(entry[1], bool) or not isinstance(entry[1], int | np.integer):
            raise Rejected(
                f'has {describe(entry)} in rank {rank}\'s order, where ("F", 0) or ("B", 0) should be',
                name="no pass",
            )
    return [(kind, int(i)) for kind, i in order]


EXERCISE = Exercise(
    name="one_f_one_b",
    reference=one_f_one_b,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
)
