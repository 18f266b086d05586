"""What an all-reduce takes by the α–β model: around a ring, along a tree, naively; and terms that get lost.

Source: Thakur, Rabenseifner & Gropp 2005, doi:10.1177/1094342005051521, sections 3 and 4.
Taught in book/parallelism/data-parallel.md.
"""

from __future__ import annotations

import math

import numpy as np

from scalelab.lab.checks.answers import call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import case_of, numbers_of

NAMES = ("ring_s", "tree_s", "naive_s")


def all_reduce_seconds(n_bytes: int, ranks: int, alpha: float, beta: float) -> tuple[float, float, float]:
    """Seconds of an all-reduce in three ways.

    Args:
        n_bytes: of the tensor, a multiple of the ranks. ranks: p.
        alpha: seconds of an empty message. beta: seconds a byte.

    Returns:
        Around a ring; along a tree to one rank and back; every rank to every other, one after the other.
    """
    ring = 2 * (ranks - 1) * (alpha + beta * n_bytes / ranks)
    tree = 2 * math.ceil(math.log2(ranks)) * (alpha + beta * n_bytes)
    naive = (ranks - 1) * (alpha + beta * n_bytes)
    return ring, tree, naive


def _build(
    *, ring_steps: str = "right", chunk: bool = True, latency: str = "each step", depth: str = "right",
    tree_ways: int = 2, naive: str = "right", beta_is: str = "seconds a byte",
) -> Answer:  # fmt: skip
    """The bill with the given faults; without any, the right one."""

    def answer(n_bytes: int, ranks: int, alpha: float, beta: float) -> tuple[float, float, float]:
        steps = {"p": 2 * ranks, "one half": ranks - 1}.get(ring_steps, 2 * (ranks - 1))
        levels = {"not rounded": math.log2(ranks), "p - 1": ranks - 1}.get(depth, math.ceil(math.log2(ranks)))
        rounds = {"all pairs": ranks * (ranks - 1), "there and back": 2 * (ranks - 1)}.get(naive, ranks - 1)
        a_byte = beta if beta_is == "seconds a byte" else 1 / beta

        def seconds(messages: float, size: float) -> float:
            times = messages if latency == "each step" else 1
            return times * alpha + messages * a_byte * size

        ring = seconds(steps, n_bytes / ranks if chunk else n_bytes)
        return ring, seconds(tree_ways * levels, n_bytes), seconds(rounds, n_bytes)

    return answer


MISTAKES = (
    Mistake(
        name="p steps for p - 1",
        faults={"ring_steps": "p"},
        message="A chunk visits the p - 1 other ranks, so each half of the ring takes p - 1 steps.",
    ),
    Mistake(
        name="one half of the ring",
        faults={"ring_steps": "one half"},
        message="p - 1 steps sum the chunks and leave each on one rank: as many again bring them to all.",
    ),
    Mistake(
        name="whole tensors around the ring",
        faults={"chunk": False},
        message="A step of the ring sends one chunk, n / p bytes, and not the whole tensor.",
    ),
    Mistake(
        name="latency paid once",
        faults={"latency": "once"},
        message="Every step is a message of its own and pays alpha: only the bytes are shared out.",
    ),
    Mistake(
        name="depth not rounded up",
        faults={"depth": "not rounded"},
        message="A tree over p ranks has a whole number of levels: ⌈log2 p⌉.",
    ),
    Mistake(
        name="a chain for a tree",
        faults={"depth": "p - 1"},
        message="In a tree half of the ranks send at once, so p - 1 messages take only ⌈log2 p⌉ steps.",
    ),
    Mistake(
        name="the tree one way",
        faults={"tree_ways": 1},
        message="The tree brings the sum to one rank; as many steps again bring it back to all.",
    ),
    Mistake(
        name="all pairs one after the other",
        faults={"naive": "all pairs"},
        message="The ranks send at the same time: p (p - 1) messages are p - 1 rounds.",
    ),
    Mistake(
        name="beta taken for a bandwidth",
        faults={"beta_is": "bytes a second"},
        message="beta is seconds a byte: multiply by it.",
    ),
)

HINTS = (
    "Each way is a number of steps, one after the other, times what a step takes: alpha + beta * bytes.",
    "Steps: 2 (p - 1) for the ring, 2 ⌈log2 p⌉ for the tree, p - 1 for the naive way. Only the ring's step "
    "is smaller than the tensor.",
    "ring = 2 * (ranks - 1) * (alpha + beta * n_bytes / ranks); the tree has 2 * math.ceil(math.log2(ranks)) "
    "steps with n_bytes each.",
)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    cases = []
    # p no power of two in two of three; there are sizes at which latency, and at which bytes, decide.
    for ranks, n_each in ((int(rng.integers(5, 8)), 10), (int(rng.integers(9, 16)), 10_000), (8, 1_000_000)):
        n_bytes = ranks * n_each * int(rng.integers(3, 30))
        alpha, beta = float(rng.uniform(1e-5, 9e-5)), float(rng.uniform(1e-10, 9e-10))
        about = (
            f"{n_bytes:,} bytes, {ranks} ranks, alpha {alpha * 1e6:.0f} µs, beta {beta * 1e9:.2f} ns a byte"
        )
        cases.append(case_of(about, n_bytes, ranks, alpha, beta))
    return tuple(cases)


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return numbers_of(call(answer, *args), NAMES)


EXERCISE: Exercise = Exercise(
    name="all_reduce_seconds",
    reference=all_reduce_seconds,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    rtol=1e-6,
    atol=0.0,
)
