"""What all tests share: a cache of their own, and the folder of public data files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scalelab.data import datasets

PublicSet = Callable[[str], dict[str, Path]]


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(pytestconfig: pytest.Config) -> Iterator[None]:
    """Tests keep what they work out beside the repository, never in the home of who runs them."""
    if os.environ.get("SCALELAB_CACHE"):
        yield
        return
    folder = pytestconfig.rootpath / ".pytest_cache" / "scalelab"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALELAB_CACHE", str(folder))
        yield


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder `SCALELAB_DATA`; without it the test is skipped, or fails where data is required."""
    folder = os.environ.get("SCALELAB_DATA")
    required = os.environ.get("SCALELAB_REQUIRE_DATA") == "1"
    if folder and Path(folder).is_dir():
        return Path(folder).resolve()
    reason = f"SCALELAB_DATA={folder!r} is not a folder" if folder else "SCALELAB_DATA is not set"
    if required:
        pytest.fail(f"{reason}, and SCALELAB_REQUIRE_DATA=1 asks for it")
    pytest.skip(f"{reason}: point it at a folder with the public data files to run this test")


@pytest.fixture(scope="session")
def public_set(data_folder: Path) -> PublicSet:
    """A function that gives the paths of a public set's files by role; never downloads.

    A set that is not there skips the test, or fails it where SCALELAB_REQUIRE_DATA=1.
    """

    def files_of(name: str) -> dict[str, Path]:
        files = datasets.dataset(name).files
        missing = [f.name for f in files.values() if f.required and not (data_folder / f.name).is_file()]
        if missing and os.environ.get("SCALELAB_REQUIRE_DATA") == "1":
            pytest.fail(f"{data_folder} lacks {', '.join(missing)}, and SCALELAB_REQUIRE_DATA=1 asks for it")
        if missing:
            pytest.skip(f"{data_folder} lacks {', '.join(missing)} of {name}")
        return {role: data_folder / f.name for role, f in files.items() if (data_folder / f.name).is_file()}

    return files_of
