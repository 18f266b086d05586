"""A power over a floor: linear in a and c once b is known, and what comes of a floor of 0 or one too high.

Source: Golub and Pereyra 1973, doi:10.1137/0710036 (linear parameters solved for each value of the others);
Henighan et al. 2020, arXiv:2010.14701, eq. 1.1 (a power over a floor).
Taught in book/scaling-laws/power-laws.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scalelab.lab.checks.answers import Numbers, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import numbers_of

PARTS = ("a", "b", "c")


def power_over_floor(
    scale: np.ndarray, loss: np.ndarray, exponents: np.ndarray
) -> tuple[float, float, float]:
    """(a, b, c) of loss = c + a * scale^-b with the smallest squared error in nats.

    Args:
        scale, loss: [R]. exponents: the values of b to try.
    """
    found = []
    for b in exponents:
        columns = np.stack([scale**-b, np.ones_like(scale)], axis=1)  # [R, 2]
        a, c = np.linalg.lstsq(columns, loss, rcond=None)[0]
        found.append((np.sum((columns @ [a, c] - loss) ** 2), a, b, c))
    _, a, b, c = min(found)
    return float(a), float(b), float(c)


def _build(
    *, floor: str = "fitted", sign: int = 1, unit: str = "one", base: str = "power",
    which: str = "smallest", grid: str = "given", order: str = "a, b, c",
) -> Answer:  # fmt: skip
    """The fit with the given faults; without any, the right one."""

    def column(scale: np.ndarray, b: float) -> np.ndarray:
        if base == "mixed":
            return np.asarray(10 ** (-b * np.log(scale)))
        return np.asarray(scale**b if base == "rising" else scale**-b)

    def solve(scale: np.ndarray, loss: np.ndarray, b: float) -> tuple[float, float, np.ndarray]:
        above = column(scale, b)
        if floor == "fitted":
            a, c = np.linalg.lstsq(np.stack([above, np.ones_like(above)], axis=1), loss, rcond=None)[0]
        else:
            c = {"none": 0.0, "smallest loss": loss.min(), "mean loss": loss.mean()}[floor]
            a = above @ (loss - c) / (above @ above)
        return float(a), float(c), c + a * above - loss

    def answer(scale: np.ndarray, loss: np.ndarray, exponents: np.ndarray) -> tuple[float, float, float]:
        x = scale / scale.min() if unit == "smallest" else scale
        tried = exponents if grid == "given" else (exponents[:-1] + exponents[1:]) / 2
        found = []
        for b in tried:
            a, c, error = solve(x, loss, float(b))
            squares = float(np.sum(error**2))
            found.append((-squares if which == "largest" else squares, a, float(b), c))
        _, a, b, c = min(found)
        b *= sign
        return {"a, b, c": (a, b, c), "c, b, a": (c, b, a), "b, a, c": (b, a, c)}[order]

    return answer


RIGHT = {
    "floor": "fitted", "sign": 1, "unit": "one", "base": "power",
    "which": "smallest", "grid": "given", "order": "a, b, c",
}  # fmt: skip
SEEN = ("a floor above the smallest loss", "an exponent that was not given")

# The last two are known by what they say of c and b alone, so they come after those known by their numbers.
MISTAKES = (
    Mistake(
        name="a straight line where there is a floor",
        faults={"floor": "none"},
        message="c is 0: this is a pure power, a straight line on log-log axes. Let the constant column be "
        "fitted too.",
    ),
    Mistake(
        name="a floor as high as the smallest loss",
        faults={"floor": "smallest loss"},
        message="c is the smallest loss that was seen. Then the law says that this run, of finite size, has "
        "nothing left to learn; and what noise made low counts as a limit. The floor lies below all losses: "
        "fit it.",
    ),
    Mistake(
        name="the exponent's sign",
        faults={"sign": -1},
        message="b comes out negative. In c + a · scale^-b the minus is written already: b itself is "
        "positive.",
    ),
    Mistake(
        name="no minus in the power",
        faults={"base": "rising"},
        message="scale ** b grows with scale, and a comes out negative. The law is c + a · scale ** -b.",
    ),
    Mistake(
        name="mixed logarithms",
        faults={"base": "mixed"},
        message="scale^-b is built as 10^(-b ln scale): the bases differ. Write scale ** -b, or "
        "np.exp(-b * np.log(scale)).",
    ),
    Mistake(
        name="a for another unit of scale",
        faults={"unit": "smallest"},
        message="The scale was divided by its smallest value, and a belongs to that unit. Multiply a by "
        "smallest ** b, or leave the scale as it is.",
    ),
    Mistake(
        name="the worst exponent",
        faults={"which": "largest"},
        message="The exponent with the largest squared error is chosen: min, not max.",
    ),
    Mistake(
        name="c before a",
        faults={"order": "c, b, a"},
        message="Floor and factor have changed places: asked is (a, b, c). np.linalg.lstsq gives the numbers "
        "in the order of the columns.",
    ),
    Mistake(
        name="b before a",
        faults={"order": "b, a, c"},
        message="Exponent and factor have changed places: asked is (a, b, c).",
    ),
    Mistake(
        name="a floor above the smallest loss",
        faults={**RIGHT, "floor": "mean loss"},  # no other mistake goes with it
        seen_in=SEEN[:1],
        message="c lies above losses that were measured, so it is no floor: a run cannot do better than what "
        "no run can reach. Solve for a and c together, by least squares.",
    ),
    Mistake(
        name="an exponent that was not given",
        faults={**RIGHT, "grid": "between"},
        seen_in=SEEN[1:],
        message="b is none of the exponents that were handed in. A search of your own may be as good; "
        "asked is the best of the list.",
    ),
)

HINTS = (
    "For a fixed b, c + a · scale^-b is *linear* in a and c. So try each b, solve for a and c, keep the "
    "best.",
    "Two columns: scale ** -b and ones. np.linalg.lstsq(columns, loss, rcond=None)[0] gives a and c; the "
    "sum of squares of columns @ [a, c] - loss says how good this b is.",
    "for b in exponents: columns = np.stack([scale**-b, np.ones_like(scale)], axis=1); a, c = "
    "np.linalg.lstsq(columns, loss, rcond=None)[0]; remember (error, a, b, c); return those of the smallest.",
)


def _case(about: str, scale: np.ndarray, loss: np.ndarray, exponents: np.ndarray) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (scale.copy(), loss.copy(), exponents.copy()), {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    cases = []
    for n_runs, smallest in ((8, 500.0), (11, 2e4)):
        b, c = rng.uniform(0.4, 0.7), rng.uniform(1.5, 3.0)
        scale = np.geomspace(smallest, 100 * smallest, n_runs) * np.exp(rng.normal(0, 0.1, n_runs))
        loss = c + rng.uniform(1, 2) * (scale / smallest) ** -b + rng.normal(0, 0.01, n_runs)
        mixed = rng.permutation(n_runs)
        exponents = np.arange(0.1, 1.5, 0.05) + rng.uniform(0, 0.02)
        about = f"{n_runs} runs about a law with floor {c:.2f} and b = {b:.2f}"
        cases.append(_case(about, scale[mixed], loss[mixed], exponents))
    return tuple(cases)


def _observe(answer: Answer, case: Case) -> Observation:
    """The three numbers; with them 1 where c is no floor, and where b is none of those given."""
    args, _ = case.make()
    _, loss, exponents = args
    numbers = numbers_of(call(answer, *args), PARTS)
    b, c = numbers["b"].values, numbers["c"].values
    plain = b.size == c.size == 1 and bool(np.isfinite(b).all() and np.isfinite(c).all())
    flags = {
        SEEN[0]: plain and bool(np.all((b > 0) & (c > (1 + 1e-9) * loss.min()) & (c < loss.max()))),
        SEEN[1]: plain and not bool(np.any(np.isclose(np.abs(b), exponents, rtol=1e-6))),
    }
    return {**numbers, **{name: Numbers(np.array(float(value))) for name, value in flags.items()}}


EXERCISE = Exercise(
    name="power_over_floor",
    reference=power_over_floor,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
)
