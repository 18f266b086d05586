"""The decoder: what it promises about order, seeds, shapes and parts."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from scalelab.core.config import DecoderConfig, RopeScaling
from scalelab.core.errors import ConfigError, DataError
from scalelab.models import Decoder, attention
from scalelab.models.positions import sinusoidal_positions

SMALL = DecoderConfig(n_layers=2, d_model=32, n_heads=4, vocab_size=61, seq_len=16)
VARIANTS = {
    "gpt2": SMALL,
    "untied": dataclasses.replace(SMALL, tie_embeddings=False, feed_forward="gelu"),
    "sinusoidal": dataclasses.replace(SMALL, positions="sinusoidal", feed_forward="relu"),
    "no positions": dataclasses.replace(SMALL, positions="none", norm_bias=False),
    "no biases": dataclasses.replace(SMALL, attention_bias=False, feed_forward_bias=False),
    "neox": dataclasses.replace(SMALL, positions="rope", rope_fraction=0.25, parallel_residual=True),
    "smollm3": dataclasses.replace(
        SMALL, n_layers=4, positions="rope", rope_skip_every=2, norm="rmsnorm", feed_forward="swiglu"
    ),
    "llama": DecoderConfig(
        n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_head=12, d_ff=40, vocab_size=61, seq_len=16,
        norm="rmsnorm", positions="rope", feed_forward="swiglu", attention_bias=False,
        feed_forward_bias=False, tie_embeddings=False,
        rope_scaling=RopeScaling(factor=8, low_freq_factor=1, high_freq_factor=4, original_seq_len=8),
    ),
}  # fmt: skip


def ids(config: DecoderConfig, batch: int = 2, time: int | None = None, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (batch, time or config.seq_len), generator=generator)


def lively(config: DecoderConfig, seed: int = 0) -> Decoder:
    """A decoder with large random weights, biases included, so that no part is nearly idle."""
    decoder, generator = Decoder(config, seed=seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.empty(parameter.shape).normal_(0, 0.2, generator=generator))
    return decoder


def assert_causal(decoder: Decoder) -> None:
    """Changing token t changes the logits at t, and none before."""
    tokens = ids(decoder.config)
    with torch.no_grad():
        before = decoder(tokens)
        for t in range(tokens.shape[1]):
            changed = tokens.clone()
            changed[:, t] = (changed[:, t] + 1) % decoder.config.vocab_size
            after = decoder(changed)
            assert not torch.equal(after[:, t], before[:, t]), f"token {t} has no effect at its own place"
            torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_later_token_never_changes_an_earlier_logit(name: str) -> None:
    assert_causal(lively(VARIANTS[name]))


def test_the_causality_helper_catches_attention_that_sees_the_future(monkeypatch: pytest.MonkeyPatch) -> None:
    def unmasked(q, k, v, **settings):  # type: ignore[no-untyped-def]
        return F.scaled_dot_product_attention(q, k, v)

    monkeypatch.setattr(attention, "attend", unmasked)
    with pytest.raises(AssertionError):
        assert_causal(lively(SMALL))


def test_without_positions_and_mask_only_the_set_of_earlier_tokens_counts() -> None:
    decoder = lively(dataclasses.replace(SMALL, n_layers=1, positions="none"))
    tokens = ids(SMALL, batch=1)
    shuffled = torch.cat((tokens[:, :-1].flip(1), tokens[:, -1:]), dim=1)
    torch.testing.assert_close(decoder(tokens)[:, -1], decoder(shuffled)[:, -1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rope"])
def test_every_kind_of_positions_makes_order_count(positions: str) -> None:
    config = dataclasses.replace(SMALL, n_layers=1, positions=positions)
    decoder, tokens = lively(config), ids(SMALL, batch=1)
    shuffled = torch.cat((tokens[:, :-1].flip(1), tokens[:, -1:]), dim=1)
    assert (decoder(tokens)[:, -1] - decoder(shuffled)[:, -1]).abs().max() > 1e-2


def test_sinusoidal_positions_are_added_to_embeddings_scaled_as_in_the_paper() -> None:
    decoder, tokens = lively(VARIANTS["sinusoidal"]), ids(SMALL)
    with torch.no_grad():  # with nothing added by any block, the final norm reads the embeddings
        for block in decoder.blocks:
            for part in (block.attention.out, block.feed_forward.down):
                part.weight.zero_()
                part.bias.zero_()
    table = decoder.token_embedding.weight
    want = decoder.final_norm(table[tokens] * math.sqrt(32) + sinusoidal_positions(16, 32))
    torch.testing.assert_close(decoder.hidden(tokens), want)


def test_grouped_query_equals_multi_head_with_repeated_keys_and_values() -> None:
    grouped_config = dataclasses.replace(SMALL, n_kv_heads=2)
    grouped, full = lively(grouped_config), Decoder(SMALL, seed=0)
    state = grouped.state_dict()
    for name, tensor in state.items():
        if ".qkv." in name:
            q, k, v = tensor.split([32, 16, 16])
            k, v = (t.unflatten(0, (2, 8)).repeat_interleave(2, dim=0).flatten(0, 1) for t in (k, v))
            state[name] = torch.cat((q, k, v))
    full.load_state_dict(state)
    tokens = ids(SMALL)
    torch.testing.assert_close(grouped(tokens), full(tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_bf16_products_on_the_cpu_are_the_fused_kernels_attention(kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, 24, 8) for heads in (4, kv_heads, kv_heads)]
    exact = [torch.empty(s).normal_(generator=generator).bfloat16().float().requires_grad_() for s in shapes]
    rough = [x.detach().bfloat16().requires_grad_() for x in exact]
    want = F.scaled_dot_product_attention(*exact, is_causal=True, enable_gqa=kv_heads != 4)
    got = attention.attend(*rough, causal=True)
    assert got.grad_fn is not None
    assert "ScaledDotProduct" not in type(got.grad_fn).__name__  # the other way was taken
    weights = torch.empty(want.shape).normal_(generator=generator)
    want.backward(weights)
    got.backward(weights.bfloat16())
    pairs = [(got, want), *((r.grad, e.grad) for r, e in zip(rough, exact, strict=True))]
    for ours, true in pairs:
        assert (ours.float() - true).norm() / true.norm() < 1e-2  # bf16 keeps 8 bits: 0.4 % a number


def test_the_first_loss_is_that_of_a_guess_among_all_tokens() -> None:
    config = dataclasses.replace(SMALL, vocab_size=512, n_layers=6)
    tokens = ids(config, batch=4, time=16)
    loss = Decoder(config, seed=0).loss(tokens[:, :-1], tokens[:, 1:])
    assert abs(loss.item() - math.log(512)) < 0.1


def test_weights_start_at_gpt2s_sizes() -> None:
    config = dataclasses.replace(SMALL, d_model=128, n_layers=8)
    decoder = Decoder(config, seed=0)
    for name, parameter in decoder.named_parameters():
        if name.endswith(("attention.out.weight", "feed_forward.down.weight")):
            assert parameter.std().item() == pytest.approx(0.02 / math.sqrt(2 * 8), rel=0.05)
        elif parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05)
        else:
            assert parameter.unique().tolist() == [0.0 if name.endswith("bias") else 1.0]


def test_the_seed_alone_decides_the_weights_and_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = Decoder(SMALL, seed=3).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    second = Decoder(SMALL, seed=3).state_dict()
    other = Decoder(SMALL, seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["token_embedding.weight"], other["token_embedding.weight"])
    fresh = [Decoder(SMALL).state_dict()["token_embedding.weight"] for _ in range(2)]
    assert not torch.equal(*fresh)


def test_nothing_is_allocated_on_the_meta_device() -> None:
    huge = dataclasses.replace(
        VARIANTS["llama"], d_model=16_384, d_ff=53_248, n_layers=126, n_heads=128, d_head=128,
        vocab_size=128_256,
    )  # fmt: skip
    decoder = Decoder(huge, device="meta")
    assert {parameter.device.type for parameter in decoder.parameters()} == {"meta"}
    assert decoder(torch.zeros(1, 16, dtype=torch.int64, device="meta")).shape == (1, 16, 128_256)


def test_the_state_holds_parameters_only_and_a_tied_head_once() -> None:
    for config in VARIANTS.values():
        decoder = Decoder(config, seed=0)
        assert list(decoder.state_dict()) == [name for name, _ in decoder.named_parameters()]
        assert ("head.weight" in decoder.state_dict()) is not config.tie_embeddings


def test_rotary_positions_keep_their_precision_in_a_bf16_model() -> None:
    decoder = lively(dataclasses.replace(VARIANTS["llama"], seq_len=512))
    tokens = ids(decoder.config, batch=1)
    with torch.no_grad():
        exact = decoder(tokens)
        rough = decoder.bfloat16()(tokens).float()
    late = slice(-16, None)  # a table rounded to bf16 would be off by whole turns here
    assert (rough - exact)[:, late].norm() / exact[:, late].norm() < 0.05


def test_dropout_acts_in_training_and_not_in_evaluation() -> None:
    decoder = lively(dataclasses.replace(SMALL, dropout=0.3))
    still = lively(SMALL)
    tokens = ids(SMALL)
    assert not torch.equal(decoder(tokens), decoder(tokens))
    decoder.eval()
    torch.testing.assert_close(decoder(tokens), still(tokens))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(2, 3), "int64"),
        ([[1, 2]], "list"),
        (torch.zeros(3, dtype=torch.int64), r"\(3,\)"),
        (torch.zeros(2, 0, dtype=torch.int64), r"\(2, 0\)"),
        (torch.zeros(2, 17, dtype=torch.int64), "seq_len=16"),
        (torch.full((1, 2), 61), r"\[0, 61\).*61 to 61"),
        (torch.tensor([[-1, 3]]), "-1 to 3"),
    ],
)
def test_unusable_tokens_are_refused_with_what_is_wrong(tokens: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Decoder(SMALL, seed=0)(tokens)


@pytest.mark.parametrize(("config", "seed"), [({"d_model": 3}, 0), (SMALL, -1), (SMALL, 1.5), (SMALL, True)])
def test_a_decoder_is_not_built_from_anything_else(config: object, seed: object) -> None:
    with pytest.raises(ConfigError):
        Decoder(config, seed=seed)  # type: ignore[arg-type]
