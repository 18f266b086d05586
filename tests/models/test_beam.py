"""Beam search: the texts and scores that `transformers` finds, and with enough beams the best there is."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from scalelab.core.config import DecoderConfig, EncoderDecoderConfig
from scalelab.core.errors import ConfigError, WeightsError
from scalelab.models import Beams, Decoder, EncoderDecoder, beam_search, generate

GPT2: dict[str, Any] = {"n_layers": 1, "d_model": 16, "n_heads": 2, "vocab_size": 11, "seq_len": 32}
LLAMA: dict[str, Any] = {
    **GPT2, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "positions": "rope", "norm": "rmsnorm",
    "feed_forward": "swiglu", "attention_bias": False, "feed_forward_bias": False, "norm_bias": False,
}  # fmt: skip
PROMPT = torch.tensor([[1, 2, 3, 4], [0, 0, 5, 6], [0, 7, 7, 8]])
PADDING = torch.tensor([[True] * 4, [False] * 2 + [True] * 2, [False] + [True] * 3])
END, PAD = 9, 10
RULES = list(itertools.product((2, 3, 5), (-1.0, 0.0, 0.7, 1.0, 2.0), (True, False, "never")))


def lively(model: torch.nn.Module, seed: int, end_size: float = 0.0) -> Any:
    """Uneven probabilities; the end token likelier the larger `end_size`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty(parameter.shape).normal_(0, 0.15, generator=generator))
        model.head.weight[END] *= 1 + end_size  # type: ignore[union-attr, index, operator]
    return model.eval()


def decoder(seed: int, end_size: float = 2.0, **shape: Any) -> Decoder:
    config = DecoderConfig(**{**GPT2, "tie_embeddings": False, **shape})
    model: Decoder = lively(Decoder(config, seed=seed), seed, end_size)
    return model


def sequence_model(seed: int) -> EncoderDecoder:
    config = EncoderDecoderConfig(
        n_layers=2, d_model=16, n_heads=2, d_head=8, d_ff=24, vocab_size=11, tie_embeddings=False,
        scale_head=False,
    )  # fmt: skip
    model: EncoderDecoder = lively(EncoderDecoder(config, seed=seed), seed, 2.0)
    return model


def assert_same(ours: Beams, theirs: Any, n_return: int, skip: int = 0) -> None:
    """Token by token, and score by score."""
    tokens = ours.tokens.flatten(0, 1)
    assert torch.equal(tokens, theirs.sequences[:, skip:])
    torch.testing.assert_close(ours.scores.flatten(), theirs.sequences_scores, rtol=1e-5, atol=1e-5)
    assert ours.tokens.shape[1] == n_return


def by_transformers(theirs: Any, n_return: int, rule: tuple[int, float, Any], **settings: Any) -> Any:
    n_beams, length_penalty, early_stopping = rule
    return theirs.generate(
        num_beams=n_beams, length_penalty=length_penalty, early_stopping=early_stopping, do_sample=False,
        num_return_sequences=n_return, return_dict_in_generate=True, output_scores=True, pad_token_id=PAD,
        **settings,
    )  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_decoders_beams_and_scores_equal_those_of_transformers(rule: tuple[int, float, Any]) -> None:
    pytest.importorskip("transformers")
    from scalelab.models import to_transformers

    n_beams, length_penalty, early_stopping = rule
    n_return, n_early = max(1, n_beams - 1), 0
    for seed, shape in enumerate((GPT2, LLAMA, LLAMA)):
        model = decoder(seed, **shape)
        theirs = to_transformers(model).eval()
        for prompt, padding in ((PROMPT, PADDING), (PROMPT[:1], None)):
            mask = torch.ones_like(prompt) if padding is None else padding.long()
            want = by_transformers(
                theirs,
                n_return,
                rule,
                input_ids=prompt,
                attention_mask=mask,
                max_new_tokens=9,
                eos_token_id=END,
            )
            got = beam_search(
                model, prompt, n_beams=n_beams, max_new_tokens=9, length_penalty=length_penalty,
                early_stopping=early_stopping, end_id=END, pad_id=PAD, n_return=n_return, padding=padding,
            )  # fmt: skip
            assert_same(got, want, n_return)
            n_early += int((got.tokens[:, :, 4:-1] == END).sum())
    # Texts of several lengths were compared, but where the rule itself prefers the longest.
    assert n_early > 0 or (length_penalty, early_stopping) == (2.0, "never")


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_an_encoder_decoders_beams_and_scores_equal_those_of_t5(rule: tuple[int, float, Any]) -> None:
    pytest.importorskip("transformers")
    from scalelab.models import to_transformers

    n_beams, length_penalty, early_stopping = rule
    right = PADDING.flip(1)
    for seed in range(2):
        model = sequence_model(seed)
        theirs = to_transformers(model).eval()
        want = by_transformers(
            theirs, 2, rule, input_ids=PROMPT, attention_mask=right.long(), max_new_tokens=9,
            eos_token_id=END, decoder_start_token_id=0,
        )  # fmt: skip
        got = beam_search(
            model, PROMPT, n_beams=n_beams, max_new_tokens=9, length_penalty=length_penalty,
            early_stopping=early_stopping, end_id=END, pad_id=PAD, n_return=2, padding=right,
        )  # fmt: skip
        assert_same(got, want, 2, skip=1)


