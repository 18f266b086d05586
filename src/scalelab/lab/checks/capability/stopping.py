"""What over-fitting is, in numbers of two curves: the gap, the best held-out loss, what going on cost.

Taught in book/scaling-laws/capability.md.
"""

from __future__ import annotations

import numpy as np

from scalelab.lab.checks.answers import call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import case_of, numbers_of

PARTS = ("gap", "best", "cost")


def overfitting(train: np.ndarray, held_out: np.ndarray) -> tuple[float, float, float]:
    """(gap at the end, best held-out loss, what was lost by going on to the end), nats.

    Args:
        train, held_out: [M] losses at the same marks of one run, first to last.
    """
    best = held_out.min()
    return held_out[-1] - train[-1], best, held_out[-1] - best


def _first_rise(values: np.ndarray) -> float:
    """The value before the first rise."""
    rises = np.flatnonzero(np.diff(values) > 0)
    return float(values[rises[0]] if len(rises) else values[-1])


def _build(*, gap: str = "end", sign: int = 1, best: str = "held out", cost: str = "held out") -> Answer:
    """The three with the given faults; without any, the right ones."""

    def answer(train: np.ndarray, held_out: np.ndarray) -> tuple[float, float, float]:
        gaps = held_out - train
        chosen = {
            "held out": held_out.min(),
            "training": held_out[train.argmin()],
            "smallest gap": held_out[np.abs(gaps).argmin()],
            "first rise": _first_rise(held_out),
            "training itself": train.min(),
        }[best]
        width = {"end": gaps[-1], "best": gaps[held_out.argmin()], "mean": gaps.mean()}[gap]
        lost = {"held out": held_out[-1] - chosen, "from the start": held_out[0] - held_out[-1]}[cost]
        return float(sign * width), float(chosen), float(lost)

    return answer


MISTAKES = (
    Mistake(
        name="training less held-out",
        faults={"sign": -1},
        message="The gap's sign is turned: it is how far held-out text lies *above* text that was read.",
    ),
    Mistake(
        name="the gap at the best mark",
        faults={"gap": "best"},
        message="This is the gap where the held-out loss is least. Asked is the one at the end.",
    ),
    Mistake(
        name="a mean of gaps",
        faults={"gap": "mean"},
        message="The gap is averaged over the run. Asked is the one at the end.",
    ),
    Mistake(
        name="stopped by the training loss",
        faults={"best": "training"},
        message="The mark is chosen by the training loss, which falls for as long as one reads. Choose it by "
        "the held-out loss.",
    ),
    Mistake(
        name="stopped where the gap is smallest",
        faults={"best": "smallest gap"},
        message="The gap is smallest where nothing is learned yet. A model may have a gap and still be the "
        "best: take the least held-out loss.",
    ),
    Mistake(
        name="stopped at the first rise",
        faults={"best": "first rise"},
        message="Held-out loss wiggles: its first rise is not its minimum. Look at the whole curve.",
    ),
    Mistake(
        name="the best training loss",
        faults={"best": "training itself"},
        message="This is the least *training* loss, which says what was remembered. Take the held-out one.",
    ),
    Mistake(
        name="what was gained for what was lost",
        faults={"cost": "from the start"},
        message="The cost is how far the loss at the end lies above the best one, not how far it has come "
        "since the first mark.",
    ),
)

HINTS = (
    "Two of the three need the held-out curve alone. Which one needs both?",
    "best = held_out.min(); the gap and the cost are both taken at the last mark.",
    "return held_out[-1] - train[-1], held_out.min(), held_out[-1] - held_out.min().",
)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    cases = []
    for n in (9, 12):
        at = np.arange(n)
        train = 4.5 - 0.25 * at + rng.uniform(-0.03, 0.03, n)
        turn = n // 2
        held_out = 3.6 + 0.08 * (at - turn) ** 2 + rng.uniform(-0.005, 0.005, n)
        held_out[1] = held_out[0] - 0.3
        held_out[2] = held_out[1] + 0.1 + rng.uniform(0, 0.05)  # a wiggle on the way down
        held_out[0] = train[0] + rng.uniform(0.02, 0.08)
        held_out[1] = min(held_out[1], held_out[0] - 0.05)
        held_out[-1] = held_out.min() + rng.uniform(0.3, 0.8)
        cases.append(case_of(f"{n} marks, the best of them mark {int(held_out.argmin())}", train, held_out))
    return tuple(cases)


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return numbers_of(call(answer, *args), PARTS)


EXERCISE = Exercise(
    name="overfitting",
    reference=overfitting,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-9,
    atol=1e-12,
)
