"""The KV cache: the logits of one token after another are those of the whole text at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scalelab.core.config import DecoderConfig, EncoderDecoderConfig
from scalelab.core.errors import ConfigError, DataError
from scalelab.models import Decoder, EncoderDecoder
from scalelab.models.cache import Cache

SHAPE: dict[str, Any] = {"n_layers": 3, "d_model": 32, "n_heads": 4, "vocab_size": 61, "seq_len": 20}
VARIANTS: dict[str, dict[str, Any]] = {
    "learned": {},
    "sinusoidal": {"positions": "sinusoidal"},
    "rope": {"positions": "rope"},
    "alibi": {"positions": "alibi"},
    "alibi of six heads": {"positions": "alibi", "n_heads": 6, "d_head": 4},
    "none": {"positions": "none"},
    "one key head": {"positions": "rope", "n_kv_heads": 1, "norm": "rmsnorm", "feed_forward": "swiglu"},
    "parallel": {"positions": "rope", "rope_fraction": 0.5, "parallel_residual": True},
    "post-norm": {"norm_position": "post"},
    "some layers without rope": {"n_layers": 4, "positions": "rope", "rope_skip_every": 2},
}
PADDING = torch.ones(3, 14, dtype=torch.bool)
PADDING[0, :3] = PADDING[2, :1] = False  # on the left
READINGS = {
    "one by one": (None, [1] * 14),
    "uneven pieces": (None, [4, 1, 3, 6]),
    "left padding, then one by one": (PADDING, [4] + [1] * 10),
    "left padding, uneven pieces": (PADDING, [6, 1, 2, 5]),
}


def lively(model: torch.nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty(parameter.shape).normal_(0, 0.2, generator=generator))
    return model.eval()


def tokens(time: int = 14) -> torch.Tensor:
    return torch.randint(61, (3, time), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_pieces_read_with_a_cache_give_the_logits_of_the_whole(variant: str, reading: str) -> None:
    padding, cuts = READINGS[reading]
    model: Decoder = lively(Decoder(DecoderConfig(**{**SHAPE, **VARIANTS[variant]}), seed=0))
    whole = model(tokens(), padding=padding)
    cache, pieces = model.make_cache(3, 14), []
    for piece in tokens().split(cuts, dim=1):
        end = cache.length + piece.shape[1]
        seen = None if padding is None else padding[:, :end]
        pieces.append(model.logits(model.hidden(piece, padding=seen, cache=cache)))
    real = torch.ones(3, 14, dtype=torch.bool) if padding is None else padding
    torch.testing.assert_close(torch.cat(pieces, dim=1)[real], whole[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", ["relative", "sinusoidal", "rope", "none"])
@torch.no_grad()
def test_a_target_read_with_a_cache_has_the_logits_of_the_whole(positions: str) -> None:
    config = EncoderDecoderConfig(
        n_layers=2, d_model=32, n_heads=4, d_head=8, d_ff=48, vocab_size=61, positions=positions,  # type: ignore[arg-type]
        n_position_buckets=8, max_distance=10,
    )  # fmt: skip
    model: EncoderDecoder = lively(EncoderDecoder(config, seed=0))
    source = tokens(9)
    padding = torch.ones(3, 9, dtype=torch.bool)
    padding[1, 4:] = False
    whole = model(source, tokens(), source_padding=padding)
    for keep in (True, False):
        read, cache, pieces = model.read(source, padding=padding, keep=keep), model.make_cache(3, 14), []
        for piece in tokens().split([1, 1, 5, 1, 6], dim=1):
            pieces.append(model.logits(model.write(piece, read, cache=cache)))
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_cropped_cache_goes_on_as_if_the_rest_had_never_been_read() -> None:
    model: Decoder = lively(Decoder(DecoderConfig(**SHAPE, positions="rope"), seed=0))
    cache = model.make_cache(3, 14)
    model.hidden(tokens()[:, :10], cache=cache)
    cache.crop(4)
    assert cache.length == 4
    found = model.logits(model.hidden(tokens()[:, 4:], cache=cache))
    torch.testing.assert_close(found, model(tokens())[:, 4:], rtol=1e-5, atol=1e-5)
    cache.crop(0)
    torch.testing.assert_close(model.hidden(tokens(), cache=cache), model.hidden(tokens()))


@pytest.mark.parametrize("rows", [[2, 0, 0], [1, 1, 1], [0, 1, 2], [2], [0, 0, 1, 1, 2, 2]])
@torch.no_grad()
def test_selected_rows_go_on_as_those_rows(rows: list[int]) -> None:
    model: Decoder = lively(Decoder(DecoderConfig(**SHAPE), seed=0))
    cache, chosen = model.make_cache(3, 14), torch.tensor(rows)
    model.hidden(tokens()[:, :6], cache=cache)
    cache.select(chosen)
    found = model.logits(model.hidden(tokens()[chosen, 6:], cache=cache))
    torch.testing.assert_close(found, model(tokens()[chosen])[:, 6:], rtol=1e-5, atol=1e-5)


def test_room_is_two_numbers_for_each_layer_key_head_and_width() -> None:
    model = Decoder(DecoderConfig(**{**SHAPE, "n_kv_heads": 2}), seed=0)
    assert model.make_cache(5, 7).n_bytes == 2 * 3 * 2 * 8 * 5 * 7 * 4
    assert model.bfloat16().make_cache(5, 7).n_bytes == 2 * 3 * 2 * 8 * 5 * 7 * 2


@torch.no_grad()
def test_a_cache_that_is_full_or_of_other_rows_says_what_it_has_room_for() -> None:
    model = Decoder(DecoderConfig(**SHAPE), seed=0).eval()
    cache = model.make_cache(3, 5)
    with pytest.raises(DataError, match="room for 3 rows of 5 tokens; asked to keep 3 rows of 6"):
        model.hidden(tokens(6), cache=cache)
    with pytest.raises(DataError, match="asked to keep 2 rows"):
        model.hidden(tokens(4)[:2], cache=cache)
    model.hidden(tokens(4), cache=cache)
    with pytest.raises(DataError, match="cannot go back to 9 tokens: 4 are kept"):
        cache.crop(9)
    with pytest.raises(DataError, match=r"\[3, 5\], kept tokens included"):
        model.hidden(tokens(1), cache=cache, padding=torch.ones(3, 1, dtype=torch.bool))


@torch.no_grad()
def test_the_context_ends_where_it_ends_with_a_cache_too() -> None:
    model = Decoder(DecoderConfig(**SHAPE), seed=0).eval()
    cache = model.make_cache(3, 30)
    model.hidden(tokens(20), cache=cache)
    with pytest.raises(DataError, match="1 tokens are more than the model's seq_len=20, of which 20 are"):
        model.hidden(tokens(1), cache=cache)


SIZES = ["n_layers", "n_kv_heads", "d_head", "batch_size", "max_tokens"]


@pytest.mark.parametrize("name", SIZES)
def test_an_impossible_size_is_refused_by_name(name: str) -> None:
    sizes = dict.fromkeys(SIZES, 1) | {name: 0}
    with pytest.raises(ConfigError, match=name):
        Cache(dtype=torch.float32, device=torch.device("cpu"), **sizes)


@torch.no_grad()
def test_another_models_cache_is_refused() -> None:
    model = Decoder(DecoderConfig(**SHAPE), seed=0)
    for change, message in (
        ({"n_layers": 2}, "2 layers, the model 3"),
        ({"n_kv_heads": 2}, "2 heads of width 8; asked to keep 4 heads of width 8"),
        ({"d_head": 6}, "4 heads of width 6; asked to keep 4 heads of width 8"),
    ):
        other = Decoder(DecoderConfig(**{**SHAPE, **change}), device="meta").make_cache(3, 14)
        with pytest.raises(DataError, match=message):
            model.hidden(tokens(), cache=other)
    config = EncoderDecoderConfig(n_layers=2, d_model=32, n_heads=4, d_head=8, d_ff=48, vocab_size=61)
    both = EncoderDecoder(config, seed=0)
    with pytest.raises(DataError, match="3 layers, the model 2"):
        both.write(tokens(), both.read(tokens()), cache=model.make_cache(3, 14))
