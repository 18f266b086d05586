"""Bytes that a forward pass keeps for the backward pass, part by part, to the byte.

A matrix product keeps its input; a norm its input and statistics; fused attention its queries, keys and
values and one number for each row of scores; plain attention the T x S weights instead. A mask of numbers
(ALiBi's) is kept as well, H T S of them. One that is learned (T5's relative positions) is taken by no fused
kernel on a CPU: torch writes those products out, in fp32 whatever the precision.

To the byte from two rows a batch and two heads on; with fewer, plain attention can do without some copies.
Rows are taken to be full: padding adds a mask of booleans. Texts have no segments, but where an encoder has a
head for following sentences.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from scalelab.core.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from scalelab.cost.parameters import HEAD, SENTENCE_HEAD, TextConfig, n_norms
from scalelab.cost.products import of_side

FULL = 4  # bytes of fp32: the residual stream, statistics, the loss
INDEX = 8  # bytes of int64: tokens, targets, buckets of distances


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """How numbers are kept.

    Attributes:
        size: bytes of one that enters a matrix product: 4, or 2 under autocast.
        is_fused: whether attention uses torch's fused kernel.
    """

    size: int
    is_fused: bool


def activations(c: TextConfig, batch_size: int, seq_len: int, n_written: int, kept: Kept) -> dict[str, int]:
    """Bytes kept for backward, by part.

    Args:
        seq_len: tokens of a row that are read. n_written: T, those that an encoder–decoder writes.
    """
    if isinstance(c, EncoderDecoderConfig):
        return _encoder_decoder(c, batch_size, seq_len, n_written, kept)
    n = batch_size * seq_len
    stack = _stack(c, batch_size, seq_len, n_norms(c), kept)
    if isinstance(c, EncoderConfig):
        return {**stack, **_encoder_ends(c, batch_size, n, kept)}
    return {"tokens and targets": 2 * n * INDEX, **stack, **_predictions(c, n, kept)}


def _encoder_decoder(
    c: EncoderDecoderConfig, batch_size: int, seq_len: int, n_written: int, kept: Kept
) -> dict[str, int]:
    read, written = batch_size * seq_len, batch_size * n_written
    at_end = 1 if c.norm_position == "pre" else 0
    # What the source became is kept once, but autocast copies it for every layer that asks it.
    source = read * c.d_model * kept.size * (1 if kept.size == FULL else c.n_layers)
    across = c.n_layers * _attention(c, batch_size, n_written, seq_len, kept)
    return {
        "tokens and targets": (read + 2 * written) * INDEX,
        **of_side("encoder", _stack(c, batch_size, seq_len, 2 * c.n_layers + at_end, kept)),
        **of_side("decoder", _stack(c, batch_size, n_written, 3 * c.n_layers + at_end, kept)),
        **of_side("across", {"source": source, "attention": across}),
        **_predictions(c, written, kept),
    }


def _stack(c: TextConfig, batch_size: int, time: int, n_norms: int, kept: Kept) -> dict[str, int]:
    """Of one stack of blocks; its cross-attention apart, whose norms are in `n_norms`."""
    n = batch_size * time
    # Each norm has a stream of its own, but parallel branches read one stream, which is kept once.
    streams = n_norms - (c.n_layers if c.parallel_residual else 0)
    own = c.n_layers * _own_attention(c, batch_size, time, kept)
    parts = {
        "residual stream": streams * n * c.d_model * FULL,
        "norms": n_norms * _norm(c, n),
        "attention": own + _turned(c, batch_size, time, kept),
        "feed-forward": c.n_layers * _feed_forward(c, n, kept.size),
    }
    masks = _masks(c, time, kept)
    return {**parts, "masks": masks} if masks else parts


def _norm(c: TextConfig, n: int) -> int:
    """Beside its input, LayerNorm keeps mean and deviation; RMSNorm its scale, and the scaled stream."""
    return 2 * n * FULL if c.norm == "layernorm" else n * FULL + n * c.d_model * FULL


def _own_attention(c: TextConfig, batch_size: int, time: int, kept: Kept) -> int:
    if c.positions == "relative" and kept.is_fused:
        # Products written out in fp32, between linear maps of the usual size.
        n, inner = batch_size * time, c.n_heads * c.head_width
        in_full = 3 * n * inner + n * c.n_heads * time
        return n * (c.d_model + inner) * kept.size + in_full * FULL
    return _attention(c, batch_size, time, time, kept)


def _attention(c: TextConfig, batch_size: int, time: int, n_keys: int, kept: Kept) -> int:
    """Bytes for each layer, whose n_keys keys are its own tokens' or a source's; turning apart.

    Plain products copy queries, keys and values head by head (keys and values once for each query head), so
    what they were copied from need not stay, turned or not.
    """
    n, n_read = batch_size * time, batch_size * n_keys
    queries, keys = c.n_heads * c.head_width, c.kv_heads * c.head_width
    ends = n * (c.d_model + queries) * kept.size  # what the two linear maps read: the stream, and the mixture
    if kept.is_fused:
        log_sums = n * c.n_heads * FULL  # of each row of scores, from which backward makes the row again
        return ends + (n * queries + 2 * n_read * keys) * kept.size + log_sums
    weights = n * c.n_heads * n_keys
    return ends + (n * queries + 2 * n_read * queries + weights) * kept.size


def _turned(c: TextConfig, batch_size: int, time: int, kept: Kept) -> int:
    """What rotary positions add, over all layers."""
    if c.positions != "rope":
        return 0
    layers = c.n_layers
    if isinstance(c, DecoderConfig):
        layers = sum(c.uses_rope(layer) for layer in range(c.n_layers))
    # Without autocast all layers share one pair of fp32 tables; with it each layer casts its own.
    tables = min(layers, 1) if kept.size == FULL else layers
    total = tables * c.rotary_width * time * kept.size
    if kept.is_fused:
        # Turned queries and keys are new tensors; the old ones stay: the values lie in the same storage.
        total += layers * batch_size * time * (c.n_heads + c.kv_heads) * c.head_width * kept.size
    return total


def _masks(c: TextConfig, time: int, kept: Kept) -> int:
    """Of numbers that are added to the scores, for all layers and rows of a stack."""
    if c.positions == "relative":
        return time * time * (INDEX + 1)  # buckets, and what may not be seen
    if c.positions == "alibi" and kept.is_fused:
        copies = 1 if kept.size == FULL else c.n_layers  # autocast's queries want a mask like themselves
        return copies * c.n_heads * time * time * kept.size
    return 0


def _feed_forward(c: TextConfig, n: int, size: int) -> int:
    if c.feed_forward == "swiglu":
        # Gate, its silu, the other branch, their product; autocast copies the input for both matrices.
        n_inputs, n_wide = (1 if size == FULL else 2), 4
    else:
        n_inputs, n_wide = 1, (1 if c.feed_forward == "relu" else 2)  # relu's output tells its gradient
    return n * (n_inputs * c.d_model + n_wide * c.ff_width) * size


def _predictions(c: TextConfig, n: int, kept: Kept) -> dict[str, int]:
    return {
        HEAD: n * c.d_model * kept.size,
        "log-probabilities": n * c.vocab_size * FULL
        + FULL,  # and the targets' number, which they are divided by
    }


def _encoder_ends(c: EncoderConfig, batch_size: int, n: int, kept: Kept) -> dict[str, int]:
    """Tokens, and each head that the config has; a head for sentences wants segments."""
    d, size = c.d_model, kept.size
    parts = {"tokens and targets": (1 + c.mlm_head + c.nsp_head) * n * INDEX}
    if c.mlm_head:
        # In the head the stream is that of matrix products: its norm's input, and RMSNorm's scaled copy.
        normed = d * size + 2 * FULL if c.norm == "layernorm" else d * FULL + FULL + d * size
        found = _predictions(c, n, kept)
        # The dense layer keeps its input; so does what bends it, but for relu, which tells its gradient from
        # the output that the norm keeps already, unless RMSNorm has widened it.
        is_shared = c.feed_forward == "relu" and (c.norm == "layernorm" or size == FULL)
        dense = (1 if is_shared else 2) * d * size
        parts |= {**found, HEAD: found[HEAD] + n * (dense + normed)}
    if c.pooler:
        # It reads the stream's first token: in fp32 by keeping the whole stream, which the head keeps anyway.
        read = (0 if c.mlm_head else n * d * FULL) if size == FULL else batch_size * d * size
        parts["pooler"] = read + batch_size * d * size
    if c.nsp_head:
        parts[SENTENCE_HEAD] = batch_size * (INDEX + 2 * FULL) + FULL
    return parts
