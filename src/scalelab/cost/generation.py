"""What writing text costs: FLOPs with a KV cache, bytes of the cache, and FLOPs per byte that is moved.

Prefill reads a whole prompt at once; decoding reads one token at a time, and to do so fetches every weight
and the keys and values of all tokens before it. A device that does P FLOPs and moves W bytes a second is busy
only where a pass has at least P/W FLOPs for each byte: below, it waits for memory (the roofline).

The model of what is moved, in one pass over a batch: weights that multiply, biases and norm gains are fetched
once; of the cache, kept keys and values are fetched once and new ones written once; rows of tables are left
out. Activations stay on the chip unless they are asked for: then each linear map reads its input and writes
its output (keys and values go to the cache), attention reads its queries and writes its mixture without
storing a score, and norms, activation functions and additions are fused into what stands before them.
Source: Pope et al. 2022, arXiv:2211.05102, section 2; Williams, Waterman & Patterson 2009,
doi:10.1145/1498765.1498785 (roofline). Taught in book/transformers/inference.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from scalelab.core.checks import check_bool, check_positive, check_positive_int
from scalelab.core.config import DecoderConfig, EncoderDecoderConfig, ModelConfig
from scalelab.core.errors import ConfigError
from scalelab.cost.operations import Flops, as_flops, as_text, check_context
from scalelab.cost.parameters import params
from scalelab.cost.products import cross_products, head_products, of_side, stack_products

HALF = 2  # bytes of a bf16 or fp16 number, in which models are usually served


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """One pass over a batch while generating: what is computed and what is moved.

    Attributes:
        flops: by part.
        weights_bytes, cache_bytes, activations_bytes: moved to or from memory, by the model of this module.
    """

    flops: Flops
    weights_bytes: int
    cache_bytes: int
    activations_bytes: int

    @property
    def moved_bytes(self) -> int:
        """All that is moved."""
        return self.weights_bytes + self.cache_bytes + self.activations_bytes

    @property
    def intensity(self) -> float:
        """Arithmetic intensity, FLOPs per byte moved."""
        return self.flops.total / self.moved_bytes

    def seconds(self, peak_flops_per_s: float, bandwidth_bytes_per_s: float) -> float:
        """The least time that this pass takes on a device: computing or moving, whichever is longer.

        Raises:
            ConfigError: a peak or bandwidth that is not a finite number above 0.
        """
        check_positive("peak_flops_per_s", peak_flops_per_s)
        check_positive("bandwidth_bytes_per_s", bandwidth_bytes_per_s)
        return max(self.flops.total / peak_flops_per_s, self.moved_bytes / bandwidth_bytes_per_s)


def prefill_flops(config: ModelConfig | str, *, batch_size: int, seq_len: int) -> Flops:
    """FLOPs of reading a prompt, up to the probabilities of the first token that is written.

    The head is computed at the last place alone. An encoder–decoder reads its source, makes each layer's keys
    and values of it, and the start token.

    Args:
        config: of a decoder or an encoder–decoder, or the name of a preset.
        batch_size: B, prompts.
        seq_len: tokens of each prompt, or source.

    Raises:
        ConfigError: an encoder or another kind that writes nothing, a size that is no positive whole number,
            or a prompt beyond the context.
    """
    c = _as_writer(config)
    check_positive_int("batch_size", batch_size)
    check_positive_int("seq_len", seq_len)
    if isinstance(c, EncoderDecoderConfig):
        products = {
            **of_side("encoder", stack_products(c, seq_len, seq_len)),
            **of_side("decoder", stack_products(c, 1, 1)),
            **of_side("across", cross_products(c, 1, seq_len, makes_keys=True)),
        }
    else:
        check_context(c, "seq_len", seq_len)
        products = stack_products(c, seq_len, seq_len)
    return as_flops({**products, **head_products(c, 1)}, batch_size)


def decode_flops(
    config: ModelConfig | str,
    *,
    batch_size: int,
    context_len: int,
    n_new: int = 1,
    source_len: int | None = None,
) -> Flops:
    """FLOPs of reading new tokens with a cache, and of the head at each of them.

    Args:
        config: of a decoder or an encoder–decoder, or the name of a preset.
        batch_size: B, texts that are written at once.
        context_len: S, tokens in the cache once the new ones are in it, which each of them meets.
        n_new: tokens that are read at once: 1, or as many as were drafted where drafts are verified.
        source_len: tokens of an encoder–decoder's source, which has no default.

    Raises:
        ConfigError: as `prefill_flops`; more new tokens than the context holds; a source_len that is missing,
            or that the model has no use for.
    """
    c = _as_writer(config)
    check_positive_int("batch_size", batch_size)
    _check_kept(c, "context_len", context_len, source_len)
    check_positive_int("n_new", n_new)
    if n_new > context_len:
        raise ConfigError(f"n_new={n_new} tokens are more than context_len={context_len}, which counts them")
    products = stack_products(c, n_new, context_len)
    if isinstance(c, EncoderDecoderConfig):
        across = cross_products(c, n_new, source_len or 0, makes_keys=False)
        products = {**of_side("decoder", products), **of_side("across", across)}
    return as_flops({**products, **head_products(c, n_new)}, batch_size)


def kv_cache_bytes(
    config: ModelConfig | str,
    *,
    batch_size: int,
    seq_len: int,
    bytes_per_number: float = HALF,
    source_len: int | None = None,
) -> int:
    """Bytes of keys and values: 2 · L · KV · K numbers for each token of each row.

    Args:
        config: of a decoder or an encoder–decoder, or the name of a preset.
        batch_size: B, rows.
        seq_len: tokens kept of each row.
        bytes_per_number: 2 for bf16, 4 for fp32, 0.5 for four bits.
        source_len: tokens of an encoder–decoder's source, whose keys and values every layer keeps too.

    Raises:
        ConfigError: as `decode_flops`.
    """
    c = _as_writer(config)
    check_positive_int("batch_size", batch_size)
    _check_kept(c, "seq_len", seq_len, source_len)
    check_positive("bytes_per_number", bytes_per_number)
    a_token = 2 * c.n_layers * c.kv_heads * c.head_width
    return round(batch_size * (seq_len + (source_len or 0)) * a_token * bytes_per_number)


def prefill_pass(
    config: ModelConfig | str,
    *,
    batch_size: int,
    seq_len: int,
    bytes_per_number: float = HALF,
    activations: bool = False,
) -> Pass:
    """Reading a prompt: FLOPs, and bytes by the model of this module.

    Args:
        config: a decoder's config, or the name of a preset.
        batch_size: B, prompts. seq_len: tokens of each.
        bytes_per_number: of weights, cache and activations alike.
        activations: whether activations are moved too.

    Raises:
        ConfigError: as `prefill_flops`; an encoder–decoder.
    """
    c = _as_decoder(config)
    found = prefill_flops(c, batch_size=batch_size, seq_len=seq_len)
    n_tokens = batch_size * seq_len
    return _pass(c, found, n_tokens, n_tokens, batch_size, bytes_per_number, activations)


def decode_pass(
    config: ModelConfig | str,
    *,
    batch_size: int,
    context_len: int,
    n_new: int = 1,
    bytes_per_number: float = HALF,
    activations: bool = False,
) -> Pass:
    """Writing one token more in each row: FLOPs, and bytes by the model of this module.

    Args:
        config: a decoder's config, or the name of a preset.
        batch_size, context_len, n_new: as `decode_flops`.
        bytes_per_number: of weights, cache and activations alike.
        activations: whether activations are moved too.

    Raises:
        ConfigError: as `decode_flops`; an encoder–decoder.
    """
    c = _as_decoder(config)
    found = decode_flops(c, batch_size=batch_size, context_len=context_len, n_new=n_new)
    n_tokens, n_kept = batch_size * n_new, batch_size * context_len
    return _pass(c, found, n_tokens, n_kept, n_tokens, bytes_per_number, activations)


def attainable_flops(intensity: float, peak_flops_per_s: float, bandwidth_bytes_per_s: float) -> float:
    """The roofline: FLOP/s that a device can reach at this many FLOPs per byte.

    It rises with the intensity until P/W FLOPs per byte, the ridge, and is flat from there on.

    Raises:
        ConfigError: an argument that is not a finite number above 0.
    """
    check_positive("intensity", intensity)
    check_positive("peak_flops_per_s", peak_flops_per_s)
    check_positive("bandwidth_bytes_per_s", bandwidth_bytes_per_s)
    return min(peak_flops_per_s, intensity * bandwidth_bytes_per_s)


def _pass(
    c: DecoderConfig,
    flops: Flops,
    n_tokens: int,
    n_cached: int,
    n_places: int,
    bytes_per_number: float,
    activations: bool,
) -> Pass:
    """`n_cached` tokens' keys and values are moved, `n_places` pass through the head."""
    check_positive("bytes_per_number", bytes_per_number)
    check_bool("activations", activations)
    kept = kv_cache_bytes(c, batch_size=1, seq_len=1, bytes_per_number=1) * n_cached  # numbers
    moved = _activations(c, n_tokens, n_places) if activations else 0
    return Pass(
        flops=flops,
        weights_bytes=round(params(c).matmul * bytes_per_number),
        cache_bytes=round(kept * bytes_per_number),
        activations_bytes=round(moved * bytes_per_number),
    )


