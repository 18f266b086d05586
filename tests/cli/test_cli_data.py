"""`scalelab data`: what is listed is what can be named, shown is what is there, fetched is what is whole."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NoReturn

import pytest

from scalelab.cli import main
from scalelab.cli.data import LIVE_CORPORA
from scalelab.data import corpus_names, datasets
from scalelab.data.datasets import Dataset, DatasetFile
from scalelab.data.documents import continuous_corpus

TEXT = b"Shall I compare thee to a summer's day?\n" * 50


@pytest.fixture(autouse=True)
def _no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("SCALELAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SCALELAB_DATA", raising=False)


@pytest.fixture
def sonnets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set of one file, which lies in the folder SCALELAB_DATA."""
    file = DatasetFile(
        name="sonnets.txt", url="https://example.org/sonnets.txt",
        sha256=hashlib.sha256(TEXT).hexdigest(), size_bytes=len(TEXT),
    )  # fmt: skip
    known = Dataset(name="sonnets", title="poems", licence="public domain", kind="text", files={"all": file})
    monkeypatch.setattr(datasets, "REGISTRY", {"sonnets": known})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sonnets.txt").write_bytes(TEXT)
    monkeypatch.setenv("SCALELAB_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "sonnets.txt"


def test_every_corpus_and_set_is_listed(capsys: Any) -> None:
    assert main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[0] for line in lines if line.startswith("  ")}
    assert listed == set(corpus_names()) | set(datasets.names())
    assert set(LIVE_CORPORA) <= set(corpus_names())


def test_list_as_json_says_what_is_here(sonnets: Path, capsys: Any) -> None:
    assert main(["data", "list", "--json"]) == 0
    (only,) = json.loads(capsys.readouterr().out)["sets"]
    assert (only["name"], only["here"], only["bytes"]) == ("sonnets", True, len(TEXT))
    sonnets.unlink()
    assert main(["data", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sets"][0]["here"] is False


def test_a_damaged_file_is_listed_as_such_beside_the_others(
    sonnets: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    whole = datasets.REGISTRY["sonnets"]
    other = dataclasses.replace(whole, name="other", files={"all": dataclasses.replace(
        whole.files["all"], name="other.txt")})  # fmt: skip
    monkeypatch.setattr(datasets, "REGISTRY", {"sonnets": whole, "other": other})
    sonnets.with_name("other.txt").write_bytes(TEXT)
    sonnets.write_bytes(b"cut")
    assert main(["data", "list", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["sets"]
    assert (first["here"], first["files_here"], second["here"]) == (False, [], True)
    assert "is not the published file" in first["files_damaged"]["all"]
    assert second["files_damaged"] == {}
    assert main(["data", "list"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  sonnets .*\bdamaged\b", out, re.MULTILINE)
    assert re.search(r"^  other .*\byes\b", out, re.MULTILINE)
    assert f"damaged: {sonnets} is not the published file" in out


def test_a_data_folder_that_is_none_is_an_error_not_damage(
    sonnets: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("SCALELAB_DATA", str(sonnets.parent / "none"))
    assert main(["data", "list"]) == 2
    assert "SCALELAB_DATA" in capsys.readouterr().err


def test_show_of_packages_tells_their_licences(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    made = continuous_corpus("packages", "a.py", "x = 1\n" * 50)
    monkeypatch.setattr("scalelab.data.corpora.packages_corpus", lambda **_: made)
    assert main(["data", "show", "packages"]) == 0
    out = capsys.readouterr().out
    assert "licence BSD-3-Clause: " in out
    assert "NOTICE.txt" in out


def test_fetch_says_where_the_files_are_without_a_download(sonnets: Path, capsys: Any) -> None:
    assert main(["data", "fetch", "sonnets"]) == 0
    assert capsys.readouterr().out == f"sonnets\tall\t{sonnets}\n"
    assert main(["data", "fetch", "--all"]) == 0


def test_fetch_without_a_network_is_one_line_and_leaves_nothing(
    sonnets: Path, tmp_path: Path, capsys: Any
) -> None:
    sonnets.unlink()
    assert main(["data", "fetch", "sonnets", "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "SCALELAB_DATA" in err
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_misspelt_name_among_several_stops_before_any_download(sonnets: Path, capsys: Any) -> None:
    sonnets.unlink()
    assert main(["data", "fetch", "sonnets", "sonets"]) == 2
    assert "'sonets'" in capsys.readouterr().err


def test_show_of_a_set_tells_its_licence_and_beginning(sonnets: Path, capsys: Any) -> None:
    assert main(["data", "show", "sonnets"]) == 0
    out = capsys.readouterr().out
    assert "public domain" in out
    assert "Shall I compare thee" in out


def test_show_of_a_path_tells_both_sides_of_the_split(sonnets: Path, capsys: Any) -> None:
    assert main(["data", "show", str(sonnets)]) == 0
    out = capsys.readouterr().out
    assert "held out" in out
    assert "Shall I compare thee" in out
