"""A bundle holds all a class needs and nothing that may not be handed on, and is whole or not there."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import bundle
import bundle_check
import notebooks
import pytest
from notebooks import ToolError

from scalelab.data import datasets
from scalelab.data.datasets import Dataset, DatasetFile

FREE, CLOSED, ABSENT = b"to be or not to be\n", b"secret\tno\n", b"elsewhere\n"


def a_set(name: str, licence: str, content: bytes) -> Dataset:
    file = DatasetFile(
        name=f"{name}/all.txt",
        url=f"https://example.org/{name}",
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
    )
    return Dataset(name=name, title=f"the set {name}", licence=licence, kind="text", files={"all": file})


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a built site and data, in which wheels cost nothing."""
    sets = [
        a_set("free", "CC BY 4.0", FREE),
        a_set("closed", "research use", CLOSED),
        a_set("absent", "public domain", ABSENT),
    ]
    monkeypatch.setattr(datasets, "REGISTRY", {one.name: one for one in sets})
    for one, content in zip(sets[:2], (FREE, CLOSED), strict=True):
        (tmp_path / "data" / one.name).mkdir(parents=True)
        (tmp_path / "data" / one.name / "all.txt").write_bytes(content)
    monkeypatch.setenv("SCALELAB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SCALELAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("<h1>The book</h1>")

    def wheels(folder: Path, extras: str, options: object) -> None:
        folder.mkdir()
        (folder / "scalelab-0-py3-none-any.whl").write_bytes(b"wheel" * 300_000)

    monkeypatch.setattr(bundle, "get_wheels", wheels)
    return tmp_path


def pack(packed: Path, *, solutions: bool = True) -> Path:
    target = packed / "out" / "course"
    bundle.pack(target, solutions=solutions, site=packed / "site")
    return target


def test_it_holds_wheels_site_both_editions_data_licences_and_a_readme(packed):
    folder = pack(packed)
    labs = [notebooks.lab_name(path) for path in notebooks.find_labs()]
    expected = {"README.md", "SHA256SUMS", "LICENSE", "LICENSE-TEXT", "site/index.html", "data/README.md"}
    expected |= {"wheels/scalelab-0-py3-none-any.whl", "data/free/all.txt"}
    expected |= {f"{kind}/{name}.ipynb" for name in labs for kind in ("notebooks", "solutions")}
    assert {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()} == expected
    for name in labs:
        assert "BEGIN SOLUTION" not in (folder / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
        assert "BEGIN SOLUTION" in (folder / "solutions" / f"{name}.ipynb").read_text(encoding="utf-8")


def test_a_set_that_may_not_be_handed_on_stays_out_and_the_readme_says_so(packed):
    folder = pack(packed)
    assert not any(CLOSED in file.read_bytes() for file in folder.rglob("*") if file.is_file())
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "`closed`: left out; its licence is “research use”" in text
    assert "`free`: the set free (CC BY 4.0); from <https://example.org/free>" in text
    assert "`absent`: left out; it was not on the machine that packed" in text
    assert text.count("`free`") == 1


def test_of_the_course_s_own_sets_only_those_with_an_open_licence_may_be_handed_on():
    may = {name for name in datasets.names() if bundle.may_be_handed_on(datasets.dataset(name).licence)}
    assert may == {"tiny-shakespeare", "wikitext-2", "wnut-17"}


def test_without_solutions_none_is_in_it_or_named(packed):
    folder = pack(packed, solutions=False)
    assert not (folder / "solutions").exists()
    assert "solutions" not in (folder / "README.md").read_text(encoding="utf-8")
    for file in folder.rglob("*.ipynb"):
        assert "BEGIN SOLUTION" not in file.read_text(encoding="utf-8")


def test_every_file_is_in_the_list_of_checksums_and_a_damaged_one_is_found(packed):
    folder = pack(packed)
    listed = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    files = {f.relative_to(folder).as_posix(): f for f in folder.rglob("*") if f.is_file()}
    assert set(listed) == set(files) - {"SHA256SUMS"}
    for name, digest in listed.items():
        assert hashlib.sha256(files[name].read_bytes()).hexdigest() == digest
    if shutil.which("sha256sum"):
        command = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
        assert subprocess.run(command, cwd=folder).returncode == 0
        (folder / "data" / "free" / "all.txt").write_bytes(b"other")
        assert subprocess.run(command, cwd=folder, capture_output=True).returncode != 0


def test_what_fails_half_way_leaves_no_bundle_and_keeps_the_old_one(packed, monkeypatch):
    folder = pack(packed)
    before = (folder / "SHA256SUMS").read_bytes()

    def no_wheels(folder: Path, extras: str, options: object) -> None:
        folder.mkdir()
        (folder / "half.whl").write_bytes(b"half")
        raise ToolError("pip cannot get the wheels")

    monkeypatch.setattr(bundle, "get_wheels", no_wheels)
    with pytest.raises(ToolError, match="pip cannot"):
        pack(packed)
    assert (folder / "SHA256SUMS").read_bytes() == before
    assert os.listdir(folder.parent) == ["course"]


def test_a_site_that_is_not_built_is_asked_for(packed):
    (packed / "site" / "index.html").unlink()
    with pytest.raises(ToolError, match="make book"):
        pack(packed)
    assert not (packed / "out").exists()


def test_the_archive_unpacks_to_the_same_folder(packed):
    folder = pack(packed)
    archive = bundle.archive(folder)
    with zipfile.ZipFile(archive) as found:
        found.extractall(packed / "room")
        assert found.getinfo(f"{folder.name}/wheels/scalelab-0-py3-none-any.whl").compress_type == 0
    for file in folder.rglob("*"):
        if file.is_file():
            copy = packed / "room" / folder.name / file.relative_to(folder)
            assert copy.read_bytes() == file.read_bytes()
    assert sorted(os.listdir(folder.parent)) == ["course", "course.zip"]


def test_the_readme_gives_the_commands_that_are_tried(packed):
    folder = pack(packed)
    found = bundle_check.commands((folder / "README.md").read_text(encoding="utf-8"))
    assert "pip install --no-index --find-links wheels 'scalelab[lab,notebook]'" in found["Set up"]
    assert 'export SCALELAB_DATA="$PWD/data"' in found["Work"]
    for path in notebooks.find_labs():
        assert f'"solutions/{notebooks.lab_name(path)}.ipynb"' in found["Try it before the lesson"]
    script = "\n".join(found.values())
    assert subprocess.run(["sh", "-n"], input=script, text=True).returncode == 0
    assert f"python{sys.version_info[0]}.{sys.version_info[1]} -m venv" in script


def test_a_readme_without_commands_is_not_taken_for_one_that_was_tried():
    with pytest.raises(ToolError, match="Set up"):
        bundle_check.commands("# Nothing\n\n## Set up\n\nSomehow.\n\n## Work\n\n```sh\nls\n```\n")


@pytest.fixture
def no_network() -> None:
    flags = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run(["unshare", "--net", *flags, "true"]).returncode != 0:
        pytest.skip("this machine cannot take the network away from a process")


def test_what_is_tried_has_no_network_but_its_own_loopback(no_network, tmp_path):
    talk = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); "
        "socket.create_connection(s.getsockname(), timeout=3)"
    )
    up = f"{sys.executable} -c '{bundle_check.LOOPBACK_UP}'"
    script = f"set -eu\n{up}\n{sys.executable} -c '{bundle_check.NO_NETWORK}'\n{sys.executable} -c \"{talk}\""
    assert bundle_check.run_without_network(script, tmp_path) > 0


def test_a_command_that_fails_fails_the_trial(no_network, tmp_path):
    with pytest.raises(ToolError, match="exit code 3"):
        bundle_check.run_without_network("exit 3", tmp_path)


def test_a_machine_with_a_network_would_be_noticed(tmp_path):
    """The probe connects where it can, and then fails: here it is given somewhere to connect to."""
    probe = bundle_check.NO_NETWORK.replace('("1.1.1.1", 443)', "listening.getsockname()")
    script = "import socket\nlistening = socket.create_server(('127.0.0.1', 0))\n" + probe
    failed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert failed.returncode == 1
    assert "proves nothing" in failed.stderr


def test_the_name_says_python_and_platform():
    name = bundle.platform_name()
    assert name.startswith(f"py{sys.version_info[0]}{sys.version_info[1]}-")
