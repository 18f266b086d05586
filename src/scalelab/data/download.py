"""A download is whole and checked, or it is not there: checksum before the file takes its name."""

from __future__ import annotations

import hashlib
import http.client
import os
import secrets
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

from scalelab.core.artifacts import sha256_of_file
from scalelab.core.errors import DataFileError
from scalelab.core.units import format_count

CHUNK_BYTES = 1 << 16
TIMEOUT_S = 30.0


class Progress(Protocol):
    """Tells how a download goes."""

    def show(self, n_bytes: int, total: int | None) -> None:
        """Bytes so far, and in all (None: the server does not say)."""
        ...

    def end(self) -> None:
        """The download is over, whole or not."""
        ...


def download(url: str, place: Path, *, sha256: str | None, progress: Progress | None = None) -> str:
    """Fetch a file to `place` and return its sha256; on any failure nothing is left behind.

    Args:
        sha256: hex digest the content must have; None takes what comes, as long as it is all there.

    Raises:
        DataFileError: no network, an error from the server, a connection cut midway, a wrong checksum,
            an empty file, or a disk that refuses.
    """
    way_out = f"or put the file {place.name} into a folder and set SCALELAB_DATA to that folder"
    temporary = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.parent / f".{place.name}.{secrets.token_hex(6)}.tmp"
        with open(temporary, "xb") as file:
            found = _receive(url, file, progress, way_out)
            file.flush()
            os.fsync(file.fileno())
        if sha256 is not None and found != sha256:
            raise DataFileError(
                f"{url} gave another file than expected: its sha256 starts {found[:12]}, not {sha256[:12]}; "
                f"nothing was kept. Try again, {way_out}"
            )
        os.replace(temporary, place)
        temporary = None
        return found
    except DataFileError:
        raise
    except OSError as error:
        raise DataFileError(f"cannot write {place}: {error}; set SCALELAB_CACHE to another folder") from None
    finally:
        if progress is not None:
            progress.end()
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _receive(url: str, file: IO[bytes], progress: Progress | None, way_out: str) -> str:
    """Stream a URL into an open file; its sha256."""
    digest, n_bytes = hashlib.sha256(), 0
    for chunk, total in _chunks(url, way_out):
        file.write(chunk)
        digest.update(chunk)
        n_bytes += len(chunk)
        if progress is not None:
            progress.show(n_bytes, total)
    return digest.hexdigest()


def _chunks(url: str, way_out: str) -> Iterator[tuple[bytes, int | None]]:
    """The content of a URL piece by piece, each with the bytes of all (None: the server does not say).

    What fails in here is the network's doing; a disk that refuses fails where the pieces are written.
    """
    request, n_bytes, total = urllib.request.Request(url, headers={"User-Agent": "scalelab"}), 0, None
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            length = response.headers.get("Content-Length")
            total = int(length) if length and length.isdigit() else None
            while chunk := response.read(CHUNK_BYTES):
                n_bytes += len(chunk)
                yield chunk, total
    except urllib.error.HTTPError as error:
        raise DataFileError(
            f"{url} answered {error.code} {error.reason}: it does not give the file; try later, {way_out}"
        ) from None
    except urllib.error.URLError as error:
        raise DataFileError(f"no network to {url} ({error.reason}); connect, {way_out}") from None
    except (http.client.HTTPException, OSError) as error:  # a socket's or TLS's errors are OSErrors
        raise DataFileError(
            f"the connection to {url} was cut after {n_bytes:,} bytes ({type(error).__name__}); nothing was "
            f"kept. Try again, {way_out}"
        ) from None
    if total is not None and n_bytes != total:
        raise DataFileError(
            f"the connection to {url} was cut after {n_bytes:,} of {total:,} bytes; nothing was kept. "
            f"Try again, {way_out}"
        )
    if n_bytes == 0:
        raise DataFileError(f"{url} gave an empty file; try later, {way_out}")


def verify(path: Path, sha256: str) -> bool:
    """Whether the file is there and has this sha256."""
    try:
        return sha256_of_file(path) == sha256
    except OSError:
        return False


class ProgressLine:
    """Progress on one line of standard error, rewritten at each percent.

    Args:
        name: what the line begins with.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._last = -1
        self._is_open = False

    def show(self, n_bytes: int, total: int | None) -> None:
        """So many bytes are here, of so many."""
        step = n_bytes // 1_000_000 if total is None else 100 * n_bytes // total
        if step == self._last:
            return
        self._last, self._is_open = step, True
        share = "" if total is None else f" of {format_count(total)}B ({step} %)"
        sys.stderr.write(f"\r{self._name}: {format_count(n_bytes)}B{share}")
        sys.stderr.flush()

    def end(self) -> None:
        """All is there, or no more will come: what is written next begins a line."""
        if self._is_open:
            sys.stderr.write("\n")
            self._is_open = False
