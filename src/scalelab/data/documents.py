"""A corpus is documents with stable paths, split by a hash of the path, so a file is held out everywhere.

The same relative path falls on the same side in every corpus and every task built on it, whoever else is
in the folder. Documents of equal content are kept once, so nothing held out is also trained on.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from scalelab.core.checks import check_positive_int
from scalelab.core.errors import DataError
from scalelab.core.units import format_count
from scalelab.data.cache import fingerprint

Split = Literal["train", "held_out"]
HELD_OUT_FRACTION = 0.1


@dataclass(frozen=True, slots=True)
class Document:
    """One text and the relative path it is known by, with forward slashes on every system."""

    path: str
    text: str

    @property
    def n_bytes(self) -> int:
        """Length of the text in bytes of UTF-8."""
        return len(self.text.encode("utf-8"))


@dataclass(frozen=True)
class Corpus:
    """Text to train on and text held out, never changed after it is made.

    Attributes:
        name: what text this is, with the parameters that change it; goes into run records.
        train: documents in the order of their paths' hashes, so that a shorter corpus is a prefix.
        held_out: documents never to be trained on.
        note: what a reader of results must know about it; part of `describe()`.

    Raises:
        DataError: a side is empty.
    """

    name: str
    train: tuple[Document, ...]
    held_out: tuple[Document, ...]
    note: str = ""

    def __post_init__(self) -> None:
        for side, documents in (("to train on", self.train), ("held out", self.held_out)):
            if not any(document.text for document in documents):
                raise DataError(
                    f"corpus {self.name!r} has no text {side}; give it more, or longer, documents"
                )

    @cached_property
    def train_bytes(self) -> int:
        """Bytes of UTF-8 to train on."""
        return sum(document.n_bytes for document in self.train)

    @cached_property
    def held_out_bytes(self) -> int:
        """Bytes of UTF-8 held out."""
        return sum(document.n_bytes for document in self.held_out)

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of all paths and texts: two corpora share it exactly when they hold the same."""
        parts = [part for d in self.train for part in (d.path, d.text)]
        return fingerprint(*parts, "|", *(part for d in self.held_out for part in (d.path, d.text)))

    def describe(self) -> str:
        """One line: what this is, how much of it, and what to know about it."""
        line = (
            f"{self.name}: {_documents(self.train)} ({format_count(self.train_bytes)}B) to train on, "
            f"{_documents(self.held_out)} ({format_count(self.held_out_bytes)}B) held out"
        )
        return f"{line}; {self.note}" if self.note else line

    def preview(self, *, n_lines: int = 12) -> str:
        """`describe()` and the first lines of the first training document."""
        first = self.train[0]
        lines = [line[:100] for line in first.text.splitlines()[:n_lines]]
        return "\n".join([self.describe(), "", f"{first.path}:", *("  " + line for line in lines)])


def split_of(path: str, *, held_out_fraction: float = HELD_OUT_FRACTION) -> Split:
    """The side on which a document of this relative path falls, in every corpus."""
    return "held_out" if path_rank(path) < held_out_fraction else "train"


def path_rank(path: str) -> float:
    """A number in [0, 1) from the sha256 of a path: uniform over paths, the same for ever."""
    return int.from_bytes(_digest(path)[:6], "big") / 2**48  # 48 bits are exact in a float


def path_order(path: str) -> tuple[bytes, str]:
    """What documents are ordered by: bits of the hash other than `path_rank`'s, so not by side."""
    return _digest(path)[6:], path


def _digest(path: str) -> bytes:
    return hashlib.sha256(path.encode("utf-8", "surrogatepass")).digest()


def make_corpus(
    name: str, documents: Iterable[Document], *, max_bytes: int | None = None, note: str = ""
) -> Corpus:
    """A corpus of many documents: de-duplicated, split by the hash of their paths, capped.

    Where the hash leaves one side empty (few documents), the document of lowest hash is held out.

    Args:
        max_bytes: documents are taken whole, in hash order, until this many bytes of training text are
            reached (the last one may overshoot), so a smaller corpus is a prefix of a larger one.

    Raises:
        DataError: fewer than two different documents with text, or max_bytes is not a positive whole number.
    """
    ordered = sorted(
        (document for document in documents if document.text.strip()),
        key=lambda document: path_order(document.path),
    )
    first_of_text: dict[str, Document] = {}
    for document in ordered:
        first_of_text.setdefault(document.text, document)
    unique = list(first_of_text.values())
    if len(unique) < 2:
        raise DataError(
            f"corpus {name!r} has {len(unique)} document(s) with text, after dropping equal ones; "
            "two are needed, one of them to hold out"
        )
    held_out = [document for document in unique if split_of(document.path) == "held_out"]
    train = [document for document in unique if split_of(document.path) == "train"]
    how = f"split by a hash of paths, {HELD_OUT_FRACTION:.0%} held out on average"
    if not held_out or not train:
        lowest = min(unique, key=lambda document: (path_rank(document.path), document.path))
        held_out, train = [lowest], [document for document in unique if document is not lowest]
        how = "too few documents to split by hash alone: the one of lowest hash is held out"
    return Corpus(
        name=_capped_name(name, max_bytes),
        train=take(train, max_bytes),
        held_out=tuple(held_out),
        note=f"{how}; {note}" if note else how,
    )


def continuous_corpus(
    name: str, path: str, text: str, *, max_bytes: int | None = None, note: str = ""
) -> Corpus:
    """A corpus of one running text: its last tenth, cut at a line's end, is held out.

    Args:
        max_bytes: the training text is cut after the last line that ends within this many bytes.

    Raises:
        DataError: the text is too short to be cut in two.
    """
    at = text.rfind("\n", 0, int(len(text) * (1 - HELD_OUT_FRACTION)))
    at = at + 1 if at > 0 else int(len(text) * (1 - HELD_OUT_FRACTION))
    head, tail = text[:at], text[at:]
    if not head.strip() or not tail.strip():
        raise DataError(
            f"the text of {name!r} is too short to hold out a tenth of it: {len(text)} characters"
        )
    how = "one running text, its last tenth held out"
    return Corpus(
        name=_capped_name(name, max_bytes),
        train=(Document(path, cut_to_bytes(head, max_bytes)),),
        held_out=(Document(f"{path}#held-out", tail),),
        note=f"{how}; {note}" if note else how,
    )


def take(documents: list[Document], max_bytes: int | None) -> tuple[Document, ...]:
    """Whole documents from the front until `max_bytes` are reached; all of them for None."""
    if max_bytes is None:
        return tuple(documents)
    check_positive_int("max_bytes", max_bytes)
    taken, total_bytes = [], 0
    for document in documents:
        if total_bytes >= max_bytes:
            break
        taken.append(document)
        total_bytes += document.n_bytes
    return tuple(taken)


def cut_to_bytes(text: str, max_bytes: int | None) -> str:
    """The longest front of `text` within `max_bytes` of UTF-8 that ends a line; mid-line if none does."""
    if max_bytes is None:
        return text
    check_positive_int("max_bytes", max_bytes)
    content = text.encode("utf-8")
    if len(content) <= max_bytes:
        return text
    front = content[:max_bytes]
    at = front.rfind(b"\n")
    # "ignore" drops the bytes of a character that the cut went through, and nothing else.
    return (front[: at + 1] if at > 0 else front).decode("utf-8", errors="ignore")


def _capped_name(name: str, max_bytes: int | None) -> str:
    return name if max_bytes is None else f"{name}:max_bytes={max_bytes}"


def _documents(documents: tuple[Document, ...]) -> str:
    return "1 document" if len(documents) == 1 else f"{len(documents)} documents"
