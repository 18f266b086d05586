"""A pure power law as a straight line of logarithms, and the ways to lose a sign, a base or an axis.

Source: Kaplan et al. 2020, arXiv:2001.08361, eq. 1.1 (a pure power of one scale).
Taught in book/scaling-laws/power-laws.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import curve_fit

from scalelab.lab.checks.answers import call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import numbers_of

PARTS = ("a", "b")


def straight_line(scale: np.ndarray, loss: np.ndarray) -> tuple[float, float]:
    """(a, b) of loss = a * scale^-b, by least squares on the logarithms; scale and loss [R]."""
    slope, intercept = np.polyfit(np.log(scale), np.log(loss), 1)
    return float(np.exp(intercept)), float(-slope)


def _build(
    *, of_scale: str = "ln", of_loss: str = "ln", sign: int = -1, back: str = "exp",
    axes: str = "loss on scale", steps: str = "all", order: str = "a, b",
) -> Answer:  # fmt: skip
    """The line with the given faults; without any, the right one."""
    logarithms: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "ln": np.log,
        "log10": np.log10,
        "none": np.asarray,
    }

    def answer(scale: np.ndarray, loss: np.ndarray) -> tuple[float, float]:
        x, y = logarithms[of_scale](scale), logarithms[of_loss](loss)
        if axes == "scale on loss":
            x, y = y, x
        if steps == "nats":
            start = np.polyfit(x, y, 1)
            (slope, intercept), _ = curve_fit(lambda x, s, i: np.exp(i + s * x), x, np.exp(y), p0=start)
        elif steps == "ends":
            first, last = int(np.argmin(x)), int(np.argmax(x))
            slope = (y[last] - y[first]) / (x[last] - x[first])
            intercept = y[first] - slope * x[first]
        else:
            slope, intercept = np.polyfit(x, y, 1)
        a = {"exp": np.exp(intercept), "ten": 10.0**intercept, "none": intercept}[back]
        b = sign * slope
        return (float(b), float(a)) if order == "b, a" else (float(a), float(b))

    return answer


RIGHT = {
    "of_scale": "ln", "of_loss": "ln", "sign": -1, "back": "exp",
    "axes": "loss on scale", "steps": "all", "order": "a, b",
}  # fmt: skip
# Those with all of RIGHT go with no other mistake.
MISTAKES = (
    Mistake(
        name="the exponent's sign",
        faults={"sign": 1},
        message="b is the line's slope. Loss *falls* with scale, so the slope is negative, and in "
        "a · scale^-b the exponent b is minus the slope.",
    ),
    Mistake(
        name="mixed logarithms, base 10 of the scale",
        faults={"of_scale": "log10"},
        message="The scale's logarithm is to base 10 and the loss's to base e. Of one base both, or b comes "
        "out 2.3 times too large.",
    ),
    Mistake(
        name="mixed logarithms, base 10 of the loss",
        faults={"of_loss": "log10"},
        message="The loss's logarithm is to base 10 and the scale's to base e. Of one base both, or b comes "
        "out 2.3 times too small.",
    ),
    Mistake(
        name="mixed logarithms, and 10 to the intercept",
        faults={"of_scale": "ln", "of_loss": "log10", "back": "ten"},
        message="The loss's logarithm is to base 10 and the scale's to base e. Raising 10 to the intercept "
        "puts a right; b stays 2.3 times too small. Of one base both.",
    ),
    Mistake(
        name="base 10 of the scale, and 10 to the intercept",
        faults={"of_scale": "log10", "of_loss": "ln", "back": "ten"},
        message="The scale's logarithm is to base 10 and the loss's to base e, and 10 is raised to an "
        "intercept that is a natural logarithm. Of one base all three.",
    ),
    Mistake(
        name="base 10 in, base e out",
        faults={"of_scale": "log10", "of_loss": "log10", "back": "exp"},
        message="Both logarithms are to base 10, which leaves b right; but then a is 10 to the intercept, "
        "and exp is taken of it.",
    ),
    Mistake(
        name="the intercept's logarithm returned",
        faults={"back": "none"},
        message="The intercept of the line is ln a. exp of it is a.",
    ),
    Mistake(
        name="a logarithm law",
        faults={"of_loss": "none"},
        message="Only the scale's logarithm is taken: that is the straight line of loss = a - b ln scale, "
        "another form. A power is straight in both logarithms.",
    ),
    Mistake(
        name="a logarithm law, its own numbers",
        faults={"of_loss": "none", "back": "none"},
        message="These are the numbers of loss = a - b ln scale, a logarithm, not a power. A power is "
        "straight when *both* logarithms are taken.",
    ),
    Mistake(
        name="scale fitted on loss",
        faults={"axes": "scale on loss"},
        message="The axes are exchanged: polyfit takes what is chosen (the scale) first, what is measured "
        "(the loss) second.",
    ),
    Mistake(
        name="drawn through two runs",
        faults={"steps": "ends"},
        message="The line goes through the smallest and the largest run alone, with all of their noise. "
        "Least squares uses every run.",
    ),
    Mistake(
        name="least squares in nats",
        faults={**RIGHT, "steps": "nats"},
        message="The curve itself was fitted, with errors in nats. That is a way too, and another line; "
        "asked is the straight one, with least squares on the logarithms.",
    ),
    Mistake(
        name="slope and intercept as they come",
        faults={**RIGHT, "sign": 1, "back": "none", "order": "b, a"},
        message="This is what polyfit returns: slope, intercept. Of these make a = exp(intercept) and "
        "b = -slope, in this order.",
    ),
    Mistake(
        name="b before a",
        faults={"order": "b, a"},
        message="The two numbers come in the other order: asked is (a, b), the factor first.",
    ),
)

HINTS = (
    "ln loss = ln a - b ln scale: a straight line. What are its slope and its intercept?",
    "np.polyfit(x, y, 1) gives slope and intercept of y over x, in this order. x is ln scale, y is ln loss.",
    "slope, intercept = np.polyfit(np.log(scale), np.log(loss), 1); a = np.exp(intercept); b = -slope.",
)


def _case(about: str, scale: np.ndarray, loss: np.ndarray) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (scale.copy(), loss.copy()), {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    cases = []
    for n_runs, b in ((8, rng.uniform(0.05, 0.12)), (12, rng.uniform(0.25, 0.5))):
        scale = np.geomspace(1e3, 1e5, n_runs) * np.exp(rng.normal(0, 0.1, n_runs))
        loss = rng.uniform(5, 9) * (scale / 1e3) ** -b * np.exp(rng.normal(0, 0.02, n_runs))
        mixed = rng.permutation(n_runs)
        cases.append(_case(f"{n_runs} runs about a power with b near {b:.2f}", scale[mixed], loss[mixed]))
    return tuple(cases)


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return numbers_of(call(answer, *args), PARTS)


EXERCISE = Exercise(
    name="straight_line",
    reference=straight_line,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
)
