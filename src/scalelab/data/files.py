"""Any text of the reader's own: a file, a folder, or JSON lines, read strictly and refused clearly.

Files are UTF-8 and taken as they are, byte for byte; a byte-order mark at the front is dropped.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from scalelab.core.errors import DataError, DataFileError
from scalelab.data.documents import Corpus, Document, continuous_corpus, make_corpus

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")
JSONL_SUFFIXES = (".jsonl", ".ndjson")


def path_corpus(path: Path, *, max_bytes: int | None = None) -> Corpus:
    """The corpus at a path: a text file, a folder of text files, or a .jsonl with "text" in each line.

    A single text is cut in two, its last tenth held out; documents of a folder or .jsonl are split by a
    hash of their path inside the folder, or of "file.jsonl#line".

    Raises:
        DataFileError: nothing is there, or it cannot be read.
        DataError: it holds no text, is not UTF-8, or a line of JSON is not what it should be.
    """
    if path.is_dir():
        name, documents = path.resolve().name, read_folder(path)
        if len(documents) == 1:
            return continuous_corpus(name, documents[0].path, documents[0].text, max_bytes=max_bytes)
        return make_corpus(name, documents, max_bytes=max_bytes)
    if path.suffix.lower() in JSONL_SUFFIXES:
        return make_corpus(path.name, read_jsonl(path), max_bytes=max_bytes)
    return continuous_corpus(path.name, path.name, read_text(path), max_bytes=max_bytes)


def read_text(path: Path) -> str:
    """The text of one UTF-8 file.

    Raises:
        DataFileError: the file is missing or cannot be read.
        DataError: it is empty, binary, or not UTF-8; the message says where.
    """
    if path.exists() and not path.is_file():  # reading a pipe or a device would never end
        raise DataFileError(f"{path} is not a file of text: it is a folder, a pipe or a device")
    content = _read_bytes(path)
    if not content.strip():
        raise DataError(f"{path} is empty: give a file with text in it")
    return _decode(path, content)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataFileError(f"there is no file at {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path itself
        raise DataFileError(f"cannot read {path}: {error}") from None


def _decode(path: Path, content: bytes) -> str:
    if b"\0" in content:
        raise DataError(
            f"{path} is not text: it has a NUL at byte {content.index(0)}; give a UTF-8 text file"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte {content[error.start]:#04x} at position {error.start}; "
            "save it as UTF-8"
        ) from None


def read_folder(folder: Path) -> list[Document]:
    """The text files below a folder, hidden ones and blank ones left out, in the order of their paths.

    Raises:
        DataError: no file has a suffix we read, or one is not UTF-8 text.
        DataFileError: a file cannot be read.
    """
    documents = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(parent) / name
            if name.startswith(".") or file.suffix.lower() not in TEXT_SUFFIXES:
                continue
            content = _read_bytes(file) if file.is_file() else b""
            if content.strip():  # Python's packages are full of files that hold a line break and no more
                documents.append(Document(file.relative_to(folder).as_posix(), _decode(file, content)))
    if not documents:
        raise DataError(f"{folder} holds no text: no file ending in {', '.join(TEXT_SUFFIXES)} with content")
    return documents


def read_jsonl(path: Path) -> list[Document]:
    """One document per line of JSON, from its "text" field; blank lines are passed over.

    Raises:
        DataError: a line is not a JSON object with a "text" that is a string; the message gives its number.
        DataFileError: the file is missing or cannot be read.
    """
    documents = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({error})") from None
        if not isinstance(value, dict):
            raise DataError(f"{where}: must be a JSON object, got {type(value).__name__}")
        if "text" not in value:
            raise DataError(f'{where}: lacks "text"; it has {", ".join(map(repr, value)) or "no fields"}')
        text = value["text"]
        if not isinstance(text, str):
            raise DataError(f'{where}: "text" must be a string, got {text!r}')
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f'{where}: "text" has half a surrogate pair at {error.start}, no UTF-8') from None
        documents.append(Document(f"{path.name}#{number}", text))
    return documents
