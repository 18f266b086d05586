"""Which runs are drawn again: whole sizes, since the seeds of one size share what is wrong with that size.

Source: Efron and Tibshirani 1993, chapter 8 (what is drawn must be what was independent); Cameron, Gelbach
and Miller 2008, doi:10.1162/rest.90.3.414 (bootstrap by clusters).
Taught in book/scaling-laws/power-laws.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scalelab.lab.checks.answers import Numbers, Rejected, as_numbers, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

N_CALLS = 40
N_REPEATED = 8  # of few sizes one draw may come again by chance, so many do not


def draw_sizes(scale: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices of the runs of one resample: as many sizes as there are, with replacement, all seeds of each.

    Args:
        scale: [R], the size of each run.
    """
    sizes = np.unique(scale)
    drawn = rng.choice(sizes, size=len(sizes))
    return np.concatenate([np.flatnonzero(scale == size) for size in drawn])


def _build(
    *, drawn: str = "sizes", seeds: str = "all", replace: bool = True, rng_of: str = "caller",
    number: str = "sizes",
) -> Answer:  # fmt: skip
    """The draw with the given faults; without any, the right one."""

    def answer(scale: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng_of != "caller":
            rng = np.random.default_rng(0 if rng_of == "fixed" else None)
        if drawn == "runs":
            return np.asarray(rng.choice(len(scale), size=len(scale), replace=replace))
        sizes = np.unique(scale)
        n_drawn = {"sizes": len(sizes), "one fewer": len(sizes) - 1, "runs": len(scale)}[number]
        chosen = rng.choice(sizes, size=n_drawn, replace=replace)
        rows = [np.flatnonzero(scale == size) for size in chosen]
        if seeds == "one":
            rows = [rng.choice(of_size, size=1) for of_size in rows]
        elif seeds == "again":
            rows = [rng.choice(of_size, size=len(of_size)) for of_size in rows]
        return np.concatenate(rows)

    return answer


PARTS = (
    "runs drawn at a time",
    "sizes come in whole numbers",
    "each size with all of its seeds",
    "some size comes twice",
    "draws differ",
    "the same rng gives the same draw",
)

MISTAKES = (
    Mistake(
        name="seeds resampled as if they were sizes",
        faults={"drawn": "runs"},
        message="Single runs are drawn. The seeds of one size share what is wrong with that size (its rate, "
        "its shape): ten seeds of five sizes are five witnesses, not fifty, and intervals come out too "
        "narrow. Draw sizes, each with all of its seeds.",
    ),
    Mistake(
        name="one seed of each size",
        faults={"seeds": "one"},
        message="Of each drawn size one seed alone is kept. All of its seeds go with it.",
    ),
    Mistake(
        name="seeds drawn again within a size",
        faults={"seeds": "again"},
        message="Sizes are drawn, and then seeds within each once more. A drawn size comes with all of its "
        "seeds, each once.",
    ),
    Mistake(
        name="without replacement",
        faults={"replace": False, "number": "sizes"},
        message="Every size comes exactly once: this is the same experiment in another order, and every "
        "refit gives the same law. Draw with replacement.",
    ),
    Mistake(
        name="the same draw every time",
        faults={"rng_of": "fixed"},
        message="Every call gives the same runs: a generator is made inside, or np.random is asked, whose "
        "state a check puts back. Use the rng that is handed in.",
    ),
    Mistake(
        name="a generator of its own",
        faults={"rng_of": "own"},
        message="The same rng gives another draw each time, so chance comes from elsewhere (a "
        "generator made inside), and nobody can repeat the interval. Use the rng that is handed in.",
    ),
    Mistake(
        name="a size too few",
        faults={"number": "one fewer"},
        message="One size too few is drawn. An interval is about an experiment of as many sizes as were run.",
    ),
    Mistake(
        name="as many sizes as runs",
        faults={"number": "runs"},
        message="As many sizes are drawn as there are runs, each with all its seeds: an experiment several "
        "times as large as yours, and intervals too narrow. Draw as many sizes as there are sizes.",
    ),
)

HINTS = (
    "What was chosen independently of what: runs, or sizes? Draw that.",
    "sizes = np.unique(scale); rng.choice(sizes, size=len(sizes)) draws with replacement; for each drawn "
    "size take all indices with that scale.",
    "np.concatenate([np.flatnonzero(scale == size) for size in rng.choice(sizes, size=len(sizes))]).",
)


def _case(about: str, scale: np.ndarray, seed: int) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (scale.copy(), np.random.default_rng(seed)), {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    cases = []
    for low in (4, 6):
        n_sizes, n_seeds = int(rng.integers(low, low + 9)), int(rng.integers(3, 12))
        scale = rng.permutation(np.repeat(np.geomspace(1e3, 1e5, n_sizes), n_seeds))
        about = f"{n_sizes} sizes with {n_seeds} seeds each, in any order"
        cases.append(_case(about, scale, int(rng.integers(2**31))))
    return tuple(cases)


def _observe(answer: Answer, case: Case) -> Observation:
    """What holds of many draws; not the draws themselves, which may be made in any order."""
    (scale, rng), _ = case.make()
    draws = [_indices(call(answer, scale.copy(), rng), len(scale)) for _ in range(N_CALLS)]
    counts = np.stack([np.bincount(draw, minlength=len(scale)) for draw in draws])  # [calls, R]
    sizes = np.unique(scale)
    by_size = [counts[:, scale == size] for size in sizes]  # each [calls, K]
    n_seeds = len(scale) // len(sizes)
    values = (
        np.mean([len(draw) for draw in draws]),
        all(np.all(part.sum(axis=1) % n_seeds == 0) for part in by_size),
        all(np.all(part == part[:, :1]) for part in by_size),
        max(part.sum(axis=1).max() for part in by_size) > n_seeds,
        bool(np.any(counts != counts[0])),
        _repeats(answer, case, draws[:N_REPEATED]),
    )
    return {name: Numbers(np.array(float(value))) for name, value in zip(PARTS, values, strict=True)}


def _repeats(answer: Answer, case: Case, first: list[np.ndarray]) -> bool:
    """Whether a generator in the same state gives the same draws."""
    (scale, rng), _ = case.make()
    again = [_indices(call(answer, scale.copy(), rng), len(scale)) for _ in first]
    return all(np.array_equal(np.sort(one), np.sort(other)) for one, other in zip(first, again, strict=True))


def _indices(value: Any, n_runs: int) -> np.ndarray:
    if isinstance(value, list) and all(isinstance(i, int | np.integer) for i in value):
        value = np.array(value, dtype=np.int64)  # an array can be asked with a list of whole numbers too
    numbers = as_numbers(value, "the indices").values
    if (
        numbers.ndim != 1
        or np.any(numbers != np.round(numbers))
        or np.any((numbers < 0) | (numbers >= n_runs))
    ):
        raise Rejected(
            f"should return a list of indices, whole numbers from 0 to {n_runs - 1}, to be used as "
            f"scale[indices]",
            name="no indices",
        )
    return numbers.astype(np.int64)


EXERCISE = Exercise(
    name="draw_sizes",
    reference=draw_sizes,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
)
