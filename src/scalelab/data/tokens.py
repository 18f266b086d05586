"""A corpus as one stream of ids a side, kept on disk, because cutting text takes longer than reading it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scalelab.core.errors import DataError
from scalelab.data.cache import CacheChoice, fingerprint, read_entry, resolve_cache, write_entry
from scalelab.data.documents import Corpus, Document
from scalelab.data.tokenization import Tokenizer

TokenArray = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class TokenData:
    """Ids to train on and ids held out.

    Attributes:
        name: of the corpus. tokenizer_name: of what cut it.
        train, held_out: [n] uint16, or uint32 for vocabularies beyond 65,536; documents parted by
            `end_of_text`, none before the first or after the last.
        vocab_size: V. end_of_text: its id.
        bytes_per_token: [V] bytes of UTF-8 each id spells; 0 for `end_of_text`, so that its loss counts
            (the model has to say where a document ends) and its bytes do not.

    Raises:
        DataError: an id outside the vocabulary, or a table of another length.
    """

    name: str
    tokenizer_name: str
    train: TokenArray
    held_out: TokenArray
    vocab_size: int
    end_of_text: int
    bytes_per_token: npt.NDArray[np.int64] = field(repr=False)

    def __post_init__(self) -> None:
        if self.bytes_per_token.shape != (self.vocab_size,):
            raise DataError(
                f"bytes_per_token has shape {self.bytes_per_token.shape}, not ({self.vocab_size},)"
            )
        for side, ids in (("train", self.train), ("held_out", self.held_out)):
            if ids.ndim != 1 or ids.dtype.kind not in "ui" or not ids.size:
                raise DataError(f"{side} must be a row of whole numbers, got {ids.dtype} {ids.shape}")
            if int(ids.min()) < 0 or int(ids.max()) >= self.vocab_size:
                raise DataError(f"{side} has an id outside the vocabulary of {self.vocab_size}")

    @property
    def train_bytes(self) -> int:
        """Bytes of UTF-8 that `train` spells."""
        return self.n_bytes(self.train)

    @property
    def held_out_bytes(self) -> int:
        """Bytes of UTF-8 that `held_out` spells."""
        return self.n_bytes(self.held_out)

    def n_bytes(self, tokens: npt.ArrayLike) -> int:
        """Bytes of UTF-8 that any of these tokens spell together, exactly; negative ids (ignored) count 0."""
        ids = np.asarray(tokens)
        if ids.size and int(ids.max()) >= self.vocab_size:
            raise DataError(f"token {int(ids.max())} is outside the vocabulary of {self.vocab_size}")
        return int(self.bytes_per_token[ids[ids >= 0]].sum())

    @property
    def fingerprint(self) -> str:
        """Hex sha256 of both streams and the vocabulary: what a checkpoint's data position belongs to."""
        return fingerprint(str(self.vocab_size), self.train.tobytes(), self.held_out.tobytes())


def encode_corpus(corpus: Corpus, tokenizer: Tokenizer, *, cache: CacheChoice = "default") -> TokenData:
    """The ids of a corpus, from the cache where they are there and whole, else cut and kept.

    Args:
        cache: "default", another folder, or None to keep nothing.

    Raises:
        DataError: the tokenizer cannot spell the text.
    """
    folder = resolve_cache(cache)
    place = None
    if folder is not None:
        key = fingerprint(corpus.fingerprint, tokenizer.fingerprint)[:24]
        place = folder / "tokens" / f"{key}.cache"
    streams = _read(place) if place else None
    if streams is None:
        dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
        streams = tuple(_stream(side, tokenizer, dtype) for side in (corpus.train, corpus.held_out))
        if place is not None:
            _write(place, *streams)
    return TokenData(
        name=corpus.name,
        tokenizer_name=tokenizer.name,
        train=streams[0],
        held_out=streams[1],
        vocab_size=tokenizer.vocab_size,
        end_of_text=tokenizer.end_of_text,
        bytes_per_token=tokenizer.bytes_per_token,
    )


def _stream(documents: tuple[Document, ...], tokenizer: Tokenizer, dtype: np.dtype[Any]) -> TokenArray:
    """Documents' ids end to end, `end_of_text` between them."""
    parts: list[npt.NDArray[Any]] = []
    for ids in tokenizer.encode_batch([document.text for document in documents]):
        parts += [ids, np.array([tokenizer.end_of_text])]
    joined: TokenArray = np.concatenate(parts[:-1]).astype(dtype)
    return joined


def _write(place: Path, train: TokenArray, held_out: TokenArray) -> None:
    kind = f"<u{train.dtype.itemsize}"  # little-endian whatever the machine
    meta = {"dtype": kind, "n_train": train.size, "n_held_out": held_out.size}
    write_entry(place, meta, train.astype(kind).tobytes() + held_out.astype(kind).tobytes())


def _read(place: Path) -> tuple[TokenArray, ...] | None:
    entry = read_entry(place)
    if entry is None:
        return None
    meta, payload = entry
    ids: TokenArray = np.frombuffer(payload, dtype=meta["dtype"])
    return ids[: meta["n_train"]], ids[meta["n_train"] :]
