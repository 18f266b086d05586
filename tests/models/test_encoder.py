"""Encoders and encoder–decoders as models: seeds, heads, what they refuse, and where training starts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from scalelab.core.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from scalelab.core.errors import ConfigError, DataError
from scalelab.models import Encoder, EncoderDecoder

ENCODER = EncoderConfig(
    n_layers=2, d_model=32, n_heads=4, d_ff=64, vocab_size=97, seq_len=16, mlm_head=True, nsp_head=True
)
BOTH = EncoderDecoderConfig(n_layers=2, d_model=32, n_heads=4, d_head=8, d_ff=64, vocab_size=97)
MODELS: list[tuple[Any, Any]] = [(Encoder, ENCODER), (EncoderDecoder, BOTH)]


def draw_tokens(time: int = 12, batch: int = 3) -> torch.Tensor:
    return torch.randint(1, 97, (batch, time), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("cls", "config"), MODELS)
def test_the_seed_alone_decides_the_weights(cls: Any, config: Any) -> None:
    state = torch.get_rng_state()
    one, again, other = cls(config, seed=3), cls(config, seed=3), cls(config, seed=4)
    assert torch.equal(state, torch.get_rng_state())
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert not torch.equal(one.token_embedding.weight, other.token_embedding.weight)


@pytest.mark.parametrize(("cls", "config"), MODELS)
def test_on_meta_there_are_shapes_and_no_weights(cls: Any, config: Any) -> None:
    shapes = {name: tensor.shape for name, tensor in cls(config, seed=0).state_dict().items()}
    empty = cls(config, device="meta").state_dict()
    assert {name: tensor.shape for name, tensor in empty.items()} == shapes
    assert all(tensor.device.type == "meta" for tensor in empty.values())


@pytest.mark.parametrize(("cls", "config"), MODELS)
def test_another_kinds_config_and_other_seeds_are_refused(cls: Any, config: Any) -> None:
    decoder = DecoderConfig(n_layers=1, d_model=8, n_heads=2, vocab_size=9, seq_len=8)
    with pytest.raises(ConfigError, match="got DecoderConfig"):
        cls(decoder)
    with pytest.raises(ConfigError, match="seed"):
        cls(config, seed=-1)


@pytest.mark.parametrize(
    "change",
    [{}, {"norm_position": "pre"}, {"positions": "rope"}, {"norm": "rmsnorm", "feed_forward": "swiglu"}],
)
def test_an_encoders_first_loss_is_that_of_a_guess(change: dict[str, Any]) -> None:
    model = Encoder(dataclasses.replace(ENCODER, **change), seed=0)
    tokens = draw_tokens(16, 16)
    assert model.loss(tokens, tokens).item() == pytest.approx(math.log(97), abs=0.1)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"positions": "rope", "norm": "layernorm"},
        {"positions": "sinusoidal", "scale_head": False, "tie_embeddings": False, "norm_position": "post"},
    ],
)
def test_an_encoder_decoders_first_logits_have_unit_variance_as_t5s(change: dict[str, Any]) -> None:
    """Matrices drawn by fan-in: the loss starts half a nat (half that variance) above ln V."""
    model = EncoderDecoder(dataclasses.replace(BOTH, **change), seed=0)
    source, targets = draw_tokens(16, 16), draw_tokens(9, 16)
    with torch.no_grad():
        assert model(source, targets).std().item() == pytest.approx(1.0, abs=0.25)
        assert model.loss(source, targets).item() == pytest.approx(math.log(97) + 0.5, abs=0.3)


def test_smaller_queries_stand_for_the_missing_division() -> None:
    """T5 leaves the √K out of the scores and puts it into the weights that training starts from."""
    divided = EncoderDecoder(dataclasses.replace(BOTH, scale_scores=True), seed=0)
    bare = EncoderDecoder(BOTH, seed=0)
    source, target = draw_tokens(), draw_tokens(7)
    torch.testing.assert_close(bare(source, target), divided(source, target), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("feed_forward", ["gelu", "gelu_tanh", "relu", "swiglu"])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rope", "none"])
def test_every_encoder_runs_and_learns_in_every_parameter(positions: str, feed_forward: str) -> None:
    config = dataclasses.replace(ENCODER, positions=positions, feed_forward=feed_forward)
    model, tokens = Encoder(config, seed=0), draw_tokens()
    segments = (torch.arange(12) > 5).long().expand(3, 12)
    hidden = model.hidden(tokens, segments)
    (model.logits(hidden).square().mean() + model.follows_logits(hidden).square().mean()).backward()
    assert hidden.shape == (3, 12, 32)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_an_encoder_sees_both_ways_and_segments_matter() -> None:
    model, tokens = Encoder(ENCODER, seed=0), draw_tokens()
    changed = tokens.clone()
    changed[:, -1] = 1 + tokens[:, -1] % 96
    assert not torch.allclose(model.hidden(tokens)[:, 0], model.hidden(changed)[:, 0])
    zero, one = torch.zeros_like(tokens), torch.ones_like(tokens)
    assert torch.equal(model.hidden(tokens), model.hidden(tokens, zero))
    assert not torch.allclose(model.hidden(tokens), model.hidden(tokens, one))


def test_a_missing_head_is_named() -> None:
    bare = Encoder(dataclasses.replace(ENCODER, mlm_head=False, nsp_head=False, pooler=False), seed=0)
    hidden = bare.hidden(draw_tokens())
    with pytest.raises(ConfigError, match="no mlm_head"):
        bare(draw_tokens())
    with pytest.raises(ConfigError, match="no pooler"):
        bare.pooled(hidden)
    with pytest.raises(ConfigError, match="no nsp_head"):
        bare.follows_logits(hidden)


UNUSABLE: list[tuple[Any, str]] = [
    (torch.zeros(3, 12), r"int64 or int32, got torch\.float32"),
    (torch.zeros(12).long(), r"\[batch, time\]"),
    (torch.zeros(3, 0).long(), r"\[batch, time\]"),
    (torch.full((3, 12), 97), r"\[0, 97\)"),
    (torch.full((3, 12), -1), r"\[0, 97\)"),
]


@pytest.mark.parametrize(("tokens", "message"), UNUSABLE)
def test_unusable_tokens_are_refused(tokens: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Encoder(ENCODER, seed=0).hidden(tokens)
    both, fine = EncoderDecoder(BOTH, seed=0), draw_tokens()
    with pytest.raises(DataError, match=message):
        both(tokens, fine)
    with pytest.raises(DataError, match=message):
        both(fine, tokens)


def test_more_tokens_than_an_encoder_has_places_for_are_refused() -> None:
    with pytest.raises(DataError, match="17 tokens are more than the model's seq_len=16"):
        Encoder(ENCODER, seed=0).hidden(draw_tokens(17))


def test_the_writing_side_sees_the_source_and_not_its_own_future() -> None:
    model, source, target = EncoderDecoder(BOTH, seed=0), draw_tokens(), draw_tokens(7)
    logits = model(source, target)
    later = target.clone()
    later[:, 4:] = 1 + target[:, 4:] % 96
    torch.testing.assert_close(model(source, later)[:, :4], logits[:, :4])
    assert not torch.allclose(model(source, later)[:, 4:], logits[:, 4:])
    other = source.clone()
    other[:, -1] = 1 + source[:, -1] % 96
    assert not torch.allclose(model(other, target)[:, 0], logits[:, 0])


def test_targets_are_read_one_place_later_behind_the_start_token() -> None:
    model = EncoderDecoder(dataclasses.replace(BOTH, pad_id=5), seed=0)
    targets = torch.tensor([[7, 8, 9], [7, -100, -100]])
    assert model.shift(targets).tolist() == [[5, 7, 8], [5, 7, 5]]


@pytest.mark.parametrize("positions", ["relative", "sinusoidal", "rope", "none"])
def test_writing_token_by_token_equals_writing_at_once(positions: str) -> None:
    model = EncoderDecoder(dataclasses.replace(BOTH, positions=positions), seed=0)
    source, target = draw_tokens(), draw_tokens(7)
    padding = torch.arange(12) < torch.tensor([[12], [7], [1]])
    read = model.read(source, padding=padding, keep=True)
    cache = model.make_cache(3, 7)
    steps = [model.write(target[:, i : i + 1], read, cache=cache) for i in range(7)]
    whole = model.write(target, model.read(source, padding=padding))
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-5, atol=1e-5)


def test_tables_of_relative_positions_start_as_t5s() -> None:
    """They are added to scores of about 1: at the token table's spread they would drown them."""
    transformers = pytest.importorskip("transformers")
    shape = {"d_model": 256, "num_heads": 32, "d_kv": 8, "d_ff": 8, "vocab_size": 99, "num_layers": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**shape))
    config = dataclasses.replace(BOTH, d_model=256, n_heads=32, n_layers=1)
    for tied in (True, False):
        ours = EncoderDecoder(dataclasses.replace(config, tie_embeddings=tied), seed=0)
        for stack in ("encoder", "decoder"):
            table = getattr(theirs, stack).block[0].layer[0].SelfAttention.relative_attention_bias.weight
            found = getattr(
                ours, stack
            ).relative_positions.table.weight  # 1,024 draws: 2 % apart is one sigma
            assert found.std().item() == pytest.approx(table.std().item(), rel=0.15)


def test_a_loss_of_what_are_no_tokens_is_refused_by_name() -> None:
    model, fine = EncoderDecoder(BOTH, seed=0), draw_tokens()
    with pytest.raises(DataError, match=r"source must be a tensor .* got list"):
        model.loss([[1]], fine)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"targets must be a tensor .* got torch\.float32"):
        model.loss(fine, fine.float())
