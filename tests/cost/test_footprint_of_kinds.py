"""Bytes kept for backward by encoders, encoder–decoders and decoders with masks, against saved tensors."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from scalelab.core.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from scalelab.core.errors import ConfigError
from scalelab.cost import count_params, memory
from scalelab.models import Decoder, Encoder, EncoderDecoder

KERNEL = {"fp32": "fused", "bf16": "plain"}  # what the models do on a CPU
MODELS: dict[str, Any] = {"decoder": Decoder, "encoder": Encoder, "encoder-decoder": EncoderDecoder}
SMALL: dict[str, Any] = {"n_layers": 2, "d_model": 32, "n_heads": 4, "d_ff": 52, "vocab_size": 70}


def _tokens(config: Any, batch_size: int, n_tokens: int, generator: torch.Generator) -> Tensor:
    return torch.randint(1, config.vocab_size, (batch_size, n_tokens), generator=generator)


def _loss(model: nn.Module, batch_size: int, seq_len: int, target_len: int) -> Callable[[], Tensor]:
    """A step's loss, with everything that the config has taking part; tokens are made beforehand."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    read = _tokens(config, batch_size, seq_len, generator)
    if not isinstance(model, Encoder):
        n_targets = target_len if isinstance(model, EncoderDecoder) else seq_len
        targets = _tokens(config, batch_size, n_targets, generator)
        return lambda: model.loss(read, targets)  # type: ignore[operator, no-any-return]
    targets = _tokens(config, batch_size, seq_len, generator)
    follows = torch.randint(2, (batch_size,), generator=generator)
    segments = torch.zeros_like(read) if model.config.nsp_head else None

    def run() -> Tensor:
        hidden = model.hidden(read, segments)
        losses: list[Any] = []
        if model.config.mlm_head:
            flat = model.logits(hidden).flatten(0, 1).float()
            losses.append(F.cross_entropy(flat, targets.flatten()))
        if model.config.nsp_head:
            losses.append(F.cross_entropy(model.follows_logits(hidden).float(), follows))
        elif model.config.pooler:
            losses.append(model.pooled(hidden).sum())
        return sum(losses) if losses else hidden.sum()  # type: ignore[return-value]

    return run


