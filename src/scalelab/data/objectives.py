"""What a model is asked to predict: the next token, the masked tokens, or the text of hidden spans.

An objective turns windows of raw ids [B, W] into inputs and targets; a target of -100 does not count.
All chance comes from the generator that is passed, so whoever makes one from (seed, step) gets the same
batch again.

| objective | inputs                               | targets                                       |
|-----------|--------------------------------------|-----------------------------------------------|
| causal    | the window without its last token    | the window without its first                  |
| mlm       | [CLS] window [SEP], 15 % corrupted   | the chosen tokens where they stood, else -100 |
| spans     | window, a sentinel a span, [SEP]     | sentinel, span, sentinel, span ... [SEP]      |

A decoder learns from the first, an encoder from the second, an encoder–decoder from the third.

Source: Devlin et al. 2019, arXiv:1810.04805, section 3.1 (masked LM); Raffel et al. 2020, arXiv:1910.10683,
sections 3.1.4 (sentinels) and 3.3.4 (spans), and their code's `random_spans_noise_mask`; the target ends with
[SEP], as in their code, where the paper has one more sentinel.
Taught in book/transformers/architectures.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from scalelab.core.checks import check_choice, check_positive_int, is_number
from scalelab.core.errors import ConfigError, DataError
from scalelab.data.special import SpecialTokens

Ids64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
IGNORE_INDEX = -100  # torch's mark for "no target here"; the same number as in models.loss

MASK_RATE = 0.15
MASKED_FRACTION = 0.8  # of the chosen tokens
RANDOM_FRACTION = 0.1  # of the chosen tokens; the rest are left as they are
NOISE_DENSITY = 0.15
MEAN_SPAN_TOKENS = 3.0

ObjectiveName = Literal["causal", "mlm", "spans"]
OBJECTIVES: tuple[ObjectiveName, ...] = ("causal", "mlm", "spans")


@runtime_checkable
class Objective(Protocol):
    """Raw windows in, inputs and targets out."""

    @property
    def name(self) -> str:
        """ "causal", "mlm" or "spans"."""
        ...

    def window_length(self, seq_len: int) -> int:
        """W: how many raw tokens a window takes so that the model reads seq_len.

        Raises:
            ConfigError: seq_len is too short for this objective.
        """
        ...

    def __call__(self, windows: npt.NDArray[np.integer], rng: np.random.Generator) -> tuple[Ids64, Ids64]:
        """inputs [B, T] and targets [B, T] (spans: [B, T']) of windows [B, W].

        Raises:
            DataError: windows are not a table of the tokenizer's ids, or too short.
        """
        ...


@dataclass(frozen=True)
class CausalObjective:
    """Predict each token from those before it; draws nothing."""

    name: Literal["causal"] = "causal"

    def window_length(self, seq_len: int) -> int:
        """seq_len + 1: the inputs and the token after them."""
        check_positive_int("seq_len", seq_len)
        return seq_len + 1

    def __call__(self, windows: npt.NDArray[np.integer], rng: np.random.Generator) -> tuple[Ids64, Ids64]:
        """inputs and targets, both [B, W-1]; targets[b, t] is the token after inputs[b, t]."""
        ids = _checked(windows, shortest=2)
        return np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])


@dataclass(frozen=True)
class MaskedObjective:
    """BERT's: [CLS] window [SEP] with 15 % of the text tokens to be told, from both sides.

    Attributes:
        special: the ids of [CLS], [SEP] and [MASK].
        rate: share of text tokens that are chosen.

    Raises:
        ConfigError: rate is not between 0 and 1.
    """

    special: SpecialTokens
    rate: float = MASK_RATE
    name: Literal["mlm"] = "mlm"

    def __post_init__(self) -> None:
        _check_share("rate", self.rate)

    def window_length(self, seq_len: int) -> int:
        """seq_len - 2: [CLS] and [SEP] take a place each."""
        check_positive_int("seq_len", seq_len)
        if seq_len < 3:
            raise ConfigError(f"seq_len must be at least 3 ([CLS], one token, [SEP]), got {seq_len}")
        return seq_len - 2

    def __call__(self, windows: npt.NDArray[np.integer], rng: np.random.Generator) -> tuple[Ids64, Ids64]:
        """inputs and targets, both [B, W+2]; targets are -100 wherever no token was chosen."""
        ids = _checked(windows, shortest=1, n_ids=self.special.pad)
        rows = np.full((len(ids), ids.shape[1] + 2), self.special.sep, dtype=np.int64)
        rows[:, 0] = self.special.cls
        rows[:, 1:-1] = ids
        return mask_tokens(rows, rng, self.special, rate=self.rate)


@dataclass(frozen=True)
class SpanObjective:
    """T5's span corruption: hidden spans leave one sentinel each, and are told in order after it.

    Where a, b, ... are tokens and <0>, <1> sentinels, the window `a b c d e f g h` with spans `c d` and
    `g h` becomes inputs `a b <0> e f <1> [SEP]` and targets `<0> c d <1> g h [SEP]`. As in T5's code, [SEP]
    (there </s>) closes both, a window begins with text and its last span ends it. The figure in the paper
    closes the targets with one more sentinel instead.

    Attributes:
        special: [SEP] and the sentinels.
        density: share of tokens that are hidden. mean_span_tokens: mean length of a span.

    Raises:
        ConfigError: density is not between 0 and 1, or mean_span_tokens is below 1.
    """

    special: SpecialTokens
    density: float = NOISE_DENSITY
    mean_span_tokens: float = MEAN_SPAN_TOKENS
    name: Literal["spans"] = "spans"

    def __post_init__(self) -> None:
        _check_spans(self.density, self.mean_span_tokens)

    def lengths(self, window_length: int) -> SpanLengths:
        """The sizes of everything that comes of a window: `span_lengths` at these settings."""
        return span_lengths(window_length, density=self.density, mean_span_tokens=self.mean_span_tokens)

    def window_length(self, seq_len: int) -> int:
        """The longest window whose inputs take at most seq_len places (T5: 568 tokens for 512)."""
        check_positive_int("seq_len", seq_len)
        shortest = self.lengths(2).inputs
        if seq_len < shortest:
            raise ConfigError(f"seq_len must be at least {shortest} for span corruption, got {seq_len}")
        window = 2
        while self.lengths(window + 1).inputs <= seq_len:
            window += 1
        return window

    def __call__(self, windows: npt.NDArray[np.integer], rng: np.random.Generator) -> tuple[Ids64, Ids64]:
        """inputs [B, lengths(W).inputs] and targets [B, lengths(W).targets], no -100 among them.

        Raises:
            DataError: also where the window has more spans than there are sentinels.
        """
        ids = _checked(windows, shortest=2, n_ids=self.special.pad)
        lengths = self.lengths(ids.shape[1])
        _check_sentinels(lengths.spans, ids.shape[1], self.special, DataError)
        hidden = np.array([random_spans(lengths, rng) for _ in ids], dtype=np.bool_).reshape(ids.shape)
        inputs = replace_spans(ids, hidden, self.special, lengths.inputs)
        targets = replace_spans(ids, ~hidden, self.special, lengths.targets)
        return inputs, targets


@dataclass(frozen=True, slots=True)
class SpanLengths:
    """The fixed sizes of span corruption for one window length.

    Attributes:
        window: raw tokens. hidden: of them, those in spans. spans: how many spans.
        inputs: window - hidden + spans + 1. targets: hidden + spans + 1; the 1 is the closing [SEP].
    """

    window: int
    hidden: int
    spans: int

    @property
    def inputs(self) -> int:
        """Length of the corrupted text."""
        return self.window - self.hidden + self.spans + 1

    @property
    def targets(self) -> int:
        """Length of what is to be told."""
        return self.hidden + self.spans + 1


def make_objective(name: ObjectiveName, *, seq_len: int, special: SpecialTokens | None = None) -> Objective:
    """An objective by name, at its paper's settings, known to work at this length.

    Args:
        seq_len: places of the model's input, so that a mistake shows here and not in the first step.
        special: needed by "mlm" and "spans"; "spans" needs sentinels in it.

    Raises:
        ConfigError: an unknown name, a seq_len too short, no special tokens, or too few sentinels.
    """
    check_choice("objective", name, OBJECTIVES)
    if name == "causal":
        causal = CausalObjective()
        causal.window_length(seq_len)
        return causal
    if special is None:
        raise ConfigError(f"objective {name!r} needs special tokens; pass special=special_tokens(tokenizer)")
    if name == "mlm":
        masked = MaskedObjective(special)
        masked.window_length(seq_len)
        return masked
    spans = SpanObjective(special)
    window = spans.window_length(seq_len)
    _check_sentinels(spans.lengths(window).spans, window, special, ConfigError)
    return spans


def mask_tokens(
    ids: npt.NDArray[np.integer], rng: np.random.Generator, special: SpecialTokens, *, rate: float = MASK_RATE
) -> tuple[Ids64, Ids64]:
    """Choose text tokens of each row and corrupt them as BERT does.

    Of a row with n text tokens exactly max(1, round(rate n)) are chosen, any of them equally likely. So did
    BERT's own code, which counted [CLS] and [SEP] in n; `transformers` tosses a coin for each token, so its
    counts vary about the same mean.
    Each chosen one, by its own draw, becomes [MASK] (80 %), a text token drawn evenly (10 %, which may be
    the same one), or stays (10 %). Special tokens and `end_of_text` are never chosen and never drawn.

    Args:
        ids: [B, T], special tokens included.

    Returns:
        inputs [B, T], and targets [B, T]: the original id where one was chosen, else -100. A row without
        text has no target.

    Raises:
        DataError: ids are not a table of ids below special.vocab_size. ConfigError: rate not in (0, 1).
    """
    _check_share("rate", rate)
    rows = _checked(ids, shortest=1, n_ids=special.vocab_size)
    is_text = rows < special.n_ordinary
    n_text = is_text.sum(axis=1)
    n_chosen = np.where(n_text > 0, np.maximum(np.rint(rate * n_text), 1), 0)  # [B]
    draws = np.where(is_text, rng.random(rows.shape), np.inf)
    rank = draws.argsort(axis=1).argsort(axis=1)  # of the draw within its row
    chosen = rank < n_chosen[:, None]  # [B, T]
    fate = rng.random(rows.shape)
    drawn = rng.integers(special.n_ordinary, size=rows.shape)
    return corrupt(rows, chosen, fate, drawn, special)


def corrupt(
    ids: Ids64, chosen: Mask, fate: npt.NDArray[np.float64], drawn: Ids64, special: SpecialTokens
) -> tuple[Ids64, Ids64]:
    """Inputs and targets of masked LM once all chance is drawn; arguments and results are [B, T].

    Where chosen, the input is [MASK] for fate below 0.8, `drawn` below 0.9, and the token itself above.
    """
    hidden = chosen & (fate < MASKED_FRACTION)
    swapped = chosen & ~hidden & (fate < MASKED_FRACTION + RANDOM_FRACTION)
    inputs = np.where(hidden, special.mask, np.where(swapped, drawn, ids))
    return inputs, np.where(chosen, ids, IGNORE_INDEX)


def span_lengths(
    window_length: int, *, density: float = NOISE_DENSITY, mean_span_tokens: float = MEAN_SPAN_TOKENS
) -> SpanLengths:
    """How many tokens and spans of a window are hidden; the same for every window of that length.

    hidden = round(density W), at least 1 and at most W - 1; spans = round(hidden / mean_span_tokens), at
    least 1 and no more than there are tokens to stand between them. `round` takes halves to the even
    number, as numpy and TensorFlow do.

    Raises:
        ConfigError: window_length is below 2, density not in (0, 1), or mean_span_tokens below 1.
    """
    check_positive_int("window_length", window_length)
    if window_length < 2:
        raise ConfigError("window_length must be at least 2 for span corruption: one token hidden, one shown")
    _check_spans(density, mean_span_tokens)
    hidden = min(max(round(density * window_length), 1), window_length - 1)
    spans = min(max(round(hidden / mean_span_tokens), 1), window_length - hidden)
    return SpanLengths(window_length, hidden, spans)


def random_spans(lengths: SpanLengths, rng: np.random.Generator) -> Mask:
    """Which tokens of one window are hidden, [W]: shown and hidden runs in turn, a shown one first.

    Each way to cut the hidden tokens into that many runs is equally likely, and so for the shown ones.
    """
    runs = np.empty(2 * lengths.spans, dtype=np.int64)
    runs[0::2] = _segments(lengths.window - lengths.hidden, lengths.spans, rng)
    runs[1::2] = _segments(lengths.hidden, lengths.spans, rng)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs)


def replace_spans(ids: Ids64, gone: Mask, special: SpecialTokens, length: int) -> Ids64:
    """Rows with each run of `gone` tokens replaced by one sentinel and closed by [SEP], [B, length].

    Args:
        ids, gone: [B, T]; every row must come to the same length.
    """
    starts = gone & ~np.pad(gone, ((0, 0), (1, 0)))[:, :-1]  # the first token of each run
    which = np.cumsum(starts, axis=1) - 1
    sentinels = np.array(special.sentinels, dtype=np.int64)
    marked = np.where(starts, sentinels[np.maximum(which, 0)], ids)
    body = marked[~gone | starts].reshape(len(ids), length - 1)
    return np.concatenate([body, np.full((len(ids), 1), special.sep, dtype=np.int64)], axis=1)


def _segments(n_items: int, n_segments: int, rng: np.random.Generator) -> Ids64:
    """Lengths, each at least 1, of n_segments that make n_items; every such cut is equally likely."""
    cuts = np.sort(rng.choice(n_items - 1, n_segments - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [n_items]]))


def _checked(windows: npt.NDArray[np.integer], *, shortest: int, n_ids: int | None = None) -> Ids64:
    """Windows as int64 [B, W], or a DataError."""
    array = np.asarray(windows)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"windows must be a table of whole numbers, got {array.dtype} {array.shape}")
    if array.shape[1] < shortest:
        raise DataError(
            f"windows of {array.shape[1]} token(s) are too short, {shortest} are needed; "
            "take objective.window_length(seq_len) tokens"
        )
    if array.size and (array.min() < 0 or (n_ids is not None and array.max() >= n_ids)):
        wrong = array.min() if array.min() < 0 else array.max()
        end = "" if n_ids is None else f" to {n_ids - 1}"
        raise DataError(
            f"id {wrong} is none of those expected (0{end}); encode with the tokenizer of `special`"
        )
    return array.astype(np.int64)


def _check_share(name: str, value: float) -> None:
    if not (is_number(value) and 0 < value < 1):
        raise ConfigError(f"{name} must lie between 0 and 1, both excluded, got {value!r}")


def _check_spans(density: float, mean_span_tokens: float) -> None:
    _check_share("density", density)
    if not (is_number(mean_span_tokens) and mean_span_tokens >= 1):
        raise ConfigError(f"mean_span_tokens must be a number of at least 1, got {mean_span_tokens!r}")


def _check_sentinels(
    n_spans: int, window: int, special: SpecialTokens, error: type[ConfigError] | type[DataError]
) -> None:
    if n_spans > len(special.sentinels):
        raise error(
            f"windows of {window} tokens have {n_spans} hidden spans, and there are {len(special.sentinels)} "
            f"sentinels; make special_tokens(tokenizer, n_sentinels={n_spans}) or more"
        )
