"""Bad text, tokenizers, sets and tokens: each is refused by one of our errors that names the culprit."""

from __future__ import annotations

import gzip
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scalelab.data import (
    Batches,
    byte_tokenizer,
    corpus,
    datasets,
    encode_corpus,
    held_out_windows,
    load_tokenizer,
    train_bpe,
)
from scalelab.data.markov import MarkovSource

PROSE = "The quick brown fox jumps over the lazy dog.\n" * 40


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No case may touch, or be helped by, the caches and sets of this machine."""
    monkeypatch.setenv("SCALELAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SCALELAB_DATA", raising=False)


def jsonl(*values: object) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


# kind → (file name, its bytes, what the message must name)
FILE_CASES: dict[str, tuple[str, bytes, str]] = {
    "empty text": ("a.txt", b"", "a.txt"),
    "text of blanks": ("a.txt", b" \n\t\r\n " * 9, "a.txt"),
    "text with a NUL": ("a.txt", b"one\0two" * 50, "byte 3"),
    "text in Latin-1": ("a.txt", "café au lait\n".encode("latin-1") * 50, "position 3"),
    "text in UTF-16": ("a.txt", PROSE.encode("utf-16"), "a.txt"),
    "text cut inside a character": ("a.txt", "naïve".encode()[:3] , "position 2"),
    "text that is a gzip file": ("a.txt", gzip.compress(PROSE.encode()), "a.txt"),
    "text that is a picture": ("a.txt", b"\x89PNG\r\n\x1a\n" + bytes(64), "a.txt"),
    "text that is an executable": ("a.py", b"\x7fELF\x02\x01\x01" + bytes(64), "a.py"),
    "text with an overlong character": ("a.txt", b"abc\xc0\xafdef" * 20, "0xc0"),
    "text with a surrogate in UTF-8": ("a.txt", b"abc\xed\xa0\x80def" * 20, "position 3"),
    "text of one character": ("a.txt", b"a", "a.txt"),
    "JSONL that is empty": ("a.jsonl", b"", "a.jsonl"),
    "JSONL of blank lines": ("a.jsonl", b"\n\n\n", "a.jsonl"),
    "JSONL that is not JSON": ("a.jsonl", b"text: hello\n", "line 1"),
    "JSONL whose last line is cut": ("a.jsonl", jsonl({"text": PROSE}) + b'{"text": "hal', "line 2"),
    "JSONL that is one JSON list": ("a.jsonl", jsonl([{"text": "a"}]), "list"),
    "JSONL line that is a number": ("a.jsonl", jsonl({"text": "a"}, 3), "line 2"),
    "JSONL line that is nan": ("a.jsonl", b"NaN\n", "float"),
    "JSONL line that is null": ("a.jsonl", b"null\n", "NoneType"),
    "JSONL without text": ("a.jsonl", jsonl({"content": "a"}), "'content'"),
    "JSONL line that is an empty object": ("a.jsonl", b"{}\n", "line 1"),
    "JSONL whose text is a number": ("a.jsonl", jsonl({"text": 7}), "7"),
    "JSONL whose text is nan": ("a.jsonl", b'{"text": NaN}\n', "nan"),
    "JSONL whose text is null": ("a.jsonl", jsonl({"text": None}), "None"),
    "JSONL whose text is a list": ("a.jsonl", jsonl({"text": ["a", "b"]}), "['a', 'b']"),
    "JSONL whose text is half a surrogate pair": ("a.jsonl", b'{"text": "abc\\ud800"}\n', "surrogate"),
    "JSONL nested too deep": ("a.jsonl", b"[" * 100_000, "line 1"),
    "JSONL in single quotes": ("a.jsonl", b"{'text': 'a'}\n", "line 1"),
    "JSONL in Latin-1": ("a.jsonl", '{"text": "é"}\n'.encode("latin-1"), "a.jsonl"),
    "JSONL of one document": ("a.jsonl", jsonl({"text": PROSE}), "a.jsonl"),
    "JSONL of equal documents": ("a.jsonl", jsonl(*[{"text": PROSE}] * 5), "a.jsonl"),
    "JSONL of documents without text": ("a.jsonl", jsonl({"text": ""}, {"text": " "}), "a.jsonl"),
}  # fmt: skip

# kind → (the files of the folder, what the message must name)
FOLDER_CASES: dict[str, tuple[dict[str, bytes], str]] = {
    "folder without files": ({}, "texts"),
    "folder without text": ({"a.bin": b"abc", "b.png": b"abc"}, "texts"),
    "folder of hidden files": ({".a.txt": PROSE.encode()}, "texts"),
    "folder of hidden folders": ({".git/a.txt": PROSE.encode()}, "texts"),
    "folder of empty texts": ({"a.txt": b"", "b.txt": b""}, "texts"),
    "folder of one short text": ({"a.txt": b"a"}, "texts"),
    "folder of equal texts": ({"a.txt": PROSE.encode(), "b.txt": PROSE.encode()}, "texts"),
    "folder with one undecodable text": ({"a.txt": PROSE.encode(), "b.md": b"\xff\xfe"}, "b.md"),
    "folder with one binary text": ({"a.txt": PROSE.encode(), "sub/b.py": b"a\0b"}, "b.py"),
}


def at(folder: Path) -> Path:
    return folder / "texts"


def make_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (at(folder) / name).parent.mkdir(parents=True, exist_ok=True)
        (at(folder) / name).write_bytes(content)
    at(folder).mkdir(exist_ok=True)
    return at(folder)


def dangling(folder: Path) -> Path:
    (folder / "a.txt").symlink_to(folder / "gone.txt")
    return folder / "a.txt"


def circular(folder: Path) -> Path:
    (folder / "a.txt").symlink_to(folder / "a.txt")
    return folder / "a.txt"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "a.txt")
    return folder / "a.txt"


def good(folder: Path) -> Path:
    (folder / "good.txt").write_text(PROSE)
    return folder / "good.txt"


# kind → (a call, given an empty folder; what the message must name)
NAME_CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "corpus that does not exist": (lambda at: corpus(at / "gone.txt"), "gone.txt"),
    "corpus that is misspelt": (lambda at: corpus("pyhton"), "python"),
    "corpus without a name": (lambda at: corpus(""), "''"),
    "corpus that is a number": (lambda at: corpus(3), "3"),  # type: ignore[arg-type]
    "corpus that is None": (lambda at: corpus(None), "None"),  # type: ignore[arg-type]
    "corpus whose path has a NUL": (lambda at: corpus("a\0b.txt"), "\\x00"),
    "corpus whose path is too long": (lambda at: corpus("a" * 300 + ".txt"), "a" * 300),
    "corpus behind a broken link": (lambda at: corpus(dangling(at)), "a.txt"),
    "corpus behind a circular link": (lambda at: corpus(circular(at)), "a.txt"),
    "corpus that is a pipe": (lambda at: corpus(pipe(at)), "a.txt"),
    "corpus that is a device": (lambda at: corpus("/dev/zero"), "/dev/zero"),
    "corpus that is a set of labels": (lambda at: corpus("sst-2"), "sst-2"),
    "corpus cut to no bytes": (lambda at: corpus(good(at), max_bytes=0), "0"),
    "corpus cut to negative bytes": (lambda at: corpus(good(at), max_bytes=-5), "-5"),
    "corpus cut to half a byte": (lambda at: corpus(good(at), max_bytes=0.5), "0.5"),  # type: ignore[arg-type]
    "corpus cut to nan bytes": (lambda at: corpus(good(at), max_bytes=math.nan), "nan"),  # type: ignore[arg-type]
    "corpus with a negative seed": (lambda at: corpus("markov", seed=-1), "-1"),
    "set that is misspelt": (lambda at: datasets.find("wikitext2"), "wikitext-2"),
    "set that does not exist": (lambda at: datasets.find("the-pile"), "'the-pile'"),
}  # fmt: skip


@pytest.fixture(scope="module")
def bpe() -> Any:
    return train_bpe([PROSE], 270)


def tokenizer_file(folder: Path, content: bytes) -> Path:
    (folder / "tokenizer.json").write_bytes(content)
    return folder / "tokenizer.json"


def load_made_of(content: bytes) -> Callable[[Path], object]:
    return lambda folder: load_tokenizer(tokenizer_file(folder, content))


def saved_bpe(folder: Path) -> bytes:
    train_bpe([PROSE], 270).save(folder / "whole.json")
    return (folder / "whole.json").read_bytes()


TOKENIZER_CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "vocabulary below the bytes": (lambda at: train_bpe([PROSE], 100), "100"),
    "vocabulary that is text": (lambda at: train_bpe([PROSE], "512"), "'512'"),  # type: ignore[arg-type]
    "vocabulary that is infinite": (lambda at: train_bpe([PROSE], math.inf), "inf"),  # type: ignore[arg-type]
    "tokenizer trained on nothing": (lambda at: train_bpe([], 300), "text"),
    "tokenizer trained on empty texts": (lambda at: train_bpe(["", ""], 300), "text"),
    "tokenizer file that is missing": (lambda at: load_tokenizer(at / "tokenizer.json"), "tokenizer.json"),
    "tokenizer file that is empty": (load_made_of(b""), "tokenizer.json"),
    "tokenizer file that is binary": (load_made_of(b"\xff\0"), "tokenizer.json"),
    "tokenizer file that is not JSON": (load_made_of(b"bpe"), "tokenizer.json"),
    "tokenizer file that is a list": (load_made_of(b"[]"), "tokenizer.json"),
    "tokenizer file of another kind": (
        lambda at: load_tokenizer(tokenizer_file(at, b'{"kind": "wordpiece"}')), "tokenizer.json",
    ),
    "tokenizer file that is cut": (
        lambda at: load_tokenizer(tokenizer_file(at, saved_bpe(at)[:-40])), "tokenizer.json",
    ),
    "tokenizer file that is a folder": (lambda at: load_tokenizer(at), "tokenizer"),
    "id beyond the vocabulary": (lambda at: byte_tokenizer().decode([70_000]), "70000"),
    "negative id": (lambda at: byte_tokenizer().decode([-1]), "-1"),
}  # fmt: skip

TOKENS = np.arange(100, dtype=np.uint16)


def batches(tokens: Any = TOKENS, **change: Any) -> Batches:
    return Batches(tokens, **{"batch_size": 2, "seq_len": 8, "seed": 0, **change})


def restored(state: Any) -> None:
    batches().restore(state)


TOKEN_CASES: dict[str, tuple[Callable[[], object], str]] = {
    "tokens too few for one window": (lambda: batches(seq_len=100), "100"),
    "held-out tokens too few for one window": (lambda: held_out_windows(TOKENS, 100), "100"),
    "no tokens": (lambda: batches(TOKENS[:0]), "0"),
    "tokens that are nan": (lambda: batches(np.full(100, np.nan)), "float64"),
    "tokens that are fractions": (lambda: batches(np.linspace(0, 1, 100)), "float64"),
    "tokens in two dimensions": (lambda: batches(TOKENS.reshape(10, 10)), "(10, 10)"),
    "tokens that are text": (lambda: batches(np.array(["a"] * 100)), "<U1"),
    "batch of no sequences": (lambda: batches(batch_size=0), "batch_size"),
    "batch of half a sequence": (lambda: batches(batch_size=0.5), "0.5"),
    "windows of no tokens": (lambda: batches(seq_len=0), "seq_len"),
    "data order with a negative seed": (lambda: batches(seed=-1), "-1"),
    "data order with a seed of text": (lambda: batches(seed="0"), "'0'"),
    "position that is None": (lambda: restored(None), "'seed'"),
    "position without fields": (lambda: restored({}), "'seed'"),
    "position of other data": (lambda: restored({**batches(seq_len=4).state()}), "4"),
    "exact loss of one token": (lambda: MarkovSource().exact_loss_nats([1]), "(1,)"),
    "exact loss of an unknown symbol": (lambda: MarkovSource().exact_loss_nats([1, 200]), "200"),
    "exact loss of fractions": (lambda: MarkovSource().exact_loss_nats([0.5, 1.5]), "float64"),
}


def named(cases: dict[str, Any]) -> Any:
    """One test a case, called by its kind."""
    return pytest.mark.parametrize("case", cases.values(), ids=cases.keys())


@named(FILE_CASES)
def test_bad_text_is_refused(
    case: tuple[str, bytes, str], tmp_path: Path, refuses: Any, contents: Any
) -> None:
    name, content, says = case
    (tmp_path / name).write_bytes(content)
    before = contents(tmp_path)
    refuses(lambda: corpus(tmp_path / name), says)
    assert contents(tmp_path) == before


@named(FOLDER_CASES)
def test_bad_folder_is_refused(
    case: tuple[dict[str, bytes], str], tmp_path: Path, refuses: Any, contents: Any
) -> None:
    files, says = case
    folder = make_files(tmp_path, files)
    before = contents(tmp_path)
    refuses(lambda: corpus(folder), says)
    assert contents(tmp_path) == before


@named(NAME_CASES)
def test_bad_name_is_refused(
    case: tuple[Callable[[Path], object], str], tmp_path: Path, refuses: Any
) -> None:
    call, says = case
    refuses(lambda: call(tmp_path), says)
    assert not (tmp_path / "cache").exists()


@named(TOKENIZER_CASES)
def test_bad_tokenizer_is_refused(
    case: tuple[Callable[[Path], object], str], tmp_path: Path, refuses: Any
) -> None:
    call, says = case
    refuses(lambda: call(tmp_path), says)


@named(TOKEN_CASES)
def test_bad_tokens_are_refused(case: tuple[Callable[[], object], str], refuses: Any) -> None:
    refuses(*case)


def test_text_without_permission_is_refused(tmp_path: Path, refuses: Any) -> None:
    file = good(tmp_path)
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("this user reads everything")
    refuses(lambda: corpus(file), "good.txt")


def test_symbols_text_that_is_not_of_the_markov_language_is_refused(refuses: Any) -> None:
    from scalelab.data import symbol_tokenizer

    refuses(lambda: symbol_tokenizer().encode("hello"), "'h'")


def test_data_folder_that_is_no_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Any
) -> None:
    monkeypatch.setenv("SCALELAB_DATA", str(tmp_path / "absent"))
    refuses(lambda: corpus("tiny-shakespeare"), "absent")


def test_set_that_differs_from_its_checksum_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Any
) -> None:
    (tmp_path / "tinyshakespeare.txt").write_text("To be, or not to be.")
    monkeypatch.setenv("SCALELAB_DATA", str(tmp_path))
    refuses(lambda: corpus("tiny-shakespeare"), "tinyshakespeare.txt")


def test_cache_place_that_is_a_file_does_not_stop_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SCALELAB_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="SCALELAB_CACHE"):
        tokens = encode_corpus(corpus(good(tmp_path)), byte_tokenizer())
    assert len(tokens.train) > 0
