"""Respelling names: the rule against two outside ones, nothing held out trained on, baselines that fail."""

from __future__ import annotations

import re

import numpy as np
import pytest

from scalelab.core.errors import ConfigError, DataError
from scalelab.data import Corpus, Document, TransductionTask, corpus, transduction_task
from scalelab.data.transduction import (
    ALPHABET,
    END,
    PAD,
    Pair,
    copy_baseline,
    is_held_out,
    respellings,
    split_words,
    substitution_baseline,
)

TRAIN_TEXT = (
    "def read_file(self, HTTPError, max_len2): MAX_SIZE = isATty(one) # toDo _hidden __init__ two__parts"
)


@pytest.fixture(scope="module")
def task() -> TransductionTask:
    return transduction_task(corpus("python"))


def planted(train: str = TRAIN_TEXT, held_out: str = "x = only_there") -> Corpus:
    return Corpus("planted", (Document("a.py", train),), (Document("b.py", held_out),))


def names_of(pairs) -> set[str]:
    return {pair.source[1:] for pair in pairs}


# The rule


@pytest.mark.parametrize(("name", "words"), [
    ("read_file", "read file"), ("READ_FILE", "read file"), ("ReadFile", "read file"),
    ("readFile", "read file"), ("HTTPError", "http error"), ("parseXML", "parse xml"),
    ("XMLHttpRequest", "xml http request"), ("isATty", "is a tty"), ("utf8Decoder", "utf8 decoder"),
    ("x_y", "x y"), ("GIF87a", "gif87a"), ("URLs", "ur ls"), ("file", "file"), ("FILE", "file"),
    ("read_File", "read_file"), ("_read_file", "_read_file"), ("read__file", "read__file"),
])  # fmt: skip
def test_names_part_into_the_words_a_programmer_reads(name: str, words: str) -> None:
    assert split_words(name) == tuple(words.split(" "))


def test_capitals_part_words_as_rails_underscore_says(task: TransductionTask) -> None:
    """ActiveSupport's `underscore`, as its documentation has long given it: two replacements, then small."""
    for pair in task.train:
        if pair.source[0] == "_":
            once = re.sub(r"([A-Z\d]+)([A-Z][a-z])", r"\1_\2", pair.source[1:])
            assert pair.target == re.sub(r"([a-z\d])([A-Z])", r"\1_\2", once).lower()


def test_spellings_of_words_without_digits_are_pydantics(task: TransductionTask) -> None:
    aliases = pytest.importorskip("pydantic.alias_generators")
    rules = {"^": aliases.to_pascal, "~": aliases.to_camel, "_": aliases.to_snake,
             "=": lambda name: aliases.to_snake(name).upper()}  # fmt: skip
    compared = 0
    for source, target in task.train:
        if re.search(r"\d", source) is None:
            name = source[1:].lower() if "_" in source[1:] else source[1:]
            assert target == rules[source[0]](name)
            compared += 1
    assert compared > 10_000


def test_a_name_is_asked_for_in_the_two_spellings_of_the_other_kind() -> None:
    assert respellings("read_file") == [("^read_file", "ReadFile"), ("~read_file", "readFile")]
    assert respellings("MAX_SIZE") == [("^MAX_SIZE", "MaxSize"), ("~MAX_SIZE", "maxSize")]
    assert respellings("HTTPError") == [("_HTTPError", "http_error"), ("=HTTPError", "HTTP_ERROR")]


# The pairs


def test_only_names_of_several_words_are_taken() -> None:
    made = transduction_task(
        planted("read_file readFile size SIZE Size _own __init__ a__b a_ 2x_y x.y_z é_x")
    )
    assert names_of(made.train) | names_of(made.held_out) >= {"read_file", "readFile", "y_z"}
    assert not (names_of(made.train) | names_of(made.held_out)) - {
        "read_file",
        "readFile",
        "y_z",
        "only_there",
    }


def test_no_words_are_on_both_sides_in_any_spelling(task: TransductionTask) -> None:
    train = {split_words(name) for name in names_of(task.train)}
    held_out = {split_words(name) for name in names_of(task.held_out)}
    assert not train & held_out
    assert all(is_held_out(words) for words in held_out)
    assert 0.08 < len(held_out) / (len(train) + len(held_out)) < 0.14


def test_names_of_held_out_documents_are_never_trained_on() -> None:
    names = [f"{a}{b}_name" for a in "abcdefgh" for b in "abcdefgh"]
    made = transduction_task(planted(" ".join(names[:32]), " ".join(names)))
    assert names_of(made.train) == {name for name in names[:32] if not is_held_out(split_words(name))}
    assert names_of(made.held_out) == {name for name in names if is_held_out(split_words(name))}


