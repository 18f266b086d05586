"""One way to ask for text: a corpus that is on every machine, a public set, or a path of one's own."""

from __future__ import annotations

import difflib
import itertools
import re
from pathlib import Path

from scalelab.core.checks import check_count, check_positive_int
from scalelab.core.errors import DataError, DataFileError
from scalelab.data import datasets
from scalelab.data.cache import CacheChoice
from scalelab.data.documents import Corpus, Document, continuous_corpus, take
from scalelab.data.files import path_corpus, read_text
from scalelab.data.markov import markov_corpus
from scalelab.data.packages import packages_corpus
from scalelab.data.python_source import docs_corpus, python_corpus

BUILT_IN = ("python", "docs", "markov", "packages")
# WikiText's articles begin with a line " = Title = " between two blank ones; sections have more signs
# (" = = Section = = "), and lines of mathematics stand without blanks around them.
ARTICLE_HEADING = re.compile(r"^ \n( = (?!= )[^\n]*(?<! =) = )\n(?= \n)", re.MULTILINE)


def corpus_names() -> tuple[str, ...]:
    """Names `corpus` knows: those built in, then public sets of running text."""
    return (*BUILT_IN, *(name for name, d in datasets.REGISTRY.items() if d.kind == "text"))


def corpus(
    name: str | Path, *, seed: int = 0, max_bytes: int | None = None, cache: CacheChoice = "default"
) -> Corpus:
    """Text to train on and text held out.

    Args:
        name: "python", "docs", "markov", "packages", a public set ("tiny-shakespeare", "wikitext-2"), or
            the path of a text file, a folder of text files, or a .jsonl with "text" in each line. A path
            that looks like a name is given as "./name" or a Path.
        seed: which language of `markov` it is; the other corpora, and every split, do not depend on it.
        max_bytes: bound on training text; a smaller corpus is a prefix of a larger one. Held-out text
            stays whole.
        cache: "default", another folder, or None to keep nothing on disk (downloads are always kept).

    Raises:
        DataError: an unknown name, or text that cannot be used.
        DataFileError: a file that is missing, damaged or cannot be fetched.
    """
    check_count("seed", seed)
    if max_bytes is not None:
        check_positive_int("max_bytes", max_bytes)
    if isinstance(name, str):
        if name == "python":
            return python_corpus(max_bytes=max_bytes, cache=cache)
        if name == "docs":
            return docs_corpus(max_bytes=max_bytes, cache=cache)
        if name == "markov":
            return markov_corpus(seed=seed, max_bytes=max_bytes, cache=cache)
        if name == "packages":
            return packages_corpus(max_bytes=max_bytes, cache=cache)
        if name in datasets.REGISTRY:
            return _public_corpus(name, max_bytes)
    return path_corpus(_existing(name), max_bytes=max_bytes)


def _public_corpus(name: str, max_bytes: int | None) -> Corpus:
    chosen = datasets.dataset(name)
    if chosen.kind != "text":
        raise DataError(
            f"{name!r} is a set of {chosen.kind}, not running text; "
            f"known corpora: {', '.join(corpus_names())}"
        )
    paths = datasets.find(chosen)
    if "all" in paths:
        text = read_text(paths["all"])
        return continuous_corpus(name, chosen.files["all"].name, text, max_bytes=max_bytes)
    return _wikitext(name, paths, max_bytes)


def _wikitext(name: str, paths: dict[str, Path], max_bytes: int | None) -> Corpus:
    """The published splits: train on train, hold out valid; where train is absent, valid and test."""
    whole = "train" in paths
    train_role, held_out_role = ("train", "valid") if whole else ("valid", "test")
    train = _articles(read_text(paths[train_role]), f"{name}/{train_role}")
    held_out = _articles(read_text(paths[held_out_role]), f"{name}/{held_out_role}")
    note = f"published splits: trains on {train_role}, holds out {held_out_role}"
    if not whole:
        name, note = f"{name}-valid", f"{note}, because {name}'s train is not on this machine"
    return Corpus(
        name=name if max_bytes is None else f"{name}:max_bytes={max_bytes}",
        train=take(train, max_bytes),
        held_out=tuple(held_out),
        note=note,
    )


def _articles(text: str, prefix: str) -> list[Document]:
    """A WikiText file cut before each article's heading; the documents end to end are the file."""
    starts = [match.start(1) for match in ARTICLE_HEADING.finditer(text)]
    cuts = [0, *starts[1:], len(text)] if starts else [0, len(text)]
    return [
        Document(f"{prefix}/{number}", text[begin:end])
        for number, (begin, end) in enumerate(itertools.pairwise(cuts))
    ]


def _existing(name: str | Path) -> Path:
    """The path, if something is there; otherwise an error that names near corpora."""
    try:
        path = Path(name).expanduser()
        there = str(name) != "" and path.exists()  # Path("") would be the current folder
    except (TypeError, ValueError, OSError, RuntimeError):  # no path at all, a NUL in it, no such home
        there = False
    if there:
        return path
    if isinstance(name, Path) or (isinstance(name, str) and re.search(r"[/\\.\0]", name)):
        raise DataFileError(f"there is nothing at {str(name)!r}; give a text file, a folder or a .jsonl")
    near = difflib.get_close_matches(str(name), corpus_names(), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(corpus_names())}"
    raise DataError(f"no corpus is called {name!r}, and no file is; {hint}")
