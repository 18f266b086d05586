"""Bytes of a training step by kind: weights, gradients, optimiser, and what forward keeps for backward.

The first three follow from the number of parameters; activations follow from tokens per step, and in small
models with long batches the vocabulary's log-probabilities are the largest of all.

What is counted is what this package's decoder and training loop hold: parameters, gradients and optimiser
state in fp32 whatever the precision; with "bf16" and "fp16" torch's autocast keeps, beside the fp32 master
weights, a 16-bit copy of every matrix until the backward pass has used it, and the residual stream stays in
fp32. Fused attention keeps no T x T matrix; the decoder uses it but for bf16 training on a CPU below 1,024
tokens, where plain products are faster. Nothing is recomputed; dropout's masks are not counted.
Source: compare Korthikanti et al. 2022, arXiv:2205.05198, section 4 (with dropout, unfused attention).
Taught in book/transformers/training.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from scalelab.core.checks import check_choice, check_positive_int
from scalelab.core.config import DecoderConfig, ModelConfig
from scalelab.cost.operations import as_decoder, check_batch
from scalelab.cost.parameters import matrix_weights, params

Precision = Literal["fp32", "bf16", "fp16"]
Optimizer = Literal["adamw", "momentum", "sgd"]
AttentionKernel = Literal["fused", "plain"]

FULL = 4  # bytes of fp32: parameters, gradients, optimiser state, residual stream, statistics, loss
INDEX = 8  # bytes of int64: tokens and targets
STATE_PER_PARAMETER: Mapping[str, int] = {"adamw": 2, "momentum": 1, "sgd": 0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes that a training step holds, by kind.

    Attributes:
        weights_bytes: fp32 parameters, and under bf16 or fp16 the 16-bit copies of the matrices.
        gradients_bytes: one fp32 number for each parameter.
        optimizer_bytes: AdamW keeps two fp32 numbers for each parameter, SGD with momentum one, SGD none.
        activations_bytes: what the forward pass of one micro-batch keeps for the backward pass.
        activation_parts: the same by part of the model; they add up to `activations_bytes`.
        total_bytes: the four kinds together.
        peak_bytes: the most that a step holds at a time, to a few per cent. Backward starts with all
            activations, the gradients of logits and log-probabilities and, in the first micro-batch, no
            parameter's gradient; it ends with all gradients and no activations. The larger of the two counts.
            Tensors alone: what the allocator keeps in reserve, libraries and data come on top.
    """

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    activation_parts: Mapping[str, int]
    total_bytes: int
    peak_bytes: int


def memory(
    config: ModelConfig | str,
    *,
    batch_size: int,
    seq_len: int,
    precision: str = "fp32",
    optimizer: str = "adamw",
    accumulate: int = 1,
    attention: str = "fused",
) -> Memory:
    """Count the bytes of one training step.

    Args:
        config: a decoder's config, or the name of a preset.
        batch_size: B, sequences that pass through the model at once: those of one micro-batch.
        seq_len: T, tokens of each sequence.
        precision: "fp32", or "bf16" or "fp16" by autocast with fp32 master weights.
        optimizer: "adamw", "momentum" (SGD with it) or "sgd".
        accumulate: micro-batches a step; from the second on, gradients are there when backward starts.
        attention: "fused" keeps one number of each row of scores, "plain" the whole T x T weights (the
            decoder's way in bf16 on a CPU, T < 1,024).

    Raises:
        ConfigError: no decoder, a size that is no positive whole number, a sequence beyond its context, or
            an unknown precision, optimiser or kernel.
    """
    c = as_decoder(config, "memory")
    check_batch(c, batch_size, seq_len)
    check_choice("precision", precision, get_args(Precision))
    check_choice("optimizer", optimizer, get_args(Optimizer))
    check_positive_int("accumulate", accumulate)
    check_choice("attention", attention, get_args(AttentionKernel))
    n_params = params(c).total
    copies = 0 if precision == "fp32" else 2 * matrix_weights(c)
    weights = FULL * n_params + copies
    gradients = FULL * n_params
    state = FULL * n_params * STATE_PER_PARAMETER[optimizer]
    size = FULL if precision == "fp32" else 2
    parts = _activations(c, batch_size, seq_len, size, is_fused=attention == "fused")
    kept = sum(parts.values())
    # The gradients of the log-probabilities and of the logits meet what is kept.
    backward_starts = weights + kept + 2 * FULL * batch_size * seq_len * c.vocab_size
    if accumulate > 1:
        backward_starts += gradients
    backward_ends = FULL * n_params + gradients
    return Memory(
        weights_bytes=weights,
        gradients_bytes=gradients,
        optimizer_bytes=state,
        activations_bytes=kept,
        activation_parts=parts,
        total_bytes=weights + gradients + state + kept,
        peak_bytes=state + max(backward_starts, backward_ends),
    )


