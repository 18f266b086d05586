"""Several look-ups side by side, with shared keys and values, and the ways to cut heads apart wrongly.

Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2; Ainslie et al. 2023, arXiv:2305.13245.
Taught in book/transformers/attention.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalelab.lab.checks.answers import as_numbers, call
from scalelab.lab.checks.attention.lookup import attention
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def multi_head(
    x: Float[Tensor, "B T D"],
    w_q: Float[Tensor, "D H*K"],
    w_k: Float[Tensor, "D KV*K"],
    w_v: Float[Tensor, "D KV*K"],
    w_o: Float[Tensor, "H*K D"],
    n_heads: int,
    n_kv_heads: int,
) -> Float[Tensor, "B T D"]:
    """Causal attention of n_heads heads, of which n_heads / n_kv_heads in a row share keys and values.

    Args:
        w_q: columns h·K … (h+1)·K are head h's; w_k, w_v likewise for the n_kv_heads; w_o has its rows so.
    """
    batch, time, _ = x.shape
    q = (x @ w_q).view(batch, time, n_heads, -1).transpose(1, 2)  # [B, H, T, K]
    k, v = ((x @ w).view(batch, time, n_kv_heads, -1).transpose(1, 2) for w in (w_k, w_v))  # [B, KV, T, K]
    k, v = (part.repeat_interleave(n_heads // n_kv_heads, dim=1) for part in (k, v))  # [B, H, T, K]
    mixed = attention(q, k, v, is_causal=True)
    return mixed.transpose(1, 2).reshape(batch, time, -1) @ w_o


def _build(
    *,
    cut: str = "right",
    merge: str = "right",
    share: str = "in a row",
    scale: str = "√K",
    masked: bool = True,
    output: bool = True,
) -> Answer:
    """Multi-head attention with the given faults; without any, the right one."""

    def split(projected: Tensor, n: int) -> Tensor:
        batch, time, _ = projected.shape
        if cut == "view":
            return projected.reshape(batch, n, time, -1)
        if cut == "interleaved":
            return projected.view(batch, time, -1, n).permute(0, 3, 1, 2)
        return projected.view(batch, time, n, -1).transpose(1, 2)

    def shared(part: Tensor, n_heads: int) -> Tensor:
        times = n_heads // part.shape[1]
        if share == "in turn":
            return part.repeat(1, times, 1, 1)
        if share == "first only":
            return part[:, :1].expand(-1, n_heads, -1, -1)
        return part.repeat_interleave(times, dim=1)

    def answer(
        x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor, n_heads: int, n_kv_heads: int
    ) -> Tensor:
        batch, time, d_model = x.shape
        q = split(x @ w_q, n_heads)
        k, v = (shared(split(x @ w, n_kv_heads), n_heads) for w in (w_k, w_v))
        width = q.shape[-1]
        # `attention` divides by √K: whatever else the scores are to be divided by is put on the queries.
        factor = {"√D": math.sqrt(width / d_model), "none": math.sqrt(width)}.get(scale, 1.0)
        mixed = attention(q * factor, k, v, is_causal=masked)
        if merge != "no transpose":
            mixed = mixed.transpose(1, 2)
        merged = mixed.reshape(batch, time, n_heads * width)
        return merged @ w_o if output else merged

    return answer


MISTAKES = (
    Mistake(
        name="heads cut by view alone",
        faults={"cut": "view"},
        message="view(B, H, T, K) on a tensor of shape [B, T, H·K] reads the numbers in order and deals out "
        "whole stretches of time to each head. Cut the last axis, view(B, T, H, K), and then transpose(1, "
        "2).",
    ),
    Mistake(
        name="heads interleaved",
        faults={"cut": "interleaved"},
        message="view(B, T, K, H) gives head h every H-th number. The columns of a head stand together: "
        "view(B, T, H, K).",
    ),
    Mistake(
        name="merged without transposing back",
        faults={"merge": "no transpose"},
        message="The result has the heads before time when it is reshaped to [B, T, H·K], so places are "
        "mixed up. transpose(1, 2) first.",
    ),
    Mistake(
        name="key heads dealt out in turn",
        faults={"share": "in turn"},
        message="Query heads 0, 1, 2, 3 meet key heads 0, 1, 0, 1. Neighbours share: 0, 0, 1, 1, which is "
        "repeat_interleave and not repeat.",
    ),
    Mistake(
        name="one key head for all",
        faults={"share": "first only"},
        message="All query heads meet the first key and value head; the others are never used.",
    ),
    Mistake(
        name="√D instead of √K",
        faults={"scale": "√D"},
        message="Scores are sums over the K numbers of one head, so their spread is √K. Dividing by √D, the "
        "width of the stream, makes them too small.",
    ),
    Mistake(
        name="no division by √K",
        faults={"scale": "none"},
        message="The scores are not divided by √K.",
    ),
    Mistake(
        name="no mask",
        faults={"masked": False},
        message="Places see what comes after them; here each may see itself and what is before.",
    ),
    Mistake(
        name="no output map",
        faults={"output": False},
        message="The heads' results are set side by side and not multiplied by w_o.",
    ),
)

HINTS = (
    "Project, cut the last axis into heads, bring the head axis before time, look up, undo both, multiply "
    "by w_o.",
    "(x @ w_q).view(B, T, n_heads, K).transpose(1, 2) is [B, H, T, K]. Give k and v as many heads by "
    "repeat_interleave(n_heads // n_kv_heads, dim=1).",
    "mixed = attention(q, k, v, is_causal=True), then mixed.transpose(1, 2).reshape(B, T, n_heads * K) @ "
    "w_o.",
)


def _case(
    rng: np.random.Generator, sizes: tuple[int, int, int], n_heads: int, n_kv_heads: int, width: int
) -> Case:
    *_, d_model = sizes
    x = rng.standard_normal(sizes)
    shapes = [(d_model, n * width) for n in (n_heads, n_kv_heads, n_kv_heads)] + [(n_heads * width, d_model)]
    # Queries and keys of spread 1.5, so that scores differ enough to be told apart.
    weights = [rng.standard_normal(shape) * 1.5 / math.sqrt(shape[0]) for shape in shapes]

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        tensors = [torch.tensor(array, dtype=torch.float32) for array in (x, *weights)]
        return (*tensors, n_heads, n_kv_heads), {}

    about = f"{sizes[1]} places of width {d_model}, {n_heads} heads of {width}, {n_kv_heads} key heads"
    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    time, width = int(rng.integers(4, 8)), int(rng.integers(3, 6))
    return (
        _case(rng, (1, 2, 2 * width), 2, 2, width),
        _case(rng, (2, time, 3 * width), 3, 3, width),
        # Heads that together are not as wide as the stream: Llama-like models allow it.
        _case(rng, (2, time, 4 * width + 3), 4, 2, width),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    return {"the result": as_numbers(call(answer, *args), "the result")}


EXERCISE = Exercise(
    name="multi_head",
    reference=multi_head,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    atol=1e-6,
)
