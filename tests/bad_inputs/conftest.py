"""What every bad input must meet: one of our errors, which names the culprit, and nothing changed on disk."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from scalelab.cli import main
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


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and, beside it, a finished run on it of 8 steps with checkpoints at 6 and 8."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text("".join(f"{n} green bottles hanging on the wall\n" for n in range(200)))
    words = [
        "train", "--corpus", str(folder / "text.txt"), "--tokenizer", "bytes", "--out", str(folder / "run"),
        "--d-model", "8", "--n-layers", "1", "--n-heads", "2", "--seq-len", "16", "--batch-size", "2",
        "--tokens", "256", "--checkpoint-every", "6", "--n-evals", "1", "--quiet",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALELAB_CACHE", str(folder / "cache"))
        assert main(words) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """The trained run's folder, a copy to damage."""
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))
