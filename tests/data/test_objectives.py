"""Objectives against transformers' collator, the masks T5's algorithm can give, and the papers' examples."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scalelab.core.errors import ConfigError, DataError
from scalelab.data import Objective, SpecialTokens, byte_tokenizer, make_objective, special_tokens
from scalelab.data.objectives import (
    OBJECTIVES,
    CausalObjective,
    MaskedObjective,
    SpanObjective,
    corrupt,
    mask_tokens,
    random_spans,
    replace_spans,
    span_lengths,
)

SPECIAL = special_tokens(byte_tokenizer(), n_sentinels=40)


def text_windows(n_rows: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(n_rows, length))


def p_value(counts: np.ndarray, expected: np.ndarray, n_fitted: int = 0) -> float:
    """Of Pearson's chi-squared, by torch's incomplete gamma function."""
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = counts.size - 1 - n_fitted
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


@pytest.fixture(scope="module")
def collator():
    """transformers' masked LM collator over the same ids; its tokenizer is a table of names."""
    import tokenizers
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

    names = [f"t{i}" for i in range(SPECIAL.pad)] + ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    table = tokenizers.models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[PAD]")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(table),
        pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip
    return DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, return_tensors="np", seed=0)


# What all objectives share


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("seq_len", [3, 4, 16, 63, 128])
def test_windows_of_the_stated_length_fill_the_models_input(name, seq_len: int) -> None:
    objective = make_objective(name, seq_len=seq_len, special=SPECIAL)
    assert isinstance(objective, Objective)
    assert objective.name == name
    windows = text_windows(5, objective.window_length(seq_len)).astype(np.uint16)
    before = windows.copy()
    inputs, targets = objective(windows, np.random.default_rng(0))
    assert inputs.shape == (5, seq_len)
    assert inputs.dtype == targets.dtype == np.int64
    assert max(inputs.max(), targets.max()) < SPECIAL.vocab_size
    np.testing.assert_array_equal(windows, before)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_seed_and_step_decide_the_batch(name) -> None:
    objective = make_objective(name, seq_len=64, special=SPECIAL)
    windows = text_windows(8, objective.window_length(64))

    def batch(seed: int, step: int) -> np.ndarray:
        return np.concatenate(objective(windows, np.random.default_rng([seed, step])), axis=1)

    np.testing.assert_array_equal(batch(0, 3), batch(0, 3))
    if name != "causal":
        assert (batch(0, 3) != batch(0, 4)).any()
        assert (batch(0, 3) != batch(1, 3)).any()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_windows_give_no_rows(name) -> None:
    objective = make_objective(name, seq_len=32, special=SPECIAL)
    empty = np.zeros((0, objective.window_length(32)), dtype=np.int64)
    inputs, targets = objective(empty, np.random.default_rng(0))
    assert inputs.shape == (0, 32)
    assert len(targets) == 0


def test_causal_targets_are_the_window_shifted_by_one() -> None:
    windows = text_windows(4, 33)
    inputs, targets = CausalObjective()(windows, np.random.default_rng(0))
    np.testing.assert_array_equal(inputs, windows[:, :-1])
    np.testing.assert_array_equal(targets, windows[:, 1:])


# Masked LM


def test_planted_draws_give_what_transformers_collator_gives(collator) -> None:
    rng = np.random.default_rng(3)
    ids = text_windows(16, 64)
    chosen, fate = rng.random(ids.shape) < 0.3, rng.random(ids.shape)
    drawn = rng.integers(256, size=ids.shape)
    hidden, swapped = fate < 0.8, (fate >= 0.8) & (fate < 0.9)
    answers = iter([chosen, hidden, swapped])
    collator.generator = SimpleNamespace(  # the collator asks for three coins a token, then for words
        binomial=lambda n, p, size: next(answers).astype(int),
        integers=lambda low, high, size, dtype: drawn[chosen & swapped],
    )
    their_inputs, their_labels = collator.numpy_mask_tokens(ids.copy(), np.zeros(ids.shape, dtype=bool))
    inputs, targets = corrupt(ids, chosen, fate, drawn, SPECIAL)
    np.testing.assert_array_equal(inputs, their_inputs)
    np.testing.assert_array_equal(targets, their_labels)


