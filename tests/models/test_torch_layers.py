"""Attention, blocks and stacks against torch.nn's layers: outputs and every gradient, under every mask."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scalelab.core.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from scalelab.models import Block, Decoder, Encoder, EncoderDecoder
from scalelab.models.attention import Attention, CrossAttention, Sight
from scalelab.models.masks import visible
from scalelab.models.source import Source

# Torch tells that its fast path for inference is out of reach.
pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor")
SEES = ["all", "causal", "padding", "causal padding"]


@dataclass(frozen=True)
class Shape:
    """B, T, S, and a stack's config; made by `shape`."""

    batch: int
    time: int
    source_time: int
    config: EncoderDecoderConfig


def shape(seed: int, **settings: Any) -> Shape:
    """Random small sizes, odd ones among them, and the parts that torch's layers have."""
    pick = random.Random(seed)
    heads = pick.choice([1, 2, 3, 5])
    width = pick.choice([3, 4, 7])
    config = EncoderDecoderConfig(
        n_layers=pick.choice([1, 2]),
        d_model=heads * width,
        n_heads=heads,
        d_head=width,
        d_ff=pick.choice([5, 16, 33]),
        vocab_size=pick.choice([11, 30]),
        norm="layernorm",
        norm_eps=pick.choice([1e-5, 1e-3]),
        positions="none",
        scale_scores=True,
        scale_head=False,
        attention_bias=True,
        feed_forward_bias=True,
        **{"norm_position": pick.choice(["pre", "post"]), "feed_forward": pick.choice(["relu", "gelu"])}
        | settings,
    )
    return Shape(pick.randint(1, 3), pick.choice([1, 6, 9]), pick.choice([1, 5, 8]), config)


SHAPES = [shape(seed) for seed in range(8)]
PARTS = [(p, f) for p in ("pre", "post") for f in ("relu", "gelu")]
BLOCKS = [shape(i, norm_position=p, feed_forward=f) for i, (p, f) in enumerate(PARTS * 2)]


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.empty(size).normal_(generator=torch.Generator().manual_seed(seed))


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with random numbers in every parameter, norms and biases included."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.4, generator=draw))
    return module


def right_padding(batch: int, time: int) -> Tensor:
    """True for tokens: all of row 0, and fewer and fewer of the next ones, never none."""
    return torch.arange(time) < torch.tensor([max(1, time - 2 * row) for row in range(batch)])[:, None]


def left_padding(batch: int, time: int) -> Tensor:
    return right_padding(batch, time).flip(1)


def later(time: int) -> Tensor:
    """Torch's causal mask: True where a key must NOT be seen."""
    return torch.ones(time, time, dtype=torch.bool).triu(1)


@dataclass(frozen=True)
class Pair:
    """A parameter of ours, and the rows of torch's that hold the same numbers."""

    ours: nn.Parameter
    theirs: nn.Parameter
    rows: slice

    def carry(self) -> None:
        with torch.no_grad():
            self.theirs[self.rows].copy_(self.ours)

    def assert_same_gradient(self) -> None:
        assert self.ours.grad is not None
        assert self.theirs.grad is not None
        want = self.theirs.grad[self.rows]
        assert (self.ours.grad - want).norm() <= 1e-5 * max(float(want.norm()), 1e-4)


ALL = slice(None)


def pair_linear(ours: nn.Module, theirs: nn.Module) -> list[Pair]:
    """Weights and biases of a linear map or a norm."""
    assert set(dict(ours.named_parameters())) == set(dict(theirs.named_parameters()))
    return [Pair(p, dict(theirs.named_parameters())[name], ALL) for name, p in ours.named_parameters()]


def pair_attention(ours: Attention | CrossAttention, theirs: nn.MultiheadAttention) -> list[Pair]:
    pairs = pair_linear(ours.out, theirs.out_proj)
    width = theirs.embed_dim
    if isinstance(ours, Attention):
        parts = [(ours.qkv, ALL)]
    else:
        parts = [(ours.q, slice(0, width)), (ours.kv, slice(width, None))]
    for linear, rows in parts:
        pairs += [Pair(linear.weight, theirs.in_proj_weight, rows)]
        pairs += [Pair(linear.bias, theirs.in_proj_bias, rows)]
    return pairs


