"""Which layers a rank has when each has several chunks, and the ways to deal them that fill no bubble.

Source: Narayanan et al. 2021, arXiv:2104.04473, section 2.2.2. Taught in book/parallelism/pipeline.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scalelab.lab.checks.answers import Numbers, Rejected, call, describe
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import case_of


def deal_layers(n_layers: int, pp: int, v: int) -> list[list[list[int]]]:
    """For each rank its v chunks, each a list of layers."""
    size, longer = divmod(n_layers, pp * v)
    starts = [i * size + min(i, longer) for i in range(pp * v + 1)]
    stages = [list(range(starts[i], starts[i + 1])) for i in range(pp * v)]
    return [[stages[chunk * pp + rank] for chunk in range(v)] for rank in range(pp)]


def _sizes(n_layers: int, n_stages: int, rest: str) -> list[int]:
    size, longer = divmod(n_layers, n_stages)
    if rest == "dropped":
        return [size] * n_stages
    if rest == "on the last":
        return [size] * (n_stages - 1) + [size + longer]
    if rest == "last ones longer":
        return [size] * (n_stages - longer) + [size + 1] * longer
    if rest == "rounded up":
        up = size + (longer > 0)
        return [max(0, min(up, n_layers - i * up)) for i in range(n_stages)]
    return [size + (i < longer) for i in range(n_stages)]


def _build(*, rest: str = "first ones longer", dealt: str = "round", chunks: str = "all") -> Answer:
    """A deal with the given faults; without any, the right one."""

    def answer(n_layers: int, pp: int, v: int) -> list[list[list[int]]]:
        ends = np.cumsum([0, *_sizes(n_layers, pp * v, rest)]).tolist()
        stages = [list(range(ends[i], ends[i + 1])) for i in range(pp * v)]

        def stage(rank: int, chunk: int) -> list[int]:
            if dealt == "neighbours":
                return stages[rank * v + chunk]
            if dealt == "to and fro":
                return stages[chunk * pp + (rank if chunk % 2 == 0 else pp - 1 - rank)]
            if dealt == "last rank first":
                return stages[chunk * pp + pp - 1 - rank]
            if dealt == "deepest chunk first":
                return stages[(v - 1 - chunk) * pp + rank]
            return stages[chunk * pp + rank]

        n_dealt = 1 if chunks == "first" else v
        return [[stage(rank, chunk) for chunk in range(n_dealt)] for rank in range(pp)]

    return answer


MISTAKES = (
    Mistake(
        name="a rank's chunks side by side",
        faults={"dealt": "neighbours"},
        message="Each rank has v neighbouring stages: together they are one long stage, and the pipeline "
        "fills no faster than with v = 1. Chunk c of rank r is stage c · pp + r, so that a micro-batch "
        "visits every rank before it comes to the next chunk.",
    ),
    Mistake(
        name="dealt to and fro",
        faults={"dealt": "to and fro"},
        message="Every second round is dealt backwards, so a rank has neighbouring stages at each turn (the "
        "V of some zero-bubble schedules). Here each round begins with rank 0 again: stage c · pp + r.",
    ),
    Mistake(
        name="the last rank first",
        faults={"dealt": "last rank first"},
        message="Rank 0 has the last stage of each round. Tokens enter at rank 0, and each rank sends to the "
        "next: stage c · pp + r.",
    ),
    Mistake(
        name="the deepest chunk first",
        faults={"dealt": "deepest chunk first"},
        message="A rank's chunks come in falling order of depth. Chunk 0 is the one that a micro-batch "
        "visits first: stage c · pp + r for c = 0, 1, …",
    ),
    Mistake(
        name="only the first chunk",
        faults={"chunks": "first"},
        message="Each rank gets one chunk, and layers beyond the first round belong to nobody. There are v "
        "for each.",
    ),
    Mistake(
        name="layers that do not divide are dropped",
        faults={"rest": "dropped"},
        message="n_layers // (pp · v) layers for each stage leave n_layers % (pp · v) over, and they are "
        "nowhere. Give the first stages one more each.",
    ),
    Mistake(
        name="the rest all on the last stage",
        faults={"rest": "on the last"},
        message="What does not divide is all given to the last stage. The slowest stage sets the pace: one "
        "layer more on each of the first ones costs one layer, this costs them all.",
    ),
    Mistake(
        name="the last stages are longer",
        faults={"rest": "last ones longer"},
        message="The last stages have one layer more. That is as fair, but the last also has the norm and "
        "the head; here, as in torch.tensor_split, the first ones are longer.",
    ),
    Mistake(
        name="sizes rounded up",
        faults={"rest": "rounded up"},
        message="Every stage takes the size rounded up while layers last (as torch.chunk does), so the last "
        "stages go short or have none. Sizes may differ by one layer at most.",
    ),
)

HINTS = (
    "First cut the layers into pp · v stages, then deal the stages out like cards: one to each rank in "
    "turn, v rounds.",
    "size, longer = divmod(n_layers, pp * v); stage i begins at layer i * size + min(i, longer).",
    "stages = [list(range(i * size + min(i, longer), (i + 1) * size + min(i + 1, longer))) for i in "
    "range(pp * v)]; return [[stages[chunk * pp + rank] for chunk in range(v)] for rank in range(pp)].",
)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    cases = []
    # Sizes of at least two where they do not divide, and three layers over: each way to round differs.
    for pp, v, over in ((int(rng.integers(3, 6)), 2, 0), (3, 3, 3), (4, 2, 3)):
        n_layers = pp * v * int(rng.integers(2, 9)) + over
        cases.append(case_of(f"{n_layers} layers, {pp} ranks, {v} chunks each", n_layers, pp, v))
    return tuple(cases)


def _observe(answer: Answer, case: Case) -> Observation:
    (n_layers, pp, v), _ = case.make()
    dealt = call(answer, n_layers, pp, v)
    rank_of, chunk_of = np.full(n_layers, -1.0), np.full(n_layers, -1.0)  # -1: nobody has it
    for rank, chunks in enumerate(_listed(dealt, "a list with one entry for each rank", pp)):
        for chunk, layers in enumerate(_listed(chunks, f"a list of chunks for rank {rank}")):
            for layer in _listed(layers, f"a list of layers for chunk {chunk} of rank {rank}"):
                if isinstance(layer, bool) or not isinstance(layer, int | np.integer):
                    raise Rejected(f"deals {describe(layer)} for a layer's number", name="no layer's number")
                if not 0 <= layer < n_layers:
                    raise Rejected(f"deals layer {layer} of {n_layers}", name="a layer that is none")
                if rank_of[layer] >= 0:
                    raise Rejected(f"deals layer {layer} twice", name="a layer dealt twice")
                rank_of[layer], chunk_of[layer] = rank, chunk
    return {
        "the rank (-1: none)": Numbers(rank_of, "layer"),
        "the chunk (-1: none)": Numbers(chunk_of, "layer"),
    }


def _listed(value: Any, what: str, length: int | None = None) -> list[Any]:
    if not isinstance(value, list | tuple | range) or length not in (None, len(value)):
        got = f"{len(value)} entries" if isinstance(value, list | tuple) else describe(value)
        raise Rejected(f"gives {got}, where {what} should be", name="returned the wrong kind of thing")
    return list(value)


EXERCISE = Exercise(
    name="deal_layers",
    reference=deal_layers,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
)