def _saved_for_backward(model: nn.Module, run: Callable[[], Tensor], precision: str) -> tuple[int, int]:
    """Bytes of storages that autograd keeps, each once, parameters left out: activations, weights' copies."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    copied_shapes = {(p.shape[1], p.shape[0]) for p in model.parameters() if p.ndim == 2}
    kept: dict[int, Tensor] = {}  # holding the tensors keeps their addresses from being used again

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            run()

    def is_copy(tensor: Tensor) -> bool:
        return tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in copied_shapes

    activations = sum(t.untyped_storage().nbytes() for t in kept.values() if not is_copy(t))
    copies = sum(t.untyped_storage().nbytes() for t in kept.values() if is_copy(t))
    return activations, copies


def _check(config: Any, kind: str, precision: str, attention: str, shape: tuple[int, int, int]) -> None:
    batch_size, seq_len, target_len = shape
    model = MODELS[kind](config, seed=0)
    lengths = {"target_len": target_len} if kind == "encoder-decoder" else {}
    predicted = memory(
        config, batch_size=batch_size, seq_len=seq_len, precision=precision, attention=attention, **lengths
    )
    activations, copies = _saved_for_backward(model, _loss(model, *shape), precision)
    assert predicted.activations_bytes == activations == sum(predicted.activation_parts.values())
    assert predicted.weights_bytes == 4 * count_params(config) + copies


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("seed", range(25))
def test_activations_are_what_autograd_keeps_to_the_byte(
    seed: int, kind: str, precision: str, random_config: Any
) -> None:
    draw = random.Random(seed)
    config = random_config(kind, draw)
    widths = {size for p in MODELS[kind](config, device="meta").parameters() for size in p.shape}
    while True:  # token counts that no width equals, so that no activation has a weight's shape
        shape = (draw.randint(2, 5), draw.randint(3, 48), draw.randint(3, 40))
        if not widths & {shape[0] * shape[1], shape[0] * shape[2]}:
            break
    _check(config, kind, precision, KERNEL[precision], shape)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("encoder", EncoderConfig(**SMALL, seq_len=1024, mlm_head=True, nsp_head=True)),
        ("encoder-decoder", EncoderDecoderConfig(**SMALL, d_head=8)),
        ("encoder-decoder", EncoderDecoderConfig(**SMALL, d_head=8, positions="rope", norm_position="post")),
        ("decoder", DecoderConfig(**SMALL, seq_len=1024, positions="alibi", norm_position="post")),
    ],
    ids=["bert", "t5", "rope-post", "alibi-post"],
)
def test_long_texts_in_bf16_keep_what_is_counted_to_the_byte(kind: str, config: Any) -> None:
    _check(config, kind, "bf16", "fused", (2, 1024, 1024))


def test_t5s_relative_positions_cost_it_the_fused_kernel() -> None:
    def kept(positions: Any, seq_len: int) -> int:
        config = EncoderDecoderConfig(**SMALL, d_head=8, positions=positions)
        return memory(config, batch_size=2, seq_len=seq_len).activations_bytes

    def more(seq_len: int) -> int:
        return kept("relative", seq_len) - kept("none", seq_len)

    assert more(2048) / more(1024) == pytest.approx(4, rel=0.01)


def test_an_encoder_that_is_asked_at_every_place_keeps_mostly_log_probabilities() -> None:
    config = EncoderConfig(
        n_layers=12, d_model=768, n_heads=12, d_ff=3072, vocab_size=30_522, mlm_head=True, pooler=False
    )
    kept = memory(config, batch_size=32, seq_len=128)
    assert kept.activation_parts["log-probabilities"] == 4 * 32 * 128 * 30_522 + 4
    none = memory("bert-base-uncased", batch_size=32, seq_len=128)
    assert "log-probabilities" not in none.activation_parts


def _measured_peak(model: nn.Module, run: Callable[[], Tensor]) -> int:
    """Bytes of tensors at the highest point of one step, from the profiler's record of every allocation."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        run().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()  # makes the optimiser's state
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    before = sum(p.nbytes for p in model.parameters())
    before += sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    return before + highest


@pytest.mark.parametrize("batch_size", [2, 16])
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (
            "encoder",
            EncoderConfig(n_layers=3, d_model=64, n_heads=4, d_ff=256, vocab_size=300, mlm_head=True),
        ),
        (
            "encoder-decoder",
            EncoderDecoderConfig(n_layers=2, d_model=64, n_heads=4, d_head=16, d_ff=256, vocab_size=300),
        ),
        (
            "encoder-decoder",
            EncoderDecoderConfig(
                n_layers=2, d_model=64, n_heads=4, d_head=16, d_ff=256, vocab_size=300, positions="rope"
            ),
        ),
    ],
    ids=["bert", "t5", "rope"],
)
def test_peak_is_what_a_step_is_measured_to_hold_to_a_few_per_cent(
    kind: str, config: Any, batch_size: int
) -> None:
    model = MODELS[kind](config, seed=0)
    measured = _measured_peak(model, _loss(model, batch_size, 64, 64))
    assert memory(config, batch_size=batch_size, seq_len=64).peak_bytes == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("vit-b-16", {}, r"memory can be counted for .*only, got VisionConfig.*count_params"),
        ("bert-base-uncased", {"seq_len": 513}, "seq_len=513 exceeds"),
        ("bert-base-uncased", {"target_len": 8}, "target_len=8 is for encoder–decoders"),
        ("t5-small", {"target_len": 0}, "target_len must be a whole number"),
        ("t5-small", {"attention": "flash"}, "attention must be one of fused, plain; got 'flash'"),
    ],
)
def test_impossible_steps_are_refused_by_name(name: str, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        memory(name, **{"batch_size": 1, "seq_len": 16, **change})
