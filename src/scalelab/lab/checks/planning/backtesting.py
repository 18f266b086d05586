"""Errors of a way of foretelling, from budgets that it was not shown.

Source: Bergmeir and Benítez 2012, doi:10.1016/j.ins.2011.12.028, section 2 (a rolling origin).
Taught in book/scaling-laws/planning.md.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from scalelab.lab.checks.answers import Numbers, as_numbers, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.planning.common import case_of

Fit = Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]]


def backtest_errors(flops: np.ndarray, loss: np.ndarray, fit: Fit, horizon: float) -> np.ndarray:
    """ln(foretold / measured) [P] of every larger budget within the horizon, from each cut with three below.

    Args:
        flops, loss: [R], ascending; the best loss of each budget. fit: fit(flops, loss) gives predict(flops).
        horizon: budgets up to so many times the cut, the cut's own being the largest that is shown.
    """
    errors = []
    for cut in flops[2:-1]:
        shown = flops <= cut
        ahead = (flops > cut) & (flops <= horizon * cut)
        predict = fit(flops[shown], loss[shown])
        errors.append(np.log(predict(flops[ahead]) / loss[ahead]))
    return np.concatenate(errors)


def _build(
    *, sees: str = "up to the cut", within: bool = True, sign: int = 1, measure: str = "ln",
    cuts: str = "all", judged: str = "ahead",
) -> Answer:  # fmt: skip
    """The errors with the given faults; without any, the right ones."""

    def answer(flops: np.ndarray, loss: np.ndarray, fit: Fit, horizon: float) -> np.ndarray:
        errors = []
        last = len(flops) - 1
        for place in range(2, last) if cuts == "all" else [last - 1]:
            cut = flops[place]
            limit = horizon * cut if within else np.inf
            ahead = (flops > cut) & (flops <= limit)
            shown = {
                "up to the cut": flops <= cut,
                "below the cut": flops < cut,
                "all": flops > 0,
            }[sees]
            chosen = ahead if judged == "ahead" else shown
            if not chosen.any():
                continue
            foretold = fit(flops[shown], loss[shown])(flops[chosen])
            ratio = np.log(foretold / loss[chosen]) if measure == "ln" else foretold - loss[chosen]
            errors.append(sign * ratio)
        return np.concatenate(errors) if errors else np.zeros(0)

    return answer


MISTAKES = (
    Mistake(
        name="a hold-out that leaks",
        faults={"sees": "all"},
        message="The fit sees every budget, those it is judged on as well. What it is to foretell must "
        "not be shown: "
        "flops <= cut.",
    ),
    Mistake(
        name="the cut's own budget kept back",
        faults={"sees": "below the cut"},
        message="The budget at the cut is neither fitted nor foretold. The fit sees flops <= cut.",
    ),
    Mistake(
        name="judged where it was fitted",
        faults={"judged": "shown"},
        message="The errors are those of the budgets fitted. A law that misses tomorrow may fit today "
        "perfectly: judge "
        "on budgets above the cut.",
    ),
    Mistake(
        name="beyond the horizon",
        faults={"within": False},
        message="Budgets beyond horizon times the cut are counted too. Errors grow with the distance: "
        "keep to the "
        "distance that the bet is about.",
    ),
    Mistake(
        name="one cut alone",
        faults={"cuts": "last"},
        message="Only the last cut is tried: few errors, all from one fit. Move the cut through all budgets.",
    ),
    Mistake(
        name="measured over foretold",
        faults={"sign": -1},
        message="The sign is turned: asked is ln(foretold / measured), above 0 where the run did better "
        "than foretold.",
    ),
    Mistake(
        name="nats for a ratio",
        faults={"measure": "nats"},
        message="These are differences in nats. Losses fall from budget to budget, so compare by ratio: "
        "ln(foretold / measured).",
    ),
)

HINTS = (
    "At each cut: what may the fit see, and what is it asked?",
    "shown = flops <= cut; ahead = (flops > cut) & (flops <= horizon * cut). Cuts are flops[2:-1], so "
    "that three "
    "budgets are shown and one is left.",
    "np.log(fit(flops[shown], loss[shown])(flops[ahead]) / loss[ahead]), one array for each cut, then "
    "np.concatenate.",
)


def straight_fit(flops: np.ndarray, loss: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A pure power by log-log regression."""
    slope, level = np.polyfit(np.log(flops), np.log(loss), 1)
    return lambda x: np.exp(level + slope * np.log(x))


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    cases = []
    for n_budgets, step, horizon in ((7, 3.0, 10.0), (8, 2.0, 5.0)):
        flops = 1e11 * step ** np.arange(n_budgets)
        loss = rng.uniform(1.5, 2.0) + 2 * (flops / 1e11) ** -rng.uniform(0.2, 0.3)
        loss = loss * np.exp(rng.normal(0, 0.004, n_budgets))
        about = f"{n_budgets} budgets, each {step:g} times the last, horizon {horizon:g}"
        cases.append(case_of(about, flops, loss, straight_fit, horizon))
    return tuple(cases)


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    found = as_numbers(call(answer, *args), "the errors")
    return {"the errors": Numbers(np.sort(found.values.reshape(-1)))}


EXERCISE = Exercise(
    name="backtest_errors",
    reference=backtest_errors,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-6,
)
