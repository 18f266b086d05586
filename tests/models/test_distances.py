"""ALiBi's slopes and T5's buckets against transformers' BLOOM and T5, and the papers' formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from scalelab.core.config import DecoderConfig, EncoderDecoderConfig
from scalelab.models import Decoder, EncoderDecoder
from scalelab.models.positions import RelativePositions, alibi_bias, alibi_slopes

HEADS = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 112]


@pytest.mark.parametrize("n_heads", [1, 2, 4, 8, 16, 128])
def test_alibis_slopes_are_the_papers_geometric_row(n_heads: int) -> None:
    """Press et al., section 3: from 2^(-8/n) on, each times the first."""
    first = 2 ** (-8 / n_heads)
    want = torch.tensor([first**i for i in range(1, n_heads + 1)])
    torch.testing.assert_close(alibi_slopes(n_heads), want)


@pytest.mark.parametrize("n_heads", HEADS)
def test_alibis_slopes_equal_blooms(n_heads: int) -> None:
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    one_token_on = bloom.build_alibi_tensor(torch.ones(1, 2), n_heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(alibi_slopes(n_heads), one_token_on, rtol=1e-6, atol=0)


@pytest.mark.parametrize("n_heads", HEADS)
def test_alibis_penalty_equals_blooms_after_the_softmax(n_heads: int) -> None:
    """BLOOM adds slope · position of the key: of a row's scores that is ours, and a number for the row."""
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    places, later = torch.arange(9), torch.ones(9, 9).triu(1).bool()
    theirs = bloom.build_alibi_tensor(torch.ones(1, 9), n_heads, torch.float32)[None]
    scores = torch.empty(1, n_heads, 9, 9).normal_(generator=torch.Generator().manual_seed(0))
    found, want = (
        (scores + bias).masked_fill(later, -torch.inf).softmax(-1)
        for bias in (alibi_bias(n_heads, places, places), theirs)
    )
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)


def test_alibi_takes_the_slope_for_each_step_of_distance() -> None:
    bias = alibi_bias(2, torch.tensor([5, 6]), torch.arange(7))  # two new queries behind five kept tokens
    assert bias.shape == (1, 2, 2, 7)
    for head, slope in enumerate((2**-4, 2**-8)):
        for row, query in enumerate((5, 6)):
            assert bias[0, head, row].tolist() == [-slope * abs(query - key) for key in range(7)]


def bloom_model(n_heads: int) -> Any:
    """A BLOOM without its norm of the embeddings, which a Decoder has not."""
    transformers = pytest.importorskip("transformers")
    model = transformers.BloomForCausalLM(transformers.BloomConfig(
        n_layer=2, hidden_size=n_heads * 6, n_head=n_heads, vocab_size=37, hidden_dropout=0.0,
        attention_dropout=0.0, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    ))  # fmt: skip
    model.transformer.word_embeddings_layernorm = torch.nn.Identity()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty(parameter.shape).normal_(0, 0.2, generator=draw))
    return model.eval()


def as_decoder(tensors: dict[str, Tensor], n_heads: int) -> dict[str, Tensor]:
    """BLOOM's tensors under a Decoder's names; its queries, keys and values lie side by side in each head."""
    ours = {"token_embedding.weight": tensors["transformer.word_embeddings.weight"]}
    names = {"attention_norm": "input_layernorm", "attention.out": "self_attention.dense",
             "feed_forward_norm": "post_attention_layernorm", "feed_forward.up": "mlp.dense_h_to_4h",
             "feed_forward.down": "mlp.dense_4h_to_h"}  # fmt: skip
    for kind in ("weight", "bias"):
        ours[f"final_norm.{kind}"] = tensors[f"transformer.ln_f.{kind}"]
        for layer in range(2):
            block = f"transformer.h.{layer}"
            for our, their in names.items():
                ours[f"blocks.{layer}.{our}.{kind}"] = tensors[f"{block}.{their}.{kind}"]
            mixed = tensors[f"{block}.self_attention.query_key_value.{kind}"]
            by_head = mixed.unflatten(0, (n_heads, 3, 6)).transpose(0, 1)
            ours[f"blocks.{layer}.attention.qkv.{kind}"] = by_head.reshape(mixed.shape)
    return ours


@pytest.mark.parametrize("padded", [None, "left", "right"])
@pytest.mark.parametrize("n_heads", [1, 3, 4, 6])
def test_a_decoder_with_alibi_equals_bloom_in_logits_and_gradients(n_heads: int, padded: str | None) -> None:
    theirs = bloom_model(n_heads)
    config = DecoderConfig(
        n_layers=2, d_model=6 * n_heads, n_heads=n_heads, vocab_size=37, seq_len=16, positions="alibi"
    )
    ours = Decoder(config, seed=0)
    ours.load_state_dict(as_decoder(theirs.state_dict(), n_heads))
    tokens = torch.randint(37, (3, 12), generator=torch.Generator().manual_seed(1))
    padding = torch.arange(12) < torch.tensor([12, 7, 1])[:, None]
    padding = padding.flip(1) if padded == "left" else padding
    kept = padding if padded else torch.ones_like(padding)
    found = ours(tokens, padding=padding if padded else None)[kept]
    want = theirs(input_ids=tokens, attention_mask=kept.long()).logits[kept]
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
    for logits in (found, want):
        logits.tanh().square().sum().backward()
    gradients = as_decoder({n: p.grad for n, p in theirs.named_parameters()}, n_heads)
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - gradients[name]).norm() <= 1e-5 * gradients[name].norm(), name


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(
    ("n_buckets", "max_distance"), [(32, 128), (32, 20), (8, 20), (4, 3), (17, 64), (64, 999)]
)
def test_t5s_buckets_equal_transformers(n_buckets: int, max_distance: int, both_ways: bool) -> None:
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    offsets = torch.arange(-3000, 3001)[None]
    want = t5.T5Attention._relative_position_bucket(offsets, both_ways, n_buckets, max_distance)
    ours = RelativePositions(n_buckets, max_distance, 1, both_ways=both_ways)
    assert torch.equal(ours.buckets(offsets), want)


@pytest.mark.parametrize("positions", ["relative"])
def test_relative_positions_are_shared_by_a_stacks_layers(positions: str) -> None:
    """Raffel et al., section 2.1: the same numbers in all layers, other ones in each head."""
    config = EncoderDecoderConfig(
        n_layers=3, d_model=8, n_heads=2, d_head=4, d_ff=8, vocab_size=9, positions=positions
    )
    model = EncoderDecoder(config, seed=0)
    tables = {n: tuple(p.shape) for n, p in model.named_parameters() if "relative" in n}
    assert tables == {f"{side}.relative_positions.table.weight": (32, 2) for side in ("encoder", "decoder")}
