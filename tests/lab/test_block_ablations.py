"""Ablated decoders are the decoder but for one thing, and what is measured through the depth is there."""

from __future__ import annotations

import math

import pytest
import torch

from scalelab.core.config import DecoderConfig
from scalelab.core.errors import ConfigError
from scalelab.lab.transformers.ablations import Ablation, ablated, depth_profile
from scalelab.models import Decoder, residual_stream

CONFIG = DecoderConfig(n_layers=3, d_model=16, n_heads=2, vocab_size=40, seq_len=12, positions="rope")
POST = Ablation(config={"norm_position": "post"})


def draw_tokens() -> tuple[torch.Tensor, torch.Tensor]:
    text = torch.randint(0, 40, (3, 13), generator=torch.Generator().manual_seed(1))
    return text[:, :-1], text[:, 1:]


def test_nothing_ablated_is_the_decoder_itself() -> None:
    tokens, _ = draw_tokens()
    assert torch.equal(ablated(CONFIG, Ablation(), seed=3)(tokens), Decoder(CONFIG, seed=3)(tokens))


def test_without_residual_a_stack_is_its_parts_one_after_another() -> None:
    tokens, _ = draw_tokens()
    model = ablated(CONFIG, Ablation(residual=False), seed=0)
    x = model.embed(tokens, torch.arange(12), 0)
    from scalelab.models.attention import Sight
    from scalelab.models.positions import rope_tables

    sight = Sight(True, None, rope_tables(CONFIG, torch.arange(12)))
    for block in model.blocks:
        x = block.attention(block.attention_norm(x), sight)
        x = block.feed_forward(block.feed_forward_norm(x))
    assert torch.allclose(model.hidden(tokens), model.final_norm(x), atol=1e-6)


def test_without_norms_doubling_the_stream_is_seen() -> None:
    model = ablated(CONFIG, Ablation(norms=False), seed=0)
    assert not any("norm" in name for name, _ in model.named_parameters())
    tokens, _ = draw_tokens()
    stream = residual_stream(model, tokens)
    assert torch.equal(model.hidden(tokens), stream[-1])


def test_unscaled_scores_are_the_scaled_ones_of_larger_queries() -> None:
    tokens, _ = draw_tokens()
    model, plain = ablated(CONFIG, Ablation(scale_scores=False), seed=0), Decoder(CONFIG, seed=0)
    with torch.no_grad():
        for block in plain.blocks:
            block.attention.qkv.weight[:16] *= math.sqrt(8)  # queries, times √K
    assert torch.allclose(model(tokens), plain(tokens), atol=1e-6)


@pytest.mark.parametrize(
    ("start", "qkv", "out"), [("flat", 0.02, 0.02), ("large", 0.2, 0.2), ("scaled", 0.02, 0.02 / 6**0.5)]
)
def test_first_weights_have_the_sizes_that_they_are_said_to_have(start: str, qkv: float, out: float) -> None:
    wide = DecoderConfig(n_layers=3, d_model=128, n_heads=2, vocab_size=40, seq_len=12)
    model = ablated(wide, Ablation(start=start), seed=0)  # type: ignore[arg-type]
    for block in model.blocks:
        assert float(block.attention.qkv.weight.detach().std()) == pytest.approx(qkv, rel=0.03)
        assert float(block.attention.out.weight.detach().std()) == pytest.approx(out, rel=0.03)


def test_a_fan_in_start_keeps_the_size_of_what_goes_through_a_map() -> None:
    wide = DecoderConfig(n_layers=2, d_model=256, n_heads=2, vocab_size=40, seq_len=12)
    for ablation in (Ablation(start="fan_in"), Ablation(start="fan_in", config={"norm_position": "post"})):
        model = ablated(wide, ablation, seed=0)
        x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
        for layer in (model.blocks[0].attention.qkv, model.blocks[1].feed_forward.up):
            assert float(layer(x).detach().std()) == pytest.approx(1.0, rel=0.05)
        assert float(model.token_embedding.weight.detach().std()) == pytest.approx(0.02, rel=0.05)


def test_ablations_without_a_meaning_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="post"):
        ablated(CONFIG, Ablation(config={"norm_position": "post"}, residual=False), seed=0)
    with pytest.raises(ConfigError, match="no field 'norm_place'"):
        ablated(CONFIG, Ablation(config={"norm_place": "post"}), seed=0)
    with pytest.raises(ConfigError, match="start must be one of"):
        Ablation(start="zero")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="residual must be true or false"):
        Ablation(residual="no")  # type: ignore[arg-type]


@pytest.mark.parametrize("ablation", [Ablation(), POST, Ablation(residual=False), Ablation(norms=False)])
def test_a_depth_profile_measures_the_stream_that_residual_stream_returns(ablation: Ablation) -> None:
    tokens, targets = draw_tokens()
    model = ablated(CONFIG, ablation, seed=0)
    found = depth_profile(model, tokens, targets)
    by_block = residual_stream(model, tokens).square().mean((1, 2, 3)).sqrt()
    assert found.stream[::2] == pytest.approx(by_block.tolist(), rel=1e-4)
    assert len(found.stream) == len(found.gradient) == len(found.alike) == 7
    assert len(found.added) == 6
    assert all(parameter.grad is None for parameter in model.parameters())
    assert found.loss_nats == pytest.approx(float(model.loss(tokens, targets).detach()), rel=1e-6)


def test_a_depth_profiles_gradient_is_that_of_finite_differences() -> None:
    tokens, targets = draw_tokens()
    model = ablated(CONFIG, Ablation(start="large"), seed=0).double()
    found = depth_profile(model, tokens, targets)
    direction = torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    moved = []
    for step in (1e-5, -1e-5):
        hook = model.blocks[0].register_forward_pre_hook(
            lambda _, inputs, step=step: (inputs[0] + step * direction, *inputs[1:])
        )
        moved.append(float(model.loss(tokens, targets).detach()))
        hook.remove()
    slope = (moved[0] - moved[1]) / 2e-5  # g · direction, whose standard deviation is |g|
    norm = found.gradient[0] / tokens.numel() * math.sqrt(direction.numel())
    assert 0 < abs(slope) < 4 * norm


def test_tokens_that_cannot_be_told_apart_are_alike() -> None:
    tokens = torch.full((2, 12), 7)
    found = depth_profile(Decoder(CONFIG, seed=0), tokens, tokens)
    assert found.alike == pytest.approx([1.0] * 7, abs=1e-5)  # one token everywhere: rotation turns no values
