"""Padded rows say what transformers' say, and what they say alone; unusable masks are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from scalelab.core.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from scalelab.core.errors import DataError
from scalelab.models import Decoder, Encoder, EncoderDecoder, from_transformers, weights_gpt2, weights_llama
from scalelab.models.attention import attend, attention_weights
from scalelab.models.masks import visible

LENGTHS = (11, 7, 1)


def padding_on(side: str, time: int = 11) -> Tensor:
    """True for tokens; rows of 11, 7 and 1 of them."""
    right = torch.arange(time) < torch.tensor(LENGTHS)[:, None]
    return right if side == "right" else right.flip(1)


def draw_tokens(vocab_size: int, time: int = 11) -> Tensor:
    return torch.randint(vocab_size, (3, time), generator=torch.Generator().manual_seed(1))


def shaken(model: Any) -> Any:
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty(parameter.shape).normal_(0, 0.15, generator=draw))
    return model.eval()


def make(kind: str) -> Any:
    transformers = pytest.importorskip("transformers")
    common = {"vocab_size": 37, "bos_token_id": None, "eos_token_id": None}
    if kind == "gpt2":
        config = transformers.GPT2Config(
            n_layer=2, n_embd=30, n_head=3, n_positions=16, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0,
            **common,
        )  # fmt: skip
        return shaken(transformers.GPT2LMHeadModel(config))
    config = transformers.LlamaConfig(
        num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=6,
        intermediate_size=20, max_position_embeddings=16, **common,
    )  # fmt: skip
    return shaken(transformers.LlamaForCausalLM(config))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("kind", "form"), [("gpt2", weights_gpt2), ("llama", weights_llama)])
def test_padded_decoders_equal_transformers_in_logits_and_gradients(kind: str, form: Any, side: str) -> None:
    theirs = make(kind)
    ours = from_transformers(theirs)
    padding, tokens = padding_on(side), draw_tokens(37)
    positions = (padding.cumsum(1) - 1).clamp(min=0)  # what a user of transformers must say, too
    read = theirs(input_ids=tokens, attention_mask=padding.long(), position_ids=positions)
    found, want = ours(tokens, padding=padding)[padding], read.logits[padding]
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
    for logits in (found, want):
        logits.tanh().square().sum().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters(remove_duplicate=False)}
    carried = form.read_weights(gradients, ours.config)
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - carried[name]).norm() <= 1e-5 * carried[name].norm(), name


SHAPE = {"n_layers": 2, "d_model": 24, "n_heads": 3, "vocab_size": 37}
POSITIONS = ["learned", "sinusoidal", "rope", "alibi", "none"]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_decoders_padded_rows_are_those_rows_alone(positions: str, norm_position: str, side: str) -> None:
    config = DecoderConfig(**SHAPE, seq_len=16, positions=positions, norm_position=norm_position)
    model, padding, tokens = shaken(Decoder(config, seed=0)), padding_on(side), draw_tokens(37)
    together = model(tokens, padding=padding)
    for row, kept in enumerate(padding):
        alone = model(tokens[row : row + 1, kept])[0]
        torch.testing.assert_close(together[row, kept], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm_position", ["pre", "post"])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rope", "none"])
def test_an_encoders_padded_rows_are_those_rows_alone(positions: str, norm_position: str) -> None:
    config = EncoderConfig(
        **SHAPE, d_ff=20, seq_len=16, positions=positions, norm_position=norm_position, mlm_head=True
    )
    model, padding, tokens = shaken(Encoder(config, seed=0)), padding_on("right"), draw_tokens(37)
    together = model(tokens, padding=padding)
    for row, kept in enumerate(padding):
        alone = model(tokens[row : row + 1, kept])[0]
        torch.testing.assert_close(together[row, kept], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", ["relative", "sinusoidal", "rope", "none"])
def test_an_encoder_decoders_padded_rows_are_those_rows_alone(positions: str) -> None:
    config = EncoderDecoderConfig(**SHAPE, d_head=8, d_ff=20, positions=positions)
    model, tokens = shaken(EncoderDecoder(config, seed=0)), draw_tokens(37)
    read, written, targets = padding_on("right"), padding_on("right", 13), draw_tokens(37, 13)
    together = model(tokens, targets, source_padding=read, target_padding=written)
    for row in range(3):
        alone = model(tokens[row : row + 1, read[row]], targets[row : row + 1, written[row]])[0]
        torch.testing.assert_close(together[row, written[row]], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", POSITIONS)
def test_padding_of_nothing_changes_nothing(positions: str) -> None:
    model = shaken(Decoder(DecoderConfig(**SHAPE, seq_len=16, positions=positions), seed=0))
    tokens = draw_tokens(37)
    whole = model(tokens, padding=torch.ones_like(tokens).bool())
    torch.testing.assert_close(whole, model(tokens), rtol=1e-5, atol=1e-5)


UNUSABLE: list[tuple[Any, str]] = [
    (torch.ones(3, 11), r"tensor of bool .* got torch\.float32"),
    (torch.ones(3, 11).long(), r"tensor of bool .* got torch\.int64"),
    ([[True] * 11] * 3, "tensor of bool .* got list"),
    (torch.ones(3, 10).bool(), r"\[3, 11\].*got \[3, 10\]"),
    (torch.ones(2, 11).bool(), r"\[3, 11\].*got \[2, 11\]"),
    (torch.ones(11).bool(), r"\[3, 11\].*got \[11\]"),
    (torch.ones(3, 1, 1, 11).bool(), r"\[3, 11\].*got \[3, 1, 1, 11\]"),
    (torch.ones(3, 11, device="meta").bool(), "padding is on meta, the tokens on cpu"),
    (torch.arange(3)[:, None].ne(1).expand(3, 11), "row 1 of padding has no token"),
]


@pytest.mark.parametrize(("padding", "message"), UNUSABLE)
def test_unusable_padding_is_refused_by_every_model(padding: Any, message: str) -> None:
    tokens = draw_tokens(37)
    with pytest.raises(DataError, match=message):
        Decoder(DecoderConfig(**SHAPE, seq_len=16), seed=0)(tokens, padding=padding)
    encoder = Encoder(EncoderConfig(**SHAPE, d_ff=20), seed=0)
    with pytest.raises(DataError, match=message):
        encoder.hidden(tokens, padding=padding)
    both = EncoderDecoder(EncoderDecoderConfig(**SHAPE, d_head=8, d_ff=20), seed=0)
    with pytest.raises(DataError, match=message):
        both(tokens, tokens, source_padding=padding)
    with pytest.raises(DataError, match=message):
        both(tokens, tokens, target_padding=padding)


def test_targets_for_another_number_of_sources_are_refused() -> None:
    model = EncoderDecoder(EncoderDecoderConfig(**SHAPE, d_head=8, d_ff=20), seed=0)
    with pytest.raises(DataError, match="2 targets for 3 sources"):
        model(draw_tokens(37), draw_tokens(37)[:2])


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (torch.zeros(3, 10).long(), r"segments have the shape \(3, 10\)"),
        (torch.full((3, 11), 2), r"segments must lie in \[0, 2\)"),
        (torch.zeros(3, 11), r"segments must be .* torch\.float32"),
    ],
)
def test_unusable_segments_are_refused(segments: Tensor, message: str) -> None:
    encoder = Encoder(EncoderConfig(**SHAPE, d_ff=20), seed=0)
    with pytest.raises(DataError, match=message):
        encoder.hidden(draw_tokens(37), segments)


def normal(*size: int, seed: int) -> Tensor:
    return torch.empty(size).normal_(generator=torch.Generator().manual_seed(seed))


MASKS: list[tuple[str, dict[str, Any]]] = [
    ("all", {"causal": False}),
    ("causal", {"causal": True}),
    ("padding", {"causal": False, "mask": padding_on("right", 9)[:, None, None, :]}),
    ("causal, padded", {"causal": False, "mask": visible(9, 9, causal=True, padding=padding_on("left", 9))}),
    ("numbers", {"causal": False, "mask": normal(1, 4, 9, 9, seed=5)}),
]


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("name", "sees"), MASKS, ids=[name for name, _ in MASKS])
def test_products_written_out_equal_the_fused_kernel(
    name: str, sees: dict[str, Any], n_kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp32, where both round alike, by the path that training in bf16 takes on a CPU."""
    from scalelab.models import attention

    results = []
    for path in ("fused", "products"):
        q, k, v = (normal(3, heads, 9, 6, seed=i).requires_grad_()
                   for i, heads in enumerate((4, n_kv_heads, n_kv_heads)))  # fmt: skip
        if path == "fused":
            mixed = attend(q, k, v, scale=0.3, **sees)
        else:
            mixed = attention._attend_by_products(q, k, v, sees["causal"], sees.get("mask"), 0.3, 0.0)
        (mixed * normal(3, 4, 9, 6, seed=8)).sum().backward()
        results.append((mixed, q.grad, k.grad, v.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "sees"), MASKS, ids=[name for name, _ in MASKS])
