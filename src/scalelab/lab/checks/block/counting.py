"""A decoder's parameters counted by hand, and the ways to miscount them.

The reference is tested equal to `scalelab.cost` and to the parameters of GPT-2 and Llama in `transformers`.
Taught in book/transformers/block.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scalelab.lab.checks.answers import as_numbers, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation


def count_parameters(
    *,
    n_layers: int,
    d_model: int,
    n_heads: int,
    n_kv_heads: int,
    d_ff: int,
    vocab_size: int,
    n_positions: int,
    is_gated: bool,
    has_biases: bool,
    is_tied: bool,
) -> int:
    """How many numbers a decoder learns.

    Args:
        n_positions: rows of the table of learned positions; 0: there is none.
        is_gated: three matrices in the feed-forward part instead of two.
        has_biases: of every map and every norm (the head never has one); a norm always has its gain.
        is_tied: the head is the token table.
    """
    d_kv = n_kv_heads * (d_model // n_heads)
    attention = 2 * d_model * d_model + 2 * d_model * d_kv  # queries and output; keys and values
    feed_forward = (3 if is_gated else 2) * d_model * d_ff
    norm = d_model
    if has_biases:
        attention += 2 * d_model + 2 * d_kv
        feed_forward += (2 if is_gated else 1) * d_ff + d_model
        norm += d_model
    tables = vocab_size * d_model * (1 if is_tied else 2) + n_positions * d_model
    return n_layers * (attention + feed_forward + 2 * norm) + norm + tables


def _build(
    *,
    tables: str = "right",
    positions: bool = True,
    grouped: bool = True,
    matrices: str = "right",
    biases: str = "right",
    norms: str = "right",
    output: bool = True,
) -> Answer:
    """A count with the given faults; without any, the right one."""

    def answer(
        *, n_layers: int, d_model: int, n_heads: int, n_kv_heads: int, d_ff: int, vocab_size: int,
        n_positions: int, is_gated: bool, has_biases: bool, is_tied: bool,
    ) -> int:  # fmt: skip
        d_kv = n_kv_heads * (d_model // n_heads) if grouped else d_model
        attention = (1 + output) * d_model**2 + 2 * d_model * d_kv
        n_matrices = {"right": 3 if is_gated else 2, "always two": 2, "always three": 3}[matrices]
        feed_forward = n_matrices * d_model * d_ff
        if has_biases and biases in ("right", "output biases forgotten"):
            ends = 0 if biases == "output biases forgotten" else 1
            attention += d_model + 2 * d_kv + ends * output * d_model
            feed_forward += (n_matrices - 1) * d_ff + ends * d_model
        norm = 2 * d_model if has_biases and norms not in ("no biases", "none") else d_model
        n_norms = {"no last": 2 * n_layers, "one a block": n_layers + 1, "none": 0}.get(
            norms, 2 * n_layers + 1
        )
        copies = {"right": 1 if is_tied else 2, "always two": 2, "always one": 1}[tables]
        total = n_layers * (attention + feed_forward) + n_norms * norm + copies * vocab_size * d_model
        return total + (n_positions * d_model if positions else 0)

    return answer


MISTAKES = (
    Mistake(
        name="tied head counted twice",
        faults={"tables": "always two"},
        message="Where the head is the token table, its V·D numbers exist once.",
    ),
    Mistake(
        name="untied head forgotten",
        faults={"tables": "always one"},
        message="Where is_tied is False, the head is a matrix of its own: V·D more.",
    ),
    Mistake(
        name="positions forgotten",
        faults={"positions": False},
        message="The table of learned positions, n_positions rows of D numbers, is missing.",
    ),
    Mistake(
        name="grouped heads ignored",
        faults={"grouped": False},
        message="Keys and values have n_kv_heads heads: their two matrices are D × n_kv_heads·(D/n_heads).",
    ),
    Mistake(
        name="attention's output matrix forgotten",
        faults={"output": False},
        message="Queries, keys and values are three maps; the fourth, D × D, writes the result back.",
    ),
    Mistake(
        name="third matrix forgotten",
        faults={"matrices": "always two"},
        message="A gated feed-forward part has three matrices: gate, up and down.",
    ),
    Mistake(
        name="third matrix always there",
        faults={"matrices": "always three"},
        message="Without a gate the feed-forward part has two matrices, up and down.",
    ),
    Mistake(
        name="maps' biases forgotten",
        faults={"biases": "none"},
        message="With has_biases, each map of a block has a bias as long as its output.",
    ),
    Mistake(
        name="output biases forgotten",
        faults={"biases": "output biases forgotten"},
        message="The two maps that write into the stream, attention's output and the feed-forward's down, "
        "have biases of D numbers, too.",
    ),
    Mistake(
        name="norms' biases forgotten",
        faults={"norms": "no biases"},
        message="With has_biases a norm has 2·D numbers, gain and bias.",
    ),
    Mistake(
        name="last norm forgotten",
        faults={"norms": "no last"},
        message="One more norm follows the last block, before the head.",
    ),
    Mistake(
        name="one norm a block",
        faults={"norms": "one a block"},
        message="A block has two norms, one before each of its parts.",
    ),
    Mistake(
        name="no norms",
        faults={"norms": "none"},
        message="Norms have parameters, too: a gain of D numbers each, two in a block and one at the end.",
    ),
)

HINTS = (
    "Count one block first: attention's four maps, the feed-forward part's two or three, two norms. Then L "
    "of them, the last norm, and the tables.",
    "A map from n to m numbers has n·m weights and, with biases, m more. Keys and values are n_kv_heads "
    "heads of D/n_heads numbers each.",
    "L·(2D² + 2·D·D_kv + (2 or 3)·D·F + 2·norm) + norm + V·D (twice if untied) + n_positions·D; biases add "
    "2D + 2·D_kv, and F (2F if gated) + D, in each block.",
)


def _case(about: str, **sizes: Any) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), dict(sizes)

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    layers, width = int(rng.integers(3, 9)), 24 * int(rng.integers(2, 9))
    wide, n_vocab = 7 * int(rng.integers(20, 60)), int(rng.integers(500, 2000))
    gpt2 = {
        "n_layers": layers, "d_model": width, "n_heads": 6, "n_kv_heads": 6, "d_ff": wide,
        "vocab_size": n_vocab, "n_positions": int(rng.integers(50, 400)), "is_gated": False,
        "has_biases": True, "is_tied": True,
    }  # fmt: skip
    llama = {
        **gpt2,
        "n_kv_heads": 2,
        "n_positions": 0,
        "is_gated": True,
        "has_biases": False,
        "is_tied": False,
    }
    mixed = {**gpt2, "n_layers": layers + 1, "n_kv_heads": 3, "is_gated": True, "n_positions": 0}
    return (
        _case("a small GPT-2 (learned positions, biases, tied)", **gpt2),
        _case("a small Llama (gated, grouped heads, no biases, untied)", **llama),
        _case("a mixture (gated, grouped heads, biases, tied, no table of positions)", **mixed),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    _, sizes = case.make()
    return {"the count": as_numbers(call(answer, **sizes), "the count")}


EXERCISE = Exercise(
    name="count_parameters",
    reference=count_parameters,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-12,
    atol=0.0,
)
