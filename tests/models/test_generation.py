"""Generation: the same tokens as a plain loop, the right frequencies, and clear refusals."""

from __future__ import annotations

import pytest
import torch

from scalelab.core.config import DecoderConfig
from scalelab.core.errors import ConfigError, DataError
from scalelab.models import Decoder, generate
from scalelab.models.generation import pick

CONFIG = DecoderConfig(n_layers=2, d_model=32, n_heads=4, vocab_size=23, seq_len=12)


def decoder(**changes: object) -> Decoder:
    model = Decoder(DecoderConfig(**{**_fields(), **changes}), seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0)  # far from the uniform distribution of a fresh model
    return model


def _fields() -> dict[str, object]:
    names = ("n_layers", "d_model", "n_heads", "vocab_size", "seq_len")
    return {name: getattr(CONFIG, name) for name in names}


PROMPT = torch.tensor([[1, 2, 3], [4, 5, 6]])


def test_greedy_generation_equals_a_plain_loop_past_the_end_of_the_context() -> None:
    model, tokens = decoder(), PROMPT
    for _ in range(15):  # 3 + 15 tokens: longer than the context of 12
        tokens = torch.cat((tokens, model(tokens[:, -12:])[:, -1].argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(generate(model, PROMPT, max_new_tokens=15, temperature=0), tokens)


@pytest.mark.parametrize("top_k", [None, 5])
def test_sampling_equals_a_plain_loop_with_the_same_seed(top_k: int | None) -> None:
    model, tokens, generator = decoder(), PROMPT, torch.Generator().manual_seed(7)
    for _ in range(6):
        logits = model(tokens)[:, -1] / 0.8
        if top_k is not None:
            kept = logits.topk(top_k, dim=-1)
            drawn = kept.indices.gather(1, torch.multinomial(kept.values.softmax(-1), 1, generator=generator))
        else:
            drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        tokens = torch.cat((tokens, drawn), dim=1)
    got = generate(model, PROMPT, max_new_tokens=6, temperature=0.8, top_k=top_k, seed=7)
    assert torch.equal(got, tokens)


def test_greedy_generation_equals_that_of_transformers() -> None:
    pytest.importorskip("transformers")
    from scalelab.models import to_transformers

    model = decoder(seq_len=32).eval()
    want = to_transformers(model).generate(
        PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=20, do_sample=False, pad_token_id=0
    )
    assert torch.equal(generate(model, PROMPT, max_new_tokens=20, temperature=0), want)


def test_draws_follow_the_tempered_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    draws = pick(logits.expand(40_000, 4), 0.5, None, torch.Generator().manual_seed(0))
    frequencies = draws.bincount(minlength=4) / 40_000
    torch.testing.assert_close(frequencies, (logits / 0.5).softmax(-1), rtol=0, atol=0.01)  # 4 sigma


def test_top_k_never_draws_beyond_the_k_likeliest() -> None:
    logits = torch.tensor([2.0, 1.9, 1.8, 1.7])
    draws = pick(logits.expand(2_000, 4), 5.0, 2, torch.Generator().manual_seed(0))
    assert draws.unique().tolist() == [0, 1]


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


def test_generation_works_without_dropout_and_gives_the_mode_back() -> None:
    model = decoder(dropout=0.5).train()
    first = generate(model, PROMPT, max_new_tokens=8, temperature=0)
    assert model.training
    assert all(module.training for module in model.modules())
    assert torch.equal(first, generate(model, PROMPT, max_new_tokens=8, temperature=0))


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
    ],
)
def test_unusable_prompts_are_refused(prompt: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        generate(decoder(), prompt, max_new_tokens=1)  # type: ignore[arg-type]


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
        {"seed": -1},
        {"seed": "x"},
    ],
)
def test_unusable_settings_are_refused_by_name(setting: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        generate(decoder(), PROMPT, **{"max_new_tokens": 1, **setting})  # type: ignore[arg-type]
