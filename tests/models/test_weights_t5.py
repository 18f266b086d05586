"""Encoder–decoders are T5's: equal outputs and gradients, far distances included, and the way back."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from scalelab.core.config import EncoderDecoderConfig
from scalelab.core.errors import WeightsError
from scalelab.models import EncoderDecoder, from_transformers, to_transformers, weights_t5

transformers = pytest.importorskip("transformers")

T5 = {"num_layers": 2, "d_model": 24, "d_kv": 8, "num_heads": 3, "d_ff": 40, "vocab_size": 53,
      "dropout_rate": 0.0, "pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": None}  # fmt: skip


def random_t5(seed: int) -> dict[str, Any]:
    pick = random.Random(seed)
    return T5 | {
        "num_layers": pick.randint(1, 3),
        "num_heads": pick.choice([1, 2, 3, 5]),
        "d_kv": pick.choice([3, 8, 11]),
        "d_model": pick.choice([10, 24, 33]),
        "d_ff": pick.choice([7, 32, 51]),
        "vocab_size": pick.randint(30, 90),
        "relative_attention_num_buckets": pick.choice([8, 20, 32]),
        "relative_attention_max_distance": pick.choice([20, 128]),
        "feed_forward_proj": pick.choice(["relu", "relu", "gelu", "gelu_new"]),
        "layer_norm_epsilon": pick.choice([1e-6, 1e-3]),
    }


# Each with or without the shrinking before the head, and with a head of its own or the table.
CASES = [(random_t5(seed), seed % 4 != 1, seed % 4 < 2) for seed in range(10)]


def make(settings: dict[str, Any], scaled: bool = True, tied: bool = True) -> Any:
    """A T5 with random weights, norms and positions, all large enough to matter, small enough for fp32."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.T5Config(**settings, tie_word_embeddings=scaled)
        model = transformers.T5ForConditionalGeneration(config)
        if not tied:
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "relative" in name or "norm" in name:
                    parameter.copy_(torch.randn_like(parameter) * 0.5 + ("norm" in name))
                else:
                    parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def inputs_for(vocab_size: int, n_source: int, n_target: int) -> tuple[torch.Tensor, ...]:
    """A source padded on the right, on the left and not at all, and a target; no token is the filling."""
    draw = torch.Generator().manual_seed(3)
    source = torch.randint(1, vocab_size, (3, n_source), generator=draw)
    target = torch.randint(1, vocab_size, (3, n_target), generator=draw)
    places = torch.arange(n_source)
    padding = torch.stack([places < n_source - 5, places >= 4, places >= 0])
    return source, target, padding


def assert_same_outputs(ours: EncoderDecoder, theirs: Any, n_source: int, n_target: int) -> None:
    source, target, padding = inputs_for(ours.config.vocab_size, n_source, n_target)
    found = ours(source, target, source_padding=padding)
    want = theirs(input_ids=source, attention_mask=padding.long(), decoder_input_ids=target).logits
    torch.testing.assert_close(found, want, rtol=1e-5, atol=2e-5)
    whole = theirs(input_ids=source, decoder_input_ids=target).logits
    torch.testing.assert_close(ours(source, target), whole, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("settings", "scaled", "tied"), CASES)
def test_logits_and_gradients_equal_t5s(settings: dict[str, Any], scaled: bool, tied: bool) -> None:
    theirs = make(settings, scaled, tied)
    ours = from_transformers(theirs)
    assert isinstance(ours, EncoderDecoder)
    assert (ours.config.scale_head, ours.config.tie_embeddings) == (scaled, tied)
    assert_same_outputs(ours, theirs, 23, 13)
    source, target, padding = inputs_for(ours.config.vocab_size, 23, 13)
    target[1, 9:] = -100
    source = source.masked_fill(~padding, ours.config.pad_id)
    found = ours.loss(source, target)
    want = theirs(input_ids=source, attention_mask=padding.long(), labels=target).loss
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)
    found.backward()
    want.backward()
    named = theirs.named_parameters(remove_duplicate=False)
    carried = weights_t5.read_weights({name: p.grad for name, p in named}, ours.config)
    assert set(carried) == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad - carried[name]).norm() <= 1e-5 * carried[name].norm(), name


@pytest.mark.parametrize("max_distance", [40, 128])
def test_distances_beyond_the_last_bucket_equal_t5s(max_distance: int) -> None:
    theirs = make(T5 | {"num_layers": 1, "relative_attention_max_distance": max_distance})
    assert_same_outputs(from_transformers(theirs), theirs, 171, 150)


