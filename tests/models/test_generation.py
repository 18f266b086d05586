"""Generation: the same tokens as a plain loop and as `transformers`, with and without a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scalelab.core.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from scalelab.core.errors import ConfigError, DataError, WeightsError
from scalelab.models import Decoder, Encoder, EncoderDecoder, generate

SHAPE: dict[str, Any] = {"n_layers": 2, "d_model": 32, "n_heads": 4, "vocab_size": 23, "seq_len": 12}
VARIANTS: dict[str, dict[str, Any]] = {
    "learned": {},
    "sinusoidal": {"positions": "sinusoidal"},
    "rope": {"positions": "rope"},
    "alibi": {"positions": "alibi"},
    "none": {"positions": "none"},
    "grouped queries": {"positions": "rope", "n_kv_heads": 2, "norm": "rmsnorm", "feed_forward": "swiglu"},
    "parallel": {"positions": "rope", "rope_fraction": 0.5, "parallel_residual": True},
    "post-norm": {"norm_position": "post"},
    "some layers without rope": {"n_layers": 4, "positions": "rope", "rope_skip_every": 2},
    "untied": {"tie_embeddings": False, "d_head": 6},
}
PROMPT = torch.tensor([[1, 2, 3], [4, 5, 6]])
RAGGED = torch.tensor([[0, 0, 0, 7, 3], [9, 8, 7, 6, 5], [0, 0, 4, 4, 1]])
RAGGED_PADDING = torch.tensor([[False] * 3 + [True] * 2, [True] * 5, [False] * 2 + [True] * 3])


def lively(model: torch.nn.Module, seed: int = 0, size: float = 0.3) -> Any:
    """Large random weights, so that the model is far from uniform and no part of it idle."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty(parameter.shape).normal_(0, size, generator=generator))
    return model.eval()


def decoder(seed: int = 0, **changes: Any) -> Decoder:
    model: Decoder = lively(Decoder(DecoderConfig(**{**SHAPE, **changes}), seed=seed), seed)
    return model


def sequence_model(seed: int = 0, **changes: Any) -> EncoderDecoder:
    shape = {"n_layers": 2, "d_model": 32, "n_heads": 4, "d_head": 8, "d_ff": 48, "vocab_size": 23}
    config = EncoderDecoderConfig(**{**shape, **changes})
    model: EncoderDecoder = lively(EncoderDecoder(config, seed=seed), seed)
    return model


def test_greedy_generation_equals_a_plain_loop_past_the_end_of_the_context() -> None:
    model, tokens = decoder(), PROMPT
    for _ in range(15):  # 3 + 15 tokens: longer than the context of 12
        tokens = torch.cat((tokens, model(tokens[:, -12:])[:, -1].argmax(-1, keepdim=True)), dim=1)
    for use_cache in (True, False):
        got = generate(model, PROMPT, max_new_tokens=15, temperature=0, use_cache=use_cache)
        assert torch.equal(got, tokens)


def test_a_prompt_longer_than_the_context_is_read_by_its_end() -> None:
    model, long = decoder(), torch.arange(20)[None]
    want = generate(model, long[:, -12:], max_new_tokens=4, temperature=0)
    assert torch.equal(generate(model, long, max_new_tokens=4, temperature=0)[:, 8:], want)


