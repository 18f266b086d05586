"""Seconds of a layer's products and of its sums over t ranks, and the factors that are easily lost.

Source: Narayanan et al. 2021, arXiv:2104.04473, section 3.2; Thakur et al. 2005,
doi:10.1177/1094342005051521, section 3 (the ring). Taught in book/parallelism/tensor-parallel.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scalelab.lab.checks.answers import call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation
from scalelab.lab.checks.parts import case_of, numbers_of

N_BYTES = 2  # of a 16-bit activation


def layer_seconds(
    n_tokens: int, d_model: int, t: int, flops_per_s: float, latency_s: float, bytes_per_s: float
) -> tuple[float, float]:
    """Seconds that a layer with 12 D² weights computes, and that it communicates, forward and backward."""
    products = 6 * 12 * d_model**2 * n_tokens / t  # 2 FLOPs a weight and token forward, 4 backward
    one_sum = 2 * (t - 1) * latency_s + 2 * (t - 1) / t * N_BYTES * n_tokens * d_model / bytes_per_s
    return products / flops_per_s, 4 * one_sum


def _build(
    *, passes: str = "both", n_sums: int = 4, ring: str = "right", latency: str = "right", n_bytes: int = 2,
    shared: str = "products",
) -> Answer:  # fmt: skip
    """The bill with the given faults; without any, the right one."""

    def answer(
        n_tokens: int, d_model: int, t: int, flops_per_s: float, latency_s: float, bytes_per_s: float
    ) -> Any:
        factor = {"both": 6, "forward": 2, "backward as forward": 4, "no additions": 3}[passes]
        products = factor * 12 * d_model**2 * n_tokens / (1 if shared == "nothing" else t)
        sent = {"right": 2 * (t - 1) / t, "once": (t - 1) / t, "whole": 1.0, "to all": t - 1.0}[ring]
        sent *= n_bytes * n_tokens * d_model * {"both": 1 / t, "t times": t}.get(shared, 1)
        waits = {"right": 2 * (t - 1), "half": t - 1, "one": 1, "none": 0}[latency]
        return products / flops_per_s, n_sums * (waits * latency_s + sent / bytes_per_s)

    return answer


MISTAKES = (
    Mistake(
        name="the forward pass alone",
        faults={"passes": "forward"},
        message="The products are those of the forward pass, 2 FLOPs a weight and token. Backward takes "
        "twice as many again, for the gradients of inputs and of weights: 6 in all.",
    ),
    Mistake(
        name="a backward pass as dear as the forward pass",
        faults={"passes": "backward as forward"},
        message="The products are counted twice. Backward multiplies for the gradients of the inputs and for "
        "those of the weights: three times the forward pass in all, 6 FLOPs a weight and token.",
    ),
    Mistake(
        name="a product without its addition",
        faults={"passes": "no additions"},
        message="Three FLOPs a weight and token are counted. A weight's number is multiplied and added, "
        "which is two: 2 forward and 4 backward.",
    ),
    Mistake(
        name="half of the sums",
        faults={"n_sums": 2},
        message="The sums take half as long as they should. Either two of four are counted: g sums at the "
        "end of attention and of the feed-forward on the way forward, f at their beginnings on the way back. "
        "Or each is only half of its way round the ring: an all-gather follows the reduce-scatter.",
    ),
    Mistake(
        name="one sum a layer and pass",
        faults={"n_sums": 1},
        message="One sum is counted. Attention and feed-forward each have one forward and one backward: "
        "four.",
    ),
    Mistake(
        name="half of the ring",
        faults={"ring": "once"},
        message="The latencies are right, and half of the bytes are sent. (t-1)/t of the tensor is a "
        "reduce-scatter; the all-gather that makes the sum known to all sends as much again. And a number of "
        "16 bits has two bytes.",
    ),
    Mistake(
        name="the tensor sent once",
        faults={"ring": "whole"},
        message="Each sum sends the tensor once. A ring sends 2 (t-1)/t of it from every rank: as much for "
        "t = 2, nearly twice for many.",
    ),
    Mistake(
        name="everything to everyone",
        faults={"ring": "to all"},
        message="Each sum sends the tensor to each of the other ranks. A ring sends 2 (t-1)/t of it.",
    ),
    Mistake(
        name="one latency a sum",
        faults={"latency": "one"},
        message="One latency is counted for each sum. A ring takes 2 (t-1) steps, one after the other.",
    ),
    Mistake(
        name="half of the latencies",
        faults={"latency": "half"},
        message="t-1 latencies are counted for each sum: t-1 steps of a reduce-scatter, and as many of the "
        "all-gather after it.",
    ),
    Mistake(
        name="no latency",
        faults={"latency": "none"},
        message="Latency is left out: 2 (t-1) steps of latency_s for each sum.",
    ),
    Mistake(
        name="four bytes a number",
        faults={"n_bytes": 4},
        message="Activations are counted with 4 bytes. They are sent in 16 bits: 2 bytes a number.",
    ),
    Mistake(
        name="the products not shared",
        faults={"shared": "nothing"},
        message="The time of the products does not fall with t. Each rank has 1/t of the weights.",
    ),
    Mistake(
        name="the whole tensor in every step",
        faults={"shared": "t times"},
        message="Each sum sends 2 (t-1) times the tensor. A ring's step sends a piece of it, 1/t: 2 (t-1)/t "
        "in all.",
    ),
    Mistake(
        name="the sums shared too",
        faults={"shared": "both"},
        message="What is summed is divided by t. Only the weights are cut: each rank has a part of every "
        "one of the n_tokens times D numbers, and all of them are summed.",
    ),
)

HINTS = (
    "Products: 12 D² weights, 6 FLOPs for each weight and token, shared by t ranks. Sums: how many a layer, "
    "forward and backward, and what does one of them take around a ring?",
    "Four all-reduces of n_tokens · D numbers of 2 bytes. A ring takes 2 (t-1) steps and sends 2 (t-1)/t of "
    "the tensor from each rank.",
    "one_sum = 2 * (t - 1) * latency_s + 2 * (t - 1) / t * 2 * n_tokens * d_model / bytes_per_s; return 6 * "
    "12 * d_model**2 * n_tokens / t / flops_per_s, 4 * one_sum.",
)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    def case(t: int) -> Case:
        n_tokens, d_model = int(rng.integers(1, 9)) * 1024, int(rng.integers(4, 17)) * 512
        flops, latency = float(rng.uniform(2e14, 6e14)), float(rng.uniform(2e-6, 2e-5))
        speed = float(rng.uniform(2e10, 4e11))
        about = f"{n_tokens:,} tokens, D = {d_model:,}, t = {t}"
        return case_of(about, n_tokens, d_model, t, flops, latency, speed)

    return case(2), case(int(rng.integers(3, 8))), case(8), case(1)


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return numbers_of(call(answer, *args), ("seconds of products", "seconds of sums"))


EXERCISE = Exercise(
    name="layer_seconds",
    reference=layer_seconds,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    atol=0.0,
)
