"""What every bad input must meet: one of our errors, which names the culprit, and nothing changed on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from scalelab.core.errors import ScalelabError


@pytest.fixture
def refuses(tmp_path: Path) -> Callable[[Callable[[], object], str], ScalelabError]:
    """`refuses(call, says)`: the call raises one of our errors, whose message contains `says`."""

    def check(call: Callable[[], object], says: str) -> ScalelabError:
        with pytest.raises(ScalelabError) as caught:
            call()
        message = str(caught.value).replace(f"{tmp_path}{os.sep}", "")  # its name holds the test's
        assert says in message, f"the message does not name {says!r}: {message}"
        assert len(message) < 1000, f"{len(message)} characters are too many to read"
        return caught.value

    return check


@pytest.fixture
def contents() -> Callable[[Path], dict[str, str]]:
    """`contents(folder)`: every file below it with its checksum, to compare before and after."""

    def read(folder: Path) -> dict[str, str]:
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return read
