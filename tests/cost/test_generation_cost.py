"""What generating costs, against torch's counter on a cached forward pass, real caches and seen operands."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from scalelab.core.config import DecoderConfig, EncoderDecoderConfig
from scalelab.core.errors import ConfigError
from scalelab.cost import (
    attainable_flops,
    decode_flops,
    decode_pass,
    flops,
    kv_cache_bytes,
    params,
    prefill_flops,
    prefill_pass,
    require_accelerator,
)
from scalelab.models import Decoder, EncoderDecoder


def _tokens(batch_size: int, n_tokens: int) -> Tensor:
    return torch.zeros(batch_size, n_tokens, dtype=torch.long, device="meta")


@pytest.mark.parametrize("seed", range(15))
def test_a_decoders_prefill_and_steps_cost_what_torch_counts(seed: int, random_config: Any) -> None:
    draw = random.Random(seed)
    config, batch, prompt = random_config("decoder", draw), draw.randint(1, 4), draw.randint(1, 40)
    model = Decoder(config, device="meta")
    cache = model.make_cache(batch, 48)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.logits(model.hidden(_tokens(batch, prompt), cache=cache)[:, -1])
    assert prefill_flops(config, batch_size=batch, seq_len=prompt).total == counter.get_total_flops()
    for n_new in (1, 1, draw.randint(2, 6)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.logits(model.hidden(_tokens(batch, n_new), cache=cache))
        found = decode_flops(config, batch_size=batch, context_len=cache.length, n_new=n_new)
        assert found.total == counter.get_total_flops() == sum(found.parts.values())


@pytest.mark.parametrize("seed", range(15))
def test_an_encoder_decoders_prefill_and_steps_cost_what_torch_counts(seed: int, random_config: Any) -> None:
    draw = random.Random(seed)
    config, batch, time = random_config("encoder-decoder", draw), draw.randint(1, 4), draw.randint(1, 40)
    model = EncoderDecoder(config, device="meta")
    cache = model.make_cache(batch, 8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        source = model.read(_tokens(batch, time), keep=True)
        model.logits(model.write(_tokens(batch, 1), source, cache=cache))
    assert prefill_flops(config, batch_size=batch, seq_len=time).total == counter.get_total_flops()
    for _ in range(2):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.logits(model.write(_tokens(batch, 1), source, cache=cache))
        found = decode_flops(config, batch_size=batch, context_len=cache.length, source_len=time)
        assert found.total == counter.get_total_flops() == sum(found.parts.values())


@pytest.mark.parametrize("seed", range(6))
def test_cache_bytes_are_those_of_the_caches_that_models_make(seed: int, random_config: Any) -> None:
    draw = random.Random(seed)
    decoder, batch, time = random_config("decoder", draw), draw.randint(1, 4), draw.randint(1, 48)
    room = Decoder(decoder, device="meta").make_cache(batch, time)
    assert kv_cache_bytes(decoder, batch_size=batch, seq_len=time, bytes_per_number=4) == room.n_bytes
    both = random_config("encoder-decoder", draw)
    model = EncoderDecoder(both, device="meta")
    source = model.read(_tokens(batch, time), keep=True)
    across = sum(
        part.nbytes for block in model.decoder.blocks for part in source.answers(block.cross_attention)
    )
    found = kv_cache_bytes(both, batch_size=batch, seq_len=9, source_len=time, bytes_per_number=4)
    assert found == model.make_cache(batch, 9).n_bytes + across


def test_llama_2_70b_keeps_an_eighth_of_what_its_64_heads_would() -> None:
    # Ainslie et al. 2023: 8 groups for 64 heads. In bf16, 2 · 80 · 8 · 128 numbers a token.
    assert kv_cache_bytes("llama-2-70b", batch_size=1, seq_len=1) == 2 * 2 * 80 * 8 * 128
    assert kv_cache_bytes("llama-2-70b", batch_size=1, seq_len=4096) == 4096 * 327_680


def test_prefill_and_steps_together_do_what_reading_the_whole_text_does() -> None:
    config = DecoderConfig(n_layers=3, d_model=48, n_heads=4, vocab_size=90, seq_len=64)
    shape: dict[str, Any] = {"batch_size": 2}
    steps = sum(decode_flops(config, **shape, context_len=s).total for s in range(1, 33))
    whole = flops(config, **shape, seq_len=32, training=False)
    # Without a cache each token also multiplies with the keys after it, to be masked.
    attention = whole.parts["attention scores"] + whole.parts["attention-weighted values"]
    assert whole.total - steps == attention * (32 - 1) // (2 * 32)


class _LinearMaps(TorchDispatchMode):
    """Numbers that linear maps read and write, weights left out."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.moved += args[-2].numel() + out.numel()  # (input, weight) or (bias, input, weight)
        return out


@pytest.mark.parametrize("seed", range(10))
def test_activations_moved_are_the_operands_that_torch_is_seen_to_multiply(
    seed: int, random_config: Any
) -> None:
    draw = random.Random(seed)
    config, batch, prompt = random_config("decoder", draw), draw.randint(1, 4), draw.randint(2, 40)
    model = Decoder(config, device="meta")
    cache = model.make_cache(batch, 48)

    def by_hand(n_tokens: int, seen: int) -> int:
        # Keys and values go to the cache; attention reads queries and writes the mixture.
        kept = 2 * config.kv_heads * config.head_width
        return seen + n_tokens * config.n_layers * (2 * config.n_heads * config.head_width - kept)

    with torch.no_grad(), _LinearMaps() as seen:
        model.logits(model.hidden(_tokens(batch, prompt), cache=cache)[:, -1])
    found = prefill_pass(config, batch_size=batch, seq_len=prompt, bytes_per_number=4, activations=True)
    assert found.activations_bytes == 4 * by_hand(batch * prompt, seen.moved)
    with torch.no_grad(), _LinearMaps() as seen:
        model.logits(model.hidden(_tokens(batch, 1), cache=cache))
    step = decode_pass(config, batch_size=batch, context_len=prompt + 1, bytes_per_number=4, activations=True)
    assert step.activations_bytes == 4 * by_hand(batch, seen.moved)
    assert step.weights_bytes == found.weights_bytes == 4 * params(config).matmul
    for one_pass, n_kept in ((found, prompt), (step, prompt + 1)):
        assert one_pass.cache_bytes == model.make_cache(batch, n_kept).n_bytes
    assert step.moved_bytes == step.weights_bytes + step.cache_bytes + step.activations_bytes