def test_more_beams_than_tokens_equal_transformers_too() -> None:
    pytest.importorskip("transformers")
    from scalelab.models import to_transformers

    model = decoder(0)
    want = by_transformers(
        to_transformers(model).eval(), 1, (15, 1.0, False), input_ids=PROMPT, attention_mask=PADDING.long(),
        max_new_tokens=4, eos_token_id=END,
    )  # fmt: skip
    got = beam_search(model, PROMPT, n_beams=15, max_new_tokens=4, end_id=END, pad_id=PAD, padding=PADDING)
    assert_same(got, want, 1)


@pytest.mark.parametrize("seed", range(3))
def test_with_a_beam_for_every_text_the_search_is_exhaustive(seed: int) -> None:
    """All 11³ continuations scored one by one: no other oracle than the chain rule."""
    model = decoder(seed)
    every = torch.cartesian_prod(*[torch.arange(11)] * 3)  # [1331, 3]
    whole = torch.cat((PROMPT[:1].expand(len(every), -1), every), dim=1)
    with torch.no_grad():
        steps = model(whole)[:, 3:-1].log_softmax(-1).gather(-1, every[..., None]).squeeze(-1)  # [1331, 3]
    sums, places = steps.sum(-1).topk(4)
    got = beam_search(model, PROMPT[:1], n_beams=121, max_new_tokens=3, length_penalty=0.0, n_return=4)
    assert torch.equal(got.tokens[0, :, 4:], every[places])
    torch.testing.assert_close(got.scores[0], sums, rtol=1e-5, atol=1e-5)


def test_one_beam_is_greedy() -> None:
    model = decoder(1)
    found = beam_search(model, PROMPT, n_beams=1, max_new_tokens=8, end_id=END, pad_id=PAD, padding=PADDING)
    greedy = generate(model, PROMPT, max_new_tokens=8, temperature=0, end_id=END, pad_id=PAD, padding=PADDING)
    assert torch.equal(found.tokens[:, 0], greedy)


def test_scores_are_the_log_probabilities_over_the_length_to_the_penalty() -> None:
    model = decoder(2)
    found = beam_search(
        model, PROMPT[:1], n_beams=4, max_new_tokens=9, end_id=END, pad_id=PAD, length_penalty=0.7, n_return=4
    )
    for tokens, score in zip(found.tokens[0], found.scores[0], strict=True):
        n_written = [*tokens[4:].tolist(), END].index(END) + 1
        text = tokens[None, : 4 + n_written]
        with torch.no_grad():
            steps = -model.loss(text[:, :-1], text[:, 1:], "none")[0, 3:]
        assert score.item() == pytest.approx(steps.sum().item() / len(steps) ** 0.7, abs=1e-5)


def test_beams_go_on_beyond_the_context_by_its_last_tokens() -> None:
    model = decoder(0, seq_len=6)
    found = beam_search(model, PROMPT[:1], n_beams=1, max_new_tokens=7)
    assert torch.equal(found.tokens[:, 0], generate(model, PROMPT[:1], max_new_tokens=7, temperature=0))


@pytest.mark.parametrize(
    "setting",
    [
        {"n_beams": 0},
        {"n_beams": True},
        {"max_new_tokens": 0},
        {"length_penalty": float("inf")},
        {"length_penalty": "long"},
        {"length_penalty": 2000},
        {"length_penalty": -10.5},
        {"early_stopping": "always"},
        {"early_stopping": 1},
        {"n_return": 0},
        {"n_return": 3},
        {"end_id": 11},
        {"pad_id": -1},
    ],
)
def test_unusable_settings_are_refused_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        beam_search(decoder(0), PROMPT, **{"n_beams": 2, "max_new_tokens": 3, **setting})


def test_logits_that_are_not_finite_are_reported() -> None:
    model = decoder(0)
    with torch.no_grad():
        model.final_norm.weight[0] = float("nan")
    with pytest.raises(WeightsError, match="not finite"):
        beam_search(model, PROMPT, n_beams=2, max_new_tokens=3)


@pytest.mark.parametrize(
    ("n_words", "n_beams", "n_new", "end_id", "n_texts"),
    [(3, 4, 1, None, 3), (2, 4, 2, 1, 3), (1, 2, 2, None, 1)],
)
def test_texts_that_the_search_did_not_find_are_not_made_up(
    n_words: int, n_beams: int, n_new: int, end_id: int | None, n_texts: int
) -> None:
    """Few tokens make fewer texts than beams: of two tokens, one of them the end, there are three."""
    config = DecoderConfig(**{**GPT2, "vocab_size": n_words})
    settings: dict[str, Any] = {"n_beams": n_beams, "max_new_tokens": n_new, "end_id": end_id}
    model, prompt = Decoder(config, seed=0), torch.tensor([[0]])
    found = beam_search(model, prompt, **settings, n_return=n_texts)
    assert len({tuple(text) for text in found.tokens[0].tolist()}) == n_texts
    assert found.scores.min() > -1e3
    with pytest.raises(ConfigError, match=f"n_return={n_texts + 1} texts, .* found only {n_texts}"):
        beam_search(model, prompt, **settings, n_return=n_texts + 1)


def test_results_of_two_searches_can_be_held_against_each_other() -> None:
    found, again = (beam_search(decoder(0), PROMPT, n_beams=2, max_new_tokens=2) for _ in range(2))
    assert found == found
    assert found != again  # two results; whether their tokens are equal, torch.equal says