@pytest.mark.parametrize("top_k", [None, 5])
def test_sampling_equals_a_plain_loop_with_the_same_seed(top_k: int | None) -> None:
    model, tokens, generator = decoder(), PROMPT, torch.Generator().manual_seed(7)
    for _ in range(6):
        logits = model(tokens)[:, -1] / 0.8
        if top_k is not None:
            logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        tokens = torch.cat((tokens, drawn), dim=1)
    got = generate(model, PROMPT, max_new_tokens=6, temperature=0.8, top_k=top_k, seed=7)
    assert torch.equal(got, tokens)


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 0.9, "top_k": 9, "top_p": 0.8}])
@pytest.mark.parametrize("variant", VARIANTS)
def test_cached_generation_writes_what_uncached_writes(variant: str, settings: dict[str, Any]) -> None:
    model = decoder(**VARIANTS[variant])
    for prompt, padding in ((PROMPT, None), (RAGGED, RAGGED_PADDING), (PROMPT[:1, :1], None)):
        cached, plain = (
            generate(model, prompt, max_new_tokens=12, padding=padding, seed=3, use_cache=used, **settings)
            for used in (True, False)
        )  # 5 + 12 tokens: beyond the context too
        assert torch.equal(cached, plain)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_filled_up_on_the_left_write_what_they_write_alone(variant: str) -> None:
    model = decoder(**VARIANTS[variant])
    together = generate(model, RAGGED, max_new_tokens=7, temperature=0, padding=RAGGED_PADDING)
    for row, real in enumerate(RAGGED_PADDING):
        alone = generate(model, RAGGED[row : row + 1, real], max_new_tokens=7, temperature=0)
        assert torch.equal(together[row : row + 1, -alone.shape[1] :], alone)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_greedy_generation_equals_that_of_transformers(family: str, seed: int) -> None:
    pytest.importorskip("transformers")
    from scalelab.models import to_transformers

    parts: dict[str, Any] = {"seq_len": 40}
    if family == "llama":
        parts |= {
            "positions": "rope", "n_kv_heads": 2, "norm": "rmsnorm", "feed_forward": "swiglu",
            "attention_bias": False, "feed_forward_bias": False, "norm_bias": False,
        }  # fmt: skip
    model = decoder(seed, **parts)
    theirs = to_transformers(model).eval()
    for prompt, padding in ((PROMPT, torch.ones_like(PROMPT)), (RAGGED, RAGGED_PADDING.long())):
        for end_id in (None, int(generate(model, prompt, max_new_tokens=4, temperature=0)[0, -1])):
            want = theirs.generate(
                prompt, attention_mask=padding, max_new_tokens=30, do_sample=False, pad_token_id=22,
                eos_token_id=end_id,
            )  # fmt: skip
            got = generate(
                model, prompt, max_new_tokens=30, temperature=0, padding=padding.bool(), end_id=end_id,
                pad_id=22,
            )  # fmt: skip
            assert torch.equal(got, want)


@pytest.mark.parametrize("positions", ["relative", "sinusoidal", "rope", "none"])
def test_an_encoder_decoder_writes_what_a_plain_loop_writes(positions: str) -> None:
    model = sequence_model(positions=positions)
    source = torch.tensor([[5, 6, 7, 8, 9], [3, 4, 0, 0, 0]])
    padding = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    target = torch.zeros(2, 1, dtype=torch.int64)  # the start token, pad_id
    for _ in range(9):
        logits = model(source, target, source_padding=padding)
        target = torch.cat((target, logits[:, -1].argmax(-1, keepdim=True)), dim=1)
    for use_cache in (True, False):
        got = generate(model, source, max_new_tokens=9, temperature=0, padding=padding, use_cache=use_cache)
        assert torch.equal(got, target[:, 1:])
    draws = [
        generate(model, source, max_new_tokens=9, padding=padding, use_cache=used, seed=4, top_p=0.9)
        for used in (True, False)
    ]
    assert torch.equal(*draws)


def test_an_encoder_decoder_writes_what_t5_writes() -> None:
    pytest.importorskip("transformers")
    from scalelab.models import to_transformers

    source = torch.tensor([[5, 6, 7, 8, 9], [3, 4, 0, 0, 0]])
    padding = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    for seed in range(4):
        model = sequence_model(seed)
        theirs = to_transformers(model).eval()
        free = generate(model, source, max_new_tokens=12, temperature=0, padding=padding)
        for end_id in (None, int(free[0, 2])):
            want = theirs.generate(
                source, attention_mask=padding.long(), max_new_tokens=12, do_sample=False,
                eos_token_id=end_id, decoder_start_token_id=0, pad_token_id=0,
            )  # fmt: skip
            got = generate(model, source, max_new_tokens=12, temperature=0, padding=padding, end_id=end_id)
            assert torch.equal(got, want[:, 1:])


def test_rows_that_end_are_filled_and_the_last_end_stops() -> None:
    model = decoder(seed=2)
    free = generate(model, PROMPT, max_new_tokens=9, temperature=0)[:, 3:]
    end_id = int(free[0, 1])
    ended = generate(model, PROMPT, max_new_tokens=9, temperature=0, end_id=end_id, pad_id=22)[:, 3:]
    lengths = []
    for row in range(2):
        hits = (free[row] == end_id).nonzero()
        lengths.append(int(hits[0]) + 1 if len(hits) else 9)
        assert torch.equal(ended[row, : lengths[row]], free[row, : lengths[row]])
        assert set(ended[row, lengths[row] :].tolist()) <= {22}
    assert ended.shape[1] == max(lengths)
    alone = generate(model, PROMPT[:1], max_new_tokens=9, temperature=0, end_id=end_id)
    assert alone.shape[1] == 3 + lengths[0]


