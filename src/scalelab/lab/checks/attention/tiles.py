"""Attention in tiles of keys with a running maximum, and the ways to forget what must be rescaled.

Source: Milakov & Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135, algorithm 1.
Taught in book/transformers/attention.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from scalelab.lab.checks.answers import Rejected, as_numbers, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def tiled_attention(
    q: Float[Tensor, "T K"], k: Float[Tensor, "T K"], v: Float[Tensor, "T K"], tile: int, is_causal: bool
) -> Float[Tensor, "T K"]:
    """softmax(q kᵀ / √K) v of one head, `tile` keys at a time; never T × T scores."""
    n_places, width = q.shape
    places = torch.arange(n_places, device=q.device)
    largest = q.new_full((n_places, 1), -math.inf)  # m: the largest score so far
    total = q.new_zeros(n_places, 1)  # l: Σ exp(score - m)
    mixed = q.new_zeros(n_places, width)  # a: Σ exp(score - m) · value
    for start in range(0, len(k), tile):
        keys = places[start : start + tile]
        scores = q @ k[keys].T / math.sqrt(width)  # [T, tile]
        if is_causal:
            scores = scores.masked_fill(keys > places[:, None], -math.inf)
        grown = torch.maximum(largest, scores.amax(dim=1, keepdim=True))
        weights = torch.exp(scores - grown)
        shrink = torch.exp(largest - grown)  # old sums were measured from the old maximum
        total = total * shrink + weights.sum(dim=1, keepdim=True)
        mixed = mixed * shrink + weights @ v[keys]
        largest = grown
    return mixed / total


def _build(
    *,
    sums: str = "right",
    divided: bool = True,
    mask: str = "right",
    last_tile: bool = True,
    scaled: bool = True,
) -> Answer:
    """Tiled attention with the given faults; without any, the right one."""

    def answer(q: Tensor, k: Tensor, v: Tensor, tile: int, is_causal: bool) -> Tensor:
        n_places, width = q.shape
        largest, total = torch.full((n_places, 1), -math.inf), torch.zeros(n_places, 1)
        mixed = torch.zeros(n_places, width)
        end = len(k) if last_tile or len(k) < tile else len(k) // tile * tile
        for start in range(0, end, tile):
            keys = torch.arange(start, min(start + tile, len(k)))
            scores = q @ k[keys].T / (math.sqrt(width) if scaled else 1.0)
            if is_causal and mask != "none":
                counted = keys - start if mask == "in the tile" else keys
                scores = scores.masked_fill(counted > torch.arange(n_places)[:, None], -math.inf)
            if sums == "each tile":  # a row that sees nothing of the tile gives nothing
                mixed = mixed + scores.softmax(dim=1).nan_to_num(0.0) @ v[keys]
                continue
            highest = scores.amax(dim=1, keepdim=True)
            grown = {"tile": highest, "no maximum": torch.zeros_like(highest)}.get(
                sums, torch.maximum(largest, highest)
            )
            weights = torch.exp(scores - grown)
            shrink = torch.exp(largest - grown)
            total = total * (shrink if sums in ("right", "sum") else 1.0) + weights.sum(dim=1, keepdim=True)
            mixed = mixed * (shrink if sums in ("right", "values") else 1.0) + weights @ v[keys]
            largest = grown
        return mixed / total if divided and sums != "each tile" else mixed

    return answer


MISTAKES = (
    Mistake(
        name="nothing rescaled",
        faults={"sums": "neither"},
        message="When a tile raises the maximum, the sums so far are still measured from the old one. "
        "Multiply both by exp(old maximum - new maximum).",
    ),
    Mistake(
        name="values not rescaled",
        faults={"sums": "sum"},
        message="The sum of exponentials is rescaled when the maximum grows, and the sum of weighted values "
        "is not.",
    ),
    Mistake(
        name="sum not rescaled",
        faults={"sums": "values"},
        message="The weighted values are rescaled when the maximum grows, and the sum of exponentials is "
        "not.",
    ),
    Mistake(
        name="maximum of the tile alone",
        faults={"sums": "tile"},
        message="Each tile's exponentials are measured from its own maximum and then added as if they had "
        "one measure. Keep the largest score of all tiles so far, and rescale when it grows.",
    ),
    Mistake(
        name="no maximum",
        faults={"sums": "no maximum"},
        message="exp(score) is taken as it is: at scores beyond 88 it is infinite in fp32, and the result "
        "NaN.",
    ),
    Mistake(
        name="each tile normalised",
        faults={"sums": "each tile"},
        message="Each tile has a softmax of its own, so a tile without a good key counts as much as one "
        "with it. Add up exponentials, and divide once, after the last tile.",
    ),
    Mistake(
        name="not divided at the end",
        faults={"divided": False},
        message="The weighted values are never divided by the sum of the exponentials.",
    ),
    Mistake(
        name="mask counted inside the tile",
        faults={"mask": "in the tile"},
        message="Keys are numbered from 0 in each tile when they are compared with the queries' places. Key "
        "j of the tile that begins at `start` stands at start + j.",
    ),
    Mistake(
        name="no mask",
        faults={"mask": "none"},
        message="With is_causal, query t must not see the keys after t.",
    ),
    Mistake(
        name="last tile left out",
        faults={"last_tile": False},
        message="The keys after the last whole tile are never looked at.",
    ),
    Mistake(
        name="no division by √K",
        faults={"scaled": False},
        message="The scores are not divided by √K.",
    ),
)

HINTS = (
    "Keep three things for each query: the largest score so far, the sum of exp(score - largest), and that "
    "sum with each term times its value.",
    "At each tile: grown = torch.maximum(largest, scores.amax(1, keepdim=True)); multiply both old sums by "
    "exp(largest - grown), then add the tile's own.",
    "Start with largest = -inf and sums of 0. For the mask compare torch.arange(start, stop) with "
    "torch.arange(T)[:, None]. Return mixed / total after the loop.",
)


class _Watch(TorchFunctionMode):
    """Notes the largest tensor that any torch function gives, and a call of torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.largest: tuple[int, ...] = ()
        self.used_torchs_own = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.used_torchs_own = True
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else (result,):
            if isinstance(part, torch.Tensor) and part.numel() > math.prod(self.largest):
                self.largest = tuple(part.shape)
        return result


