"""Bytes of a training step by kind: weights, gradients, optimiser, and what forward keeps for backward.

The first three follow from the number of parameters; activations follow from tokens per step, and in small
models with long batches the vocabulary's log-probabilities are the largest of all.

What is counted is what this package's models and training loop hold: parameters, gradients and optimiser
state in fp32 whatever the precision; with "bf16" and "fp16" torch's autocast keeps, beside the fp32 master
weights, a 16-bit copy of every matrix until the backward pass has used it, and the residual stream stays in
fp32. Fused attention keeps no T x T matrix; the models use it but for bf16 training on a CPU below 1,024
tokens, where plain products are faster, and for T5's relative positions (activations.py). Nothing is
recomputed; dropout's masks are not counted.
Source: compare Korthikanti et al. 2022, arXiv:2205.05198, section 4 (with dropout, unfused attention).
Taught in book/transformers/training.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from scalelab.core.checks import check_choice, check_positive_int
from scalelab.core.config import EncoderConfig, ModelConfig
from scalelab.cost.activations import FULL, Kept, activations
from scalelab.cost.operations import as_text, check_lengths
from scalelab.cost.parameters import TextConfig, matrix_weights, params

Precision = Literal["fp32", "bf16", "fp16"]
Optimizer = Literal["adamw", "momentum", "sgd"]
AttentionKernel = Literal["fused", "plain"]

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
    target_len: int | None = None,
) -> Memory:
    """Count the bytes of one training step, in which every part that the config has takes part.

    An encoder's head for hidden tokens has a loss at each place, its head for sentences one a row.

    Args:
        config: of a decoder, an encoder or an encoder–decoder, or the name of a preset.
        batch_size: B, sequences that pass through the model at once: those of one micro-batch.
        seq_len: tokens of each sequence: T, and of an encoder–decoder S, those of the source.
        precision: "fp32", or "bf16" or "fp16" by autocast with fp32 master weights.
        optimizer: "adamw", "momentum" (SGD with it) or "sgd".
        accumulate: micro-batches a step; from the second on, gradients are there when backward starts.
        attention: "fused" keeps one number of each row of scores, "plain" the whole T x T weights (the
            models' way in bf16 on a CPU, T < 1,024).
        target_len: T, tokens that an encoder–decoder writes for each source; `seq_len` when None.

    Raises:
        ConfigError: a kind that has no tokens, a size that is no positive whole number, a sequence beyond its
            context, a target_len for a model that has no source, or an unknown precision, optimiser or
            kernel.
    """
    c = as_text(config, "memory")
    n_written = check_lengths(c, batch_size, seq_len, target_len)
    check_choice("precision", precision, get_args(Precision))
    check_choice("optimizer", optimizer, get_args(Optimizer))
    check_positive_int("accumulate", accumulate)
    check_choice("attention", attention, get_args(AttentionKernel))
    gradients = FULL * params(c).total  # as much as the parameters themselves
    weights = gradients + (0 if precision == "fp32" else 2 * matrix_weights(c))
    state = gradients * STATE_PER_PARAMETER[optimizer]
    numbers = Kept(size=FULL if precision == "fp32" else 2, is_fused=attention == "fused")
    parts = activations(c, batch_size, seq_len, n_written, numbers)
    kept = sum(parts.values())
    backward_starts = weights + kept + _first_gradients(c, batch_size * n_written)
    backward_starts += gradients if accumulate > 1 else 0
    backward_ends = 2 * gradients
    return Memory(
        weights_bytes=weights,
        gradients_bytes=gradients,
        optimizer_bytes=state,
        activations_bytes=kept,
        activation_parts=parts,
        total_bytes=weights + gradients + state + kept,
        peak_bytes=state + max(backward_starts, backward_ends),
    )


def _first_gradients(c: TextConfig, n_places: int) -> int:
    """Bytes that meet all that is kept: the gradients of the log-probabilities and of the logits."""
    has_logits = not isinstance(c, EncoderConfig) or c.mlm_head
    return 2 * FULL * n_places * c.vocab_size if has_logits else 0