def pair_block(ours: Block, theirs: Any) -> list[Pair]:
    """A block and torch's encoder layer, or a block with cross-attention and torch's decoder layer."""
    is_cross = isinstance(theirs, nn.TransformerDecoderLayer)
    pairs = pair_attention(ours.attention, theirs.self_attn) + pair_linear(ours.attention_norm, theirs.norm1)
    if is_cross:
        pairs += pair_attention(ours.cross_attention, theirs.multihead_attn)
        pairs += pair_linear(ours.cross_norm, theirs.norm2)
    pairs += pair_linear(ours.feed_forward_norm, theirs.norm3 if is_cross else theirs.norm2)
    pairs += pair_linear(ours.feed_forward.up, theirs.linear1)
    return pairs + pair_linear(ours.feed_forward.down, theirs.linear2)


def assert_all_equal(
    found: Tensor, want: Tensor, pairs: list[Pair], inputs: list[tuple[Tensor, Tensor]], n_parameters: int
) -> None:
    """Outputs, and gradients of every parameter and input, of the same smooth function of the outputs."""
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
    weights = normal(*found.shape, seed=9)
    (found * weights).sum().backward()
    (want * weights).sum().backward()
    assert sum(pair.ours.numel() for pair in pairs) == n_parameters
    for pair in pairs:
        pair.assert_same_gradient()
    for ours, theirs in inputs:
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def n_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def twice(*size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The same random input, once for either side."""
    x = normal(*size, seed=seed)
    return x.clone().requires_grad_(), x.clone().requires_grad_()


def sight_of(sees: str, batch: int, time: int) -> tuple[Sight, dict[str, Tensor]]:
    """What may be seen, as we say it and as torch's layers want it."""
    causal = "causal" in sees
    # Padded on the left, a causal row's first place would see nothing but filling, and torch says NaN.
    padding = right_padding(batch, time) if "padding" in sees else None
    theirs = {"mask": later(time)} if causal else {}
    if padding is None:
        return Sight(causal=causal), theirs
    mask = visible(time, time, causal=causal, padding=padding)
    return Sight(causal=False, mask=mask), theirs | {"padding": ~padding}


@pytest.mark.parametrize("sees", SEES)
@pytest.mark.parametrize("given", SHAPES)
def test_attention_equals_multihead_attention(given: Shape, sees: str) -> None:
    config = given.config
    ours = shaken(Attention(config))
    theirs = nn.MultiheadAttention(config.d_model, config.n_heads, batch_first=True)
    pairs = pair_attention(ours, theirs)
    for pair in pairs:
        pair.carry()
    x, y = twice(given.batch, given.time, config.d_model)
    sight, torchs = sight_of(sees, given.batch, given.time)
    kept = right_padding(given.batch, given.time) if "padding" in sees else torch.ones(x.shape[:2]).bool()
    found = ours(x, sight)
    want, _ = theirs(
        y, y, y, attn_mask=torchs.get("mask"), key_padding_mask=torchs.get("padding"), need_weights=False
    )
    # What a filled place reads is nobody's business: ours sees itself, torch's what came before it.
    assert_all_equal(found[kept], want[kept], pairs, [(x, y)], n_parameters(ours))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("given", SHAPES)
def test_cross_attention_equals_multihead_attention(given: Shape, padded: bool) -> None:
    config = given.config
    ours = shaken(CrossAttention(config))
    theirs = nn.MultiheadAttention(config.d_model, config.n_heads, batch_first=True)
    pairs = pair_attention(ours, theirs)
    for pair in pairs:
        pair.carry()
    x, y = twice(given.batch, given.time, config.d_model)
    source, read = twice(given.batch, given.source_time, config.d_model, seed=1)
    padding = left_padding(given.batch, given.source_time) if padded else None
    mask = None if padding is None else padding[:, None, None, :]
    found = ours(x, ours.project(source), mask)
    hidden = None if padding is None else ~padding
    want, _ = theirs(y, read, read, key_padding_mask=hidden, need_weights=False)
    assert_all_equal(found, want, pairs, [(x, y), (source, read)], n_parameters(ours))


def layer_arguments(config: EncoderDecoderConfig | DecoderConfig | EncoderConfig) -> dict[str, Any]:
    return {
        "d_model": config.d_model,
        "nhead": config.n_heads,
        "dim_feedforward": config.ff_width,
        "dropout": 0.0,
        "activation": config.feed_forward,
        "layer_norm_eps": config.norm_eps,
        "batch_first": True,
        "norm_first": config.norm_position == "pre",
    }


@pytest.mark.parametrize("sees", SEES)
@pytest.mark.parametrize("given", BLOCKS)
def test_a_block_equals_torchs_encoder_layer(given: Shape, sees: str) -> None:
    ours = shaken(Block(given.config))
    theirs = nn.TransformerEncoderLayer(**layer_arguments(given.config))
    pairs = pair_block(ours, theirs)
    for pair in pairs:
        pair.carry()
    x, y = twice(given.batch, given.time, given.config.d_model)
    sight, torchs = sight_of(sees, given.batch, given.time)
    kept = right_padding(given.batch, given.time) if "padding" in sees else torch.ones(x.shape[:2]).bool()
    want = theirs(y, src_mask=torchs.get("mask"), src_key_padding_mask=torchs.get("padding"))
    assert_all_equal(ours(x, sight)[kept], want[kept], pairs, [(x, y)], n_parameters(ours))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("given", BLOCKS)
def test_a_block_that_reads_a_source_equals_torchs_decoder_layer(given: Shape, padded: bool) -> None:
    config = given.config
    ours = shaken(Block(config, cross=True))
    theirs = nn.TransformerDecoderLayer(**layer_arguments(config))
    pairs = pair_block(ours, theirs)
    for pair in pairs:
        pair.carry()
    x, y = twice(given.batch, given.time, config.d_model)
    states, read = twice(given.batch, given.source_time, config.d_model, seed=1)
    padding = left_padding(given.batch, given.source_time) if padded else None
    found = ours(x, Sight(causal=True), None, Source(states, padding))
    want = theirs(
        y,
        read,
        tgt_mask=later(given.time),
        memory_key_padding_mask=None if padding is None else ~padding,
    )
    assert_all_equal(found, want, pairs, [(x, y), (states, read)], n_parameters(ours))


def pair_stack(blocks: Any, final_norm: nn.Module, theirs: Any) -> list[Pair]:
    pairs = [p for mine, layer in zip(blocks, theirs.layers, strict=True) for p in pair_block(mine, layer)]
    return pairs if theirs.norm is None else pairs + pair_linear(final_norm, theirs.norm)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("given", BLOCKS)
def test_an_encoder_equals_torchs_stack_on_the_same_embeddings(given: Shape, padded: bool) -> None:
    shape = given.config
    config = EncoderConfig(
        n_layers=3, d_model=shape.d_model, n_heads=shape.n_heads, d_ff=shape.d_ff, vocab_size=11,
        seq_len=16, pooler=False, norm_eps=shape.norm_eps, norm_position=shape.norm_position,
        feed_forward=shape.feed_forward,
    )  # fmt: skip
    ours = Encoder(config, seed=0)
    shaken(ours)
    is_pre = config.norm_position == "pre"
    layer = nn.TransformerEncoderLayer(**layer_arguments(config))
    last = nn.LayerNorm(config.d_model, config.norm_eps) if is_pre else None
    theirs = nn.TransformerEncoder(layer, 3, norm=last, enable_nested_tensor=False)
    pairs = pair_stack(ours.blocks, ours.final_norm, theirs)
    for pair in pairs:
        pair.carry()
    tokens = torch.randint(11, (given.batch, given.time), generator=torch.Generator().manual_seed(1))
    padding = right_padding(given.batch, given.time) if padded else None
    kept = torch.ones_like(tokens).bool() if padding is None else padding
    embedded = ours.embedding_norm(
        ours.token_embedding(tokens)
        + ours.position_embedding.weight[: given.time]
        + ours.segment_embedding.weight[0]
    ).detach()
    found = ours.hidden(tokens, padding=padding)
    want = theirs(embedded, src_key_padding_mask=None if padding is None else ~padding)
    assert_all_equal(found[kept], want[kept], pairs, [], sum(p.ours.numel() for p in pairs))
    assert len(pairs) == sum(1 for _ in theirs.parameters())


@pytest.mark.parametrize("given", BLOCKS)
def test_a_decoder_equals_torchs_stack_with_a_causal_mask(given: Shape) -> None:
    shape = given.config
    config = DecoderConfig(
        n_layers=3, d_model=shape.d_model, n_heads=shape.n_heads, d_ff=shape.d_ff, vocab_size=11,
        seq_len=16, norm_eps=shape.norm_eps, norm_position=shape.norm_position,
        feed_forward=shape.feed_forward,
    )  # fmt: skip
    ours = Decoder(config, seed=0)
    shaken(ours)
    layer = nn.TransformerEncoderLayer(**layer_arguments(config))
    last = nn.LayerNorm(config.d_model, config.norm_eps) if config.norm_position == "pre" else None
    theirs = nn.TransformerEncoder(layer, 3, norm=last, enable_nested_tensor=False)
    pairs = pair_stack(ours.blocks, ours.final_norm, theirs)
    for pair in pairs:
        pair.carry()
    tokens = torch.randint(11, (given.batch, given.time), generator=torch.Generator().manual_seed(1))
    embedded = (ours.token_embedding(tokens) + ours.position_embedding.weight[: given.time]).detach()
    want = theirs(embedded, mask=later(given.time))
    assert_all_equal(ours.hidden(tokens), want, pairs, [], sum(p.ours.numel() for p in pairs))
    assert len(pairs) == sum(1 for _ in theirs.parameters())


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("given", BLOCKS)
def test_an_encoder_decoder_equals_nn_transformer(given: Shape, padded: bool) -> None:
    config = given.config
    ours = EncoderDecoder(config, seed=0)
    shaken(ours)
    n = config.n_layers
    theirs = nn.Transformer(num_encoder_layers=n, num_decoder_layers=n, **layer_arguments(config))
    if config.norm_position == "post":  # torch norms a post-norm stack once more at its end; we do not
        theirs.encoder.norm = theirs.decoder.norm = None
    pairs = pair_stack(ours.encoder.blocks, ours.encoder.final_norm, theirs.encoder)
    pairs += pair_stack(ours.decoder.blocks, ours.decoder.final_norm, theirs.decoder)
    for pair in pairs:
        pair.carry()
    draw = torch.Generator().manual_seed(1)
    source = torch.randint(config.vocab_size, (given.batch, given.source_time), generator=draw)
    target = torch.randint(config.vocab_size, (given.batch, given.time), generator=draw)
    read_padding = left_padding(given.batch, given.source_time) if padded else None
    written_padding = right_padding(given.batch, given.time) if padded else None
    table = ours.token_embedding
    kept = torch.ones_like(target).bool() if written_padding is None else written_padding
    found = ours.write(target, ours.read(source, padding=read_padding), padding=written_padding)
    hidden = None if read_padding is None else ~read_padding
    want = theirs(
        table(source).detach(),
        table(target).detach(),
        tgt_mask=later(given.time),
        src_key_padding_mask=hidden,
        memory_key_padding_mask=hidden,
        tgt_key_padding_mask=None if written_padding is None else ~written_padding,
    )
    assert_all_equal(found[kept], want[kept], pairs, [], n_parameters(ours) - table.weight.numel())


def test_the_drawn_shapes_cover_what_they_are_meant_to() -> None:
    drawn = SHAPES + BLOCKS
    assert {given.config.norm_position for given in drawn} == {"pre", "post"}
    assert {given.config.feed_forward for given in drawn} == {"relu", "gelu"}
    assert {given.config.n_heads for given in drawn} == {1, 2, 3, 5}
    assert any(given.config.d_head % 2 for given in drawn)
    assert {given.time == 1 for given in drawn} == {True, False}
    assert {given.batch for given in drawn} == {1, 2, 3}