def _case(
    about: str, rng: np.random.Generator, n_places: int, tile: int, is_causal: bool, spread: float
) -> Case:
    q, k, v = (rng.standard_normal((n_places, 4)) for _ in range(3))
    q, k = spread * q, spread * k

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        tensors = [torch.tensor(array, dtype=torch.float32) for array in (q, k, v)]
        return (*tensors, tile, is_causal), {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    tile = int(rng.integers(3, 6))
    n_places = tile * int(rng.integers(6, 9))
    return (
        _case(f"{n_places} places in tiles of {tile}", rng, n_places, tile, False, 1.3),
        _case(f"{n_places + 2} places in tiles of {tile}", rng, n_places + 2, tile, False, 1.3),
        _case(f"{n_places} places in tiles of {tile}, causal", rng, n_places, tile, True, 1.3),
        _case(f"{n_places} places, scores of hundreds", rng, n_places, tile, False, 16.0),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    n_places, tile = len(args[0]), args[3]
    with _Watch() as watch:
        result = call(answer, *args)
    if watch.used_torchs_own or math.prod(watch.largest) >= n_places**2:
        held = "torch's own attention" if watch.used_torchs_own else f"a tensor of {list(watch.largest)}"
        raise Rejected(
            f"used {held} for {n_places} places: the point is never to hold T × T numbers, scores or mask, "
            f"but T × {tile} at a time",
            name="holds all T × T",
        )
    return {"the result": as_numbers(result, "the result")}


EXERCISE = Exercise(
    name="tiled_attention",
    reference=tiled_attention,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    atol=1e-5,
)