def fates(ids: np.ndarray, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Counts of chosen tokens: masked, replaced by another, unchanged."""
    chosen = targets != -100
    masked = chosen & (inputs == SPECIAL.mask)
    same = chosen & (inputs == ids)
    return np.array([masked.sum(), (chosen & ~masked & ~same).sum(), same.sum()], dtype=float)


def test_rates_are_those_of_transformers_collator_and_of_the_paper(collator) -> None:
    ids = text_windows(500, 128)
    ours = fates(ids, *mask_tokens(ids, np.random.default_rng(0), SPECIAL))
    collator.generator = np.random.default_rng(1)
    theirs = fates(ids, *collator.numpy_mask_tokens(ids.copy(), np.zeros(ids.shape, dtype=bool)))
    pooled = (ours + theirs) / (ours.sum() + theirs.sum())
    expected = np.concatenate([pooled * ours.sum(), pooled * theirs.sum()])
    # Two samples, three cells: 2 degrees of freedom, so 3 of the 6 - 1 are fitted.
    assert p_value(np.concatenate([ours, theirs]), expected, n_fitted=3) > 0.01
    # A replacement is the token itself once in 256, and then looks unchanged.
    paper = np.array([0.8, 0.1 * 255 / 256, 0.1 + 0.1 / 256])
    assert p_value(ours, paper * ours.sum()) > 0.01
    assert p_value(ours, np.array([0.85, 0.1, 0.05]) * ours.sum()) < 1e-6
    assert abs(theirs.sum() / ids.size - 0.15) < 0.006  # four deviations of a coin tossed 64,000 times
    assert ours.sum() / ids.size == 19 / 128


@pytest.mark.parametrize(("n_text", "n_chosen"), [(1, 1), (3, 1), (10, 2), (62, 9), (100, 15), (126, 19)])
def test_the_number_of_chosen_tokens_is_exact(n_text: int, n_chosen: int) -> None:
    _, targets = MaskedObjective(SPECIAL)(text_windows(50, n_text), np.random.default_rng(0))
    np.testing.assert_array_equal((targets != -100).sum(axis=1), n_chosen)


def test_every_place_is_as_likely_to_be_chosen() -> None:
    _, targets = mask_tokens(text_windows(4_000, 40), np.random.default_rng(0), SPECIAL)
    counts = (targets != -100).sum(axis=0).astype(float)
    # Six of 40 without replacement: counts have variance n p (1-p) and lean against each other by 39/40.
    statistic = ((counts - 600) ** 2 / (600 * (1 - 0.15))).sum() * 39 / 40
    half = torch.tensor([39 / 2, statistic / 2], dtype=torch.float64)
    assert float(torch.special.gammaincc(half[0], half[1])) > 0.01


def test_replacements_are_drawn_evenly_from_text_ids_alone() -> None:
    tiny = SpecialTokens(9, 10, 11, 12)  # ids 0 to 7 are text, 8 ends one
    ids = np.zeros((2_000, 100), dtype=np.int64)
    inputs, targets = mask_tokens(ids, np.random.default_rng(0), tiny)
    chosen = inputs[(targets != -100) & (inputs != tiny.mask) & (inputs != 0)]
    assert set(chosen.tolist()) == set(range(1, 8))
    counts = np.bincount(chosen, minlength=8)[1:].astype(float)
    assert p_value(counts, np.full(7, counts.sum() / 7)) > 0.01


def test_special_tokens_and_ends_of_text_are_never_chosen_or_changed() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(SPECIAL.vocab_size, size=(200, 60))
    inputs, targets = mask_tokens(ids, rng, SPECIAL, rate=0.9)
    special = ids >= SPECIAL.end_of_text
    assert (targets[special] == -100).all()
    np.testing.assert_array_equal(inputs[special], ids[special])
    np.testing.assert_array_equal(targets[targets != -100], ids[targets != -100])
    np.testing.assert_array_equal(inputs[targets == -100], ids[targets == -100])


def test_a_row_without_text_has_no_target() -> None:
    ids = np.full((2, 8), SPECIAL.pad)
    ids[1, 3] = 65
    _, targets = mask_tokens(ids, np.random.default_rng(0), SPECIAL)
    assert (targets[0] == -100).all()
    assert (targets[1] != -100).sum() == 1


def test_an_encoders_window_stands_between_cls_and_sep() -> None:
    windows = text_windows(10, 30)
    inputs, targets = MaskedObjective(SPECIAL)(windows, np.random.default_rng(0))
    assert (inputs[:, 0] == SPECIAL.cls).all()
    assert (inputs[:, -1] == SPECIAL.sep).all()
    kept = targets[:, 1:-1] == -100
    np.testing.assert_array_equal(inputs[:, 1:-1][kept], windows[kept])
    np.testing.assert_array_equal(targets[:, 1:-1][~kept], windows[~kept])


# Span corruption


def test_lengths_are_those_that_t5_was_trained_with() -> None:
    """T5's released configuration: 512 input places hold 568 tokens, whose targets take 114."""
    objective = SpanObjective(special_tokens(byte_tokenizer(), 100))
    assert objective.window_length(512) == 568
    assert objective.lengths(568).inputs == 512
    assert objective.lengths(568).targets == 114


@pytest.mark.parametrize("window", [*range(2, 40), 100, 127, 512])
@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.5, 1.0), (0.9, 1.0), (0.01, 8.0)])
def test_hidden_tokens_and_spans_are_as_many_as_the_formula_says(window, density, mean) -> None:
    special = special_tokens(byte_tokenizer(), 300)
    objective = SpanObjective(special, density, mean)
    lengths = objective.lengths(window)
    n_hidden = min(max(int(np.round(window * density)), 1), window - 1)
    n_spans = min(max(int(np.round(n_hidden / mean)), 1), window - n_hidden)
    assert (lengths.hidden, lengths.spans) == (n_hidden, n_spans)
    windows = text_windows(6, window)
    inputs, targets = objective(windows, np.random.default_rng(0))
    assert inputs.shape == (6, window - n_hidden + n_spans + 1)
    assert targets.shape == (6, n_hidden + n_spans + 1)
    for row, inputs_row, targets_row in zip(windows, inputs, targets, strict=True):
        assert (targets_row < SPECIAL.n_ordinary).sum() == n_hidden
        used = list(special.sentinels[:n_spans])
        assert [i for i in inputs_row if i > special.mask] == used
        assert [i for i in targets_row if i > special.mask] == used
        assert inputs_row[-1] == targets_row[-1] == special.sep
        assert rebuilt(inputs_row, targets_row, special) == row.tolist()


