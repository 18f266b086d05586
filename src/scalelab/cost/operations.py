"""FLOPs of a batch, exactly and by part, and the 6 N D that stands for them.

Conventions, those of torch's FlopCounterMode: a multiply–add is two FLOPs; matrix products count and nothing
else does (no norms, softmax, activations, rotations, optimiser); causal attention counts in full, as if no
score were masked, and padding saves nothing. Training is three times forward: each product's backward pass is
two products of its size. Products that a fused attention kernel or activation checkpointing does twice are
counted once, so these are model FLOPs, not hardware FLOPs.
Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1; Chowdhery et al. 2022 (PaLM), arXiv:2204.02311,
appendix B, for model FLOPs utilisation. Taught in book/transformers/training.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scalelab.core.checks import check_bool, check_positive, check_positive_int
from scalelab.core.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig, ModelConfig, VisionConfig
from scalelab.core.errors import ConfigError
from scalelab.cost.parameters import TextConfig, as_config
from scalelab.cost.products import cross_products, head_products, of_side, stack_products

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


def flops(
    config: ModelConfig | str,
    *,
    batch_size: int,
    seq_len: int,
    training: bool,
    target_len: int | None = None,
    n_targets: int | None = None,
) -> Flops:
    """Count the FLOPs of one batch exactly, by the conventions at the top of this module.

    Every part that the config has is counted. An encoder with a pooler that is trained on hidden tokens alone
    never uses it: give it pooler=False to be exact.

    Args:
        config: of a decoder, an encoder or an encoder–decoder, or the name of a preset.
        batch_size: B, sequences.
        seq_len: tokens of each sequence: T, and of an encoder–decoder S, those of the source.
        training: forward and backward pass when true, forward alone when false.
        target_len: T, tokens that an encoder–decoder writes for each source; `seq_len` when None.
        n_targets: places of each sequence at which the head is computed: all when None, as our models do.
            BERT's own code computes it at the hidden tokens only; a generator needs the last place.

    Raises:
        ConfigError: a kind that has no tokens, a size that is no positive whole number, a sequence beyond its
            context, a target_len for a model that has no source, or more n_targets than there are places.

    Source: agrees with torch.utils.flop_counter.FlopCounterMode on the meta device, to the last FLOP.
    """
    c = as_text(config, "FLOPs")
    n_written = check_lengths(c, batch_size, seq_len, target_len)
    check_bool("training", training)
    if n_targets is None:
        n_targets = n_written
    check_positive_int("n_targets", n_targets)
    if n_targets > n_written:
        raise ConfigError(f"n_targets={n_targets} places are more than the {n_written} of a sequence")
    if isinstance(c, EncoderDecoderConfig):
        products = {
            **of_side("encoder", stack_products(c, seq_len, seq_len)),
            **of_side("decoder", stack_products(c, n_written, n_written)),
            **of_side("across", cross_products(c, n_written, seq_len, makes_keys=True)),
        }
    else:
        products = stack_products(c, seq_len, seq_len)
    passes = 1 + BACKWARD_PER_FORWARD if training else 1
    return as_flops({**products, **head_products(c, n_targets)}, passes * batch_size)


def as_flops(products: Mapping[str, int], times: int) -> Flops:
    """Multiply–adds that are done so many times, as FLOPs."""
    parts = {name: 2 * times * count for name, count in products.items()}
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


def mfu(
    tokens_per_s: float,
    config: ModelConfig | str,
    seq_len: int,
    peak_flops_per_s: float,
    *,
    target_len: int | None = None,
) -> float:
    """Model FLOPs utilisation: the share of a device's peak that training turns into the model's own FLOPs.

    Training FLOPs per token at this sequence length (exact count, attention in full) times tokens per
    second, over the peak. Recomputation is not counted, so a run that recomputes shows a lower figure.

    Args:
        tokens_per_s: tokens trained on per second, over all devices; an encoder–decoder's are its sources'.
        config: of a decoder, an encoder or an encoder–decoder, or the name of a preset.
        seq_len: tokens of each sequence, or source.
        peak_flops_per_s: dense peak at the precision in use, over all devices, FLOP/s.
        target_len: T, tokens that an encoder–decoder writes for each source; `seq_len` when None.

    Raises:
        ConfigError: a rate or peak that is not a finite number above 0, or what `flops` refuses.

    Source: Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
    """
    check_positive("tokens_per_s", tokens_per_s)
    check_positive("peak_flops_per_s", peak_flops_per_s)
    step = flops(config, batch_size=1, seq_len=seq_len, target_len=target_len, training=True)
    return step.total / seq_len * tokens_per_s / peak_flops_per_s


def as_text(config: ModelConfig | str, what: str) -> TextConfig:
    """The config, if its model reads tokens.

    Raises:
        ConfigError: it is of another kind; the message says which kinds `what` can be counted for.
    """
    config = as_config(config)
    if isinstance(config, VisionConfig):
        raise ConfigError(
            f"{what} can be counted for decoders, encoders and encoder–decoders only, got "
            f"{type(config).__name__}; its parameters can be counted with count_params"
        )
    return config


def check_lengths(config: TextConfig, batch_size: int, seq_len: int, target_len: int | None) -> int:
    """How many tokens of each sequence come out: T.

    Raises:
        ConfigError: a size that is no positive whole number, or one that the model has no room for.
    """
    check_positive_int("batch_size", batch_size)
    check_positive_int("seq_len", seq_len)
    if isinstance(config, EncoderDecoderConfig):
        if target_len is None:
            return seq_len
        check_positive_int("target_len", target_len)
        return target_len
    if target_len is not None:
        raise ConfigError(
            f"target_len={target_len!r} is for encoder–decoders, got {type(config).__name__}, which writes "
            "where it reads: give seq_len alone"
        )
    check_context(config, "seq_len", seq_len)
    return seq_len


def check_context(config: DecoderConfig | EncoderConfig, name: str, n_tokens: int) -> None:
    """Raise ConfigError unless the model can read so many tokens."""
    if n_tokens > config.seq_len:
        raise ConfigError(
            f"{name}={n_tokens} exceeds the model's context of {config.seq_len} tokens; "
            "shorten the sequence, or give the config a longer seq_len"
        )
