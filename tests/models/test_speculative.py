"""Speculative decoding writes what the target would: greedy, token by token; drawn, in distribution."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from scalelab.core.config import DecoderConfig, EncoderDecoderConfig
from scalelab.core.errors import ConfigError, DataError, WeightsError
from scalelab.models import (
    Decoder,
    EncoderDecoder,
    Sampler,
    Speculation,
    generate,
    speculative,
    speculative_generate,
)

TARGET: dict[str, Any] = {"n_layers": 2, "d_model": 32, "n_heads": 4, "vocab_size": 23, "seq_len": 40}
DRAFT: dict[str, Any] = {"n_layers": 1, "d_model": 16, "n_heads": 2, "vocab_size": 23, "seq_len": 48}
PROMPT = torch.tensor([[0, 0, 7, 3], [9, 8, 7, 6], [0, 4, 4, 1]])
PADDING = torch.tensor([[False] * 2 + [True] * 2, [True] * 4, [False] + [True] * 3])


def decoder(seed: int, size: float = 0.3, **shape: Any) -> Decoder:
    model = Decoder(DecoderConfig(**{**TARGET, **shape}), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty(parameter.shape).normal_(0, size, generator=generator))
    return model.eval()


def like(target: Decoder, seed: int, noise: float) -> Decoder:
    """A draft that has been taught to resemble its target: the same weights, shaken."""
    model, generator = Decoder(target.config, seed=0), torch.Generator().manual_seed(seed)
    model.load_state_dict(target.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty(parameter.shape).normal_(0, noise, generator=generator))
    return model.eval()


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rope", "alibi", "none"])
@pytest.mark.parametrize("n_draft", [1, 2, 5, 30])
def test_at_temperature_zero_the_tokens_are_the_targets_greedy_ones(n_draft: int, positions: str) -> None:
    target = decoder(0, positions=positions)
    want = generate(target, PROMPT, max_new_tokens=20, temperature=0, padding=PADDING)
    for draft in (decoder(1, **DRAFT), like(target, 1, 0.03), target):
        found = speculative_generate(
            target, draft, PROMPT, n_draft=n_draft, max_new_tokens=20, temperature=0, padding=PADDING
        )
        assert torch.equal(found.tokens, want)
        alone = speculative_generate(
            target, draft, PROMPT[1:2], n_draft=n_draft, max_new_tokens=20, temperature=0
        )
        assert torch.equal(alone.tokens, want[1:2])


def test_rows_end_where_greedy_rows_end() -> None:
    target, draft = decoder(0), decoder(1, **DRAFT)
    free = generate(target, PROMPT, max_new_tokens=20, temperature=0, padding=PADDING)
    for end_id in free[:, 4:].unique().tolist():
        settings: dict[str, Any] = {"max_new_tokens": 20, "temperature": 0, "end_id": end_id, "pad_id": 22}
        want = generate(target, PROMPT, padding=PADDING, **settings)
        for other in (draft, like(target, 2, 0.02)):
            found = speculative_generate(target, other, PROMPT, n_draft=4, padding=PADDING, **settings)
            assert torch.equal(found.tokens, want)
            lengths = [([*row, end_id].index(end_id) + 1) for row in want[:, 4:].tolist()]
            assert found.n_written == sum(min(length, want.shape[1] - 4) for length in lengths)


V, N_TOKENS = 8, 3
TINY = {"n_layers": 1, "d_model": 8, "n_heads": 1, "vocab_size": V, "seq_len": 8}
SETTINGS: list[dict[str, Any]] = [{}, {"temperature": 0.7, "top_p": 0.9}, {"top_k": 4}]


def exact_probabilities(target: Decoder, prompt: torch.Tensor, sampler: Sampler) -> torch.Tensor:
    """[V³]: of every text of three tokens, by the chain rule, from the target alone."""
    every = torch.tensor(list(itertools.product(range(V), repeat=N_TOKENS)))
    whole = torch.cat((prompt.expand(len(every), -1), every), dim=1)
    with torch.no_grad():
        logits = target(whole)[:, prompt.shape[1] - 1 : -1]  # [V³, 3, V]
    p = sampler.probabilities(logits.flatten(0, 1)).view(logits.shape).double()
    return p.gather(-1, every[..., None]).squeeze(-1).prod(dim=1)


def drawn_texts(target: Decoder, draft: Decoder, prompt: torch.Tensor, **settings: Any) -> torch.Tensor:
    """[V³]: how often each text is written, in runs of one row and of five."""
    texts = []
    for batch, n_runs in ((1, 400), (5, 300)):
        rows = prompt.expand(batch, -1)
        for seed in range(n_runs):
            found = speculative_generate(
                target,
                draft,
                rows,
                n_draft=2,
                max_new_tokens=N_TOKENS,
                seed=seed + 10_000 * batch,
                **settings,
            )
            texts.append(found.tokens[:, prompt.shape[1] :])
    a, b, c = torch.cat(texts).unbind(dim=1)
    return (a * V * V + b * V + c).bincount(minlength=V**N_TOKENS).double()


def chi_squared_p_value(observed: torch.Tensor, probabilities: torch.Tensor) -> float:
    """Pearson's test of counts; cells of fewer than 5 expected counts are one cell together.

    A text that cannot be written, but was, has p = 0. The tail of the distribution is torch's incomplete
    gamma function.
    """
    if bool((observed[probabilities == 0] > 0).any()):
        return 0.0
    expected = probabilities * observed.sum()
    small = (expected < 5) & (probabilities > 0)
    large = expected >= 5
    cells = [(observed[large], expected[large])]
    if bool(small.any()):
        cells.append((observed[small].sum()[None], expected[small].sum()[None]))
    o, e = (torch.cat(parts) for parts in zip(*cells, strict=True))
    statistic = ((o - e) ** 2 / e).sum()
    freedom = torch.tensor(float(len(o) - 1), dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, statistic / 2))


def written_p_value(settings: dict[str, Any]) -> float:
    target, draft = decoder(0, 0.5, **TINY), decoder(5, 0.5, **TINY)
    prompt = torch.tensor([[1, 2]])
    exact = exact_probabilities(target, prompt, Sampler(**settings))
    assert float(exact.sum()) == pytest.approx(1)
    return chi_squared_p_value(drawn_texts(target, draft, prompt, **settings), exact)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_texts_are_distributed_as_the_targets(settings: dict[str, Any]) -> None:
    assert written_p_value(settings) > 0.01


def from_target(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return p


def from_difference_without_clamp(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p - q).abs() / (p - q).abs().sum(-1, keepdim=True)


def always(
    p: torch.Tensor, q: torch.Tensor, drafts: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    return torch.ones_like(drafts, dtype=torch.bool)


def where_target_is_likely(
    p: torch.Tensor, q: torch.Tensor, drafts: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    return torch.rand(drafts.shape, generator=generator) < p.gather(-1, drafts[..., None]).squeeze(-1)


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        ("residual", from_target),
        ("residual", from_difference_without_clamp),
        ("is_accepted", always),
        ("is_accepted", where_target_is_likely),
    ],
)
def test_the_same_test_rejects_a_wrong_rule(
    rule: str, wrong: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speculative, rule, wrong)
    assert written_p_value({}) < 1e-6


def test_drafts_are_kept_as_often_as_the_distributions_overlap() -> None:
    """With one draft token a pass and two to write, what is judged are the prompts' own next tokens."""
    target, draft = decoder(0), decoder(1, **DRAFT)
    prompts = torch.randint(23, (300, 3), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        p, q = (model(prompts)[:, -1].softmax(-1) for model in (target, draft))
    overlap = torch.minimum(p, q).sum(-1)
    torch.testing.assert_close(speculative.acceptance_rate(p, q), overlap)
    n_judged = n_accepted = 0
    for seed in range(10):
        found = speculative_generate(target, draft, prompts, n_draft=1, max_new_tokens=2, seed=seed)
        n_judged, n_accepted = n_judged + found.n_judged, n_accepted + found.n_accepted
    assert n_judged == 10 * 300
    error = math.sqrt(float((overlap * (1 - overlap)).mean()) / n_judged)
    assert n_accepted / n_judged == pytest.approx(float(overlap.mean()), abs=3 * error)


def unmoved(seed: int) -> Decoder:
    """A model whose probabilities are the same whatever came before: acceptance is one number."""
    model = decoder(seed, n_layers=1, d_model=8, n_heads=1, vocab_size=6, seq_len=1600, tie_embeddings=False)
    with torch.no_grad():
        model.token_embedding.weight.zero_()
        model.position_embedding.weight[:] = model.position_embedding.weight[0].clone()
        model.head.weight.mul_(0.7)  # type: ignore[operator]
    return model


@pytest.mark.parametrize("n_draft", [1, 4])
def test_tokens_per_pass_follow_the_formula_where_acceptance_is_constant(n_draft: int) -> None:
    target, draft, prompt = unmoved(0), unmoved(1), torch.tensor([[0]])
    with torch.no_grad():
        p, q = (model(prompt)[0, -1].softmax(-1) for model in (target, draft))
    alpha = float(torch.minimum(p, q).sum())
    assert 0.3 < alpha < 0.9
    want = (1 - alpha ** (n_draft + 1)) / (1 - alpha)
    assert speculative.expected_tokens_per_pass(alpha, n_draft) == pytest.approx(want)
    found = speculative_generate(target, draft, prompt, n_draft=n_draft, max_new_tokens=1200)
    spread = math.sqrt(n_draft * (n_draft + 2) / 12)  # at most about that of a uniform number of tokens
    per_pass = found.n_written / found.n_target_passes
    assert per_pass == pytest.approx(want, abs=3 * spread / math.sqrt(found.n_target_passes))
    assert found.acceptance == pytest.approx(alpha, abs=3 * 0.5 / math.sqrt(found.n_judged))


@pytest.mark.parametrize(("n_draft", "n_passes"), [(1, 5), (3, 3), (9, 1), (50, 1)])
def test_a_draft_that_is_the_target_is_always_accepted(n_draft: int, n_passes: int) -> None:
    target = decoder(0)
    found = speculative_generate(target, target, PROMPT, n_draft=n_draft, max_new_tokens=10, padding=PADDING)
    assert found.n_target_passes == n_passes
    assert found.n_accepted == found.n_judged == found.n_drafted == 3 * (10 - n_passes)
    assert (found.acceptance, found.n_written) == (1.0, 30)


def test_nothing_is_drafted_where_one_token_is_left() -> None:
    found = speculative_generate(decoder(0), decoder(1), PROMPT, n_draft=4, max_new_tokens=1)
    assert (found.n_drafted, found.n_target_passes, found.n_written) == (0, 1, 3)
    assert math.isnan(found.acceptance)


def test_runs_repeat_by_their_seed_and_leave_global_state_and_modes_alone() -> None:
    target, draft, state = decoder(0, dropout=0.5).train(), decoder(1, **DRAFT), torch.get_rng_state()

    def run(seed: int) -> Speculation:
        return speculative_generate(target, draft, PROMPT, n_draft=3, max_new_tokens=12, seed=seed)

    assert torch.equal(run(1).tokens, run(1).tokens)
    assert not torch.equal(run(1).tokens, run(2).tokens)
    assert torch.equal(state, torch.get_rng_state())
    assert target.training
    assert not draft.training


def test_the_context_is_the_shorter_of_the_two() -> None:
    target, draft = decoder(0), decoder(1, **{**DRAFT, "seq_len": 12})
    speculative_generate(target, draft, PROMPT, n_draft=3, max_new_tokens=9)  # the last one is never read
    with pytest.raises(DataError, match=r"reach 14 tokens, more than the seq_len=12 .* generate\(target"):
        speculative_generate(target, draft, PROMPT, n_draft=3, max_new_tokens=10)


@pytest.mark.parametrize(
    "setting",
    [
        {"n_draft": 0},
        {"n_draft": 1.5},
        {"max_new_tokens": 0},
        {"temperature": -1},
        {"top_k": 24},
        {"top_p": 2.0},
        {"seed": -1},
        {"end_id": 23},
    ],
)
def test_unusable_settings_are_refused_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        speculative_generate(decoder(0), decoder(1), PROMPT, **{"n_draft": 2, "max_new_tokens": 3, **setting})


def test_models_that_do_not_fit_each_other_are_refused() -> None:
    target = decoder(0)
    other = EncoderDecoder(
        EncoderDecoderConfig(n_layers=1, d_model=8, n_heads=1, d_head=8, d_ff=8, vocab_size=23), seed=0
    )
    elsewhere = Decoder(target.config, device="meta")
    for draft, message in (
        (decoder(1, vocab_size=24), "23 tokens, the draft's 24.*same tokenizer"),
        (other, "draft must be a Decoder, got EncoderDecoder"),
        (elsewhere, "target is on cpu, the draft on meta"),
    ):
        with pytest.raises(ConfigError, match=message):
            speculative_generate(target, draft, PROMPT, n_draft=2, max_new_tokens=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("which", [0, 1])
def test_logits_that_are_not_finite_are_reported(which: int) -> None:
    models = [decoder(0), decoder(1)]
    with torch.no_grad():
        models[which].final_norm.weight[0] = float("nan")
    with pytest.raises(WeightsError, match="not finite"):
        speculative_generate(models[0], models[1], PROMPT, n_draft=2, max_new_tokens=3)


def test_an_impossible_acceptance_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"acceptance must lie in \[0, 1\], got 1.2"):
        speculative.expected_tokens_per_pass(1.2, 3)
    assert speculative.expected_tokens_per_pass(1.0, 3) == 4