def test_an_end_token_inside_the_prompt_ends_nothing() -> None:
    model = decoder()
    for end_id in range(23):
        prompt = torch.tensor([[1, end_id, 3]])
        free = generate(model, prompt, max_new_tokens=5, temperature=0)
        n_written = [*free[0, 3:].tolist(), end_id].index(end_id) + 1  # up to the first one written
        got = generate(model, prompt, max_new_tokens=5, temperature=0, end_id=end_id)
        assert torch.equal(got, free[:, : 3 + n_written])


def test_a_tiny_temperature_is_as_good_as_greedy() -> None:
    model = decoder()
    cold = generate(model, PROMPT, max_new_tokens=8, temperature=1e-30)
    assert torch.equal(cold, generate(model, PROMPT, max_new_tokens=8, temperature=0))


def test_generation_repeats_by_its_seed_and_leaves_the_global_random_state_alone() -> None:
    model, state = decoder(), torch.get_rng_state()
    runs = [generate(model, PROMPT, max_new_tokens=9, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(runs[0][:, :3], PROMPT)


def test_generation_works_without_dropout_and_gives_each_module_its_mode_back() -> None:
    model = decoder(dropout=0.5).train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    first = generate(model, PROMPT, max_new_tokens=8, temperature=0)
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(first, generate(model, PROMPT, max_new_tokens=8, temperature=0))


def test_generated_tokens_can_be_trained_on() -> None:
    model = decoder()
    tokens = generate(model, PROMPT, max_new_tokens=5)
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()  # type: ignore[no-untyped-call]
    assert model.token_embedding.weight.grad is not None


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_reported_and_the_mode_given_back(
    value: float, temperature: float
) -> None:
    model = decoder().train()
    with torch.no_grad():
        model.final_norm.weight[0] = value
    with pytest.raises(WeightsError, match=r"largest logit of a row is (nan|inf).*not finite"):
        generate(model, PROMPT, max_new_tokens=2, temperature=temperature)
    assert model.training


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.int64), "at least one token"),
        (torch.zeros(0, 3, dtype=torch.int64), "at least one token"),
        (torch.zeros(3, dtype=torch.int64), "shape"),
        (torch.zeros(1, 3), "float32"),
        ([[1]], "list"),
        (torch.tensor([[3, 23]]), r"\[0, 23\).*3 to 23"),
        (torch.tensor([[-1]]), "-1 to -1"),
        (torch.zeros(1, 3, dtype=torch.int64, device="meta"), "on meta, the model on cpu"),
    ],
)
def test_unusable_prompts_are_refused(prompt: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        generate(decoder(), prompt, max_new_tokens=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("padding", "message"),
    [
        (torch.ones(2, 3), "float32"),
        (torch.ones(2, 4, dtype=torch.bool), r"\[2, 3\]"),
        (torch.ones(2, 3, dtype=torch.bool, device="meta"), "padding is on meta, the tokens on cpu"),
        (torch.tensor([[True] * 3, [False] * 3]), "row 1 of padding has no token"),
        (torch.tensor([[True] * 3, [True, True, False]]), "row 1 .* behind a token: .* on the left"),
    ],
)
def test_unusable_padding_is_refused(padding: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        generate(decoder(), PROMPT, max_new_tokens=1, padding=padding)


@pytest.mark.parametrize(
    "setting",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 1.5},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_k": 0},
        {"top_k": 24},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": "most"},
        {"seed": -1},
        {"seed": "x"},
        {"seed": 2**64},
        {"end_id": 23},
        {"end_id": -1},
        {"pad_id": 1.0},
        {"use_cache": "yes"},
    ],
)
def test_unusable_settings_are_refused_by_name(setting: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        generate(decoder(), PROMPT, **{"max_new_tokens": 1, **setting})  # type: ignore[arg-type]


def test_a_model_that_does_not_write_is_refused() -> None:
    encoder = Encoder(EncoderConfig(n_layers=1, d_model=8, n_heads=2, d_ff=8, vocab_size=9), seed=0)
    with pytest.raises(ConfigError, match="EncoderDecoder, got Encoder"):
        generate(encoder, PROMPT, max_new_tokens=1)  # type: ignore[arg-type]


def test_a_compiled_model_is_refused_with_what_to_give_instead() -> None:
    compiled = torch.nn.Module()
    compiled._orig_mod = decoder()  # as torch.compile wraps it
    with pytest.raises(ConfigError, match=r"got Module: give the module inside it, model\._orig_mod"):
        generate(compiled, PROMPT, max_new_tokens=1)  # type: ignore[arg-type]


def test_without_a_cache_a_source_is_read_once_all_the_same() -> None:
    model, reads = sequence_model(), []
    model.encoder.register_forward_hook(lambda *_: reads.append(1))
    generate(model, PROMPT, max_new_tokens=5, use_cache=False)
    assert len(reads) == 1