def rebuilt(inputs: np.ndarray, targets: np.ndarray, special: SpecialTokens) -> list[int]:
    """The window, from its shown text and the spans told of it."""
    spans: dict[int, list[int]] = {}
    for token in targets[:-1].tolist():
        if token in special.sentinels:
            spans[token] = current = []
        else:
            current.append(token)
    return [t for token in inputs[:-1].tolist() for t in spans.get(token, [token])]


def test_the_papers_example_comes_out_as_printed() -> None:
    """Raffel et al. 2020, figure 2; the paper closes the targets with <Z>, the code as we do."""
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week", "."]
    ids = np.arange(len(words))[None]
    gone = np.array([[word in ("for", "inviting", "last") for word in words]])
    name = dict(enumerate(words)) | {SPECIAL.sep: "</s>"}
    name |= dict(zip(SPECIAL.sentinels, ["<X>", "<Y>", "<Z>"], strict=False))
    inputs = [name[i] for i in replace_spans(ids, gone, SPECIAL, 11)[0]]
    assert " ".join(inputs) == "Thank you <X> me to your party <Y> week . </s>"
    # The targets are what the shown runs leave, up to the end of the last span: "last", word 8.
    targets = [name[i] for i in replace_spans(ids[:, :9], ~gone[:, :9], SPECIAL, 6)[0]]
    assert " ".join(targets) == "<X> for inviting <Y> last </s>"


