"""Text to whole numbers and back: bytes, pairs of bytes merged as often as they meet (BPE), or symbols.

Every tokenizer here gives back exactly the text it was given, and knows how many bytes each token spells,
so that losses of different tokenizers can be compared per byte. One id beyond the text's own,
`end_of_text`, parts documents; no text encodes to it, and it spells nothing: 0 bytes.
Source: Sennrich et al. 2016, arXiv:1508.07909 (BPE); Radford et al. 2019 (byte level).
Taught in book/transformers/training.md.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from scalelab.core.artifacts import write_atomic
from scalelab.core.checks import check_positive_int
from scalelab.core.errors import ConfigError, DataError, DataFileError
from scalelab.data.cache import CacheChoice, fingerprint, read_entry, resolve_cache, write_entry
from scalelab.data.documents import Corpus
from scalelab.data.markov import FIRST_CHARACTER, N_SYMBOLS

Ids = npt.NDArray[np.int32]
N_BYTES = 256
MIN_BPE_VOCAB = N_BYTES + 1
MAX_BPE_VOCAB = 1_000_000
FORMAT = "scalelab-tokenizer-1"
GROUP_CHARACTERS = 2_000_000
SAFE_CUT = re.compile(r"[!-~]\n[!-~]")


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the package asks of a tokenizer."""

    @property
    def name(self) -> str:
        """Kind, size and what it was trained on in short: "bytes", "bpe-512-0a1b2c3d"."""
        ...

    @property
    def vocab_size(self) -> int:
        """How many ids there are, `end_of_text` among them."""
        ...

    @property
    def end_of_text(self) -> int:
        """The id that parts documents: always the last one."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex sha256 that two tokenizers share exactly when they cut alike."""
        ...

    @property
    def bytes_per_token(self) -> npt.NDArray[np.int64]:
        """Bytes of UTF-8 that each id spells, [V]; 0 for `end_of_text`."""
        ...

    def encode(self, text: str) -> Ids:
        """Ids of a text, [T]. Raises DataError for text that this tokenizer cannot spell."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """`encode` of each text, faster."""
        ...

    def decode(self, ids: npt.ArrayLike) -> str:
        """The text of ids; `end_of_text` writes nothing, half a character writes U+FFFD."""
        ...

    def n_bytes(self, ids: npt.ArrayLike) -> int:
        """Bytes of UTF-8 that these ids spell together."""
        ...

    def save(self, path: Path) -> None:
        """Write one JSON file, atomically; `load_tokenizer` reads it back."""
        ...


class TableTokenizer(ABC):
    """What all our tokenizers share: a table of the bytes that each id spells, `end_of_text` last."""

    name: str

    def __init__(self, kind: str, spellings: Sequence[bytes]) -> None:
        self._kind = kind
        self._spellings = (*spellings, b"")

    @property
    def vocab_size(self) -> int:
        return len(self._spellings)

    @property
    def end_of_text(self) -> int:
        return len(self._spellings) - 1

    @cached_property
    def bytes_per_token(self) -> npt.NDArray[np.int64]:
        return np.array([len(spelling) for spelling in self._spellings], dtype=np.int64)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self._kind, json.dumps(self._settings(), sort_keys=True))

    def encode(self, text: str) -> Ids:
        return self.encode_batch([text])[0]

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[Ids]: ...

    def decode(self, ids: npt.ArrayLike) -> str:
        spelled = b"".join(map(self._spellings.__getitem__, self._checked(ids).ravel().tolist()))
        return spelled.decode("utf-8", errors="replace")

    def n_bytes(self, ids: npt.ArrayLike) -> int:
        return int(self.bytes_per_token[self._checked(ids)].sum())

    def save(self, path: Path) -> None:
        settings = self._settings()
        content = {"format": FORMAT, "kind": self._kind, "sha256": self.fingerprint, "settings": settings}
        write_atomic(path, json.dumps(content, sort_keys=True).encode("utf-8"))

    def _settings(self) -> Mapping[str, Any]:
        return {}

    def _checked(self, ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
        array = np.asarray(ids)
        if array.size == 0:
            return np.zeros(0, dtype=np.int64)
        if not np.issubdtype(array.dtype, np.integer):
            raise DataError(f"token ids must be whole numbers, got an array of {array.dtype}")
        if array.min() < 0 or array.max() >= self.vocab_size:
            wrong = array[(array < 0) | (array >= self.vocab_size)][0]
            raise DataError(
                f"token {wrong} is outside the vocabulary of {self.name} (0 to {self.end_of_text})"
            )
        return array.astype(np.int64)

    def __repr__(self) -> str:
        return f"<tokenizer {self.name}, {self.vocab_size} ids>"


class ByteTokenizer(TableTokenizer):
    """Each byte of UTF-8 is its own id; 256 ends a text. V = 257."""

    def __init__(self) -> None:
        super().__init__("bytes", [bytes([byte]) for byte in range(N_BYTES)])
        self.name = "bytes"

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        return [np.frombuffer(_utf8(text), dtype=np.uint8).astype(np.int32) for text in texts]


class SymbolTokenizer(TableTokenizer):
    """The 128 symbols of `markov`, one id a character; 128 ends a text. V = 129."""

    def __init__(self) -> None:
        super().__init__("symbols", [chr(FIRST_CHARACTER + i).encode() for i in range(N_SYMBOLS)])
        self.name = "symbols"

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        return [self._encode_one(text) for text in texts]

    def _encode_one(self, text: str) -> Ids:
        ids = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.int64)
        ids -= FIRST_CHARACTER
        strange = (ids < 0) | (ids >= N_SYMBOLS)
        if strange.any():
            at = int(strange.argmax())
            raise DataError(
                f"{text[at]!r} at position {at} is no symbol of the markov language; use another tokenizer"
            )
        return ids.astype(np.int32)


class BpeTokenizer(TableTokenizer):
    """Byte-level byte-pair encoding by the library `tokenizers`; made by `train_bpe` or `load_tokenizer`.

    Differs from GPT-2's in one thing: the end of text is no token of the library's, so that a text which
    spells "<|endoftext|>" is text like any other.
    """

    def __init__(self, description: str) -> None:
        try:
            self._model = _tokenizers().Tokenizer.from_str(description)
        except ConfigError:
            raise
        except Exception as error:  # the library raises no class of its own
            raise DataError(f"the library `tokenizers` cannot read this vocabulary: {error}") from None
        self._description = description
        ids = self._model.get_vocab()
        byte_of = {character: byte for byte, character in byte_characters().items()}
        ordered = sorted(ids, key=ids.__getitem__)
        super().__init__("bpe", [bytes(byte_of[character] for character in token) for token in ordered])
        self.name = f"bpe-{self.vocab_size}-{fingerprint(description)[:8]}"

    @property
    def description(self) -> str:
        """What the library writes of the vocabulary, without `end_of_text`; `BpeTokenizer` reads it back."""
        return self._description

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        # The fast one leaves out the offsets; older versions of the library lack it.
        encode = getattr(self._model, "encode_batch_fast", self._model.encode_batch)
        parts: list[list[Ids]] = [[] for _ in texts]
        for group in _groups(texts):
            encodings = encode([piece for _, piece in group])
            for (index, _), encoding in zip(group, encodings, strict=True):
                parts[index].append(np.array(encoding.ids, dtype=np.int32))
        return [np.concatenate(ids) for ids in parts]

    def _settings(self) -> Mapping[str, Any]:
        return {"description": self._description}


def byte_tokenizer() -> ByteTokenizer:
    """The tokenizer whose tokens are bytes."""
    return ByteTokenizer()


def symbol_tokenizer() -> SymbolTokenizer:
    """The tokenizer of the corpus `markov`."""
    return SymbolTokenizer()


def train_bpe(
    texts: Corpus | Iterable[str],
    vocab_size: int,
    *,
    max_bytes: int = 2_000_000,
    cache: CacheChoice = "default",
) -> BpeTokenizer:
    """Byte-pair encoding learnt from the first `max_bytes` of texts; the same texts give the same tokenizer.

    Args:
        texts: of a corpus, its training documents (held-out text must not shape the vocabulary).
        vocab_size: ids in all: 256 bytes, the merges, the end of text. A short text may have fewer pairs
            to merge; the tokenizer's own `vocab_size` is then smaller.
        max_bytes: whole texts are taken until this many bytes of UTF-8 are reached; the last one is cut.

    Raises:
        ConfigError: vocab_size is not a whole number from 257 to 1,000,000, or the library is absent.
        DataError: there is no text.
    """
    whole = isinstance(vocab_size, int) and not isinstance(vocab_size, bool)
    if not whole or not MIN_BPE_VOCAB <= vocab_size <= MAX_BPE_VOCAB:
        raise ConfigError(
            f"vocab_size must be a whole number from {MIN_BPE_VOCAB} (256 bytes and the end of text) to "
            f"{MAX_BPE_VOCAB:,}, got {vocab_size!r}"
        )
    check_positive_int("max_bytes", max_bytes)
    if isinstance(texts, Corpus):
        texts = (document.text for document in texts.train)
    sample = _take_texts(texts, max_bytes)
    folder = resolve_cache(cache)
    key = fingerprint(_tokenizers().__version__, str(vocab_size), *sample)
    place = folder / "tokenizers" / f"bpe-{vocab_size}-{key[:16]}.cache" if folder else None
    entry = read_entry(place) if place else None
    if entry is not None:
        return BpeTokenizer(entry[1].decode("utf-8"))
    description = _train(sample, vocab_size)
    if place is not None:
        write_entry(place, {"vocab_size": vocab_size}, description.encode("utf-8"))
    return BpeTokenizer(description)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer that `save` wrote.

    Raises:
        DataFileError: the file is missing, damaged, or was not written by `save`.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        settings = content["settings"]
        made: TableTokenizer
        if content["kind"] == "bytes":
            made = ByteTokenizer()
        elif content["kind"] == "symbols":
            made = SymbolTokenizer()
        elif content["kind"] == "bpe":
            # The checksum is compared before the library sees a damaged description.
            if fingerprint("bpe", json.dumps(settings, sort_keys=True)) != content["sha256"]:
                raise ValueError("its content differs from its checksum")
            made = BpeTokenizer(settings["description"])
        else:
            raise ValueError(f"it is of the unknown kind {content['kind']!r}")
    except FileNotFoundError:
        raise DataFileError(f"there is no tokenizer at {path}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataFileError(
            f"{path} is not a tokenizer of ours, or is damaged ({error}); train it again, or take it from "
            "another checkpoint"
        ) from None
    return made


def byte_characters() -> dict[int, str]:
    """The printable character by which byte-level BPE writes each byte.

    Bytes that print stand for themselves, the others are moved up to U+0100 and on, in order.
    Source: Radford et al. 2019, GPT-2's encoder.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(N_BYTES) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(0x100 + i) for i, b in enumerate(others)}