def test_a_padded_target_equals_t5s_where_it_holds_tokens() -> None:
    theirs = make(T5)
    ours = from_transformers(theirs)
    source, target, padding = inputs_for(53, 12, 9)
    written = torch.arange(9) < torch.tensor([9, 5, 1])[:, None]
    found = ours(source, target, source_padding=padding, target_padding=written)
    want = theirs(
        input_ids=source,
        attention_mask=padding.long(),
        decoder_input_ids=target,
        decoder_attention_mask=written.long(),
    ).logits
    torch.testing.assert_close(found[written], want[written], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("settings", "scaled", "tied"), CASES)
def test_round_trip_writes_back_the_same_tensors_and_logits(
    settings: dict[str, Any], scaled: bool, tied: bool
) -> None:
    theirs = make(settings, scaled, tied)
    back = to_transformers(from_transformers(theirs))
    want, found = theirs.state_dict(), back.state_dict()
    assert set(want) == set(found)
    assert all(torch.equal(want[name], found[name]) for name in want)
    assert (back.lm_head.weight is back.shared.weight) == tied
    source, target, _ = inputs_for(settings["vocab_size"], 23, 13)
    torch.testing.assert_close(
        back(input_ids=source, decoder_input_ids=target).logits,
        theirs(input_ids=source, decoder_input_ids=target).logits,
    )


@pytest.mark.parametrize(("scaled", "tied"), [(True, True), (False, False)])
def test_a_saved_t5_is_read_by_its_path_and_written_to_one(scaled: bool, tied: bool, tmp_path: Path) -> None:
    theirs = make(T5, scaled, tied)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = from_transformers(tmp_path / "theirs")
    assert (ours.config.scale_head, ours.config.tie_embeddings) == (scaled, tied)
    assert_same_outputs(ours, theirs, 12, 9)
    to_transformers(ours).save_pretrained(tmp_path / "ours")
    again = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert_same_outputs(ours, again, 12, 9)


def test_an_encoder_decoder_trained_here_is_written_to_transformers() -> None:
    config = EncoderDecoderConfig(n_layers=2, d_model=24, n_heads=3, d_head=6, d_ff=40, vocab_size=50)
    ours = EncoderDecoder(config, seed=0)
    assert_same_outputs(ours, to_transformers(ours).eval(), 12, 9)


UNSUPPORTED = [
    ({"feed_forward_proj": "gated-gelu"}, "feed_forward_proj='gated-gelu'"),
    ({"num_decoder_layers": 3}, "num_decoder_layers=3"),
    ({"decoder_start_token_id": 7}, "decoder_start_token_id=7"),
    ({"pad_token_id": None}, "pad_token_id=None"),
]


@pytest.mark.parametrize(("change", "message"), UNSUPPORTED)
def test_what_an_encoder_decoder_cannot_compute_is_refused_by_name(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = transformers.T5Config(**T5 | change)
    with torch.device("meta"):
        model = transformers.T5ForConditionalGeneration(config)
    with pytest.raises(WeightsError, match=message):
        from_transformers(model)
    config.save_pretrained(tmp_path)  # by path it is refused from its config, before weights are read
    with pytest.raises(WeightsError, match=message):
        from_transformers(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": "rope"}, "positions='relative'"),
        ({"norm": "layernorm"}, "norm='rmsnorm'"),
        ({"norm_position": "post"}, "norm_position='pre'"),
        ({"scale_scores": True}, "scale_scores=False"),
        ({"attention_bias": True}, "attention_bias=False"),
        ({"feed_forward": "swiglu"}, "feed_forward one of"),
    ],
)
def test_an_encoder_decoder_that_is_no_t5_is_not_written(change: dict[str, Any], message: str) -> None:
    config = EncoderDecoderConfig(n_layers=1, d_model=8, n_heads=2, d_head=4, d_ff=8, vocab_size=9, **change)
    with pytest.raises(WeightsError, match=message):
        to_transformers(EncoderDecoder(config, seed=0))


def test_a_t5_of_two_types_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """The library keeps some of its weights in fp32 where it loads the rest in fp16, and casts in between."""
    make(T5).save_pretrained(tmp_path)
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float16)
    assert len({parameter.dtype for parameter in theirs.parameters()}) == 2
    with pytest.raises(WeightsError, match=r"torch\.float16 and torch\.float32: load it .*float\(\)"):
        from_transformers(theirs)
    theirs = theirs.float()
    assert_same_outputs(from_transformers(theirs), theirs, 12, 9)


def test_stacks_with_tables_of_their_own_are_refused_without_a_way_out_that_leads_nowhere() -> None:
    theirs = make(T5)
    theirs.encoder.embed_tokens = torch.nn.Embedding(53, 24)
    with pytest.raises(WeightsError, match=r"encoder\.embed_tokens.* this model cannot be read") as caught:
        from_transformers(theirs)
    assert "tie_word_embeddings" not in str(caught.value)
