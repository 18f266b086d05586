"""Linear warm-up and cosine decay, and the ways to be off by one step in them.

Source: Loshchilov & Hutter 2016, arXiv:1608.03983, eq. 5, with a linear warm-up before it.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scalelab.lab.checks.answers import Numbers, Rejected, as_numbers, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation


def learning_rate(
    step: int, *, peak: float, warmup_steps: int, total_steps: int, final_fraction: float
) -> float:
    """The learning rate at a step, counted from 0.

    Step 0 gets peak/warmup_steps and step warmup_steps-1 gets peak; from there half a cosine falls to
    peak·final_fraction, reached at step total_steps-1.
    """
    last_warm_step = warmup_steps - 1
    if step <= last_warm_step:
        return peak * (step + 1) / warmup_steps
    progress = (step - last_warm_step) / (total_steps - 1 - last_warm_step)  # 0 at the peak, 1 at the end
    height = 0.5 * (1 + math.cos(math.pi * progress))  # from 1 to 0
    return peak * (final_fraction + (1 - final_fraction) * height)


def _build(
    *,
    warm_from: int = 1,
    start: str = "peak",
    end: int = -1,
    cosine: str = "half",
    final: str = "blended",
    shape: str = "cosine",
) -> Answer:
    """A schedule with the given faults; without any, the right one."""

    def answer(
        step: int, *, peak: float, warmup_steps: int, total_steps: int, final_fraction: float
    ) -> float:
        if step < warmup_steps:
            return peak * (step + warm_from) / warmup_steps
        first = {"peak": warmup_steps - 1, "one late": warmup_steps, "step 0": 0}[start]
        progress = (step - first) / (total_steps + end - first)
        wave = math.cos(math.pi * progress)
        if shape == "line":
            wave = 1 - 2 * progress
        height = {"half": 0.5 * (1 + wave), "bare": wave, "doubled": 1 + wave}[cosine]
        if final == "none":
            return peak * height
        share = 1.0 if final == "added" else 1 - final_fraction
        return peak * (final_fraction + share * height)

    return answer


MISTAKES = (
    Mistake(
        name="zero rate at step 0",
        faults={"warm_from": 0},
        message="The warm-up uses step/warmup_steps, so the first step has the rate 0 and does nothing, "
        "and the warm-up ends below the peak. Steps count from 0: use (step + 1)/warmup_steps.",
    ),
    Mistake(
        name="decay counted from step 0",
        faults={"start": "step 0"},
        message="The cosine has already run through the warm-up when it takes over, so the rate jumps down. "
        "Its progress must be 0 at step warmup_steps - 1.",
    ),
    Mistake(
        name="peak held for two steps",
        faults={"start": "one late"},
        message="The cosine's progress is 0 at step warmup_steps. Step warmup_steps - 1 has the peak "
        "already: count from there.",
    ),
    Mistake(
        name="cosine without its half",
        faults={"cosine": "doubled"},
        message="1 + cos runs from 2 to 0: halve it, or the rate doubles when the warm-up ends.",
    ),
    Mistake(
        name="bare cosine",
        faults={"cosine": "bare"},
        message="cos itself runs from 1 to -1, so the rate ends far below its floor (even negative). "
        "(1 + cos)/2 runs from 1 to 0.",
    ),
    Mistake(
        name="end off by one",
        faults={"end": 0},
        message="The last step is total_steps - 1, and the final rate would be reached one step after it.",
    ),
    Mistake(
        name="everything one step late",
        faults={"warm_from": 0, "start": "one late", "end": 0},
        message="Each rate is what the step before should have had, as if steps were counted from 1: the "
        "first is 0 and the last never reaches the floor.",
    ),
    Mistake(
        name="decays to zero",
        faults={"final": "none"},
        message="final_fraction is not used: the last rate is 0 instead of peak·final_fraction.",
    ),
    Mistake(
        name="floor added on top",
        faults={"final": "added"},
        message="final_fraction is added to a cosine that still has its full height, so the rate starts "
        "above the peak: the cosine must span 1 - final_fraction.",
    ),
    Mistake(
        name="a line, not a cosine",
        faults={"shape": "line"},
        message="The ends are right and the rate falls along a straight line between them.",
    ),
)

HINTS = (
    "Four steps fix it: 0, warmup_steps - 1, warmup_steps and total_steps - 1. Work out the rate of each by "
    "hand for peak 1, 2 warm-up steps, 5 in all.",
    "progress = (step - (warmup_steps - 1)) / (total_steps - 1 - (warmup_steps - 1)) is 0 at the peak and "
    "1 at the last step.",
    "height = 0.5·(1 + cos(π·progress)) falls from 1 to 0; the rate is "
    "peak·(final_fraction + (1 - final_fraction)·height).",
)


def _case(about: str, rng: np.random.Generator, warmup_steps: int, total_steps: int, final: float) -> Case:
    settings = {
        "peak": float(np.round(rng.uniform(1e-3, 9e-3), 5)),
        "warmup_steps": warmup_steps,
        "total_steps": total_steps,
        "final_fraction": final,
    }

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), dict(settings)

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    warmup, total = int(rng.integers(3, 7)), int(rng.integers(14, 22))
    final = float(np.round(rng.uniform(0.05, 0.3), 2))
    return (
        _case(f"{warmup} warm-up steps of {total}, down to 0", rng, warmup, total, 0.0),
        _case(
            f"{warmup + 1} warm-up steps of {total + 3}, down to {final:g} of the peak",
            rng,
            warmup + 1,
            total + 3,
            final,
        ),
        _case(f"1 warm-up step of {total - 5}", rng, 1, total - 5, final),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    _, settings = case.make()
    rates = []
    for step in range(settings["total_steps"]):
        rate = as_numbers(call(answer, step, **settings), f"step {step}")
        if rate.values.shape != ():
            raise Rejected(
                f"returned {rate.values.size} values for step {step}, and should return one rate",
                name="returned the wrong kind of thing",
            )
        rates.append(float(rate.values))
    return {"the rate": Numbers(np.array(rates), index_name="step")}


EXERCISE = Exercise(
    name="learning_rate",
    reference=learning_rate,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-6,
    atol=1e-10,
)