def test_every_name_changes_so_copying_is_never_right(task: TransductionTask) -> None:
    assert copy_baseline(task.held_out) == 0
    assert copy_baseline([Pair("^same", "same"), Pair("^a_b", "AB")]) == 0.5


def test_rewriting_each_character_by_itself_is_seldom_right(task: TransductionTask) -> None:
    assert substitution_baseline(task.train, task.held_out) < 0.25


def test_the_substitution_baseline_solves_what_is_a_substitution() -> None:
    shouted = [Pair(f"={word}", word.upper()) for word in ("abc", "cab", "bca", "aab")]
    assert substitution_baseline(shouted[:3], shouted) == 1.0
    assert substitution_baseline([], shouted) == 0.0


def test_the_seed_decides_the_order_and_nothing_else(task: TransductionTask) -> None:
    again, other = transduction_task(corpus("python")), transduction_task(corpus("python"), seed=1)
    assert task.train == again.train
    assert task.held_out == again.held_out
    assert task.train != other.train
    assert sorted(task.train) == sorted(other.train)
    assert sorted(task.held_out) == sorted(other.held_out)


@pytest.mark.parametrize("max_length", [5, 8, 24])
def test_no_spelling_is_longer_than_asked(max_length: int) -> None:
    made = transduction_task(corpus("python"), max_length=max_length)
    assert max(pair.longest for pair in (*made.train, *made.held_out)) == max_length
    sources, targets = made.encode_batch(made.train)
    assert sources.shape[1] == targets.shape[1] == max_length + 1


# Ids


def test_decoding_gives_back_every_source_and_target(task: TransductionTask) -> None:
    sources, targets = task.encode_batch(task.held_out)
    assert sources.dtype == targets.dtype == np.int64
    for source, target, pair in zip(sources, targets, task.held_out, strict=True):
        assert task.decode(source) == pair.source
        assert task.decode(target) == pair.target
        n_source, n_target = len(pair.source), len(pair.target)
        assert (source[n_source:] == PAD).all()
        assert target[n_target] == END
        assert (target[n_target + 1 :] == -100).all()
    assert max(sources.max(), targets.max()) < task.vocab_size == 2 + len(ALPHABET)


def test_what_follows_an_end_is_not_read(task: TransductionTask) -> None:
    _, targets = task.encode_batch([Pair("^a_b", "AB")])
    noisy = np.where(targets == -100, 7, targets)
    assert task.decode(noisy[0]) == "AB"
    assert task.exact_match(noisy, [Pair("^a_b", "AB")]) == 1.0


def test_exact_match_counts_whole_answers_with_an_end(task: TransductionTask) -> None:
    pairs = task.held_out[:4]
    _, written = task.encode_batch(pairs)
    assert task.exact_match(written, pairs) == 1.0
    written[0, 0] = 2 + ALPHABET.index("9")
    assert task.exact_match(written, pairs) == 0.75
    written[1][written[1] == END] = PAD
    assert task.exact_match(written, pairs) == 0.5


def test_the_description_counts_what_is_there(task: TransductionTask) -> None:
    line = task.describe()
    assert f"{len(task.train):,} pairs" in line
    assert f"{len(task.held_out):,} held out" in line
    assert task.train[0].target in line


# Mistakes


@pytest.mark.parametrize("settings", [
    {"seed": -1}, {"seed": 0.5}, {"max_length": 0}, {"max_length": 2}, {"max_length": "16"},
    {"max_length": True},
])  # fmt: skip
def test_impossible_settings_are_refused(settings) -> None:
    with pytest.raises(ConfigError):
        transduction_task(planted(), **settings)


def test_text_without_names_is_refused() -> None:
    with pytest.raises(DataError, match="planted"):
        transduction_task(planted("no names here", "none there"))


@pytest.mark.parametrize("pair", [
    Pair("^read file", "ReadFile"), Pair("^read_file", "Ré"), Pair("^" + "a_" * 9, "A"),
    Pair("^a_b", "A" * 17),
])  # fmt: skip
def test_strings_that_are_no_names_are_refused(task: TransductionTask, pair: Pair) -> None:
    with pytest.raises(DataError):
        task.encode_batch([pair])


@pytest.mark.parametrize("ids", [[0.5], [[3]], [-1], [68], 3])
def test_ids_that_cannot_be_decoded_are_refused(task: TransductionTask, ids) -> None:
    with pytest.raises(DataError):
        task.decode(ids)


def test_counts_of_nothing_are_refused(task: TransductionTask) -> None:
    for count in (copy_baseline, lambda pairs: substitution_baseline(task.train, pairs)):
        with pytest.raises(DataError):
            count([])
    for written in (np.zeros((0, 3), int), np.zeros(3, int)):
        with pytest.raises(DataError):
            task.exact_match(written, [])
    with pytest.raises(DataError):
        task.exact_match(np.zeros((1, 3), int), task.held_out[:2])
