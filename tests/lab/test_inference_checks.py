"""Checks of the inference lab: right passes, usual mistakes are named, references equal others' code."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from scalelab.core.config import DecoderConfig
from scalelab.core.presets import preset
from scalelab.cost import decode_flops, decode_pass, kv_cache_bytes, params
from scalelab.lab.checks import Exercise, exercises, judge
from scalelab.lab.checks.inference.cached import rotate
from scalelab.models import Sampler

EXERCISES = exercises("transformers/inference")
SEEDS = (0, 1, 12345)


@pytest.fixture(params=list(EXERCISES))
def exercise(request: pytest.FixtureRequest) -> Exercise:
    return EXERCISES[request.param]


def test_there_are_five_exercises() -> None:
    names = ["top_p_filter", "cached_attention", "beam_step", "decode_bill", "accept_or_resample"]
    assert list(EXERCISES) == names


def scaled(value: Any, factor: float) -> Any:
    """Every number of an answer times a factor, whatever it is made of."""
    if isinstance(value, tuple):
        return tuple(scaled(part, factor) for part in value)
    return value * factor


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1.37])
def test_numbers_that_are_nan_infinite_or_off_by_a_factor_are_unknown_mistakes(
    exercise: Exercise, factor: float
) -> None:
    def answer(*args: Any) -> Any:
        found = exercise.reference(*args)
        if exercise.name == "cached_attention":
            return found[0] * factor, found[1]
        return scaled(found, factor)

    verdict = judge(exercise, answer, exercise.cases(0))
    assert verdict.outcome == "unknown mistake"
    assert "On " in verdict.message


UNLISTED: dict[str, list[Any]] = {
    "top_p_filter": [
        lambda logits, t, p: torch.full_like(logits, 1 / logits.shape[-1]),
        lambda logits, t, p: (logits / t).softmax(-1),
    ],
    "cached_attention": [
        lambda q, k, v, kept, m: (v, (torch.cat((kept[0], k), 1), torch.cat((kept[1], v), 1))),
        lambda q, k, v, kept, m: (0 * q, (torch.cat((kept[0], k), 1), torch.cat((kept[1], v), 1))),
    ],
    "beam_step": [
        lambda lp, s, e, n, a: (*[torch.zeros(3, dtype=torch.long)] * 2, s, torch.zeros(0), torch.zeros(0)),
        lambda lp, s, e, n, a: (torch.arange(3), lp.argmin(1), s, torch.zeros(0), torch.zeros(0)),
    ],
    "decode_bill": [lambda c, n, b, s, w: (0, 0, 0), lambda c, n, b, s, w: (n * w, 2 * n * b, 2 / w)],
    "accept_or_resample": [
        lambda p, q, d, u: (1, p[0].flip(0)),
        lambda p, q, d, u: (len(d), torch.full_like(p[0], 1 / p.shape[1])),
    ],
}


@pytest.mark.parametrize(("name", "number"), [(n, i) for n, a in UNLISTED.items() for i in range(len(a))])
def test_unlisted_mistakes_get_a_neutral_account(name: str, number: int) -> None:
    for seed in SEEDS:
        verdict = judge(EXERCISES[name], UNLISTED[name][number], EXERCISES[name].cases(seed))
        assert verdict.outcome == "unknown mistake"
        assert "On " in verdict.message


@pytest.mark.parametrize(
    "answer", [None, 3, lambda: 1, lambda *a: None, lambda *a: "text", lambda *a: (1, "b"), lambda *a: 1j]
)
def test_answers_of_the_wrong_kind_get_a_precise_account(exercise: Exercise, answer: Any) -> None:
    verdict = judge(exercise, answer, exercise.cases(0))
    assert not verdict.right
    assert exercise.name in verdict.message


def top_k(how_many: Any) -> Any:
    """Top-p with one number of kept tokens for all rows, made of the rows' own numbers."""

    def top_p_filter(logits: Any, temperature: float, top_p: float) -> Any:
        p = (logits / temperature).softmax(-1)
        falling, ids = p.sort(-1, descending=True)
        n = int(how_many((falling.cumsum(-1) - falling < top_p).sum(-1)))
        kept = torch.zeros_like(p).scatter(-1, ids[:, :n], falling[:, :n])
        return kept / kept.sum(-1, keepdim=True)

    return top_p_filter


