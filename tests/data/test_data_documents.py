"""Splitting, capping and reading one's own text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from scalelab.core.errors import ConfigError, DataError, DataFileError, ScalelabError
from scalelab.data import Corpus, Document, corpus, split_of
from scalelab.data.documents import continuous_corpus, cut_to_bytes, make_corpus

MANY = [Document(f"folder/file_{i}.py", f"text {i}\n" * (i % 7 + 1)) for i in range(400)]


def test_split_is_the_published_rule_on_sha256_of_the_path() -> None:
    for document in MANY[:100]:
        digest = hashlib.sha256(document.path.encode()).hexdigest()
        expected = "held_out" if int(digest[:12], 16) < 0.1 * 16**12 else "train"
        assert split_of(document.path) == expected


def test_split_does_not_depend_on_what_else_is_in_the_corpus() -> None:
    few, many = make_corpus("few", MANY[:200]), make_corpus("many", MANY)
    assert set(few.held_out) == {d for d in many.held_out if d in MANY[:200]}


def test_about_a_tenth_is_held_out_and_every_document_is_on_one_side() -> None:
    made = make_corpus("many", MANY)
    assert 0.05 < len(made.held_out) / len(MANY) < 0.15
    assert sorted(d.path for d in (*made.train, *made.held_out)) == sorted(d.path for d in MANY)


def test_order_of_training_documents_does_not_sort_by_closeness_to_the_held_out() -> None:
    # Were order and side decided by the same bits, a front of all documents would be all held out.
    made = make_corpus("many", MANY)
    ranks = [int(hashlib.sha256(d.path.encode()).hexdigest()[:12], 16) for d in made.train]
    assert ranks != sorted(ranks)


def test_equal_documents_are_kept_once_so_nothing_held_out_is_trained_on() -> None:
    copies = [Document(f"copy/{d.path}", d.text) for d in MANY]
    made = make_corpus("twice", [*MANY, *copies])
    texts = [d.text for d in (*made.train, *made.held_out)]
    assert len(texts) == len(set(texts)) == len({d.text for d in MANY})


@pytest.mark.parametrize("order", [list, lambda d: list(reversed(d))])
def test_corpus_does_not_depend_on_the_order_documents_come_in(order) -> None:
    assert make_corpus("a", order(MANY)).fingerprint == make_corpus("a", MANY).fingerprint


def test_smaller_corpus_is_a_prefix_of_a_larger_one_and_reaches_its_size() -> None:
    whole = make_corpus("many", MANY)
    before: tuple[Document, ...] = ()
    for max_bytes in (1, 100, 1_000, 5_000, 10**9):
        capped = make_corpus("many", MANY, max_bytes=max_bytes)
        assert capped.train[: len(before)] == before
        assert capped.train == whole.train[: len(capped.train)]
        assert capped.held_out == whole.held_out
        assert capped.train_bytes >= min(max_bytes, whole.train_bytes)
        assert capped.train_bytes - capped.train[-1].n_bytes < max_bytes
        before = capped.train


def test_cap_changes_the_name_that_goes_into_records() -> None:
    assert make_corpus("many", MANY, max_bytes=100).name != make_corpus("many", MANY).name


def test_few_documents_still_hold_one_out_and_say_so() -> None:
    few = [Document(name, name) for name in ("a", "b", "c")]
    made = make_corpus("few", few)
    assert len(made.held_out) == 1
    assert len(made.train) == 2
    assert "too few" in made.describe()


def test_one_running_text_holds_out_its_last_tenth_at_a_line_end() -> None:
    text = "".join(f"line {i}\n" for i in range(1_000))
    made = continuous_corpus("running", "running.txt", text)
    assert made.train[0].text + made.held_out[0].text == text
    assert made.train[0].text.endswith("\n")
    assert 0.09 < made.held_out_bytes / len(text) < 0.11


@pytest.mark.parametrize("max_bytes", [1, 2, 3, 5, 9, 10, 100])
def test_cutting_a_text_never_breaks_a_character_or_exceeds_the_bytes(max_bytes: int) -> None:
    text = "é€😀\nabc€\n😀😀"
    cut = cut_to_bytes(text, max_bytes)
    assert text.startswith(cut)
    assert len(cut.encode()) <= max_bytes


def test_folder_takes_text_files_by_relative_path_and_passes_over_the_rest(tmp_path: Path) -> None:
    for i in range(60):
        (tmp_path / f"sub{i % 3}").mkdir(exist_ok=True)
        (tmp_path / f"sub{i % 3}" / f"{i}.md").write_text(f"text {i}", encoding="utf-8")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / ".hidden.txt").write_text("no", encoding="utf-8")
    (tmp_path / "__init__.py").write_text("", encoding="utf-8")
    made = corpus(tmp_path)
    paths = {d.path for d in (*made.train, *made.held_out)}
    assert paths == {f"sub{i % 3}/{i}.md" for i in range(60)}
    assert all(split_of(d.path) == "held_out" for d in made.held_out)


def test_two_calls_give_the_same_corpus(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"{i}.txt").write_text(f"text {i}", encoding="utf-8")
    assert corpus(str(tmp_path)).fingerprint == corpus(tmp_path).fingerprint


def test_jsonl_gives_a_document_a_line_with_exact_text(tmp_path: Path) -> None:
    texts = [f"line\nbreak {i} é 😀 \u2028 end" for i in range(50)]
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(json.dumps({"text": t, "n": 1}) for t in texts) + "\n\n", encoding="utf-8")
    made = corpus(file)
    assert sorted(d.text for d in (*made.train, *made.held_out)) == sorted(texts)


def test_text_is_taken_byte_for_byte_but_for_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_bytes(b"\xef\xbb\xbf" + "one\r\ntwo é\n".encode() * 20)
    made = corpus(file)
    assert made.train[0].text + made.held_out[0].text == "one\r\ntwo é\n" * 20


def test_blank_files_of_a_folder_are_passed_over(tmp_path: Path) -> None:
    for name, text in {"a.py": "x = 1\n", "b.py": "y = 2\n", "__init__.py": "\n", "c.py": ""}.items():
        (tmp_path / name).write_text(text)
    made = corpus(tmp_path)
    assert sorted(document.path for document in (*made.train, *made.held_out)) == ["a.py", "b.py"]


BAD_FILES = {
    "empty.txt": b"",
    "blank.txt": b" \n\t\n",
    "latin.txt": "café".encode("latin-1") * 50,
    "binary.txt": b"text\0text" * 50,
    "utf16.txt": "text".encode("utf-16") * 50,
    "cut.txt": "€".encode()[:2],
    "short.txt": b"x",
    "not-json.jsonl": b"text\n",
    "cut.jsonl": b'{"text": "a"}\n{"text": "b',
    "list.jsonl": b"[1, 2]\n",
    "number.jsonl": b"NaN\n",
    "no-text.jsonl": b'{"body": "a"}\n',
    "null.jsonl": b'{"text": null}\n',
    "nan.jsonl": b'{"text": NaN}\n',
    "surrogate.jsonl": b'{"text": "\\ud800"}\n{"text": "b"}\n',
    "deep.jsonl": b"[" * 200_000 + b"\n",
    "one.jsonl": b'{"text": "a"}\n',
    "same.jsonl": b'{"text": "a"}\n{"text": "a"}\n',
    "no-lines.jsonl": b"\n\n",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_unusable_file_is_one_clear_error_that_names_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BAD_FILES[name])
    with pytest.raises(DataError, match=name):
        corpus(tmp_path / name)


def test_jsonl_error_gives_the_number_of_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n\n{"body": "b"}\n')
    with pytest.raises(DataError, match=r"line 3.*lacks \"text\".*'body'"):
        corpus(tmp_path / "a.jsonl")


def test_folder_without_text_or_with_a_bad_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no text"):
        corpus(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match=r"a\.txt"):
        corpus(tmp_path)


@pytest.mark.parametrize("name", ["nowhere.txt", "./nowhere", "/no/such/folder", "a\0b.txt", Path("nowhere")])
def test_missing_path_is_an_error_that_names_it(name: str | Path) -> None:
    with pytest.raises(DataFileError, match="nothing at"):
        corpus(name)


@pytest.mark.parametrize(("name", "hint"), [("pyton", "python"), ("tiny-shakespear", "tiny-shakespeare")])
def test_unknown_name_suggests_the_near_one(name: str, hint: str) -> None:
    with pytest.raises(DataError, match=f"did you mean '{hint}'"):
        corpus(name)


@pytest.mark.parametrize("name", ["", "zzzzz", 5, None, 1.5, "sst-2", "epoch-chinchilla"])
def test_what_is_no_corpus_is_an_error_that_lists_corpora(name: object) -> None:
    with pytest.raises(DataError, match="python, docs, markov"):
        corpus(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [
    {"max_bytes": 0}, {"max_bytes": -1}, {"max_bytes": 1.5}, {"max_bytes": float("nan")},
    {"max_bytes": "1 MB"}, {"max_bytes": True}, {"seed": -1}, {"seed": 0.5}, {"seed": None},
])  # fmt: skip
def test_impossible_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        corpus("markov", **settings)


def test_corpus_with_an_empty_side_is_refused() -> None:
    with pytest.raises(ScalelabError, match="held out"):
        Corpus("a", (Document("a", "text"),), ())
