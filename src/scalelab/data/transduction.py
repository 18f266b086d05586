"""A small task of reading one string and writing another: names of real code, respelled.

Python code spells names of several words in four ways. The task takes such names from a corpus and asks for
one of the two spellings of the other kind; a sign before the name says which:

    ^read_file -> ReadFile    ~read_file -> readFile    _HTTPError -> http_error    =HTTPError -> HTTP_ERROR

Underscores vanish or appear, so no letter can count on keeping its place, and whether a capital begins a
word depends on its neighbours on both sides: a boundary is before a capital that follows a small letter or
a digit, and before the last capital of a run that a small letter follows (`HTTPError` is http, error).
Source: the rule of `underscore` in Ruby on Rails' inflector. Taught in book/transformers/architectures.md.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from scalelab.core.checks import check_count, check_positive_int
from scalelab.core.errors import ConfigError, DataError
from scalelab.data.documents import HELD_OUT_FRACTION, Corpus, Document
from scalelab.data.objectives import IGNORE_INDEX, Ids64

# Before a name: what it is to be spelled like.
TAGS = {"pascal": "^", "camel": "~", "snake": "_", "upper": "="}
PAD, END = 0, 1
N_MARKS = 2
ALPHABET = string.ascii_letters + string.digits + "_^~="
MIN_NAME_LENGTH = 3  # two words of a letter each and what parts them

NAME = re.compile(r"(?<![A-Za-z0-9_])[A-Za-z][A-Za-z0-9_]*")
SNAKE = re.compile(r"[a-z][a-z0-9]*(?:_[a-z][a-z0-9]*)+")
UPPER = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z][A-Z0-9]*)+")
WORD_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class Pair(NamedTuple):
    """A tagged name and its respelling."""

    source: str
    target: str

    @property
    def longest(self) -> int:
        """Characters of the longer spelling; the tag is none."""
        return max(len(self.source) - 1, len(self.target))


@dataclass(frozen=True, eq=False)
class TransductionTask:
    """Names to learn from and names held out, as pairs of strings, and how they become ids.

    Attributes:
        corpus_name: where the names are from.
        train, held_out: pairs in a drawn order. No sequence of words is on both sides, in whatever
            spelling, and none to train on is taken from a held-out document.
        max_length: most characters of a name in either spelling.
    """

    corpus_name: str
    train: tuple[Pair, ...] = field(repr=False)
    held_out: tuple[Pair, ...] = field(repr=False)
    max_length: int

    @property
    def vocab_size(self) -> int:
        """Ids: padding 0, which also starts what a decoder is given, end 1, then a character each."""
        return N_MARKS + len(ALPHABET)

    @property
    def source_length(self) -> int:
        """S: the tag and the longest name."""
        return self.max_length + 1

    @property
    def target_length(self) -> int:
        """T: the longest name and its end."""
        return self.max_length + 1

    def encode_batch(self, pairs: Sequence[Pair]) -> tuple[Ids64, Ids64]:
        """Sources [B, S], filled up with 0, and targets [B, T], closed by 1 and filled up with -100.

        Sizes are the task's, not the batch's, so that every batch costs the same FLOPs. What a decoder is
        given while it learns is the targets moved right by one; the model does that.

        Raises:
            DataError: a character that no name has, or a string that is too long.
        """
        sources = np.full((len(pairs), self.source_length), PAD, dtype=np.int64)
        targets = np.full((len(pairs), self.target_length), IGNORE_INDEX, dtype=np.int64)
        for row, (source, target) in enumerate(pairs):
            sources[row, : len(source)] = _encode(source, self.source_length)
            targets[row, : len(target) + 1] = [*_encode(target, self.target_length - 1), END]
        return sources, targets

    def decode(self, ids: npt.ArrayLike) -> str:
        """The string of a row of ids up to the first end; padding, of either kind, writes nothing.

        Raises:
            DataError: ids are not whole numbers below vocab_size.
        """
        row = np.asarray(ids)
        if row.ndim != 1 or (row.size and not np.issubdtype(row.dtype, np.integer)):
            raise DataError(f"one row of whole numbers can be decoded, got {row.dtype} {row.shape}")
        wrong = row[((row < 0) & (row != IGNORE_INDEX)) | (row >= self.vocab_size)]
        if wrong.size:
            raise DataError(f"id {wrong[0]} is outside the vocabulary of {self.vocab_size}")
        written = row.tolist()
        if END in written:
            written = written[: written.index(END)]
        return "".join(ALPHABET[token - N_MARKS] for token in written if token >= N_MARKS)

    def exact_match(self, written: npt.ArrayLike, pairs: Sequence[Pair]) -> float:
        """Share of pairs whose target a model wrote whole and without a mistake.

        Args:
            written: [B, any] ids as generated, without what they started from; nothing after an end counts.

        Raises:
            DataError: another number of rows than of pairs, or none.
        """
        rows = np.asarray(written)
        if rows.ndim != 2 or len(rows) != len(pairs) or not pairs:
            raise DataError(f"{len(pairs)} pairs need as many rows of ids, at least one; got {rows.shape}")
        return _share(
            self.decode(row) == pair.target and END in row for row, pair in zip(rows, pairs, strict=True)
        )

    def describe(self) -> str:
        """One line: what is asked, and how much of it there is."""
        example = self.train[0]
        return (
            f"respelling names of {self.corpus_name}: {len(self.train):,} pairs to train on, "
            f"{len(self.held_out):,} held out by a hash of their words, up to {self.max_length} characters; "
            f"{example.source} -> {example.target}"
        )


def transduction_task(corpus: Corpus, seed: int = 0, *, max_length: int = 16) -> TransductionTask:
    """The names of a corpus and their respellings, two pairs a name.

    A name is anything in the text that is spelled like one of several words, in comments and docstrings
    too. About a tenth is held out, by a hash of its words, so it is the same tenth in every corpus.

    Args:
        seed: of the order of the pairs; which are held out does not depend on it.
        max_length: names longer than this, in either spelling, are left out.

    Raises:
        ConfigError: an impossible setting. DataError: a side of the corpus has no such name.
    """
    check_count("seed", seed)
    check_positive_int("max_length", max_length)
    if max_length < MIN_NAME_LENGTH:
        raise ConfigError(f"max_length must be at least {MIN_NAME_LENGTH}, got {max_length}")
    train: list[Pair] = []
    held_out: list[Pair] = []
    learnable = _names(corpus.train)
    for name in sorted(learnable | _names(corpus.held_out)):
        side = held_out if is_held_out(split_words(name)) else train
        if side is held_out or name in learnable:
            side += [pair for pair in respellings(name) if pair.longest <= max_length]
    if not train or not held_out:
        raise DataError(
            f"corpus {corpus.name!r} has {len(train)} pairs of names to train on and {len(held_out)} held "
            "out; take more text, of code, or a larger max_length"
        )
    rng = np.random.default_rng(seed)
    return TransductionTask(
        corpus.name,
        tuple(train[i] for i in rng.permutation(len(train))),
        tuple(held_out[i] for i in rng.permutation(len(held_out))),
        max_length,
    )


def split_words(name: str) -> tuple[str, ...]:
    """The words of a name in small letters; one word for what is no name of several.

    `read_file`, `READ_FILE`, `ReadFile` and `readFile` are all ("read", "file").
    """
    if SNAKE.fullmatch(name) or UPPER.fullmatch(name):
        return tuple(name.lower().split("_"))
    if "_" in name or not name.isalnum():
        return (name.lower(),)
    return tuple(word.lower() for word in WORD_BOUNDARY.split(name))


def respellings(name: str) -> list[Pair]:
    """The two pairs of a name: of the other kind, capitals for underscores or underscores for capitals."""
    words = split_words(name)
    if "_" in name:
        pascal = "".join(word.capitalize() for word in words)
        spelled = {"pascal": pascal, "camel": words[0] + pascal[len(words[0]) :]}
    else:
        spelled = {"snake": "_".join(words), "upper": "_".join(words).upper()}
    return [Pair(TAGS[kind] + name, target) for kind, target in spelled.items()]


def is_held_out(words: Sequence[str]) -> bool:
    """Whether this sequence of words is never trained on, in no corpus and no spelling."""
    digest = hashlib.sha256("_".join(words).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48 < HELD_OUT_FRACTION


def copy_baseline(pairs: Sequence[Pair]) -> float:
    """Share of pairs right for who writes the name as it is; 0 here, since every name changes.

    Raises:
        DataError: no pairs.
    """
    return _share(pair.source[1:] == pair.target for pair in pairs)


def substitution_baseline(train: Iterable[Pair], pairs: Sequence[Pair]) -> float:
    """Share of pairs right for who rewrites each character by itself, as training pairs mostly do.

    For each tag and character it writes what most often came of that character (an underscore and the
    letter, say, or nothing), never looking at the neighbours.

    Raises:
        DataError: no pairs.
    """
    counts: dict[tuple[str, str], Counter[str]] = {}
    for source, target in train:
        at = 0
        for character in source[1:]:
            begin = at
            if character != "_":
                at += 2 if target[at] == "_" else 1
            counts.setdefault((source[0], character), Counter())[target[begin:at]] += 1
    best = {key: pieces.most_common(1)[0][0] for key, pieces in counts.items()}
    return _share(
        "".join(best.get((source[0], character), "") for character in source[1:]) == target
        for source, target in pairs
    )


def _names(documents: Iterable[Document]) -> set[str]:
    """Names of several words, in any of the four spellings."""
    found = {name for document in documents for name in NAME.findall(document.text)}
    return {name for name in found if len(split_words(name)) > 1}


def _encode(text: str, room: int) -> list[int]:
    if len(text) > room:
        raise DataError(f"{text!r} has {len(text)} characters, {room} are room for; raise max_length")
    strange = [character for character in text if character not in ALPHABET]
    if strange:
        raise DataError(f"{text!r} has the character {strange[0]!r}, which no name and no tag has")
    return [ALPHABET.index(character) + N_MARKS for character in text]


def _share(right: Iterable[bool]) -> float:
    answers = [bool(answer) for answer in right]
    if not answers:
        raise DataError("there are no pairs to count right ones of")
    return sum(answers) / len(answers)
