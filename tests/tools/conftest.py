"""The tools' folder on the path, and repositories and copies of the course to try them on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
sys.path.insert(0, str(ROOT / "book" / "about"))


@pytest.fixture(scope="session")
def tracked() -> list[Path]:
    """Every file that git has or would have, relative to the root; without git the test is skipped."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True
    )
    if listed.returncode != 0:
        pytest.skip("not a git clone")
    names = [Path(name) for name in listed.stdout.decode().split("\0") if name]
    return [name for name in names if (ROOT / name).is_file()]


@pytest.fixture
def course(tmp_path: Path, tracked: list[Path]) -> Path:
    """A copy of the course's files in a folder that is no git clone."""
    copy = tmp_path / "course"
    for name in tracked:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    return copy