def _activations(c: DecoderConfig, n_tokens: int, n_places: int) -> int:
    """Numbers that linear maps and attention move, keys and values left out: they count as cache."""
    d, queries = c.d_model, c.n_heads * c.head_width
    project, mix, output = d + queries, 2 * queries, queries + d
    gate = d + c.ff_width if c.feed_forward == "swiglu" else 0
    layer = project + mix + output + gate + (d + c.ff_width) + (c.ff_width + d)
    return n_tokens * c.n_layers * layer + n_places * (d + c.vocab_size)


def _as_writer(config: ModelConfig | str) -> DecoderConfig | EncoderDecoderConfig:
    c = as_text(config, "generation")
    if not isinstance(c, DecoderConfig | EncoderDecoderConfig):
        raise ConfigError(
            f"a model with an {type(c).__name__} writes nothing and keeps no cache: "
            "count what it reads with flops()"
        )
    return c


def _as_decoder(config: ModelConfig | str) -> DecoderConfig:
    c = _as_writer(config)
    if not isinstance(c, DecoderConfig):
        raise ConfigError(
            f"bytes moved are counted for decoders only, got {type(c).__name__}; its FLOPs and its cache can "
            "be counted with prefill_flops, decode_flops and kv_cache_bytes"
        )
    return c


def _check_kept(
    c: DecoderConfig | EncoderDecoderConfig, name: str, n_tokens: int, source_len: int | None
) -> None:
    check_positive_int(name, n_tokens)
    if isinstance(c, EncoderDecoderConfig):
        if source_len is None:
            raise ConfigError("source_len is missing: how many tokens the encoder–decoder has read")
        check_positive_int("source_len", source_len)
        return
    if source_len is not None:
        raise ConfigError(
            f"source_len={source_len!r} is for encoder–decoders; a decoder's prompt counts in {name}"
        )
    check_context(c, name, n_tokens)
