"""One model counted as Kaplan et al. did and as is done today: body alone, or with table and head.

Source: Kaplan et al. 2020, arXiv:2001.08361, table 1; Porian et al. 2024, arXiv:2406.19146. Taught in
book/scaling-laws/compute-optimal.md.
"""

from __future__ import annotations

import numpy as np

from scalelab.lab.checks.answers import as_numbers, as_tuple, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

PARTS = ("kaplan_params", "kaplan_flops", "n_params", "flops")


def count_two_ways(
    n_layers: int, d_model: int, d_ff: int, vocab_size: int, tied: bool, n_tokens: float
) -> tuple[float, float, float, float]:
    """(parameters and 6ND without table and head, all parameters, 6ND of all that multiplies)."""
    gains = (2 * n_layers + 1) * d_model  # of norms: two a layer and one at the end
    body = n_layers * (4 * d_model**2 + 2 * d_model * d_ff) + gains
    table = vocab_size * d_model
    n_params = body + (table if tied else 2 * table)
    # Looking a row up multiplies nothing; the head does, whether it shares the table or not.
    return body, 6 * body * n_tokens, n_params, 6 * (body + table) * n_tokens


def _build(
    *, head: str = "once", tables: str = "right", six: float = 6.0, attention: int = 4, feed_forward: int = 2,
    body_has: str = "no table",
) -> Answer:  # fmt: skip
    """The counts with the given faults; without any, the right ones."""

    def answer(
        n_layers: int, d_model: int, d_ff: int, vocab_size: int, tied: bool, n_tokens: float
    ) -> tuple[float, float, float, float]:
        gains = (2 * n_layers + 1) * d_model
        body = n_layers * (attention * d_model**2 + feed_forward * d_model * d_ff) + gains
        table = vocab_size * d_model
        n_tables = {"right": 1 if tied else 2, "always two": 2, "always one": 1}[tables]
        in_head = {"once": 1, "none": 0, "with the input table": 2, "as stored": 1 if tied else 2}[head]
        kaplan = body + (table if body_has == "a table" else 0)
        return (
            kaplan,
            six * kaplan * n_tokens,
            body + n_tables * table,
            six * (body + in_head * table) * n_tokens,
        )

    return answer


MISTAKES = (
    Mistake(
        name="head left out of the FLOPs",
        faults={"head": "none"},
        message="The FLOPs are those of the body alone. The head multiplies every token by V x d_model "
        "weights: in small models that is most of the work.",
    ),
    Mistake(
        name="input table counted as if it multiplied",
        faults={"head": "with the input table"},
        message="The FLOPs count the table twice, once at the input. Looking up a row multiplies nothing.",
    ),
    Mistake(
        name="FLOPs of all stored parameters",
        faults={"head": "as stored"},
        message="The FLOPs are 6 D times all stored parameters. For an untied model that counts the input "
        "table, which multiplies nothing.",
    ),
    Mistake(
        name="tied table counted twice",
        faults={"tables": "always two"},
        message="A tied model has one table, used at both ends: it is stored once.",
    ),
    Mistake(
        name="untied tables counted once",
        faults={"tables": "always one"},
        message="An untied model stores two tables, one for the input and one as the head.",
    ),
    Mistake(
        name="forward pass only",
        faults={"six": 2.0},
        message="2 FLOPs a parameter and token are the forward pass. The backward pass takes 4 more.",
    ),
    Mistake(
        name="three attention matrices",
        faults={"attention": 3},
        message="Attention has four matrices of d_model x d_model: queries, keys, values and the output's.",
    ),
    Mistake(
        name="gated feed-forward",
        faults={"feed_forward": 3},
        message="Three feed-forward matrices are counted; these models have two (GELU, no gate).",
    ),
    Mistake(
        name="table in Kaplan's count",
        faults={"body_has": "a table"},
        message="Kaplan's N holds no table of embeddings and no head: the body alone.",
    ),
)

HINTS = (
    "Count the body first: layers times (attention + feed-forward), and the norms' gains. Kaplan's two "
    "numbers need nothing else.",
    "Attention is 4 d_model^2, feed-forward 2 d_model d_ff, gains (2 n_layers + 1) d_model. A table has V "
    "d_model: one when tied, two when not. The head multiplies in both cases, the input table in none.",
    "body = n_layers*(4*d_model**2 + 2*d_model*d_ff) + (2*n_layers + 1)*d_model; table = "
    "vocab_size*d_model; return body, 6*body*n_tokens, body + table*(1 if tied else 2), 6*(body + "
    "table)*n_tokens",
)


def _case(about: str, *args: object) -> Case:
    return Case(about=about, make=lambda: (args, {}))


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    def shape() -> tuple[int, int, int, int]:
        d_model = 16 * int(rng.integers(2, 12))
        d_ff = d_model * int(rng.choice([3, 5, 6]))
        return int(rng.integers(2, 9)), d_model, d_ff, 64 * int(rng.integers(8, 60))

    tokens = [float(round(10 ** rng.uniform(6, 9))) for _ in range(2)]
    return (
        _case("a tied model", *shape(), True, tokens[0]),
        _case("an untied model", *shape(), False, tokens[1]),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    parts = as_tuple(call(answer, *args), PARTS)
    return {name: as_numbers(part, name) for name, part in zip(PARTS, parts, strict=True)}


EXERCISE = Exercise(
    name="count_two_ways",
    reference=count_two_ways,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-9,
)