def _activations(
    c: DecoderConfig, batch_size: int, seq_len: int, size: int, *, is_fused: bool
) -> dict[str, int]:
    """Bytes kept for backward, by part; `size` is that of a number that enters a matrix product."""
    n = batch_size * seq_len
    rope_layers = sum(c.uses_rope(layer) for layer in range(c.n_layers))
    # Parallel branches read one stream, which is kept once; otherwise each norm has a stream of its own.
    streams = c.n_layers * (1 if c.parallel_residual else 2) + 1
    attention, turned = _fused_attention(c, n, size) if is_fused else _plain_attention(c, n, seq_len, size)
    # Without autocast all layers share one pair of fp32 tables; with it each layer casts one for its queries
    # and one for its keys.
    tables = c.rotary_width * seq_len * size * (min(rope_layers, 1) if size == FULL else 2 * rope_layers)
    return {
        "tokens and targets": 2 * n * INDEX,
        "residual stream": streams * n * c.d_model * FULL,
        "norms": (2 * c.n_layers + 1) * _norm(c, n),
        "attention": c.n_layers * attention + rope_layers * turned + tables,
        "feed-forward": c.n_layers * _feed_forward(c, n, size),
        "head": n * c.d_model * size,
        "log-probabilities": n * c.vocab_size * FULL + FULL,  # and the number of targets they are divided by
    }


def _norm(c: DecoderConfig, n: int) -> int:
    """Beside its input, LayerNorm keeps mean and deviation; RMSNorm its scale, and the scaled stream."""
    return 2 * n * FULL if c.norm == "layernorm" else n * FULL + n * c.d_model * FULL


def _fused_attention(c: DecoderConfig, n: int, size: int) -> tuple[int, int]:
    """Bytes for each layer, and the further bytes where queries and keys are turned."""
    queries, keys = c.n_heads * c.head_width, c.kv_heads * c.head_width
    normed = n * c.d_model * size
    projected = n * (queries + 2 * keys) * size
    mixed = n * queries * size
    log_sums = n * c.n_heads * FULL  # of each row of scores, from which backward makes the row again
    # Turned queries and keys are new tensors; the old ones stay, because the values lie in the same storage.
    turned = n * (queries + keys) * size
    return normed + projected + mixed + log_sums, turned


def _plain_attention(c: DecoderConfig, n: int, seq_len: int, size: int) -> tuple[int, int]:
    """The same for plain products, from two sequences a batch and two heads on.

    Queries, keys and values are copied head by head (keys and values once for each query head), so what they
    were copied from need not stay, turned or not.
    """
    normed = n * c.d_model * size
    copies = 3 * n * c.n_heads * c.head_width * size
    weights = n * c.n_heads * seq_len * size
    mixed = n * c.n_heads * c.head_width * size
    return normed + copies + weights + mixed, 0


def _feed_forward(c: DecoderConfig, n: int, size: int) -> int:
    if c.feed_forward == "swiglu":
        # Gate, its silu, the other branch, their product; autocast copies the input for both matrices.
        n_inputs, n_wide = (1 if size == FULL else 2), 4
    else:
        n_inputs, n_wide = 1, (1 if c.feed_forward == "relu" else 2)  # relu's output tells its gradient
    return n * (n_inputs * c.d_model + n_wide * c.ff_width) * size
