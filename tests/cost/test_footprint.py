"""Bytes of a training step, against what torch keeps: saved tensors, optimiser state, measured peak."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from scalelab.core.config import DecoderConfig
from scalelab.core.errors import ConfigError
from scalelab.cost import Memory, count_params, memory
from scalelab.models import Decoder

GPT = {"d_model": 64, "n_heads": 4, "vocab_size": 300, "seq_len": 64}
LLAMA = {
    **GPT, "n_kv_heads": 2, "norm": "rmsnorm", "positions": "rope", "feed_forward": "swiglu",
    "attention_bias": False, "feed_forward_bias": False, "tie_embeddings": False,
}  # fmt: skip
NEOX = {
    **GPT, "positions": "rope", "rope_fraction": 0.25, "feed_forward": "gelu", "parallel_residual": True,
}  # fmt: skip


# What the decoder does on a CPU: see scalelab.models.attention.
KERNEL = {"fp32": "fused", "bf16": "plain"}


def _batch(config: DecoderConfig, batch_size: int, seq_len: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (batch_size, seq_len + 1), generator=generator)
    return tokens[:, :-1].clone(), tokens[:, 1:].clone()


def _saved_for_backward(
    config: DecoderConfig, batch_size: int, seq_len: int, precision: str
) -> tuple[int, int]:
    """Bytes of storages that autograd keeps, each once, parameters left out: activations, weights' copies.

    Under autocast a matrix is kept as a transposed 16-bit copy: two-dimensional, and as large as a weight.
    """
    model = Decoder(config, seed=0)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    copied_shapes = {(p.shape[1], p.shape[0]) for p in model.parameters() if p.ndim == 2}
    kept: dict[int, torch.Tensor] = {}  # holding the tensors keeps their addresses from being used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    tokens, targets = _batch(config, batch_size, seq_len)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            model.loss(tokens, targets)

    def is_copy(tensor: torch.Tensor) -> bool:
        return tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in copied_shapes

    activations = sum(t.untyped_storage().nbytes() for t in kept.values() if not is_copy(t))
    copies = sum(t.untyped_storage().nbytes() for t in kept.values() if is_copy(t))
    return activations, copies


def _random_decoder(draw: random.Random) -> DecoderConfig:
    heads = draw.choice([2, 4, 6])
    return DecoderConfig(
        n_layers=draw.randint(1, 3),
        d_model=draw.choice([24, 40, 64]),
        n_heads=heads,
        n_kv_heads=draw.choice([1, 2, heads]),
        d_head=draw.choice([8, 16]),
        d_ff=draw.choice([None, 72, 100]),
        vocab_size=draw.randint(50, 200),
        seq_len=48,
        norm=draw.choice(["layernorm", "rmsnorm"]),
        positions=draw.choice(["learned", "sinusoidal", "rope", "none"]),
        rope_fraction=draw.choice([0.25, 0.5, 1.0]),
        rope_skip_every=draw.choice([None, 2, 3]),
        feed_forward=draw.choice(["gelu", "gelu_tanh", "relu", "swiglu"]),
        attention_bias=draw.random() < 0.5,
        feed_forward_bias=draw.random() < 0.5,
        norm_bias=draw.random() < 0.5,
        tie_embeddings=draw.random() < 0.5,
        parallel_residual=draw.random() < 0.5,
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("seed", range(15))
def test_activations_are_what_autograd_keeps_to_the_byte(seed: int, precision: str) -> None:
    draw = random.Random(seed)
    config, batch_size, seq_len = _random_decoder(draw), draw.randint(2, 5), draw.randint(2, 48)
    # Token counts that no width equals, so that no activation has a weight's shape.
    while batch_size * seq_len in {p.shape[i] for p in Decoder(config, device="meta").parameters()
                                   for i in range(p.ndim)}:  # fmt: skip
        seq_len = seq_len % 48 + 1
    predicted = memory(
        config, batch_size=batch_size, seq_len=seq_len, precision=precision, attention=KERNEL[precision]
    )
    activations, copies = _saved_for_backward(config, batch_size, seq_len, precision)
    assert predicted.activations_bytes == activations
    assert predicted.weights_bytes == 4 * count_params(config) + copies
    assert sum(predicted.activation_parts.values()) == predicted.activations_bytes


@pytest.mark.parametrize("shape", [GPT, LLAMA, NEOX], ids=["gpt", "llama", "neox"])
def test_fused_attention_in_bf16_keeps_what_is_counted_to_the_byte(shape: dict[str, Any]) -> None:
    config = DecoderConfig(n_layers=2, **{**shape, "d_model": 32, "vocab_size": 70, "seq_len": 1024})
    predicted = memory(config, batch_size=2, seq_len=1024, precision="bf16", attention="fused")
    activations, copies = _saved_for_backward(config, 2, 1024, "bf16")
    assert predicted.activations_bytes == activations
    assert predicted.weights_bytes == 4 * count_params(config) + copies


def test_plain_attention_costs_four_times_as_much_more_for_twice_the_tokens() -> None:
    def more(seq_len: int) -> int:
        kept = {
            kernel: memory("gpt2", batch_size=2, seq_len=seq_len, attention=kernel).activations_bytes
            for kernel in ("fused", "plain")
        }
        return kept["plain"] - kept["fused"]

    assert more(1024) / more(512) == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize(
    ("optimizer", "make"),
    [
        ("adamw", lambda p: torch.optim.AdamW(p)),
        ("momentum", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.1)),
    ],
)
@pytest.mark.parametrize("shape", [GPT, LLAMA, NEOX], ids=["gpt", "llama", "neox"])
def test_gradients_and_optimizer_state_are_what_torch_holds(
    shape: dict[str, Any], optimizer: str, make: Any
) -> None:
    config = DecoderConfig(n_layers=2, **shape)
    model = Decoder(config, seed=0)
    stepper = make(model.parameters())
    model.loss(*_batch(config, 1, 8)).backward()
    stepper.step()
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    # One-element step counters, four bytes for each tensor of parameters, are left out.
    state = sum(
        value.nbytes
        for held in stepper.state.values()
        for value in held.values()
        if torch.is_tensor(value) and value.ndim
    )
    predicted = memory(config, batch_size=1, seq_len=8, optimizer=optimizer)
    assert predicted.gradients_bytes == gradients
    assert predicted.optimizer_bytes == state


def _measured_peak(
    config: DecoderConfig, batch_size: int, seq_len: int, precision: str, accumulate: int
) -> int:
    """Bytes of tensors at the highest point of one step, from the profiler's record of every allocation."""
    model = Decoder(config, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens, targets = _batch(config, batch_size, seq_len)

    def step() -> None:
        for _ in range(accumulate):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = model.loss(tokens, targets)
            loss.backward()
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


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("shape", [GPT, LLAMA], ids=["gpt", "llama"])
def test_peak_is_what_a_step_is_measured_to_hold_to_two_per_cent(
    shape: dict[str, Any], batch_size: int, precision: str, accumulate: int
) -> None:
    config = DecoderConfig(n_layers=3, **shape)
    predicted = memory(
        config, batch_size=batch_size, seq_len=64, precision=precision, accumulate=accumulate,
        attention=KERNEL[precision],
    ).peak_bytes  # fmt: skip
    assert predicted == pytest.approx(_measured_peak(config, batch_size, 64, precision, accumulate), rel=0.02)


def test_the_four_kinds_add_up_and_grow_with_what_they_depend_on() -> None:
    def of(**change: Any) -> Memory:
        return memory("gpt2", **{"batch_size": 4, "seq_len": 1024, **change})

    base = of()
    kinds = (base.weights_bytes, base.gradients_bytes, base.optimizer_bytes, base.activations_bytes)
    assert base.total_bytes == sum(kinds)
    assert of(batch_size=8).activations_bytes == pytest.approx(2 * base.activations_bytes, rel=1e-6)
    assert of(batch_size=8).weights_bytes == base.weights_bytes
    assert of(optimizer="sgd").optimizer_bytes == 0
    assert of(precision="fp16") == of(precision="bf16")


def test_adamw_in_fp32_needs_sixteen_bytes_a_parameter_before_any_activation() -> None:
    # Rajbhandari et al. 2019 (ZeRO), arXiv:1910.02054, section 3.1, counts 16 for mixed precision as well.
    found = memory("llama-2-7b", batch_size=1, seq_len=128)
    assert found.weights_bytes + found.gradients_bytes + found.optimizer_bytes == 16 * 6_738_415_616


def test_log_probabilities_are_most_of_what_a_small_model_with_a_large_vocabulary_keeps() -> None:
    small = DecoderConfig(n_layers=4, d_model=128, n_heads=4, vocab_size=50_257, seq_len=128)
    kept = memory(small, batch_size=32, seq_len=128)
    assert kept.activation_parts["log-probabilities"] > 0.8 * kept.activations_bytes


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"precision": "int8"}, "precision must be one of fp32, bf16, fp16; got 'int8'"),
        ({"optimizer": "adam"}, "optimizer must be one of adamw, momentum, sgd; got 'adam'"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"seq_len": 4096}, "seq_len=4096 exceeds"),
        ({"accumulate": 0}, "accumulate must be a whole number"),
        ({"attention": "flash"}, "attention must be one of fused, plain; got 'flash'"),
    ],
)
def test_impossible_steps_are_refused_by_name(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        memory("gpt2", **{"batch_size": 1, "seq_len": 16, **change})