def _groups(texts: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """Pieces of texts with the text's number, in groups: the library needs 100 bytes a token to answer."""
    group: list[tuple[int, str]] = []
    size = 0
    for index, text in enumerate(texts):
        _utf8(text)
        for piece in _pieces(text):
            group.append((index, piece))
            size += len(piece)
            if size >= GROUP_CHARACTERS:
                yield group
                group, size = [], 0
    if group:
        yield group


def _pieces(text: str) -> Iterator[str]:
    """A long text in pieces that encode, one by one, as the whole does.

    The pre-tokenizer looks one character past a run of white space. After a line break between two visible
    characters it is always at the start of a token, so only there is the text cut.
    """
    begin = 0
    while len(text) - begin > GROUP_CHARACTERS:
        found = SAFE_CUT.search(text, begin + GROUP_CHARACTERS)
        if found is None:
            break
        end = found.start() + 2
        yield text[begin:end]
        begin = end
    yield text[begin:]


def _train(sample: list[str], vocab_size: int) -> str:
    library = _tokenizers()
    model = library.Tokenizer(library.models.BPE())
    model.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # the end of text is ours
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(sample, trainer)
    description: str = model.to_str()
    return description


def _take_texts(texts: Iterable[str], max_bytes: int) -> list[str]:
    sample, left = [], max_bytes
    for text in texts:
        content = _utf8(text)
        if len(content) > left:
            text = content[:left].decode("utf-8", errors="ignore")
        sample.append(text)
        left -= len(content)
        if left <= 0:
            break
    if not any(sample):
        raise DataError("there is no text to learn byte pairs from")
    return sample


def _utf8(text: str) -> bytes:
    if not isinstance(text, str):
        raise DataError(f"only text can be encoded, got {type(text).__name__} {text!r:.40}")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text has half a surrogate pair at position {error.start}, which no UTF-8 can spell"
        ) from None


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ConfigError(
            "byte-pair encoding needs the library `tokenizers`: pip install 'scalelab[lab]', or use the "
            "tokenizer `bytes`"
        ) from None
    return tokenizers