def test_one_row_decodes_at_one_flop_a_byte_in_bf16_and_a_batch_at_its_size() -> None:
    # A weight of two bytes does two FLOPs for each row: so B FLOPs a byte, while the cache is small.
    for batch in (1, 8, 64):
        found = decode_pass("llama-3.1-8b", batch_size=batch, context_len=1)
        assert found.intensity == pytest.approx(batch, rel=0.01)


def test_a_long_context_stops_the_batch_from_helping() -> None:
    # Four query heads share one key and one value of two bytes a number: 4 · 4 FLOPs for 4 bytes, ever.
    for batch in (1, 4096):
        found = decode_pass("llama-3.1-8b", batch_size=batch, context_len=131_072)
        attention = found.flops.parts["attention scores"] + found.flops.parts["attention-weighted values"]
        assert attention / found.cache_bytes == 32 / 8
    assert found.intensity < 5 < 0.01 * decode_pass("llama-3.1-8b", batch_size=4096, context_len=1).intensity


def test_prefill_is_bound_by_arithmetic_and_decoding_by_memory_on_an_h100() -> None:
    device = require_accelerator("h100-sxm")
    peak, bandwidth = device.peak_flops["bf16"], device.bandwidth_bytes_per_s
    read = prefill_pass("llama-3.1-8b", batch_size=1, seq_len=2048, activations=True)
    step = decode_pass("llama-3.1-8b", batch_size=1, context_len=2048, activations=True)
    assert read.seconds(peak, bandwidth) == read.flops.total / peak
    assert step.seconds(peak, bandwidth) == step.moved_bytes / bandwidth
    assert attainable_flops(read.intensity, peak, bandwidth) == peak
    assert attainable_flops(step.intensity, peak, bandwidth) == step.intensity * bandwidth < peak / 100


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: prefill_flops("bert-base-uncased", batch_size=1, seq_len=8), "EncoderConfig writes nothing"),
        (lambda: prefill_flops("vit-b-16", batch_size=1, seq_len=8), "got VisionConfig"),
        (lambda: prefill_flops("gpt2", batch_size=1, seq_len=1025), "seq_len=1025 exceeds"),
        (lambda: prefill_flops("gpt2", batch_size=0, seq_len=8), "batch_size must be a whole number"),
        (lambda: decode_flops("gpt2", batch_size=1, context_len=1025), "context_len=1025 exceeds"),
        (lambda: decode_flops("gpt2", batch_size=1, context_len=3, n_new=4), "n_new=4 tokens are more"),
        (lambda: decode_flops("gpt2", batch_size=1, context_len=3, source_len=4), "source_len=4 is for"),
        (lambda: decode_flops("t5-small", batch_size=1, context_len=3), "source_len is missing"),
        (lambda: kv_cache_bytes("gpt2", batch_size=1, seq_len=8, bytes_per_number=0), "bytes_per_number"),
        (lambda: prefill_pass("t5-small", batch_size=1, seq_len=8), "for decoders only.*prefill_flops"),
        (lambda: decode_pass("gpt2", batch_size=1, context_len=8, activations=1), "activations must be true"),
        (lambda: attainable_flops(0, 1e12, 1e9), "intensity must be a finite number above 0"),
        (
            lambda: decode_pass("gpt2", batch_size=1, context_len=8).seconds(1e12, -1),
            "bandwidth_bytes_per_s must be",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_generated_is_refused_by_name(call: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        call()


def test_a_cache_of_four_bits_is_an_eighth_of_one_in_fp32() -> None:
    shape: dict[str, Any] = {"batch_size": 3, "seq_len": 100}
    full = kv_cache_bytes("gpt2", **shape, bytes_per_number=4)
    assert kv_cache_bytes("gpt2", **shape, bytes_per_number=0.5) * 8 == full


def test_a_source_is_read_once_and_kept() -> None:
    config = EncoderDecoderConfig(n_layers=2, d_model=32, n_heads=4, d_head=8, d_ff=64, vocab_size=80)
    first = decode_flops(config, batch_size=1, context_len=1, source_len=50)
    read = prefill_flops(config, batch_size=1, seq_len=50)
    assert first.parts["across: keys, values"] == 0
    assert read.parts["across: keys, values"] == 2 * 2 * 50 * 32 * 2 * 4 * 8
    assert read.total > 10 * first.total


@pytest.mark.parametrize("bytes_per_number", [0.1, 0.5, 0.6, 1, 2])
def test_a_pass_moves_the_cache_that_there_is_whatever_a_number_takes(bytes_per_number: float) -> None:
    config = DecoderConfig(n_layers=1, d_model=2, n_heads=1, vocab_size=9, seq_len=1000)
    step = decode_pass(config, batch_size=8, context_len=1000, bytes_per_number=bytes_per_number)
    room = kv_cache_bytes(config, batch_size=8, seq_len=1000, bytes_per_number=bytes_per_number)
    assert step.cache_bytes == room == round(32_000 * bytes_per_number)
