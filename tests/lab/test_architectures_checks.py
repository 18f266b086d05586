"""Checks of the architectures lab: right passes, usual mistakes are named, references equal others' code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from scalelab.data.objectives import corrupt, replace_spans
from scalelab.data.special import SpecialTokens
from scalelab.lab.checks import Exercise, exercises, judge
from scalelab.models.masks import visible

EXERCISES = exercises("transformers/architectures")
SEEDS = (0, 1, 12345)
SPECIAL = SpecialTokens(50, 51, 52, 53, (54, 55, 56, 57))


@pytest.fixture(params=list(EXERCISES))
def exercise(request: pytest.FixtureRequest) -> Exercise:
    return EXERCISES[request.param]


def test_there_are_five_exercises() -> None:
    names = ["who_sees_whom", "mask_tokens", "corrupt_spans", "shift_right", "gap_probabilities"]
    assert list(EXERCISES) == names


@pytest.mark.parametrize("answer", [None, 3, lambda: 1, lambda *a, **k: None, lambda *a, **k: "text"])
def test_answers_of_the_wrong_kind_get_a_precise_account(exercise: Exercise, answer: Any) -> None:
    verdict = judge(exercise, answer, exercise.cases(0))
    assert verdict.outcome == "broken"
    assert exercise.name in verdict.message


UNLISTED: dict[str, list[Any]] = {
    "who_sees_whom": [
        lambda shape, p, a: torch.eye(p + a).bool(),
        lambda shape, p, a: torch.zeros(p + a, p + a).bool(),
    ],
    "mask_tokens": [
        lambda ids, luck, fate, drawn, n, m: (ids, ids * 0 - 100),
        lambda ids, luck, fate, drawn, n, m: (ids * 0 + m, ids),
    ],
    "corrupt_spans": [
        lambda ids, spans, sentinels, end: (ids, ids),
        lambda ids, spans, sentinels, end: ([end], [end]),
    ],
    "shift_right": [
        lambda targets, start: targets * 0 + start,
        lambda targets, start: targets.flip(1).clamp(0),
    ],
    "gap_probabilities": [
        lambda left, right: (left + 2 * right.sum(1)).softmax(0),
        lambda left, right: (left - right.sum(1)).softmax(0),
    ],
}


@pytest.mark.parametrize(("name", "number"), [(n, i) for n, a in UNLISTED.items() for i in range(len(a))])
def test_unlisted_mistakes_get_a_neutral_account(name: str, number: int) -> None:
    for seed in SEEDS:
        verdict = judge(EXERCISES[name], UNLISTED[name][number], EXERCISES[name].cases(seed))
        assert verdict.outcome == "unknown mistake"
        assert "should" in verdict.message


# --- answers that once slipped through, and right ones written otherwise -----------------------------------


def sight_of(n_both_ways: Any) -> Any:
    def who_sees_whom(shape: str, n_prompt: int, n_answer: int) -> Any:
        place = torch.arange(n_prompt + n_answer)
        early = place < n_both_ways(n_prompt, n_answer)
        both = early[:, None] & early[None, :] & (shape == "prefix") | torch.tensor(shape == "encoder")
        return (place[None, :] <= place[:, None]) | both

    return who_sees_whom


def masking_by(is_text: Any, limit: float = 0.15) -> Any:
    def mask_tokens(ids: Any, luck: Any, fate: Any, drawn: Any, n_text: int, mask_id: int) -> Any:
        chosen = (luck < limit) & is_text(ids, n_text)
        inputs = torch.where(chosen & (fate < 0.9), drawn, ids)
        return torch.where(chosen & (fate < 0.8), mask_id, inputs), torch.where(chosen, ids, -100)

    return mask_tokens


def not_at_the_ends(ids: Any, n_text: int) -> Any:
    inside = torch.ones_like(ids, dtype=torch.bool)
    inside[:, [0, -1]] = False
    return inside


def spans_walked(*, looks_again: bool) -> Any:
    """Token by token; a span is written when the walk has left it, and the last one only if looked for."""

    def corrupt_spans(ids: Any, spans: Any, sentinels: Any, end_id: int) -> Any:
        source, target, held, signs = [], [], [], iter(sentinels)
        for place, token in enumerate(ids):
            inside = any(first <= place < stop for first, stop in spans)
            if held and not inside:
                sign = next(signs)
                source, target, held = [*source, sign], [*target, sign, *held], []
            (held if inside else source).append(token)
        if held and looks_again:
            sign = next(signs)
            source, target = [*source, sign], [*target, sign, *held]
        return [*source, end_id], [*target, end_id]

    return corrupt_spans


def spans_off_at_the_front(ids: Any, spans: Any, sentinels: Any, end_id: int) -> Any:
    source, target, at = [], [], 0
    for (first, stop), sign in zip(spans, sentinels, strict=False):
        source += [*ids[at : first - 1], ids[first - 1], sign]
        target += [sign, *ids[first:stop]]
        at = stop
    return [*source, *ids[at:], end_id], [*target, end_id]


def gap_by_products(left: Any, right: Any) -> Any:
    joint = left.exp() * right.exp().prod(1)
    return joint / joint.sum()


def gap_by_a_loop(left: Any, right: Any) -> Any:
    score = left
    for column in right.unbind(1):
        score = score + column
    return (score - score.logsumexp(0)).exp()


NO_BOOLS, NO_IDS = ("no tensor of True and False",), ("no tensor of whole numbers",)
SLIPPED: list[tuple[str, Any, tuple[str, ...] | None]] = [
    ("who_sees_whom", sight_of(lambda prompt, answer: prompt), ()),
    ("who_sees_whom", lambda *sizes: sight_of(lambda prompt, answer: prompt)(*sizes).numpy(), NO_BOOLS),
    ("who_sees_whom", sight_of(lambda prompt, answer: answer), ("prompt and answer exchanged",)),
    ("who_sees_whom", lambda *sizes: sight_of(lambda p, a: p)(*sizes).float(), NO_BOOLS),
    ("mask_tokens", masking_by(lambda ids, n_text: ids < n_text), ()),
    ("mask_tokens", masking_by(lambda ids, n_text: ids <= n_text), ("id n_text counted as text",)),
    ("mask_tokens", masking_by(not_at_the_ends), None),
    ("mask_tokens", masking_by(lambda ids, n_text: ids < n_text + 2), None),
    ("mask_tokens", lambda *a: [part.float() for part in EXERCISES["mask_tokens"].reference(*a)], NO_IDS),
    ("mask_tokens", masking_by(lambda ids, n_text: ids < n_text, limit=0.15), ()),
    ("mask_tokens", masking_by(lambda ids, n_text: ids < n_text, limit=0.14), None),
    ("mask_tokens", masking_by(lambda ids, n_text: ids < n_text, limit=0.16), None),
    ("shift_right", lambda *a: EXERCISES["shift_right"].reference(*a).float(), NO_IDS),
    (
        "gap_probabilities",
        lambda *a: EXERCISES["gap_probabilities"].reference(*a).numpy(),
        ("no tensor of real numbers",),
    ),
    ("corrupt_spans", spans_walked(looks_again=True), ()),
    ("corrupt_spans", lambda *a: tuple(map(torch.tensor, spans_walked(looks_again=True)(*a))), ()),
    ("corrupt_spans", spans_walked(looks_again=False), ("a span that ends the text lost",)),
    ("corrupt_spans", spans_off_at_the_front, None),
    ("gap_probabilities", gap_by_products, ("underflow",)),
    ("gap_probabilities", lambda left, right: gap_by_products(left.double(), right.double()), ()),
    ("gap_probabilities", gap_by_a_loop, ()),
    ("gap_probabilities", lambda left, right: gap_by_a_loop(left, right.flip(1)), ()),
]


@pytest.mark.parametrize("number", range(len(SLIPPED)))
def test_answers_that_once_slipped_through_are_told_from_right_ones_on_every_variant(number: int) -> None:
    """Of the third part: () says right, None refused, and else what the check calls it."""
    name, answer, found = SLIPPED[number]
    for seed in range(30):
        for cases in (EXERCISES[name].cases(seed), EXERCISES[name].hidden_cases(seed)):
            verdict = judge(EXERCISES[name], answer, cases)
            assert verdict.right == (found == ()), (seed, verdict.message)
            assert found is None or verdict.mistakes == found


@pytest.mark.parametrize(
    "row", [["1", "2"], "12", [[1], [1, 2]], [10**400], [None], [True], 3, [1j], torch.ones(2, 2)]
)
def test_what_is_no_row_of_ids_is_refused_and_gradients_are_no_hindrance(row: Any) -> None:
    spans = EXERCISES["corrupt_spans"]
    verdict = judge(spans, lambda *a: (row, row), spans.cases(0))
    assert verdict.mistakes == ("returned the wrong kind of thing",)
    assert "where a list of ids should be" in verdict.message

    def floats(*args: Any) -> Any:
        return [
            torch.tensor(part, dtype=torch.float64, requires_grad=True) for part in spans.reference(*args)
        ]

    assert judge(spans, floats, spans.cases(0)).right


@pytest.mark.parametrize("shape", ["encoder", "decoder"])
def test_masks_are_those_of_the_packages_models(shape: str) -> None:
    ours = EXERCISES["who_sees_whom"].reference(shape, 3, 4)
    assert torch.equal(ours, visible(7, 7, causal=shape == "decoder")[0, 0])


def test_a_prefix_mask_is_cross_attention_beside_a_causal_mask() -> None:
    ours = EXERCISES["who_sees_whom"].reference("prefix", 3, 4)
    assert ours[:3, :3].all()
    assert not ours[:3, 3:].any(), "the source never sees the target"
    assert ours[3:, :3].all(), "cross-attention sees the whole source"
    assert torch.equal(ours[3:, 3:], visible(4, 4, causal=True)[0, 0])


def test_masking_equals_the_packages_objective() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 50, size=(4, 40))
    ids[:, 0], ids[:, -1] = SPECIAL.cls, SPECIAL.sep
    luck, fate = rng.random(ids.shape), rng.random(ids.shape)
    drawn = rng.integers(0, 49, size=ids.shape)
    chosen = (luck < 0.15) & (ids < SPECIAL.n_ordinary)
    theirs = corrupt(ids, chosen, fate, drawn, SPECIAL)
    given = [torch.tensor(array) for array in (ids, luck, fate, drawn)]
    ours = EXERCISES["mask_tokens"].reference(*given, SPECIAL.n_ordinary, SPECIAL.mask)
    for mine, other in zip(ours, theirs, strict=True):
        assert np.array_equal(mine.numpy(), other)


def test_span_corruption_equals_the_packages_objective() -> None:
    ids = np.arange(12)[None]
    gone = np.zeros((1, 12), dtype=bool)
    gone[0, 2:4] = gone[0, 7:10] = True
    source = replace_spans(ids, gone, SPECIAL, 12 - 5 + 2 + 1)
    ours = EXERCISES["corrupt_spans"].reference(range(12), [(2, 4), (7, 10)], SPECIAL.sentinels, SPECIAL.sep)
    assert ours[0] == source[0].tolist()
    assert ours[1] == [54, 2, 3, 55, 7, 8, 9, SPECIAL.sep]


def test_shifting_equals_that_of_t5_in_transformers() -> None:
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    from transformers import T5Config

    size = {"vocab_size": 60, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    config = T5Config(**size, decoder_start_token_id=0, pad_token_id=0)
    targets = torch.tensor([[5, 6, 7, 8], [9, 1, -100, -100]])
    theirs = t5.T5ForConditionalGeneration(config)._shift_right(targets)
    assert torch.equal(EXERCISES["shift_right"].reference(targets, 0), theirs)


def test_the_gaps_probabilities_are_bayes_rule_on_a_known_joint_distribution() -> None:
    # P(x, y, z) drawn at random; x is hidden, y and z follow it.
    joint = torch.rand(4, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    joint /= joint.sum()
    y, z = 1, 2
    prior = joint.sum((1, 2))
    p_y = joint.sum(2)[:, y] / prior
    p_z = joint[:, y, z] / joint.sum(2)[:, y]
    ours = EXERCISES["gap_probabilities"].reference(prior.log(), torch.stack((p_y, p_z), dim=1).log())
    assert torch.allclose(ours, joint[:, y, z] / joint[:, y, z].sum())
