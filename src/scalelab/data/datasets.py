"""One registry of named public sets: where each file lies, what its checksum is, and under which licence.

Files are looked for in the folder `SCALELAB_DATA` by name, then in the cache, then downloaded. None of
them is part of this package.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scalelab.core.artifacts import sha256_of_file, write_atomic
from scalelab.core.errors import DataError, DataFileError
from scalelab.core.units import format_count
from scalelab.data.cache import cache_dir, data_folder
from scalelab.data.download import ProgressLine, download, verify
from scalelab.data.files import read_text


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetFile:
    """One file of a set.

    Attributes:
        name: file name below `SCALELAB_DATA` and in the cache, with forward slashes.
        url: where it is downloaded from, pinned by commit.
        sha256: hex digest; None where it is not known: then the first download's is recorded and kept to.
        size_bytes: its size; approximate where sha256 is None.
        required: whether the set can be used only with it.
    """

    name: str
    url: str
    sha256: str | None
    size_bytes: int
    required: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """A named set.

    Attributes:
        name: what it is asked for by. title: one line. licence: as stated at the source.
        kind: "text" (a corpus), "labels" (sentence TAB label), "tags" (token TAB tag) or "table" (CSV).
        files: by role: "train", "valid", "test", or "all".
    """

    name: str
    title: str
    licence: str
    kind: str
    files: Mapping[str, DatasetFile]


_GITHUB = "https://raw.githubusercontent.com"
_WIKITEXT = f"{_GITHUB}/pytorch/examples/77f55b912142e11fcfdf5b530231fb9c52f181e8/word_language_model/data"
_SST2 = f"{_GITHUB}/clairett/pytorch-sentiment-classification/457ffd83de90a9d6d472d8ffc31bbffe40a8b236"
_WNUT = f"{_GITHUB}/leondz/emerging_entities_17/e52a2d2a71ac1a051ca2d532eef28653c5c02603"
_EPOCH = f"{_GITHUB}/epoch-research/analyzing-chinchilla/92258837425e1b5f2851d624287f0120583a3d0e"


def _file(name: str, url: str, sha256: str | None, size_bytes: int, required: bool = True) -> DatasetFile:
    return DatasetFile(name=name, url=url, sha256=sha256, size_bytes=size_bytes, required=required)


REGISTRY: Mapping[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name="tiny-shakespeare",
            title="plays of Shakespeare, one running text",
            licence="public domain",
            kind="text",
            files={
                "all": _file(
                    "tinyshakespeare.txt",
                    f"{_GITHUB}/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e"
                    "/data/tinyshakespeare/input.txt",
                    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
                    1_115_394,
                )
            },
        ),
        Dataset(
            name="wikitext-2",
            title="Wikipedia articles, tokenised as published (rare words are <unk>)",
            licence="CC BY-SA",
            kind="text",
            files={
                "train": _file(
                    "wikitext2-train.txt", f"{_WIKITEXT}/wikitext-2/train.txt", None, 10_800_000, False
                ),
                "valid": _file(
                    "wikitext2-valid.txt",
                    f"{_WIKITEXT}/wikitext-2/valid.txt",
                    "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
                    1_121_681,
                ),
                "test": _file(
                    "wikitext2-test.txt",
                    f"{_WIKITEXT}/wikitext-2/test.txt",
                    "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
                    1_256_449,
                ),
            },
        ),
        Dataset(
            name="sst-2",
            title="film reviews' sentences with their sentiment (whole sentences, not GLUE's phrases)",
            licence="research use",
            kind="labels",
            files={
                "train": _file(
                    "sst2/train.tsv",
                    f"{_SST2}/data/SST2/train.tsv",
                    "ec192f833a64da08f475488a77b0d0b47db47acd0f458bd18433fc793b569920",
                    720_259,
                ),
                "valid": _file(
                    "sst2/dev.tsv",
                    f"{_SST2}/data/SST2/dev.tsv",
                    "eddea6b39e601dd4e7a672b53cc40fdf6019fa80522f351206c24340ca5d9359",
                    92_057,
                ),
                "test": _file(
                    "sst2/test.tsv",
                    f"{_SST2}/data/SST2/test.tsv",
                    "831169c7e2e429d6026e1bdbb542f33b636e3e596caad9602ebc953c205928b7",
                    188_749,
                ),
            },
        ),
        Dataset(
            name="wnut-17",
            title="messages with rare and emerging named entities",
            licence="CC BY 4.0",
            kind="tags",
            files={
                "train": _file(
                    "wnut17train.conll",
                    f"{_WNUT}/wnut17train.conll",
                    "731820e13f71af324c6b55a1575ec2ce59fbaa2a0806f8f0400b98d56cd6a7a5",
                    493_781,
                ),
                "valid": _file(
                    "emerging.dev.conll",
                    f"{_WNUT}/emerging.dev.conll",
                    "e053b752b8155113ca66e7db08af5f2f5f43ab993694e4774f1ec5bad42312d8",
                    114_749,
                ),
                "test": _file(
                    "emerging.test.annotated",
                    f"{_WNUT}/emerging.test.annotated",
                    "2aa79b764e56ec9264a1b30fdd9b70195bd00ff400b62edd8f399d5f13c178f0",
                    192_425,
                ),
            },
        ),
        Dataset(
            name="epoch-chinchilla",
            title="245 points reconstructed from a figure of the Chinchilla paper, by Epoch AI",
            licence="none stated at the source: use, do not redistribute",
            kind="table",
            files={
                "all": _file(
                    "epoch_chinchilla.csv",
                    f"{_EPOCH}/data/svg_extracted_data.csv",
                    "193478df4e90f040016431996c45682659306840ecdadf83cfb9cd5ca0aa1b30",
                    23_224,
                )
            },
        ),
    )
}


def names() -> tuple[str, ...]:
    """Names of all sets."""
    return tuple(REGISTRY)


def dataset(name: str) -> Dataset:
    """The set of this name.

    Raises:
        DataError: there is none; the message names near ones.
    """
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(REGISTRY)}"
        raise DataError(f"no public set is called {name!r}; {hint}")
    return REGISTRY[name]


def find(name: str | Dataset, *, download_missing: bool = True, progress: bool = True) -> dict[str, Path]:
    """Where the files of a set lie on this machine, by role; what is missing is downloaded.

    A file that is not required (WikiText-2's train) is not downloaded while `SCALELAB_DATA` is set, since
    that folder is how a classroom without a network says so; its role is then absent from the answer.

    Raises:
        DataError: no set has this name.
        DataFileError: a required file is neither here nor to be had, or differs from its checksum.
    """
    chosen = dataset(name) if isinstance(name, str) else name
    offline = data_folder() is not None
    paths = {}
    for role, file in chosen.files.items():
        path = locate(file)
        if path is None and download_missing and (file.required or not offline):
            path = _fetch_file(file, progress=progress)
        if path is None and file.required:
            raise DataFileError(
                f"{chosen.name}: {file.name} is not on this machine; run "
                f"`scalelab data fetch {chosen.name}`, or set SCALELAB_DATA to a folder that holds it"
            )
        if path is not None:
            paths[role] = path
    return paths


def fetch(name: str | Dataset, *, progress: bool = True) -> dict[str, Path]:
    """Make sure every file of a set is on this machine, downloading what is missing; paths by role.

    Raises:
        DataError: no set has this name.
        DataFileError: a file cannot be had, or differs from its checksum; nothing half-written is left.
    """
    chosen = dataset(name) if isinstance(name, str) else name
    return {role: locate(file) or _fetch_file(file, progress=progress) for role, file in chosen.files.items()}


def locate(file: DatasetFile) -> Path | None:
    """The file in `SCALELAB_DATA` or, whole, in the cache; None if it is in neither.

    A damaged file in the cache counts as absent (it will be fetched again).

    Raises:
        DataFileError: the file in `SCALELAB_DATA` differs from its checksum.
    """
    folder = data_folder()
    if folder is not None and (own := folder / file.name).is_file():
        if file.sha256 is not None and not verify(own, file.sha256):
            raise DataFileError(
                f"{own} is not the published file: {_difference(own, file.sha256)}; replace it, or remove it "
                "to have it downloaded"
            )
        return own
    kept = _cache_place(file)
    expected = file.sha256 or _recorded_sha256(kept)
    return kept if expected is not None and verify(kept, expected) else None


def preview(name: str) -> str:
    """What a set is, where its files lie, and its first examples, as text for a terminal.

    Raises:
        DataError, DataFileError: as `find`; also a file that cannot be read as text.
    """
    chosen = dataset(name)
    paths = find(name)
    lines = [f"{name}: {chosen.title}", f"licence: {chosen.licence}"]
    for role, file in chosen.files.items():
        where = paths.get(role)
        size = (
            f"{format_count(where.stat().st_size)}B" if where else f"about {format_count(file.size_bytes)}B"
        )
        lines.append(f"{role:>6}: {where or 'not on this machine'} ({size}{_count(chosen, where)})")
    first = read_text(next(iter(paths.values()))).splitlines()
    return "\n".join([*lines, "", *("  " + _shown(line, chosen.kind) for line in _head(first, chosen.kind))])


def _fetch_file(file: DatasetFile, *, progress: bool) -> Path:
    place = _cache_place(file)
    recorded = None if file.sha256 else _recorded_sha256(place)
    found = download(
        file.url,
        place,
        sha256=file.sha256 or recorded,
        progress=ProgressLine(file.name) if progress else None,
    )
    if file.sha256 is None and recorded is None:
        _record_first_download(file, place, found)
    return place


def _record_first_download(file: DatasetFile, place: Path, found: str) -> None:
    """Keep the checksum of a file whose published one is not known, after what can be checked is."""
    size_bytes = place.stat().st_size
    try:
        read_text(place)
        if abs(size_bytes - file.size_bytes) > 0.05 * file.size_bytes:
            raise DataError(f"it has {size_bytes:,} bytes, not about {file.size_bytes:,}")
    except DataError as error:
        place.unlink()
        raise DataFileError(
            f"{file.url} gave another file than expected: {error}; nothing was kept"
        ) from None
    write_atomic(_record_place(place), f"{found}\n".encode())
    warnings.warn(
        f"the published sha256 of {file.name} is not known to this package; the one of this first download, "
        f"{found}, is recorded, and later ones are held to it",
        stacklevel=4,
    )


def _difference(path: Path, sha256: str) -> str:
    try:
        return f"its sha256 starts {sha256_of_file(path)[:12]}, not {sha256[:12]}"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"


def _cache_place(file: DatasetFile) -> Path:
    return cache_dir() / "datasets" / file.name


def _record_place(place: Path) -> Path:
    return place.with_name(place.name + ".sha256")


def _recorded_sha256(place: Path) -> str | None:
    try:
        text = _record_place(place).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if len(text) == 64 else None


def _count(chosen: Dataset, path: Path | None) -> str:
    """How many examples a file holds, where they are countable."""
    if path is None or chosen.kind == "text":
        return ""
    lines = read_text(path).split("\n")
    if chosen.kind == "tags":
        # A sentence is a run of lines with content; some files part them by a line of blanks.
        n = sum(bool(b.strip()) and not a.strip() for a, b in zip(["", *lines], lines, strict=False))
        return f", {n:,} messages"
    n = sum(bool(line.strip()) for line in lines) - (chosen.kind == "table")
    return f", {n:,} {'sentences' if chosen.kind == 'labels' else 'rows'}"


def _head(lines: list[str], kind: str) -> list[str]:
    if kind != "tags":
        return [line for line in lines if line.strip()][:8]
    blank = next((i for i, line in enumerate(lines) if not line.strip()), len(lines))
    return lines[: min(blank, 20)]


def _shown(line: str, kind: str) -> str:
    if kind == "labels":
        sentence, _, label = line.rpartition("\t")
        return f"{label}  {sentence[:100]}"
    return line.expandtabs(20)[:110]
