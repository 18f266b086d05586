"""Tokenizers: what goes in comes out, by the byte, and the same every time."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from scalelab.core.errors import ConfigError, DataError, DataFileError
from scalelab.data import (
    Corpus,
    Document,
    byte_tokenizer,
    compressed_bits_per_byte,
    encode_corpus,
    load_tokenizer,
    symbol_tokenizer,
    train_bpe,
)
from scalelab.data import tokenization as module

LESSON = "def attention(query, key, value):\n    return softmax(query @ key.T) @ value\n\n" * 40


def texts_of_all_scripts(n: int) -> list[str]:
    """Random texts over all of Unicode that UTF-8 can spell, with runs of white space of every sort."""
    rng = random.Random(0)
    blanks = " \n\t\r\x0b\x0c\x1c\x1f\x85\xa0\u2003\u2028\u3000"
    texts = ["", " ", "\0", "\n", "<|endoftext|>", "'s it's 'S", "é" * 9, "👩‍👩‍👧‍👦 कि ﷺ", "x" * 5_000]
    for _ in range(n):
        kinds = [
            lambda: rng.choice(blanks) * rng.randrange(1, 4),
            lambda: chr(rng.randrange(0xD800)),
            lambda: chr(rng.randrange(0xE000, 0x110000)),
            lambda: chr(rng.randrange(32, 127)) * rng.randrange(1, 5),
            lambda: rng.choice(["self", "return ", "1234", "'ll", "ß", "Ⅷ²"]),
        ]
        texts.append("".join(rng.choice(kinds)() for _ in range(rng.randrange(1, 60))))
    return texts


@pytest.fixture(scope="module")
def bpe() -> module.BpeTokenizer:
    return train_bpe([LESSON], 300, cache=None)


def test_every_text_round_trips_through_bytes_and_bpe(bpe) -> None:
    for text in texts_of_all_scripts(500):
        for tokenizer in (byte_tokenizer(), bpe):
            ids = tokenizer.encode(text)
            assert ids.dtype == np.int32
            assert tokenizer.decode(ids) == text
            assert tokenizer.n_bytes(ids) == len(text.encode())
            assert tokenizer.end_of_text not in ids


def test_byte_ids_are_the_bytes_of_utf8() -> None:
    assert byte_tokenizer().encode("aé€").tolist() == list("aé€".encode())
    assert byte_tokenizer().vocab_size == 257


def test_byte_level_alphabet_is_the_one_of_gpt2() -> None:
    assert sorted(module.byte_characters().values()) == sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    expected = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in ("aé€😀\n \x00\x7f\xad", "Łó"):
        spelled = "".join(module.byte_characters()[byte] for byte in text.encode())
        assert spelled == expected.pre_tokenize_str(text)[0][0]


def test_bpe_ids_are_those_of_the_library(bpe, tmp_path: Path) -> None:
    bpe.save(tmp_path / "tokenizer.json")
    description = json.loads((tmp_path / "tokenizer.json").read_text())["settings"]["description"]
    library = tokenizers.Tokenizer.from_str(description)
    for text in texts_of_all_scripts(100):
        assert bpe.encode(text).tolist() == library.encode(text).ids


def test_long_texts_are_cut_for_the_library_without_a_trace(bpe, monkeypatch) -> None:
    texts = [
        *texts_of_all_scripts(100),
        LESSON,
        "a\n\nb \nc\n d\n" * 50,
        "alpha\nbeta (x)\n" * 90,
        "no line break" * 60,
    ]
    whole = [bpe.encode(text) for text in texts]
    monkeypatch.setattr(module, "GROUP_CHARACTERS", 40)
    assert sum(len(list(module._pieces(text))) for text in texts) > len(texts) + 40
    for ids, pieces in zip(whole, bpe.encode_batch(texts), strict=True):
        np.testing.assert_array_equal(ids, pieces)


def test_first_merges_are_the_most_frequent_pairs() -> None:
    # "ab" meets 300 times, "cd" 200, "ef" 100: merged in that order, after the 256 bytes.
    text = "ab " * 300 + "cd " * 200 + "ef " * 100
    trained = train_bpe([text], 256 + 1 + 3, cache=None)
    merged = [trained.decode([i]) for i in range(256, 259)]
    assert len(set(merged)) == 3
    assert "ef" not in "".join(merged)
    assert all(len(m) == 2 or m in (" ab", " cd") for m in merged)


def test_training_twice_gives_the_same_tokenizer_in_another_process_too() -> None:
    mine = train_bpe([LESSON], 290, cache=None)
    code = f"from scalelab.data import train_bpe\nprint(train_bpe([{LESSON!r}], 290, cache=None).fingerprint)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == mine.fingerprint == train_bpe([LESSON], 290, cache=None).fingerprint


def test_name_tells_size_and_training_apart() -> None:
    one, other = train_bpe([LESSON], 290, cache=None), train_bpe([LESSON + "xyz " * 99], 290, cache=None)
    assert one.name.startswith("bpe-290-")
    assert one.name != other.name
    assert one.fingerprint != other.fingerprint


def test_vocabulary_of_a_corpus_never_sees_held_out_text() -> None:
    train = Document("a", LESSON)
    made = [
        train_bpe(Corpus("c", (train,), (Document("b", held_out),)), 290, cache=None).fingerprint
        for held_out in ("zzzz " * 500, "qqqq " * 500)
    ]
    assert made[0] == made[1] == train_bpe([LESSON], 290, cache=None).fingerprint


def test_only_the_first_max_bytes_shape_the_vocabulary() -> None:
    n = len(LESSON.encode())
    one, other = (train_bpe([LESSON, end], 290, max_bytes=n, cache=None) for end in ("zz " * 999, "qq"))
    assert one.fingerprint == other.fingerprint
    whole = train_bpe([LESSON, "zz " * 999], 290, cache=None)
    assert whole.fingerprint != one.fingerprint


def test_short_text_gives_a_smaller_vocabulary_that_says_its_true_size() -> None:
    trained = train_bpe(["ab"], 5_000, cache=None)
    assert trained.vocab_size == 258  # 256 bytes, "ab", the end of text
    assert trained.end_of_text == trained.vocab_size - 1


def test_smallest_bpe_is_bytes_under_other_ids() -> None:
    trained = train_bpe([LESSON], 257, cache=None)
    assert trained.vocab_size == byte_tokenizer().vocab_size
    assert trained.encode("aé").size == 3


def test_end_of_text_writes_nothing_and_counts_no_byte(bpe) -> None:
    for tokenizer in (byte_tokenizer(), bpe, symbol_tokenizer()):
        assert tokenizer.end_of_text == tokenizer.vocab_size - 1
        assert tokenizer.decode([tokenizer.end_of_text]) == ""
        assert tokenizer.n_bytes([tokenizer.end_of_text]) == 0


def test_half_a_character_decodes_to_the_replacement_sign() -> None:
    assert byte_tokenizer().decode("é".encode()[0:1] and [0xC3]) == "\ufffd"


@pytest.mark.parametrize("kind", ["bytes", "symbols", "bpe"])
def test_saved_tokenizer_comes_back_the_same(kind: str, bpe, tmp_path: Path) -> None:
    made = {"bytes": byte_tokenizer(), "symbols": symbol_tokenizer(), "bpe": bpe}[kind]
    made.save(tmp_path / "deep" / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "deep" / "tokenizer.json")
    assert (loaded.name, loaded.fingerprint) == (made.name, made.fingerprint)
    text = "Āſ" if kind == "symbols" else LESSON
    np.testing.assert_array_equal(loaded.encode(text), made.encode(text))


DAMAGES = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "not json": lambda text: "tokenizer",
    "a list": lambda text: "[]",
    "another format": lambda text: text.replace("scalelab-tokenizer-1", "scalelab-tokenizer-9"),
    "unknown kind": lambda text: text.replace('"kind": "bpe"', '"kind": "wordpiece"'),
    "changed merge": lambda text: text.replace("256", "257", 1),
    "no settings": lambda text: '{"format": "scalelab-tokenizer-1", "kind": "bpe"}',
    "null settings": lambda text: '{"format": "scalelab-tokenizer-1", "kind": "bpe", "settings": null}',
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tokenizer_is_one_clear_error(damage: str, bpe, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    bpe.save(file)
    whole = file.read_text()
    file.write_text(DAMAGES[damage](whole))
    assert file.read_text() != whole
    with pytest.raises(DataFileError, match=r"tokenizer\.json"):
        load_tokenizer(file)


def test_vocabulary_the_library_refuses_is_our_error_even_with_a_true_checksum(tmp_path: Path) -> None:
    settings = {"description": '{"model": {"type": "Unheard"}}'}
    digest = module.fingerprint("bpe", json.dumps(settings, sort_keys=True))
    content = {"format": module.FORMAT, "kind": "bpe", "sha256": digest, "settings": settings}
    (tmp_path / "t.json").write_text(json.dumps(content))
    with pytest.raises(DataFileError, match="cannot read this vocabulary"):
        load_tokenizer(tmp_path / "t.json")


def test_missing_tokenizer_is_an_error_that_names_the_place(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere.json")
    with pytest.raises(DataFileError):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("vocab_size", [256, 0, -1, 300.0, float("nan"), "512", None, True, 10**9])
def test_impossible_vocabulary_is_refused(vocab_size) -> None:
    with pytest.raises(ConfigError, match="vocab_size"):
        train_bpe([LESSON], vocab_size)


@pytest.mark.parametrize("max_bytes", [0, -1, 0.5, None])
def test_impossible_training_size_is_refused(max_bytes) -> None:
    with pytest.raises(ConfigError, match="max_bytes"):
        train_bpe([LESSON], 300, max_bytes=max_bytes)


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_no_text_gives_no_vocabulary(texts) -> None:
    with pytest.raises(DataError, match="no text"):
        train_bpe(texts, 300, cache=None)


@pytest.mark.parametrize("ids", [[257], [-1], [1.5], [float("nan")], ["a"]])
def test_ids_outside_the_vocabulary_are_refused(ids) -> None:
    with pytest.raises(DataError):
        byte_tokenizer().decode(ids)


def test_text_without_a_utf8_spelling_is_refused(bpe) -> None:
    for tokenizer in (byte_tokenizer(), bpe):
        with pytest.raises(DataError, match="surrogate"):
            tokenizer.encode("a\ud800")
        with pytest.raises(DataError):
            tokenizer.encode(b"bytes")
    with pytest.raises(DataError, match="'a' at position 1"):
        symbol_tokenizer().encode("Āa")


def test_cached_vocabulary_equals_the_trained_and_damage_is_mended(tmp_path: Path) -> None:
    fresh = train_bpe([LESSON], 300, cache=tmp_path)
    (entry,) = (tmp_path / "tokenizers").iterdir()
    assert train_bpe([LESSON], 300, cache=tmp_path).fingerprint == fresh.fingerprint
    whole = entry.read_bytes()
    entry.write_bytes(whole.replace(b"256", b"257", 1))
    assert train_bpe([LESSON], 300, cache=tmp_path).fingerprint == fresh.fingerprint
    assert entry.read_bytes() == whole


DOCUMENTS = tuple(Document(f"{i}.py", f"def f{i}(x):\n    return x + {i}  # é\n") for i in range(9))


def test_streams_are_documents_parted_by_end_of_text(bpe) -> None:
    made = Corpus("c", DOCUMENTS[:6], DOCUMENTS[6:])
    for tokenizer in (byte_tokenizer(), bpe):
        data = encode_corpus(made, tokenizer, cache=None)
        parts = np.split(data.train, np.flatnonzero(data.train == data.end_of_text))
        texts = [tokenizer.decode(part) for part in parts]
        assert texts == [d.text for d in made.train]
        assert data.train_bytes == made.train_bytes
        assert data.held_out_bytes == made.held_out_bytes
        assert (data.name, data.tokenizer_name) == ("c", tokenizer.name)


def test_bytes_of_any_subset_of_tokens_are_counted_exactly(bpe) -> None:
    data = encode_corpus(Corpus("c", DOCUMENTS[:6], DOCUMENTS[6:]), bpe, cache=None)
    at = data.train.size // 3
    assert data.n_bytes(data.train[:at]) + data.n_bytes(data.train[at:]) == data.train_bytes
    rows = data.train[: at * 2].reshape(2, at).astype(np.int64)
    assert data.n_bytes(rows) == data.n_bytes(rows.ravel()) == sum(data.n_bytes(row) for row in rows)
    ignored = np.where(np.arange(at) % 2, rows[0], -100)  # the padding that losses ignore
    assert data.n_bytes(ignored) == data.n_bytes(rows[0][1::2])
    with pytest.raises(DataError):
        data.n_bytes([data.vocab_size])


def test_tokens_from_the_cache_equal_fresh_ones_and_damage_is_mended(bpe, tmp_path: Path) -> None:
    made = Corpus("c", DOCUMENTS[:6], DOCUMENTS[6:])
    fresh = encode_corpus(made, bpe, cache=tmp_path)
    (entry,) = (tmp_path / "tokens").iterdir()
    whole = entry.read_bytes()
    for content in (whole, whole[:-1], whole[:-1] + b"\xff", b"", whole.replace(b"<u2", b"<u4")):
        entry.write_bytes(content)
        again = encode_corpus(made, bpe, cache=tmp_path)
        np.testing.assert_array_equal(again.train, fresh.train)
        np.testing.assert_array_equal(again.held_out, fresh.held_out)
        assert entry.read_bytes() == whole


def test_cache_keeps_other_texts_and_tokenizers_apart(bpe, tmp_path: Path) -> None:
    one, other = Corpus("c", DOCUMENTS[:6], DOCUMENTS[6:]), Corpus("c", DOCUMENTS[:5], DOCUMENTS[6:])
    sizes = {
        encode_corpus(c, t, cache=tmp_path).train.size for c in (one, other) for t in (bpe, byte_tokenizer())
    }
    assert len(sizes) == 4


def test_large_vocabularies_get_wider_integers() -> None:
    class Wide(module.TableTokenizer):
        name = "wide"

        def encode_batch(self, texts):
            return [np.array([70_000], dtype=np.int32) for _ in texts]

    wide = Wide("wide", [b"x"] * 70_001)
    data = encode_corpus(Corpus("c", DOCUMENTS[:1], DOCUMENTS[1:2]), wide, cache=None)
    assert data.train.dtype == np.uint32
    assert data.train.tolist() == [70_000]


def test_compressors_cost_what_their_theory_says() -> None:
    # A constant text costs next to nothing, a coin a byte about one bit, one of 64 letters a byte six.
    rng = random.Random(0)
    coins = "".join(rng.choice("ab") for _ in range(200_000))
    for method in ("gzip", "xz"):
        assert compressed_bits_per_byte("a" * 100_000, method) < 0.02
        assert 1 < compressed_bits_per_byte(coins, method) < 1.3
        letters = "".join(chr(0x20 + rng.randrange(64)) for _ in range(100_000))
        assert compressed_bits_per_byte(letters, method) == pytest.approx(6, abs=0.15)


def test_compressed_documents_are_one_stream() -> None:
    assert compressed_bits_per_byte(DOCUMENTS) == compressed_bits_per_byte("".join(d.text for d in DOCUMENTS))


def test_compression_refuses_no_text_and_unknown_methods() -> None:
    with pytest.raises(DataError, match="no text"):
        compressed_bits_per_byte("")
    with pytest.raises(ConfigError, match="zip9"):
        compressed_bits_per_byte("text", "zip9")