def test_every_mask_that_t5s_algorithm_can_give_is_equally_likely() -> None:
    lengths = span_lengths(14, density=0.3, mean_span_tokens=2.0)
    assert (lengths.hidden, lengths.spans) == (4, 2)
    # Shown, hidden, shown, hidden: all ways to cut 10 shown and 4 hidden tokens in two, none of them empty.
    possible = {
        "." * shown + "#" * hidden + "." * (10 - shown) + "#" * (4 - hidden)
        for shown in range(1, 10)
        for hidden in range(1, 4)
    }
    rng = np.random.default_rng(0)
    drawn = Counter("".join(".#"[int(h)] for h in random_spans(lengths, rng)) for _ in range(8_100))
    assert set(drawn) == possible
    assert p_value(np.array(list(drawn.values()), dtype=float), np.full(27, 300.0)) > 0.01


def test_three_spans_are_cut_evenly_too() -> None:
    lengths = span_lengths(11, density=0.5, mean_span_tokens=2.0)
    assert (lengths.hidden, lengths.spans) == (6, 3)
    n_ways = len(list(combinations(range(4), 2))) * len(list(combinations(range(5), 2)))
    rng = np.random.default_rng(0)
    drawn = Counter(random_spans(lengths, rng).tobytes() for _ in range(100 * n_ways))
    assert len(drawn) == n_ways == 60
    assert p_value(np.array(list(drawn.values()), dtype=float), np.full(n_ways, 100.0)) > 0.01


# Mistakes


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("windows", [
    np.zeros(8, int), np.zeros((2, 8)), np.zeros((2, 2, 8), int), np.zeros((2, 0), int), np.full((2, 8), -1),
])  # fmt: skip
def test_what_is_no_table_of_ids_is_refused(name, windows) -> None:
    with pytest.raises(DataError):
        make_objective(name, seq_len=16, special=SPECIAL)(windows, np.random.default_rng(0))


@pytest.mark.parametrize("name", ["mlm", "spans"])
def test_raw_windows_with_special_ids_are_refused(name) -> None:
    windows = np.full((2, 20), SPECIAL.mask)
    with pytest.raises(DataError, match=str(SPECIAL.mask)):
        make_objective(name, seq_len=16, special=SPECIAL)(windows, np.random.default_rng(0))


def test_windows_too_short_are_refused_with_the_way_out() -> None:
    for name in ("causal", "spans"):
        with pytest.raises(DataError, match="window_length"):
            make_objective(name, seq_len=16, special=SPECIAL)(np.zeros((1, 1), int), np.random.default_rng(0))


@pytest.mark.parametrize(("name", "seq_len"), [
    ("mlm", 2), ("spans", 2), ("causal", 0), ("mlm", 16.0), ("spans", "16"), ("causal", None), ("mlm", True),
    ("denoise", 16), (None, 16),
])  # fmt: skip
def test_impossible_settings_are_refused(name, seq_len) -> None:
    with pytest.raises(ConfigError):
        make_objective(name, seq_len=seq_len, special=SPECIAL)


def test_missing_special_tokens_and_sentinels_are_named() -> None:
    with pytest.raises(ConfigError, match="special_tokens"):
        make_objective("mlm", seq_len=16)
    few = special_tokens(byte_tokenizer(), 3)
    with pytest.raises(ConfigError, match="n_sentinels=28"):
        make_objective("spans", seq_len=512, special=few)
    with pytest.raises(DataError, match="n_sentinels=28"):
        SpanObjective(few)(text_windows(1, 568), np.random.default_rng(0))


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, float("nan"), "0.15", True])
def test_impossible_rates_are_refused(rate) -> None:
    with pytest.raises(ConfigError, match="rate"):
        MaskedObjective(SPECIAL, rate)
    with pytest.raises(ConfigError, match="rate"):
        mask_tokens(text_windows(1, 8), np.random.default_rng(0), SPECIAL, rate=rate)
    with pytest.raises(ConfigError, match="density"):
        SpanObjective(SPECIAL, rate)


@pytest.mark.parametrize("mean", [0.5, 0, float("inf"), None])
def test_spans_shorter_than_a_token_are_refused(mean) -> None:
    with pytest.raises(ConfigError, match="mean_span_tokens"):
        SpanObjective(SPECIAL, 0.15, mean)
    with pytest.raises(ConfigError, match="window_length"):
        span_lengths(1)
