"""What was worked out once is kept: files with a checksum in their first line, written whole or not at all.

A cache is never trusted: an entry that is cut, bit-flipped or of another format reads as absent, and is
made again. A cache that cannot be written (a full or read-only disk) costs time, not correctness.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from scalelab.core.artifacts import user_path, write_atomic
from scalelab.core.errors import DataFileError

# "default" is the user's cache folder; None keeps nothing on disk.
CacheChoice = Path | Literal["default"] | None
FORMAT = "scalelab-cache-1"


def cache_dir() -> Path:
    """Where downloads, read corpora and tokens are kept: `SCALELAB_CACHE`, else ~/.cache/scalelab."""
    chosen = os.environ.get("SCALELAB_CACHE")
    return user_path(chosen) if chosen else Path.home() / ".cache" / "scalelab"


def data_folder() -> Path | None:
    """The folder of public data files that is looked at before any download: `SCALELAB_DATA`, if set.

    Raises:
        DataFileError: the variable is set to something that is not a folder. ConfigError: to nobody's home.
    """
    chosen = os.environ.get("SCALELAB_DATA")
    if not chosen:
        return None
    folder = user_path(chosen)
    if not folder.is_dir():
        raise DataFileError(f"SCALELAB_DATA={chosen!r} is not a folder; correct it or unset it")
    return folder


def resolve_cache(cache: CacheChoice) -> Path | None:
    """The folder a cache choice means, or None for no cache."""
    return cache_dir() if cache == "default" else cache


def fingerprint(*parts: str | bytes) -> str:
    """Hex sha256 of texts and bytes in order; where one ends is part of it, so ("ab",) is not ("a", "b")."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()


def write_entry(path: Path, meta: Mapping[str, Any], payload: bytes) -> None:
    """Keep `payload` and its JSON-able `meta` at `path`; a disk that refuses is warned of and passed over."""
    header = {"format": FORMAT, "sha256": fingerprint(json.dumps(meta, sort_keys=True), payload), **meta}
    try:
        write_atomic(path, json.dumps(header, sort_keys=True).encode() + b"\n" + payload)
    except OSError as error:
        warnings.warn(
            f"cannot keep {path.name} in the cache ({error}); it will be made again next time. "
            "Set SCALELAB_CACHE to a folder that can be written",
            stacklevel=2,
        )


def read_entry(path: Path) -> tuple[dict[str, Any], bytes] | None:
    """The meta and payload kept at `path`, or None when there are none that are whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    line, newline, payload = content.partition(b"\n")
    if not newline:
        return None
    try:
        meta = json.loads(line)
    except ValueError:
        return None
    if not isinstance(meta, dict) or meta.pop("format", None) != FORMAT:
        return None
    expected = meta.pop("sha256", None)
    if expected != fingerprint(json.dumps(meta, sort_keys=True), payload):
        return None
    return meta, payload
