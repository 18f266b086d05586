"""Errors of a way of foretelling, from budgets that it was not shown.

Source: Bergmeir and Benítez 2012, doi:10.1016/j.ins.2011.12.028, section 2 (a rolling origin).
Taught in book/scaling-laws/planning.md.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from scalelab.lab.checks.answers import Numbers, as_numbers, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import case_of

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
    cuts: str = "all", judged: str = "ahead", fewest: int = 3, of_a_cut: str = "all",
) -> Answer:  # fmt: skip
    """The errors with the given faults; without any, the right ones."""

    def answer(flops: np.ndarray, loss: np.ndarray, fit: Fit, horizon: float) -> np.ndarray:
        errors = []
        last = len(flops) - 1
        places = {"all": range(fewest - 1, last), "last": [last - 1], "first": [fewest - 1]}[cuts]
        for place in places:
            cut = flops[place]
            limit = horizon * cut if within else np.inf
            ahead = (flops > cut) & (flops <= limit)
            shown = {
                "up to the cut": flops <= cut,
                "below the cut": flops < cut,
                "all": flops > 0,
            }[sees]
            if shown.sum() < 2:  # two faults at once may leave a line nothing to go through
                continue
            chosen = {
                "ahead": ahead, "shown": shown, "the cut too": ahead | (flops == cut), "both": ahead | shown,
            }[judged]  # fmt: skip
            foretold = fit(flops[shown], loss[shown])(flops[chosen])
            measured = loss[chosen]
            ratio = {
                "ln": np.log(foretold / measured), "nats": foretold - measured, "ratio": foretold / measured,
                "log10": np.log10(foretold / measured), "share": foretold / measured - 1,
                "size": np.abs(np.log(foretold / measured)),
            }[measure]  # fmt: skip
            kept = {"all": ratio, "next": ratio[:1], "furthest": ratio[-1:], "mean": ratio[:0]}[of_a_cut]
            errors.append(sign * (ratio.mean(keepdims=True) if of_a_cut == "mean" else kept))
        return np.concatenate(errors)

    return answer


MISTAKES = (
    Mistake(
        name="a hold-out that leaks",
        faults={"sees": "all"},
        message="The fit sees every budget, those it is judged on as well. What it is to foretell must not "
        "be shown: flops <= cut.",
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
        "perfectly: judge on budgets above the cut.",
    ),
    Mistake(
        name="beyond the horizon",
        faults={"within": False},
        message="Budgets beyond horizon times the cut are counted too. Errors grow with the distance: keep "
        "to the distance that the bet is about.",
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
    Mistake(
        name="errors without their sign",
        faults={"measure": "size"},
        message="The signs are gone. They tell whether a way promises too much or too little: no abs().",
    ),
    Mistake(
        name="the ratio without its logarithm",
        faults={"measure": "ratio"},
        message="These are foretold / measured, around 1. Take the logarithm: 0 is a hit.",
    ),
    Mistake(
        name="a logarithm to base 10",
        faults={"measure": "log10"},
        message="np.log10 gives less than half of what is asked. The natural one: 0.03 is 3 %.",
    ),
    Mistake(
        name="a share for a logarithm",
        faults={"measure": "share"},
        message="These are (foretold - measured) / measured. The logarithm of their ratio is nearly the "
        "same while it is small, and treats too high and too low alike.",
    ),
    Mistake(
        name="the next budget alone",
        faults={"of_a_cut": "next"},
        message="From each cut only the next budget is foretold. Foretell every one up to horizon times "
        "the cut.",
    ),
    Mistake(
        name="the furthest budget alone",
        faults={"of_a_cut": "furthest"},
        message="From each cut only the last budget within the horizon is foretold. Foretell them all.",
    ),
    Mistake(
        name="a mean for each cut",
        faults={"of_a_cut": "mean"},
        message="There is one number for each cut: errors of both signs cancel in it. Keep every error.",
    ),
    Mistake(
        name="two budgets thought enough",
        faults={"fewest": 2},
        message="The first cut leaves two budgets to fit. Through two points every curve is exact: three "
        "at least, flops[2:-1].",
    ),
    Mistake(
        name="a cut left out",
        faults={"fewest": 4},
        message="The first cut leaves four budgets to fit. Begin with three: flops[2:-1].",
    ),
    Mistake(
        name="the first cut alone",
        faults={"cuts": "first"},
        message="Only the first cut is tried: does the return stand inside the loop? Move the cut on.",
    ),
    Mistake(
        name="the cut's own budget judged",
        faults={"judged": "the cut too"},
        message="The budget at the cut is among those foretold, and the fit has seen it. Foretell flops > "
        "cut.",
    ),
    Mistake(
        name="shown budgets judged as well",
        faults={"judged": "both"},
        message="All budgets up to the horizon are judged, those that were fitted too. Foretell flops > cut.",
    ),
)

HINTS = (
    "At each cut: what may the fit see, and what is it asked?",
    "shown = flops <= cut; ahead = (flops > cut) & (flops <= horizon * cut). Cuts are flops[2:-1], so that "
    "three budgets are shown and one is left.",
    "np.log(fit(flops[shown], loss[shown])(flops[ahead]) / loss[ahead]), one array for each cut, then "
    "np.concatenate.",
)


def straight_fit(flops: np.ndarray, loss: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A pure power by log-log regression."""
    slope, level = np.polyfit(np.log(flops), np.log(loss), 1)
    return lambda x: np.exp(level + slope * np.log(x))


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    cases = []
    for n_budgets, step, horizon, floor in ((7, 3.0, 10.0, 1.6), (8, 2.0, 5.0, 0.0)):
        flops = 1e11 * step ** np.arange(n_budgets)
        loss = floor + rng.uniform(2, 3) * (flops / 1e11) ** -rng.uniform(0.1, 0.2)
        # up and down in turn, so that errors of both signs occur and a lost sign shows
        loss = loss * np.exp(0.01 * rng.uniform(0.7, 1.3, n_budgets) * (-1.0) ** np.arange(n_budgets))
        about = f"{n_budgets} budgets, each {step:g} times the last, horizon {horizon:g}"
        cases.append(case_of(about, flops, loss, straight_fit, horizon))
    return tuple(cases)


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    errors = call(answer, *args)
    if isinstance(errors, list) and errors and all(np.ndim(one) == 0 for one in errors):
        errors = np.array(errors)
    found = as_numbers(errors, "the errors")
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
