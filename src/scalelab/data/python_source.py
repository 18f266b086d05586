"""Real text that is on every machine already: the source of the running Python, and the prose inside it.

Files are read as text and parsed by `ast`; nothing is ever imported or run. Left out are tests and
generated tables, which spoil a small model's taste. Corpora differ between Python versions, so a number
measured on them belongs to one version, which the corpus names.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from scalelab.core.errors import DataFileError
from scalelab.data.cache import CacheChoice, fingerprint, read_entry, resolve_cache, write_entry
from scalelab.data.documents import Corpus, Document, make_corpus, path_order

# Folders whose files are tests, other people's packages, or generated tables.
SKIPPED_FOLDERS = frozenset(
    {
        "test", "tests", "testing_data", "idle_test", "encodings", "pydoc_data", "site-packages",
        "dist-packages", "__pycache__", "lib-dynload", "node_modules", "_vendor", "_bundled", "_antlr",
        "benchmarks", "internal_test_util",
    }
)  # fmt: skip
SKIPPED_PREFIXES = ("config-", "_sysconfigdata", "__phello__", ".")
# Source of installed packages that `docs` parses, taken in hash order: a few seconds of one core.
MAX_INSTALLED_BYTES = 10_000_000
MIN_DOCSTRING_WORDS = 5
READER_VERSION = "1"  # part of cache keys: raise it when what is kept of a file changes


def python_corpus(*, max_bytes: int | None = None, cache: CacheChoice = "default") -> Corpus:
    """The standard library's source of the running interpreter, about 9 MB.

    Raises:
        DataFileError: this Python came without its source.
    """
    documents = cached_documents("python", [_signature()], cache, lambda: list(read_python(stdlib_files())))
    version = ".".join(map(str, sys.version_info[:3]))
    return make_corpus("python", documents, max_bytes=max_bytes, note=f"standard library of Python {version}")


def docs_corpus(*, max_bytes: int | None = None, cache: CacheChoice = "default") -> Corpus:
    """English prose: the docstrings of the standard library and of installed packages, by `ast`.

    Installed packages are read up to 10 MB of source, files in the order of their paths' hashes; a
    document is all docstrings of a file that have at least five words.

    Raises:
        DataFileError: this Python came without its source.
    """
    installed = _installed_distributions()
    documents = cached_documents(
        "docs",
        [_signature(), *installed],
        cache,
        lambda: list(read_docstrings([*stdlib_files(), *installed_files()])),
    )
    note = f"docstrings of the standard library and of up to 10 MB of the {len(installed)} installed packages"
    return make_corpus("docs", documents, max_bytes=max_bytes, note=note)


def stdlib_files() -> list[tuple[str, Path]]:
    """Relative path and place of each file of the standard library that `python` holds.

    Raises:
        DataFileError: none is there (an embedded Python, or one whose library is a zip).
    """
    folder = Path(sysconfig.get_path("stdlib"))
    files = list(_walk(folder))
    if not files:
        raise DataFileError(
            f"this Python has no source of its standard library at {folder}; use another corpus: a path of "
            "your own, or tiny-shakespeare"
        )
    return files


def installed_files(max_bytes: int = MAX_INSTALLED_BYTES) -> list[tuple[str, Path]]:
    """Relative path and place of installed packages' files, in hash order up to `max_bytes` of source."""
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    found = {name: file for folder in sorted(folders) for name, file in _walk(Path(folder))}
    chosen, total_bytes = [], 0
    for name in sorted(found, key=path_order):
        total_bytes += found[name].stat().st_size
        if total_bytes > max_bytes:
            break
        chosen.append((name, found[name]))
    return chosen


def is_wanted(name: str) -> bool:
    """Whether a relative path ends in .py and lies in no folder of tests, vendored code or tables."""
    *folders, file = name.split("/")
    return file.endswith(".py") and not any(
        part in SKIPPED_FOLDERS or part.startswith(SKIPPED_PREFIXES) for part in (*folders, file)
    )


def read_python(files: Iterable[tuple[str, Path]]) -> Iterator[Document]:
    """The files that are UTF-8 and parse as Python, as documents."""
    for name, text in _texts(files):
        if _parse(text) is not None:
            yield Document(name, text)


def read_docstrings(files: Iterable[tuple[str, Path]]) -> Iterator[Document]:
    """For each Python file that has prose in docstrings, a document of that prose."""
    for name, text in _texts(files):
        found = docstrings(text)
        if found:
            yield Document(name, "\n\n".join(found) + "\n")


def python_document(name: str, content: bytes) -> Document | None:
    """A document of one Python file, or None where it is empty, not UTF-8, or does not parse."""
    text = _decode(content)
    return Document(name, text) if text is not None and _parse(text) is not None else None


def docstrings(source: str) -> list[str]:
    """The docstrings of a Python text of at least five words, unindented, in order."""
    if '"""' not in source and "'''" not in source:
        return []
    tree = _parse(source)
    if tree is None:
        return []
    found = []
    for node in _definitions(tree):
        text = ast.get_docstring(node, clean=False)
        if text and len(text.split()) >= MIN_DOCSTRING_WORDS and _is_utf8(text):
            found.append((node.body[0].lineno, inspect.cleandoc(text)))
    return [text for _, text in sorted(found)]


def _definitions(
    tree: ast.Module,
) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """The module, its classes and functions; expressions are passed over, which ast.walk would visit."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            stack.extend(getattr(node, block, ()))


def _texts(files: Iterable[tuple[str, Path]]) -> Iterator[tuple[str, str]]:
    for name, file in files:
        try:
            text = _decode(file.read_bytes())
        except OSError:  # a file that went away, or that this user may not read, is not our matter
            continue
        if text is not None:
            yield name, text


def _decode(content: bytes) -> str | None:
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return None
    return text if text.strip() else None


def _parse(text: str) -> ast.Module | None:
    with warnings.catch_warnings():  # old escapes in other people's strings
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def _is_utf8(text: str) -> bool:
    """False for a docstring whose escapes spell half a surrogate pair."""
    return re.search("[\ud800-\udfff]", text) is None


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(n for n in folders if n not in SKIPPED_FOLDERS and not n.startswith("."))
        for name in sorted(names):
            file = Path(parent) / name
            relative = file.relative_to(folder).as_posix()
            if is_wanted(relative):
                yield relative, file


def _signature() -> str:
    """Changes whenever a file of the standard library does (its name, size or time of change)."""
    parts = [sys.version]
    for name, file in stdlib_files():
        status = file.stat()
        parts.append(f"{name} {status.st_size} {status.st_mtime_ns}")
    return fingerprint(*parts)


def _installed_distributions() -> list[str]:
    """Names and versions of installed packages, from the names of their metadata folders."""
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    return sorted({entry.stem for folder in folders for entry in Path(folder).glob("*.dist-info")})


def cached_documents(
    name: str, key: list[str], cache: CacheChoice, read: Callable[[], list[Document]]
) -> list[Document]:
    """The documents kept for this key, else those `read` gives, which are kept from now on."""
    folder = resolve_cache(cache)
    if folder is None:
        return read()
    place = folder / "corpora" / f"{name}-{fingerprint(READER_VERSION, *key)[:16]}.cache"
    entry = read_entry(place)
    if entry is not None:
        return [Document(path, text) for path, text in json.loads(entry[1])]
    documents = read()
    payload = json.dumps([[d.path, d.text] for d in documents], ensure_ascii=False)
    write_entry(place, {"n_documents": len(documents)}, payload.encode("utf-8"))
    return documents
