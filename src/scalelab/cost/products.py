"""Matrix products of a model, part by part, in multiply–adds: what FLOPs are counted from.

A product of [n, a] by [a, b] is n·a·b multiply–adds. Everything here is for one row of a batch; n_new tokens
are read at once and each meets n_keys keys, so the same sums serve training and generation with a cache.
Taught in book/transformers/training.md and book/transformers/inference.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from scalelab.core.config import EncoderConfig, EncoderDecoderConfig
from scalelab.cost.parameters import HEAD, SENTENCE_HEAD, TextConfig, n_inward


def stack_products(c: TextConfig, n_new: int, n_keys: int) -> dict[str, int]:
    """Of one stack of blocks, without cross-attention. Masked scores count in full."""
    queries, keys = c.n_heads * c.head_width, c.kv_heads * c.head_width
    layers = c.n_layers * n_new
    return {
        "queries, keys, values": layers * c.d_model * (queries + 2 * keys),
        "attention scores": layers * queries * n_keys,
        "attention-weighted values": layers * queries * n_keys,
        "attention output": layers * queries * c.d_model,
        "feed-forward": layers * (n_inward(c) + 1) * c.d_model * c.ff_width,
    }


def cross_products(c: EncoderDecoderConfig, n_new: int, n_source: int, *, makes_keys: bool) -> dict[str, int]:
    """Of the cross-attention of a writing stack.

    Args:
        n_source: tokens of the source. makes_keys: whether its keys and values are made, or were kept.
    """
    inner, layers = c.n_heads * c.head_width, c.n_layers
    return {
        "queries": layers * n_new * c.d_model * inner,
        "keys, values": layers * n_source * c.d_model * 2 * inner if makes_keys else 0,
        "attention scores": layers * n_new * inner * n_source,
        "attention-weighted values": layers * n_new * inner * n_source,
        "attention output": layers * n_new * inner * c.d_model,
    }


def head_products(c: TextConfig, n_places: int) -> dict[str, int]:
    """Of what follows the stack: the head at so many places of a row, and what an encoder does once a row."""
    table = c.d_model * c.vocab_size
    if not isinstance(c, EncoderConfig):
        return {HEAD: n_places * table}
    heads = {
        HEAD: n_places * (c.d_model * c.d_model + table) if c.mlm_head else 0,
        "pooler": c.d_model * c.d_model if c.pooler else 0,
        SENTENCE_HEAD: 2 * c.d_model if c.nsp_head else 0,
    }
    return {name: count for name, count in heads.items() if count}


def of_side(side: str, products: Mapping[str, int]) -> dict[str, int]:
    """The products under the name of the side of an encoder–decoder that does them."""
    return {f"{side}: {name}": count for name, count in products.items()}
