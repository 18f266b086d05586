"""FLOPs of a decoder, exactly and by part, and the 6 N D that stands for them.

Conventions, those of torch's FlopCounterMode: a multiply–add is two FLOPs; matrix products count and nothing
else does (no norms, softmax, activations, rotations, optimiser); causal attention counts in full, as if no
score were masked. Training is three times forward: each product's backward pass is two products of its size.
Products that a fused attention kernel or activation checkpointing does twice are counted once, so these are
model FLOPs, not hardware FLOPs.
Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1; Chowdhery et al. 2022 (PaLM), arXiv:2204.02311,
appendix B, for model FLOPs utilisation. Taught in book/transformers/training.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scalelab.core.checks import check_bool, check_positive, check_positive_int
from scalelab.core.config import DecoderConfig, ModelConfig
from scalelab.core.errors import ConfigError
from scalelab.cost.parameters import as_config

BACKWARD_PER_FORWARD = 2  # one product for the gradient of the input, one for that of the weight


@dataclass(frozen=True, kw_only=True, slots=True)
class Flops:
    """FLOPs of one pass over a batch.

    Attributes:
        total: of all parts.
        parts: of each part of the model; they add up to `total`.
    """

    total: int
    parts: Mapping[str, int]


def flops(config: ModelConfig | str, *, batch_size: int, seq_len: int, training: bool) -> Flops:
    """Count the FLOPs of one batch exactly, by the conventions at the top of this module.

    Args:
        config: a decoder's config, or the name of a preset.
        batch_size: B, sequences.
        seq_len: T, tokens of each sequence.
        training: forward and backward pass when true, forward alone when false.

    Raises:
        ConfigError: no decoder, a size that is no positive whole number, or a sequence beyond its context.

    Source: agrees with torch.utils.flop_counter.FlopCounterMode on the meta device, to the last FLOP.
    """
    c = as_decoder(config, "FLOPs")
    check_batch(c, batch_size, seq_len)
    check_bool("training", training)
    n_tokens = batch_size * seq_len
    passes = 1 + BACKWARD_PER_FORWARD if training else 1
    # A product of [n, a] by [a, b] is n·a·b multiply–adds, two FLOPs each.
    widths = {
        "queries, keys, values": c.n_layers * c.d_model * (c.n_heads + 2 * c.kv_heads) * c.head_width,
        "attention scores": c.n_layers * c.n_heads * c.head_width * seq_len,
        "attention-weighted values": c.n_layers * c.n_heads * c.head_width * seq_len,
        "attention output": c.n_layers * c.n_heads * c.head_width * c.d_model,
        "feed-forward": c.n_layers * (3 if c.feed_forward == "swiglu" else 2) * c.d_model * c.ff_width,
        "head": c.d_model * c.vocab_size,
    }
    parts = {name: passes * 2 * n_tokens * width for name, width in widths.items()}
    return Flops(total=sum(parts.values()), parts=parts)


def flops_6nd(n_params_matmul: float, n_tokens: float) -> float:
    """Training FLOPs by the rule C = 6 N D: two FLOPs a weight forward, four backward, for each token.

    It leaves out the attention's own products, which grow with the sequence.

    Args:
        n_params_matmul: N, the parameters that multiply (`Params.matmul`).
        n_tokens: D, tokens trained on, repeats counted.

    Raises:
        ConfigError: either is not a finite number above 0.
    """
    check_positive("n_params_matmul", n_params_matmul)
    check_positive("n_tokens", n_tokens)
    return 6.0 * n_params_matmul * n_tokens


def mfu(tokens_per_s: float, config: ModelConfig | str, seq_len: int, peak_flops_per_s: float) -> float:
    """Model FLOPs utilisation: the share of a device's peak that training turns into the model's own FLOPs.

    Training FLOPs per token at this sequence length (exact count, attention in full) times tokens per
    second, over the peak. Recomputation is not counted, so a run that recomputes shows a lower figure.

    Args:
        tokens_per_s: tokens trained on per second, over all devices.
        config: a decoder's config, or the name of a preset.
        seq_len: T, tokens of each sequence.
        peak_flops_per_s: dense peak at the precision in use, over all devices, FLOP/s.

    Raises:
        ConfigError: a rate or peak that is not a finite number above 0, or what `flops` refuses.

    Source: Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
    """
    check_positive("tokens_per_s", tokens_per_s)
    check_positive("peak_flops_per_s", peak_flops_per_s)
    per_token = flops(config, batch_size=1, seq_len=seq_len, training=True).total / seq_len
    return per_token * tokens_per_s / peak_flops_per_s


def as_decoder(config: ModelConfig | str, what: str) -> DecoderConfig:
    """The config, if it is a decoder's.

    Raises:
        ConfigError: it is of another kind; the message says which kinds `what` can be counted for.
    """
    config = as_config(config)
    if not isinstance(config, DecoderConfig):
        raise ConfigError(
            f"{what} can be counted for decoders only, got {type(config).__name__}; "
            "its parameters can be counted with count_params"
        )
    return config


def check_batch(config: DecoderConfig, batch_size: int, seq_len: int) -> None:
    """Raise ConfigError unless the batch has a size, and fits the model's context."""
    check_positive_int("batch_size", batch_size)
    check_positive_int("seq_len", seq_len)
    if seq_len > config.seq_len:
        raise ConfigError(
            f"seq_len={seq_len} exceeds the model's context of {config.seq_len} tokens; "
            "shorten the sequence, or give the config a longer seq_len"
        )