def endings_until(n_of: Any) -> Any:
    """A step of beam search that finishes the endings before a place of its own choice."""

    def beam_step(log_p: Any, sums: Any, end_id: int, length: int, penalty: float) -> Any:
        n, vocab = log_p.shape
        best, places = (sums[:, None] + log_p).flatten().topk(2 * n)
        ends = places % vocab == end_id
        going = (~ends).nonzero().flatten()[:n]
        ends[n_of(n, going) :] = False
        return places[going] // vocab, places[going] % vocab, best[going], places[ends] // vocab, (
            best[ends] / length**penalty
        )  # fmt: skip

    return beam_step


def bill_by_width(width_of: Any) -> Any:
    def decode_bill(c: Any, n_weights: int, n_texts: int, kept: int, size: float) -> Any:
        cache = 2 * c.n_layers * c.kv_heads * width_of(c) * kept * n_texts * size
        flops = n_texts * (2 * n_weights + 4 * c.n_layers * c.n_heads * width_of(c) * kept)
        return cache, flops, flops / (n_weights * size + cache)

    return decode_bill


@pytest.mark.parametrize(
    ("name", "answer", "found"),
    [
        ("top_p_filter", top_k(lambda n: n.max()), ("as many tokens in every row",)),
        ("top_p_filter", top_k(lambda n: n[0]), None),
        ("top_p_filter", top_k(lambda n: n.float().mean().round()), None),
        ("beam_step", endings_until(lambda n, going: going[-1]), ("endings until the beams are full",)),
        ("beam_step", endings_until(lambda n, going: 2 * n), ("endings beyond the N best",)),
        ("beam_step", endings_until(lambda n, going: n), ()),
        (
            "decode_bill",
            bill_by_width(lambda c: c.d_model // c.n_heads),
            ("a head's width taken from d_model",),
        ),
        ("decode_bill", bill_by_width(lambda c: c.head_width), ()),
    ],
)
def test_answers_that_once_slipped_through_are_told_from_right_ones_on_every_variant(
    name: str, answer: Any, found: tuple[str, ...] | None
) -> None:
    """`found`: the mistakes named; none for a right answer, None for one that is refused without a name."""
    for seed in range(30):
        for cases in (EXERCISES[name].cases(seed), EXERCISES[name].hidden_cases(seed)):
            verdict = judge(EXERCISES[name], answer, cases)
            assert verdict.right == (found == ()), (seed, verdict.message)
            assert found is None or verdict.mistakes == found


def test_other_right_ways_pass() -> None:
    """Top-p by a threshold; keys kept unturned and turned anew; drafts by one product of verdicts."""

    def by_threshold(logits: Any, temperature: float, top_p: float) -> Any:
        p = (logits / temperature).softmax(-1)
        rows = []
        for row in p:
            falling = row.sort(descending=True).values
            n = int((falling.cumsum(0) < top_p).sum()) + 1
            rows.append(row * (row >= falling[min(n, len(row)) - 1]))
        return torch.stack([row / row.sum() for row in rows])

    def turned_anew(q: Any, k: Any, v: Any, kept: Any, is_token: Any) -> Any:
        keys, values = torch.cat((kept[0], k), 1), torch.cat((kept[1], v), 1)
        places = is_token.long().cumsum(1) - 1  # filling does not count, as in `transformers`
        turned = torch.stack([rotate(row[None], at)[0] for row, at in zip(keys, places, strict=True)])
        new = places[:, -q.shape[1] :]
        asked = torch.stack([rotate(row[None], at)[0] for row, at in zip(q, new, strict=True)])
        order = torch.arange(keys.shape[1])
        seen = (order <= order[-q.shape[1] :, None]) & is_token[:, None, :]
        hidden = torch.zeros(seen.shape).masked_fill(~seen, -math.inf)
        mixed = (asked @ turned.transpose(1, 2) / q.shape[-1] ** 0.5 + hidden).softmax(-1) @ values
        return mixed, (keys, values)

    def at_once(p: Any, q: Any, drafts: Any, u: Any) -> Any:
        places = torch.arange(len(drafts))
        n = int((u < p[places, drafts] / q[places, drafts]).long().cumprod(0).sum())
        q_full = torch.cat((q, torch.zeros_like(q[:1])))
        rest = (p[n] - q_full[n]).clamp(min=0)
        return n, rest / rest.sum()

    right = {
        "top_p_filter": [
            by_threshold,
            lambda x, t, p: Sampler(temperature=t, top_p=p).probabilities(x),
        ],
        "cached_attention": [turned_anew],
        "accept_or_resample": [at_once],
    }
    for name, answers in right.items():
        for answer in answers:
            for seed in SEEDS:
                verdict = judge(EXERCISES[name], answer, EXERCISES[name].cases(seed))
                assert verdict.right, verdict.message


# The references against others' code.


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.99])
def test_top_p_equals_transformers_warpers(temperature: float, top_p: float) -> None:
    warpers = pytest.importorskip("transformers.generation.logits_process")
    logits = 2 * torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    theirs = warpers.TopPLogitsWarper(top_p)(None, warpers.TemperatureLogitsWarper(temperature)(None, logits))
    ours = EXERCISES["top_p_filter"].reference(logits, temperature, top_p)
    torch.testing.assert_close(ours, theirs.softmax(-1), rtol=0, atol=1e-6)


