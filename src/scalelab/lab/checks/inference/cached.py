"""Attention of new tokens over what has been kept, with rotary positions, and the ways to lose the place.

An answer is tried as it is used: it reads a prompt, then further tokens with what it kept itself.
Source: Pope et al. 2022, arXiv:2211.05102, section 2. Taught in book/transformers/inference.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalelab.lab.checks.answers import Numbers, Rejected, as_numbers, as_tuple, call, describe
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


def rotate(x: Float[Tensor, "B T K"], positions: Int[Tensor, " T"]) -> Float[Tensor, "B T K"]:
    """RoPE, as in the lab transformers/attention: pair i with i + K/2, frequency 10000^(-2i/K)."""
    width = x.shape[-1]
    frequencies = 10_000.0 ** (-torch.arange(0, width, 2, device=x.device) / width)
    angles = positions[:, None] * frequencies  # [T, K/2]
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def cached_attention(
    q: Float[Tensor, "B T K"],
    k: Float[Tensor, "B T K"],
    v: Float[Tensor, "B T K"],
    kept: tuple[Float[Tensor, "B S K"], Float[Tensor, "B S K"]],
    is_token: Bool[Tensor, "B S+T"],
) -> tuple[Float[Tensor, "B T K"], tuple[Float[Tensor, "B S+T K"], Float[Tensor, "B S+T K"]]]:
    """What T new tokens see of all S + T, and what is to be kept: keys turned to their places, values."""
    n_kept, n_new = kept[0].shape[1], q.shape[1]
    places = torch.arange(n_kept, n_kept + n_new, device=q.device)
    keys = torch.cat((kept[0], rotate(k, places)), dim=1)  # [B, S + T, K]
    values = torch.cat((kept[1], v), dim=1)
    scores = rotate(q, places) @ keys.transpose(1, 2) / math.sqrt(q.shape[-1])  # [B, T, S + T]
    seen = torch.arange(n_kept + n_new, device=q.device) <= places[:, None]  # [T, S + T]
    scores = scores.masked_fill(~(seen & is_token[:, None, :]), -math.inf)
    return scores.softmax(dim=-1) @ values, (keys, values)


def _build(
    *, places_from: str = "kept", turn: str = "right", keep: str = "all", mask: str = "right",
    filling_hidden: bool = True,
) -> Answer:  # fmt: skip
    """Cached attention with the given faults; without any, the right one."""

    def answer(q: Tensor, k: Tensor, v: Tensor, kept: tuple[Tensor, Tensor], is_token: Tensor) -> Any:
        n_kept, n_new = kept[0].shape[1], q.shape[1]
        n_all = n_kept + n_new
        first = {"zero": 0, "one late": n_kept + (1 if n_kept else 0)}.get(places_from, n_kept)
        places = torch.arange(first, first + n_new)
        turned_k = k if turn == "no keys" else rotate(k, places)
        turned_q = q if turn == "no queries" else rotate(q, places)
        front = rotate(kept[0], torch.arange(n_kept)) if turn == "twice" else kept[0]
        keys, values = torch.cat((front, turned_k), dim=1), torch.cat((kept[1], v), dim=1)
        scores = turned_q @ keys.transpose(1, 2) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~_seen(n_kept, n_new, mask), -math.inf)
        if filling_hidden:
            scores = scores.masked_fill(~is_token[:, None, :n_all], -math.inf)
        mixed = scores.softmax(dim=-1) @ values
        if keep == "new alone":
            keys, values = turned_k, v
        elif keep == "new in front":
            keys, values = torch.cat((turned_k, kept[0]), dim=1), torch.cat((v, kept[1]), dim=1)
        elif keep == "first only" and n_kept:
            keys, values = kept
        elif turn == "kept unturned":
            keys = torch.cat((kept[0], k), dim=1)
        return mixed, (keys, values)

    return answer


def _seen(n_kept: int, n_new: int, mask: str) -> Tensor:
    everything = torch.ones(n_new, n_kept + n_new, dtype=torch.bool)
    if mask == "none":
        return everything
    if mask == "top left":
        return everything.tril()
    if mask == "own place hidden" and n_kept:
        return everything.tril(n_kept - 1)
    return everything.tril(n_kept)


MISTAKES = (
    Mistake(
        name="positions restart at 0",
        faults={"places_from": "zero"},
        message="New tokens are turned as if they stood at places 0, 1 …: they stand after the kept ones, "
        "at S, S + 1 …. On the prompt, where nothing is kept yet, this does not show.",
    ),
    Mistake(
        name="positions one too far",
        faults={"places_from": "one late"},
        message="After the prompt, new tokens are turned to one place too far. With S tokens kept, counted "
        "from 0, the next stands at place S.",
    ),
    Mistake(
        name="keys turned twice",
        faults={"turn": "twice"},
        message="The kept keys had been turned to their places when they were new, and here they are turned "
        "again. Turn the new ones only. (Or keep them unturned and turn all of them each time, which costs "
        "more.)",
    ),
    Mistake(
        name="queries not turned",
        faults={"turn": "no queries"},
        message="Keys are turned and queries are not, so a score depends on the key's place alone, not on "
        "the distance.",
    ),
    Mistake(
        name="keys not turned",
        faults={"turn": "no keys"},
        message="Queries are turned and keys are not, so a score depends on the query's place alone, not on "
        "the distance.",
    ),
    Mistake(
        name="keys kept unturned",
        faults={"turn": "kept unturned"},
        message="The result is right, but the keys are kept as they were before they were turned, and the "
        "next call takes kept keys for turned ones.",
    ),
    Mistake(
        name="the past is thrown away",
        faults={"keep": "new alone"},
        message="Only the new keys and values are handed on, so the next token sees nothing of what came "
        "before them. Hand on the old and the new together.",
    ),
    Mistake(
        name="only the prompt is kept",
        faults={"keep": "first only"},
        message="What is handed on after the prompt never grows: later tokens do not see each other.",
    ),
    Mistake(
        name="new tokens in front of the old",
        faults={"keep": "new in front"},
        message="The new keys and values are put in front of the kept ones, so places no longer follow the "
        "text: the mask and the filling then fall on others.",
    ),
    Mistake(
        name="no mask among the new tokens",
        faults={"mask": "none"},
        message="Where several tokens are new at once, as in a prompt, each sees those after it.",
    ),
    Mistake(
        name="mask aligned at the wrong corner",
        faults={"mask": "top left"},
        message="New token t may see the S kept tokens and the new ones up to t, S + t + 1 in all. Here it "
        "sees t + 1: torch.ones(T, S + T).tril() counts from the first column. It should be tril(S).",
    ),
    Mistake(
        name="a new token does not see itself",
        faults={"mask": "own place hidden"},
        message="After the prompt, a new token sees what was kept and not itself.",
    ),
    Mistake(
        name="filling is seen",
        faults={"filling_hidden": False},
        message="Where is_token is False there is filling in front of a short prompt. Its keys must be "
        "hidden, now and at every later step.",
    ),
)

HINTS = (
    "Five steps: turn the new queries and keys to places S … S + T - 1; put new keys and values behind the "
    "kept ones; scores; mask; softmax and mean.",
    "places = torch.arange(S, S + T); keys = torch.cat((kept[0], rotate(k, places)), dim=1). A key at place "
    "s is seen by the query at place t where s <= t and is_token[:, s].",
    "seen = (torch.arange(S + T) <= places[:, None]) & is_token[:, None, :]; scores.masked_fill(~seen, "
    "-math.inf). Return mixed, (keys, values).",
)


def _case(
    about: str, rng: np.random.Generator, n_rows: int, lengths: tuple[int, ...], n_filling: int = 0
) -> Case:
    """Tokens that come in calls of these lengths; the first row begins with `n_filling` of filling."""
    total, width = sum(lengths), 8
    arrays = [1.3 * rng.standard_normal((n_rows, total, width)) for _ in range(3)]

    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        qkv = [torch.tensor(array, dtype=torch.float32) for array in arrays]
        is_token = torch.ones(n_rows, total, dtype=torch.bool)
        is_token[0, :n_filling] = False
        return (qkv, is_token, lengths), {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    n = int(rng.integers(5, 8))
    return (
        _case(f"a prompt of {n} tokens, nothing kept", rng, 1, (n,)),
        _case(f"a prompt of {n} tokens and then one token at a time", rng, 2, (n, 1, 1)),
        _case(f"a prompt of {n} tokens and then three at once", rng, 2, (n, 3)),
        _case("a row that begins with 2 places of filling, then single tokens", rng, 2, (n, 1, 1), 2),
    )


def _observe(answer: Answer, case: Case) -> Observation:
    (qkv, is_token, lengths), _ = case.make()
    rows, _, width = qkv[0].shape
    kept: Any = (torch.zeros(rows, 0, width), torch.zeros(rows, 0, width))
    seen: dict[str, Numbers] = {}
    begin = 0
    for number, length in enumerate(lengths):
        end = begin + length
        new = [part[:, begin:end].clone() for part in qkv]
        what = "the result for the prompt" if number == 0 else f"the result of call {number + 1}"
        returned = call(answer, *new, kept, _as_long_as(is_token[:, :end], kept[0].shape[1] + length))
        mixed, kept = as_tuple(returned, ("the result", "(keys, values)"))
        kept = as_tuple(kept, ("keys", "values"))
        for name, part in zip(("keys", "values"), kept, strict=True):
            if not isinstance(part, torch.Tensor) or part.ndim != 3:
                raise Rejected(
                    f"returned {describe(part)} for the {name} to keep, where a tensor [B, S + T, K] should "
                    f"be",
                    name="returned the wrong kind of thing",
                )
        numbers = as_numbers(mixed, what)
        if numbers.values.shape == (rows, length, width):  # what filling sees means nothing
            numbers = Numbers(np.where(is_token[:, begin:end, None].numpy(), numbers.values, 0.0))
        seen[what] = numbers
        begin = end
    return seen


def _as_long_as(is_token: Tensor, n_places: int) -> Tensor:
    """The mask of the last places: an answer that kept too little or too much goes on with what it has."""
    missing = n_places - is_token.shape[1]
    if missing > 0:
        return torch.cat((is_token.new_ones(is_token.shape[0], missing), is_token), dim=1)
    return is_token[:, -n_places:].clone()


EXERCISE = Exercise(
    name="cached_attention",
    reference=cached_attention,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
    atol=1e-5,
)
