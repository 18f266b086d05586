"""The frozen corpus: pinned, licensed, read as text, and fetched whole or not at all."""

from __future__ import annotations

import hashlib
import re
import stat
import sys
import zipfile
from importlib import resources
from pathlib import Path

import pytest

from scalelab.core.errors import DataFileError
from scalelab.data import corpus, packages
from scalelab.data.packages import Wheel

PERMISSIVE = {"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "MIT", "PSF-2.0"}


def make_wheel(folder: Path, name: str, files: dict[str, str]) -> Wheel:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for inside, text in files.items():
            wheel.writestr(inside, text)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return Wheel(
        name=name, version="1.0", file=path.name, sha256=digest, size_bytes=len(content), licence="MIT"
    )


def test_list_is_pinned_pure_and_permissive() -> None:
    wheels = packages.pinned_wheels()
    assert len({wheel.name for wheel in wheels}) == len(wheels) == 18
    for wheel in wheels:
        assert wheel.file == f"{wheel.name}-{wheel.version}-py3-none-any.whl"
        assert re.fullmatch(r"[0-9a-f]{64}", wheel.sha256)
        assert wheel.licence in PERMISSIVE


def test_notice_names_each_wheel_with_its_licence() -> None:
    notice = (resources.files("scalelab.data") / "NOTICE.txt").read_text(encoding="utf-8")
    for wheel in packages.pinned_wheels():
        assert f"\n{wheel.name} {wheel.version}: {wheel.licence}\n" in notice


def test_the_licences_shown_name_each_wheel_under_its_own_and_the_notice_that_is_there() -> None:
    *lines, last = packages.licences().splitlines()
    shown = {name: line.split(": ")[0] for line in lines for name in line.split(": ")[1].split(", ")}
    assert shown == {f"{w.name} {w.version}": f"licence {w.licence}" for w in packages.pinned_wheels()}
    assert Path(last.removeprefix("copyright lines and sources: ")).is_file()


def test_wheels_are_read_as_text_without_tests_and_generated_files(tmp_path: Path) -> None:
    table = "TABLE = [\n" + "    12345, 67890,\n" * 2_000 + "]\n"
    wheel = make_wheel(
        tmp_path,
        "pkg",
        {
            "pkg/__init__.py": "raise SystemExit('imported')\n",
            "pkg/core.py": "x = 1\n",
            "pkg/tests/test_core.py": "y = 2\n",
            "pkg/broken.py": "def f(:\n",
            "pkg/table.py": table,
            "pkg/parser.py": "# This file was automatically generated from grammar.y\nz = 3\n",
            "pkg/data.json": "{}",
            "pkg-1.0.dist-info/METADATA": "Name: pkg\n",
        },
    )
    documents = list(packages.read_wheels([tmp_path / wheel.file]))
    assert [d.path for d in documents] == ["pkg/__init__.py", "pkg/core.py"]


def test_wheels_in_the_own_folder_make_the_corpus_without_a_network(tmp_path: Path, monkeypatch) -> None:
    files = {f"pkg/m{i}.py": f"x = {i}\n" for i in range(40)}
    wheels = (make_wheel(tmp_path / "data" / "packages", "pkg", files),)
    monkeypatch.setenv("SCALELAB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SCALELAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packages, "pinned_wheels", lambda: wheels)
    monkeypatch.setattr(packages, "fetch_wheels", lambda *_: pytest.fail("no download was needed"))
    made = corpus("packages")
    assert {d.path: d.text for d in (*made.train, *made.held_out)} == files
    assert corpus("packages").fingerprint == made.fingerprint


def test_pip_fetches_by_hash_from_an_index_and_keeps_the_wheel(tmp_path: Path, monkeypatch) -> None:
    info = "scalelab_made-1.0.dist-info"
    files = {
        "p/a.py": "x = 1\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: scalelab-made\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    wheel = make_wheel(tmp_path / "index", "scalelab_made", files)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    packages.fetch_wheels([wheel], tmp_path / "kept")
    assert [p.name for p in (tmp_path / "kept").iterdir()] == [wheel.file]
    wrong = Wheel(
        name=wheel.name, version="1.0", file=wheel.file, sha256="0" * 64, size_bytes=1, licence="MIT"
    )
    with pytest.raises(DataFileError, match="pip could not fetch"):
        packages.fetch_wheels([wrong], tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


def test_without_a_network_the_error_is_one_line_with_a_way_out(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(DataFileError, match="SCALELAB_DATA") as raised:
        packages.fetch_wheels(packages.pinned_wheels()[:1], tmp_path / "kept")
    assert "\n" not in str(raised.value)
    assert list((tmp_path / "kept").iterdir()) == []


def test_pip_that_lies_about_a_wheel_is_found_out(tmp_path: Path, monkeypatch) -> None:
    fake = tmp_path / "python"
    fake.write_text(f"#!{sys.executable}\n", encoding="utf-8")  # does nothing, says all went well
    fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setattr(packages.sys, "executable", str(fake))
    with pytest.raises(DataFileError, match="pinned sha256"):
        packages.fetch_wheels(packages.pinned_wheels()[:1], tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []


def test_file_that_is_no_wheel_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a.whl").write_bytes(b"not a zip")
    with pytest.raises(DataFileError, match=r"a\.whl"):
        list(packages.read_wheels([tmp_path / "a.whl"]))