def test_cached_attention_equals_torchs_over_the_whole_text() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 9, 8) for _ in range(3))
    places = torch.arange(9)
    whole = torch.nn.functional.scaled_dot_product_attention(
        rotate(q, places), rotate(k, places), v, is_causal=True
    )
    kept = torch.zeros(2, 0, 8), torch.zeros(2, 0, 8)
    is_token, begin = torch.ones(2, 9, dtype=torch.bool), 0
    for length in (4, 1, 3, 1):
        end = begin + length
        new = (part[:, begin:end] for part in (q, k, v))
        mixed, kept = EXERCISES["cached_attention"].reference(*new, kept, is_token[:, :end])
        torch.testing.assert_close(mixed, whole[:, begin:end], rtol=0, atol=1e-6)
        begin = end


def test_beam_step_finds_the_best_of_all_extensions_by_enumeration() -> None:
    generator = torch.Generator().manual_seed(1)
    log_p = torch.randn(4, 11, generator=generator).log_softmax(-1)
    sums = -torch.rand(4, generator=generator)
    parents, tokens, best, ended, scores = EXERCISES["beam_step"].reference(log_p, sums, 3, 5, 0.8)
    everything = sorted(
        ((float(sums[n] + log_p[n, t]), n, t) for n in range(4) for t in range(11)), reverse=True
    )
    going = [entry for entry in everything if entry[2] != 3][:4]
    assert [(p, t) for p, t in zip(parents.tolist(), tokens.tolist(), strict=True)] == [
        (n, t) for _, n, t in going
    ]
    assert best.tolist() == pytest.approx([total for total, _, _ in going])
    finished = [entry for entry in everything[:4] if entry[2] == 3]
    assert ended.tolist() == [n for _, n, _ in finished]
    assert scores.tolist() == pytest.approx([total / 5**0.8 for total, _, _ in finished])


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-2-7b", "llama-3.1-70b"])
@pytest.mark.parametrize("n_texts", [1, 64])
def test_decode_bill_equals_scalelab_cost_for_llamas(name: str, n_texts: int) -> None:
    config = preset(name)
    assert isinstance(config, DecoderConfig)
    n_weights = params(config).matmul
    cache, flops, intensity = EXERCISES["decode_bill"].reference(config, n_weights, n_texts, 2048, 2)
    assert cache == kv_cache_bytes(config, batch_size=n_texts, seq_len=2048)
    exact = decode_flops(config, batch_size=n_texts, context_len=2048).total
    assert flops == pytest.approx(exact, rel=1e-3)  # gains of norms are weights, and multiply nothing
    found = decode_pass(config, batch_size=n_texts, context_len=2048)
    assert intensity == pytest.approx(found.intensity, rel=1e-3)


def test_llama_3_keeps_128_kib_a_token_and_512_without_shared_keys() -> None:
    config = preset("llama-3.1-8b")
    assert isinstance(config, DecoderConfig)
    bill = EXERCISES["decode_bill"].reference
    assert bill(config, 1, 1, 1, 2)[0] == 128 * 1024
    own = dataclasses.replace(config, n_kv_heads=config.n_heads)
    assert bill(own, 1, 1, 1, 2)[0] == 512 * 1024


def test_accept_or_resample_gives_the_targets_distribution_exactly() -> None:
    """One draft: q(x) · min(1, p/q) + refused mass · residual = p, summed over all drafts."""
    generator = torch.Generator().manual_seed(2)
    p, q = (torch.rand(n, 7, generator=generator).double() for n in (2, 1))
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    rule = EXERCISES["accept_or_resample"].reference
    written = torch.zeros(7, dtype=torch.double)
    for x in range(7):
        kept = min(1.0, float(p[0, x] / q[0, x]))
        written[x] += q[0, x] * kept
        assert (
            rule(p, q, torch.tensor([x]), torch.tensor([max(0.0, kept - 1e-9)], dtype=torch.double))[0] == 1
        )
        if kept < 1:
            n, rest = rule(p, q, torch.tensor([x]), torch.tensor([kept + 1e-9], dtype=torch.double))
            assert n == 0
            written += q[0, x] * (1 - kept) * rest
    torch.testing.assert_close(written, p[0])