def test_training_in_bf16_stays_within_bf16s_rounding(name: str, sees: dict[str, Any]) -> None:
    exact = [normal(3, 4, 9, 6, seed=i) for i in range(3)]
    q, k, v = (part.bfloat16().requires_grad_() for part in exact)
    found = attend(q, k, v, **sees)
    want = attend(q.detach().float(), k.detach().float(), v.detach().float(), **sees)
    assert found.dtype == torch.bfloat16
    assert (found.float() - want).abs().max() < 0.03


@pytest.mark.parametrize(("name", "sees"), MASKS, ids=[name for name, _ in MASKS])
def test_attention_weights_are_those_that_attend_takes_means_by(name: str, sees: dict[str, Any]) -> None:
    q, k, v = normal(3, 4, 9, 6, seed=0), normal(3, 2, 9, 6, seed=1), normal(3, 2, 9, 6, seed=2)
    weights = attention_weights(q, k, **sees)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, 9))
    mixed = weights @ v.repeat_interleave(2, dim=1)
    torch.testing.assert_close(mixed, attend(q, k, v, **sees), rtol=1e-5, atol=1e-6)


def test_a_mask_and_causal_are_not_asked_for_at_once() -> None:
    q = normal(1, 2, 5, 6, seed=0)
    mask = torch.ones(5, 5, dtype=torch.bool)
    for ask in (
        lambda: attend(q, q, q, causal=True, mask=mask),
        lambda: attention_weights(q, q, causal=True, mask=mask),
    ):
        with pytest.raises(AssertionError, match="causal must be False"):
            ask()


def test_an_encoders_loss_of_padded_rows_is_that_of_the_rows_alone() -> None:
    model = shaken(Encoder(EncoderConfig(**SHAPE, d_ff=20, seq_len=16, mlm_head=True), seed=0))
    tokens, padding = draw_tokens(37), padding_on("right")
    segments = (torch.arange(11) > 4).long().expand(3, 11)
    targets = tokens.masked_fill(~padding, -100)
    together = model.loss(tokens, targets, "none", segments=segments, padding=padding)
    for row, kept in enumerate(padding):
        one = slice(row, row + 1)
        alone = model.loss(tokens[one, kept], targets[one, kept], "none", segments=segments[one, kept])
        torch.testing.assert_close(together[one, kept], alone, rtol=1e-5, atol=1e-5)
