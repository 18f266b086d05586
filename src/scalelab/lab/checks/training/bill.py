"""What one training step costs in FLOPs and bytes, counted by hand, and the ways to miscount it.

Conventions: torch's FlopCounterMode (two FLOPs a multiply–add, attention in full, causal or not), and
`scalelab.cost`, which the reference is tested equal to.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scalelab.lab.checks.answers import as_numbers, as_tuple, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

OUTPUTS = ("the step's FLOPs", "the state's bytes")


def step_bill(
    n_layers: int, d_model: int, d_ff: int, vocab_size: int, seq_len: int, batch_size: int
) -> tuple[int, int]:
    """Training FLOPs of one step and bytes of weights, gradients and optimiser states.

    A GPT-2-shaped decoder (learned positions, biases, LayerNorm, head tied to the input table), fp32, AdamW.
    """
    n_tokens = batch_size * seq_len
    attention_maps = 4 * d_model**2  # queries, keys, values, output
    feed_forward = 2 * d_model * d_ff
    maps = 2 * n_tokens * n_layers * (attention_maps + feed_forward)
    attention = 4 * batch_size * n_layers * seq_len**2 * d_model  # scores and their sums of values
    head = 2 * n_tokens * vocab_size * d_model
    flops = 3 * (maps + attention + head)  # the way back costs twice the way forward

    biases_and_norms = 4 * d_model + (d_ff + d_model) + 2 * 2 * d_model
    n_params = n_layers * (attention_maps + feed_forward + biases_and_norms)
    n_params += vocab_size * d_model + seq_len * d_model + 2 * d_model  # tables, last norm; the head is tied
    return flops, 16 * n_params  # weight, gradient, m and v of 4 bytes each


def _build(
    *,
    passes: int = 3,
    per_multiply_add: int = 2,
    table_multiplies: bool = False,
    head: bool = True,
    attention: float = 1.0,
    bytes_per_param: int = 16,
    positions_stored: bool = True,
    table_copies: int = 1,
    small_parts: str = "all",
) -> Answer:
    """A bill with the given faults; without any, the right one."""

    def answer(
        n_layers: int, d_model: int, d_ff: int, vocab_size: int, seq_len: int, batch_size: int
    ) -> tuple[int, int]:
        n_tokens = batch_size * seq_len
        weights = n_layers * (4 * d_model**2 + 2 * d_model * d_ff)
        table = vocab_size * d_model
        multiply_adds = n_tokens * (weights + head * table + table_multiplies * table)
        multiply_adds += int(attention * 2 * n_layers * n_tokens * seq_len * d_model)
        n_params = weights + table_copies * table
        n_params += seq_len * d_model if positions_stored else 0
        if small_parts not in ("none", "no biases"):
            n_params += n_layers * (5 * d_model + d_ff)
        norms = {"none": 0, "no norms": 0, "gain only": 1}.get(small_parts, 2)  # numbers a channel
        n_params += norms * (2 * n_layers + 1) * d_model
        return passes * per_multiply_add * multiply_adds, bytes_per_param * n_params

    return answer


MISTAKES = (
    Mistake(
        name="forward only",
        faults={"passes": 1},
        message="This is the way forward. Backward costs twice as much again (gradients of inputs and of "
        "weights): 3 times in all.",
    ),
    Mistake(
        name="backward counted once",
        faults={"passes": 2},
        message="Backward makes two products for each one forward (gradients of inputs and of weights): "
        "3 times forward in all, not 2.",
    ),
    Mistake(
        name="multiply-adds as FLOPs",
        faults={"per_multiply_add": 1},
        message="A multiplication and an addition are two FLOPs: this is half of what is asked for.",
    ),
    Mistake(
        name="input table counted as if it multiplied",
        faults={"table_multiplies": True},
        message="The input table is looked up, not multiplied; the same table multiplies once, as the head.",
    ),
    Mistake(
        name="tied head forgotten",
        faults={"head": False},
        message="The head shares the input table's bytes, not its work: it multiplies each position by all "
        "V·D weights.",
    ),
    Mistake(
        name="attention forgotten",
        faults={"attention": 0.0},
        message="Scores and weighted values multiply too: 4·B·T²·D FLOPs a layer forward, though no weight "
        "is in them.",
    ),
    Mistake(
        name="half of attention",
        faults={"attention": 0.5},
        message="Either the scores or the weighted values are missing, or the causal half was left out; both "
        "products are counted in full.",
    ),
    Mistake(
        name="one Adam state",
        faults={"bytes_per_param": 12},
        message="12 bytes a parameter are three numbers, and AdamW needs four: weight, gradient, m and v.",
    ),
    Mistake(
        name="weights only",
        faults={"bytes_per_param": 4},
        message="These are the weights' bytes alone; the gradient, m and v each take as many.",
    ),
    Mistake(
        name="positions not stored",
        faults={"positions_stored": False},
        message="The table of learned positions, T·D numbers, is trained and stored like the rest.",
    ),
    Mistake(
        name="input table not stored",
        faults={"table_copies": 0},
        message="The input table does not multiply, but its V·D numbers are stored and trained.",
    ),
    Mistake(
        name="tied table stored twice",
        faults={"table_copies": 2},
        message="Head and input share one table: count its V·D numbers once.",
    ),
    Mistake(
        name="biases and norms left out",
        faults={"small_parts": "none"},
        message="Biases (4·D + F + D a layer) and LayerNorms (4·D a layer, 2·D at the end) are parameters, "
        "too.",
    ),
    Mistake(
        name="biases left out",
        faults={"small_parts": "no biases"},
        message="Each of a layer's maps has a bias as long as its output: 4·D in attention, F + D in the "
        "feed-forward part.",
    ),
    Mistake(
        name="norms left out",
        faults={"small_parts": "no norms"},
        message="LayerNorms have parameters, too: 4·D a layer (two norms) and 2·D for the last one.",
    ),
    Mistake(
        name="norm with a gain only",
        faults={"small_parts": "gain only"},
        message="A LayerNorm has a gain and a bias, 2·D numbers; D alone is an RMSNorm.",
    ),
)

HINTS = (
    "Count forward products first: four D×D maps, two of D×F, two in attention, one head. The way back "
    "costs twice as much.",
    "A map from n to m numbers costs 2·n·m FLOPs a position; scores cost 2·T·D a position and so do the "
    "weighted values; the head costs 2·V·D.",
    "n_params = V·D + T·D + L·(4D² + 2DF + 9D + F) + 2D. Every parameter needs a weight, a gradient, m "
    "and v, of 4 bytes each.",
)


def _case(about: str, sizes: tuple[int, int, int, int, int, int]) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return sizes, {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    n_layers, width = int(rng.integers(2, 6)), 16 * int(rng.integers(4, 12))
    d_ff = 16 * int(rng.integers(9, 40))
    n_vocab, n_positions = 32 * int(rng.integers(20, 60)), 8 * int(rng.integers(9, 30))
    small = (1, 2, 3, int(rng.integers(5, 9)), int(rng.integers(4, 7)), 1)
    usual = (n_layers, width, d_ff, n_vocab, n_positions, int(rng.integers(2, 9)))
    return tuple(
        _case(
            "n_layers={}, d_model={}, d_ff={}, vocab_size={}, seq_len={}, batch_size={}".format(*sizes), sizes
        )
        for sizes in (small, usual)
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    parts = as_tuple(call(answer, *args), ("FLOPs", "bytes"))
    return {name: as_numbers(part, name) for name, part in zip(OUTPUTS, parts, strict=True)}


EXERCISE = Exercise(
    name="step_bill",
    reference=step_bill,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-9,
    atol=0.0,
)
