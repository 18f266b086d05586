"""What one step of decoding computes and moves, and the factors that are usually lost.

Source: Pope et al. 2022, arXiv:2211.05102, section 2; Shazeer 2019, arXiv:1911.02150, section 2.4.
Taught in book/transformers/inference.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from scalelab.core.config import DecoderConfig
from scalelab.lab.checks.answers import as_numbers, as_tuple, call
from scalelab.lab.checks.framework import Answer, Case, Exercise, Mistake, Observation

PARTS = ("cache bytes", "FLOPs", "FLOPs per byte")


def decode_bill(
    config: DecoderConfig, n_weights: int, n_texts: int, context_len: int, bytes_per_number: float
) -> tuple[float, float, float]:
    """Bytes of the cache, FLOPs of one more token for each text, and FLOPs per byte moved."""
    c = config
    cache_bytes = 2 * c.n_layers * c.kv_heads * c.head_width * context_len * n_texts * bytes_per_number
    matrices = 2 * n_weights  # a product and a sum for each weight
    attention = 4 * c.n_layers * c.n_heads * c.head_width * context_len  # scores, and the mean of the values
    flops = n_texts * (matrices + attention)
    return cache_bytes, flops, flops / (n_weights * bytes_per_number + cache_bytes)


def _build(
    *, kinds: int = 2, cache_heads: str = "kv", layers: str = "all", size: str = "bytes", texts: str = "all",
    per_weight: int = 2, attention: str = "right", weights: str = "once", moved: str = "both",
    head: str = "head_width",
) -> Answer:  # fmt: skip
    """The bill with the given faults; without any, the right one."""

    def answer(
        config: DecoderConfig, n_weights: int, n_texts: int, context_len: int, bytes_per_number: float
    ) -> tuple[float, float, float]:
        c = config
        n_layers = c.n_layers if layers == "all" else 1
        head_width = c.head_width if head == "head_width" else c.d_model // c.n_heads
        width = (c.kv_heads if cache_heads == "kv" else c.n_heads) * head_width
        kept = kinds * n_layers * width * context_len * (n_texts if texts == "all" else 1)
        cache_bytes = kept * (bytes_per_number if size == "bytes" else 1)
        heads = {"kv heads": c.kv_heads, "none": 0}.get(attention, c.n_heads)
        sides = 2 if attention == "scores alone" else 4
        looking = sides * c.n_layers * heads * head_width * context_len
        flops = n_texts * (per_weight * n_weights + looking)
        fetched = n_weights * bytes_per_number * (n_texts if weights == "for each text" else 1)
        total = {"weights": fetched, "cache": cache_bytes}.get(moved, fetched + cache_bytes)
        return cache_bytes, flops, flops / total

    return answer


MISTAKES = (
    Mistake(
        name="keys or values, not both",
        faults={"kinds": 1},
        message="The cache holds keys *and* values: a factor of 2.",
    ),
    Mistake(
        name="query heads in the cache",
        faults={"cache_heads": "query"},
        message="The cache is counted with n_heads. What is kept belongs to the key/value heads, "
        "config.kv_heads: with grouped queries they are fewer.",
    ),
    Mistake(
        name="a head's width taken from d_model",
        faults={"head": "d_model"},
        message="A head is counted as d_model / n_heads wide. Usually it is, but a config may choose: "
        "config.head_width.",
    ),
    Mistake(
        name="one layer",
        faults={"layers": "one"},
        message="The cache of one layer is counted. Every layer keeps its own keys and values.",
    ),
    Mistake(
        name="numbers instead of bytes",
        faults={"size": "numbers"},
        message="The cache is given in numbers. Times bytes_per_number.",
    ),
    Mistake(
        name="the cache of one text",
        faults={"texts": "one"},
        message="The cache of one text is counted. Weights are shared by the texts of a batch, and the cache "
        "is not: times n_texts.",
    ),
    Mistake(
        name="one FLOP a weight",
        faults={"per_weight": 1},
        message="Each weight costs a product *and* a sum, 2 FLOPs a token.",
    ),
    Mistake(
        name="backward counted",
        faults={"per_weight": 6},
        message="6 FLOPs a weight are those of training, forward and backward. Writing is forward alone: 2.",
    ),
    Mistake(
        name="no attention",
        faults={"attention": "none"},
        message="The FLOPs of attention are missing: each head's query meets every key (2 K FLOPs each) and "
        "mixes every value (2 K more).",
    ),
    Mistake(
        name="scores alone",
        faults={"attention": "scores alone"},
        message="The scores are counted and the mean of the values is not; it costs as much again: 4 K FLOPs "
        "for each head and kept token.",
    ),
    Mistake(
        name="key heads compute",
        faults={"attention": "kv heads"},
        message="The FLOPs of attention are counted with the key/value heads. Shared keys are kept and "
        "fetched once, but every query head computes with them: n_heads.",
    ),
    Mistake(
        name="weights fetched for each text",
        faults={"weights": "for each text"},
        message="The weights are counted as moved once for each text. One pass fetches them once and uses "
        "them for all texts of the batch: that is what batching is for.",
    ),
    Mistake(
        name="the cache is not moved",
        faults={"moved": "weights"},
        message="FLOPs are divided by the bytes of the weights alone. Each step also fetches the whole "
        "cache.",
    ),
    Mistake(
        name="the weights are not moved",
        faults={"moved": "cache"},
        message="FLOPs are divided by the bytes of the cache alone. Each step also fetches every weight.",
    ),
)

HINTS = (
    "Three counts. Kept numbers: keys and values, layers, key/value heads, width, tokens, texts. FLOPs of a "
    "token: 2 for each weight, and attention. Moved: all weights once, and the whole cache.",
    "Attention of one token: in each of n_layers layers and n_heads heads, 2 · head_width FLOPs for each "
    "score and as many for each value, over context_len tokens.",
    "cache = 2 * L * KV * K * S * B * bytes; flops = B * (2 * n_weights + 4 * L * H * K * S); intensity = "
    "flops / (n_weights * bytes + cache).",
)


def _case(about: str, shape: dict[str, Any], n_weights: int, texts: int, kept: int, size: float) -> Case:
    def make() -> tuple[tuple[Any, ...], dict[str, Any]]:
        config = DecoderConfig(vocab_size=1000, seq_len=8192, positions="rope", **shape)
        return (config, n_weights, texts, kept, size), {}

    return Case(about=about, make=make)


def _draw_cases(rng: np.random.Generator) -> tuple[Case, ...]:
    cases = []
    for n_texts, kept, size, kv_heads in ((1, 700, 2, 8), (6, 1500, 2, 2), (16, 900, 0.5, 4)):
        n_layers, d_head = int(rng.integers(3, 9)), int(rng.integers(10, 20)) * 2
        shape: dict[str, Any] = {"n_layers": n_layers, "n_heads": 8, "n_kv_heads": kv_heads, "d_head": d_head,
                 "d_model": 8 * d_head + 16}  # fmt: skip
        context = kept + int(rng.integers(100))
        n_weights = int(rng.integers(100_000, 300_000))
        about = (
            f"{n_texts} texts of {context:,} tokens, 8 heads and {kv_heads} key heads, {size} bytes a number"
        )
        cases.append(_case(about.replace("1 texts", "1 text"), shape, n_weights, n_texts, context, size))
    return tuple(cases)


def _observe(answer: Answer, case: Case) -> Observation:
    args, _ = case.make()
    parts = as_tuple(call(answer, *args), PARTS)
    return {name: as_numbers(part, name) for name, part in zip(PARTS, parts, strict=True)}


EXERCISE = Exercise(
    name="decode_bill",
    reference=decode_bill,
    build=_build,
    mistakes=MISTAKES,
    hints=HINTS,
    draw_cases=_draw_cases,
    observe=_observe,
)
