"""Temperature, top-k and top-p: the sets and probabilities of `transformers`' warpers, and fair draws."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from scalelab.core.errors import ConfigError
from scalelab.models import Sampler

SETTINGS = [
    {"temperature": t, "top_k": k, "top_p": p}
    for t, k, p in itertools.product((0.3, 1.0, 1.7), (None, 1, 5), (None, 1e-6, 0.3, 0.9, 0.999))
]


def logits(rows: int = 64, width: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.empty(rows, width).normal_(0, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_probabilities_equal_those_of_transformers_warpers(settings: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    for scores in (logits(), logits().round()):  # rounded: many equals, at the border of the set too
        want = transformers.TemperatureLogitsWarper(settings["temperature"])(None, scores)
        if settings["top_k"] is not None:
            want = transformers.TopKLogitsWarper(settings["top_k"])(None, want)
        if settings["top_p"] is not None:
            want = transformers.TopPLogitsWarper(settings["top_p"])(None, want)
        got = Sampler(**settings).probabilities(scores)
        torch.testing.assert_close(got, want.softmax(-1), rtol=1e-5, atol=1e-7)
        assert torch.equal(got > 0, want.softmax(-1) > 0)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95])
def test_top_p_keeps_the_smallest_set_with_that_mass(top_p: float) -> None:
    plain = logits().softmax(-1)
    kept = Sampler(top_p=top_p).probabilities(logits()) > 0
    for row in range(len(plain)):
        mass, size = 0.0, 0
        for p in plain[row].sort(descending=True).values.tolist():  # the definition, one by one
            mass, size = mass + p, size + 1
            if mass >= top_p:
                break
        assert int(kept[row].sum()) == size
        assert plain[row][kept[row]].min() >= plain[row][~kept[row]].max()


def test_draws_follow_the_tempered_distribution() -> None:
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0])
    draws = Sampler(temperature=0.5).draw(scores.expand(40_000, 4), torch.Generator().manual_seed(0))
    frequencies = draws.bincount(minlength=4) / 40_000
    torch.testing.assert_close(frequencies, (scores / 0.5).softmax(-1), rtol=0, atol=0.01)  # 4 sigma


def test_top_k_never_draws_beyond_the_k_likeliest() -> None:
    scores = torch.tensor([2.0, 1.9, 1.8, 1.7]).expand(2_000, 4)
    draws = Sampler(temperature=5.0, top_k=2).draw(scores, torch.Generator().manual_seed(0))
    assert draws.unique().tolist() == [0, 1]


def test_temperature_zero_is_certain_and_takes_the_first_of_equals() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0]])
    greedy = Sampler(temperature=0)
    assert greedy.draw(scores, torch.Generator()).tolist() == [1]
    assert greedy.probabilities(scores).tolist() == [[0.0, 1.0, 0.0]]


def test_tokens_ruled_out_by_the_model_are_never_drawn() -> None:
    scores = torch.tensor([[0.0, -torch.inf, 0.0]]).expand(500, 3)
    for settings in ({}, {"top_k": 3}, {"top_p": 0.9}, {"temperature": 100.0}):
        drawn = Sampler(**settings).draw(scores, torch.Generator().manual_seed(1))  # type: ignore[arg-type]
        assert drawn.unique().tolist() == [0, 2]


def test_a_top_p_of_nothing_names_the_setting_that_was_meant() -> None:
    with pytest.raises(ConfigError, match=r"top_p must lie in \(0, 1\], got 0; .* temperature=0"):
        Sampler(top_p=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.2}, {"top_k": 7, "temperature": 0.5}], ids=str)
def test_probabilities_of_narrow_logits_are_those_of_the_same_numbers_in_fp32(
    settings: dict[str, Any], dtype: torch.dtype
) -> None:
    narrow = logits(4, 2_000).to(dtype)
    sampler = Sampler(**settings)
    assert torch.equal(sampler.probabilities(narrow), sampler.probabilities(narrow.float()))


@pytest.mark.parametrize("temperature", [1e-320, 1e-46, 1e-40])
def test_a_temperature_that_fp32_rounds_to_nothing_is_as_good_as_greedy(temperature: float) -> None:
    scores = torch.cat((logits(), torch.tensor([[0.0, -torch.inf] * 20])))
    drawn = Sampler(temperature=temperature).probabilities(scores)
    best = scores == scores.amax(-1, keepdim=True)
    torch.testing.assert_close(drawn, best / best.sum(-1, keepdim=True))


@pytest.mark.parametrize("temperature", [1e39, 1e300, 10**300])
def test_a_temperature_beyond_fp32_makes_all_that_may_be_drawn_alike(temperature: float) -> None:
    drawn = Sampler(temperature=temperature).probabilities(torch.tensor([[3.0, -torch.inf, -2.0]]))
    assert drawn.tolist() == [[0.5, 0.0, 0.5]]
