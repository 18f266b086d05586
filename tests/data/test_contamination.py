"""What stands in both texts is found by the byte, against a search by strings."""

from __future__ import annotations

import random

import numpy as np
import pytest

from scalelab.core.errors import ConfigError, DataError
from scalelab.data import Document
from scalelab.data.contamination import overlap, stretch_hashes


def seen_by_search(train: list[str], text: str, width: int) -> int:
    """Bytes in stretches of this width that are substrings of some training text."""
    content = text.encode()
    covered = set()
    for start in range(len(content) - width + 1):
        if any(content[start : start + width] in other.encode() for other in train):
            covered.update(range(start, start + width))
    return len(covered)


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 13, 50])
def test_seen_bytes_are_those_that_a_search_finds(width: int) -> None:
    rng = random.Random(width)
    train = ["".join(rng.choice("abé\n") for _ in range(200)) for _ in range(3)]
    held_out = ["".join(rng.choice("abé\n") for _ in range(60)) + train[0][20:90] + "zz", "a", ""]
    found = overlap(
        [Document(f"t{i}", text) for i, text in enumerate(train)],
        [Document(f"h{i}", text) for i, text in enumerate(held_out)],
        width=width,
    )
    expected = [seen_by_search(train, text, width) for text in held_out]
    assert found.n_seen == tuple(expected)
    assert found.share == pytest.approx(sum(expected) / sum(found.n_bytes))


@pytest.mark.parametrize("width", [1, 3, 7, 50])
def test_equal_stretches_have_equal_hashes_and_others_do_not(width: int) -> None:
    content = np.random.default_rng(0).integers(97, 100, 5_000).astype(np.uint8).tobytes()
    by_hash: dict[int, set[bytes]] = {}
    for place, value in enumerate(stretch_hashes(content, width)):
        by_hash.setdefault(int(value), set()).add(content[place : place + width])
    assert all(len(stretches) == 1 for stretches in by_hash.values())
    distinct = {content[i : i + width] for i in range(len(content) - width + 1)}
    assert len(by_hash) == len(distinct)


def test_a_copy_is_seen_whole_and_an_unrelated_text_not_at_all() -> None:
    text = "the quick brown fox jumps over the lazy dog and then sleeps until the evening\n"
    copy, other = Document("copy", text), Document("other", text[::-1])
    found = overlap([Document("t", "before " + text + " after")], [copy, other])
    assert found.worst() == [("copy", 1.0), ("other", 0.0)]
    assert overlap([], [copy]).share == 0


def test_the_worst_documents_are_told_apart_by_place_and_empty_ones_left_out() -> None:
    held_out = [
        Document("b", "xyzxyz"),
        Document("empty", ""),
        Document("b", "uvwuvw"),
        Document("c", "xyuv"),
    ]
    found = overlap([Document("t", "xyz")], held_out, width=2)
    assert found.worst() == [("b", 1.0), ("c", 0.5), ("b", 0.0)]
    assert found.worst(1) == [("b", 1.0)]


def test_texts_shorter_than_a_stretch_are_never_seen_and_nothing_is_refused() -> None:
    assert overlap([Document("t", "short")], [Document("h", "short")]).n_seen == (0,)
    assert len(stretch_hashes(b"abc", 4)) == 0
    with pytest.raises(DataError, match="no held-out text"):
        overlap([Document("t", "text")], [Document("h", "")])
    with pytest.raises(ConfigError, match="width"):
        overlap([Document("t", "text")], [Document("h", "text")], width=0)
