"""The registry of public sets: downloads that are whole or absent, and the real files where they are."""

from __future__ import annotations

import csv
import hashlib
import http.server
import io
import re
import socketserver
import ssl
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from scalelab.core.errors import DataError, DataFileError
from scalelab.data import byte_tokenizer, corpus, datasets, encode_corpus
from scalelab.data.datasets import Dataset, DatasetFile
from scalelab.data.download import download

CONTENT = b"a line of text\n" * 20_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT well and badly, by path; counts requests on the server."""

    def do_GET(self) -> None:
        self.server.n_requests += 1  # type: ignore[attr-defined]
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path == "/broken":
            self.send_error(500)
            return
        body = {"/empty": b"", "/binary": b"\0" * len(CONTENT), "/page": b"<html>Log in</html>"}.get(
            self.path, CONTENT
        )
        self.send_response(200)
        if self.path != "/unsized":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/cut" else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[socketserver.TCPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.n_requests = 0  # type: ignore[attr-defined]
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch, request) -> None:
    if "public_set" not in request.fixturenames:
        monkeypatch.delenv("SCALELAB_DATA", raising=False)
    monkeypatch.setenv("SCALELAB_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def made_set(server, path: str, *, sha256: str | None = SHA256, required: bool = True) -> Dataset:
    url = f"http://127.0.0.1:{server.server_address[1]}{path}"
    file = DatasetFile(
        name="sub/text.txt", url=url, sha256=sha256, size_bytes=len(CONTENT), required=required
    )
    return Dataset(name="made", title="made here", licence="none", kind="text", files={"all": file})


def files_below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("path", ["/good", "/unsized"])
def test_download_is_kept_and_not_asked_for_again(server, tmp_path: Path, path: str) -> None:
    chosen = made_set(server, path)
    first = datasets.fetch(chosen, progress=False)["all"]
    assert first.read_bytes() == CONTENT
    assert datasets.find(chosen, progress=False)["all"] == first
    assert server.n_requests == 1
    assert files_below(tmp_path / "cache") == ["datasets/sub/text.txt"]


@pytest.mark.parametrize(("path", "message"), [
    ("/missing", "answered 404"), ("/broken", "answered 500"), ("/cut", "cut after"),
    ("/empty", "empty file"), ("/page", "another file than expected"),
])  # fmt: skip
def test_failed_download_is_one_clear_error_and_leaves_nothing(server, tmp_path, path, message) -> None:
    with pytest.raises(DataFileError, match=message) as raised:
        datasets.fetch(made_set(server, path), progress=False)
    assert path in str(raised.value)
    assert "SCALELAB_DATA" in str(raised.value)
    assert files_below(tmp_path) == []


def test_failed_download_keeps_a_whole_file_that_was_there(server, tmp_path: Path) -> None:
    kept = datasets.fetch(made_set(server, "/good"), progress=False)["all"]
    with pytest.raises(DataFileError):
        datasets.fetch(made_set(server, "/good", sha256="0" * 64), progress=False)
    assert kept.read_bytes() == CONTENT


def test_no_network_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), None) as closed:  # type: ignore[arg-type]
        port = closed.server_address[1]
    file = DatasetFile(name="t.txt", url=f"http://127.0.0.1:{port}/t", sha256=SHA256, size_bytes=1)
    chosen = Dataset(name="made", title="", licence="", kind="text", files={"all": file})
    with pytest.raises(DataFileError, match=r"no network.*t\.txt.*SCALELAB_DATA"):
        datasets.find(chosen, progress=False)
    assert files_below(tmp_path) == []


def test_damaged_file_in_the_cache_is_fetched_again(server) -> None:
    chosen = made_set(server, "/good")
    place = datasets.fetch(chosen, progress=False)["all"]
    for damaged in (CONTENT[:-1], CONTENT.replace(b"t", b"T", 1), b""):
        place.write_bytes(damaged)
        assert datasets.find(chosen, progress=False)["all"].read_bytes() == CONTENT
    assert server.n_requests == 4


def test_unknown_checksum_is_recorded_at_the_first_download_and_kept_to(server, tmp_path: Path) -> None:
    chosen = made_set(server, "/good", sha256=None)
    with pytest.warns(UserWarning, match=SHA256):
        place = datasets.fetch(chosen, progress=False)["all"]
    assert place.with_name("text.txt.sha256").read_text().strip() == SHA256
    place.write_bytes(b"damaged")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert datasets.find(chosen, progress=False)["all"].read_bytes() == CONTENT
    place.write_bytes(b"damaged")
    with pytest.raises(DataFileError, match="another file than expected"):
        datasets.find(made_set(server, "/page", sha256=None), progress=False)


@pytest.mark.parametrize("path", ["/page", "/binary"])
def test_first_download_of_unknown_checksum_must_look_like_the_file(
    server, tmp_path: Path, path: str
) -> None:
    with pytest.raises(DataFileError, match="another file than expected"):
        datasets.fetch(made_set(server, path, sha256=None), progress=False)
    assert files_below(tmp_path) == []


def test_own_folder_is_looked_at_first_and_a_wrong_file_there_is_named(server, tmp_path, monkeypatch) -> None:
    own = tmp_path / "own"
    (own / "sub").mkdir(parents=True)
    monkeypatch.setenv("SCALELAB_DATA", str(own))
    chosen = made_set(server, "/good")
    (own / "sub" / "text.txt").write_bytes(CONTENT)
    assert datasets.find(chosen)["all"] == own / "sub" / "text.txt"
    assert server.n_requests == 0
    (own / "sub" / "text.txt").write_bytes(b"another")
    with pytest.raises(DataFileError, match=r"own/sub/text\.txt is not the published file"):
        datasets.find(chosen)


def test_optional_file_is_not_fetched_where_an_own_folder_is_set(server, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SCALELAB_DATA", str(tmp_path))
    assert datasets.find(made_set(server, "/good", required=False)) == {}
    assert server.n_requests == 0


def test_own_folder_that_is_none_is_an_error(monkeypatch) -> None:
    monkeypatch.setenv("SCALELAB_DATA", "/no/such/folder")
    with pytest.raises(DataFileError, match="SCALELAB_DATA='/no/such/folder'"):
        datasets.find("tiny-shakespeare")


def test_missing_set_without_download_says_how_to_get_it() -> None:
    with pytest.raises(DataFileError, match="scalelab data fetch wnut-17"):
        datasets.find("wnut-17", download_missing=False)


def test_progress_goes_to_standard_error_and_ends_its_line(server, capsys) -> None:
    datasets.fetch(made_set(server, "/good"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("(100 %)\n")


def test_progress_ends_its_line_before_the_error_where_a_download_is_cut(server, capsys) -> None:
    for path in ("/cut", "/unsized"):
        with pytest.raises(DataFileError):
            datasets.fetch(made_set(server, path, sha256="0" * 64))
        err = capsys.readouterr().err
        assert err.startswith("\rsub/text.txt: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")


@pytest.mark.parametrize("error", [ssl.SSLError("bad record"), OSError(101, "Network is unreachable")])
def test_socket_that_fails_midway_is_the_networks_fault(error, tmp_path: Path, monkeypatch) -> None:
    class Response(io.BytesIO):
        headers: ClassVar = {}

        def read(self, size=-1, /):
            if self.tell():
                raise error
            return super().read(size)

    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Response(CONTENT))
    with pytest.raises(DataFileError, match=r"connection to http://x/t was cut after 65,536 bytes"):
        download("http://x/t", tmp_path / "t", sha256=None)
    assert files_below(tmp_path) == []


def test_disk_that_is_full_midway_is_the_disks_fault(server, tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataFileError, match=r"cannot write .*No space left"):
        datasets.fetch(made_set(server, "/good"), progress=False)
    assert files_below(tmp_path) == []


def test_cache_that_cannot_be_written_is_one_clear_error(server, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SCALELAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataFileError, match="SCALELAB_CACHE"):
        datasets.fetch(made_set(server, "/good"), progress=False)


def test_unknown_set_suggests_the_near_one() -> None:
    with pytest.raises(DataError, match="did you mean 'wikitext-2'"):
        datasets.preview("wikitext2")


def test_registry_pins_every_url_by_commit_and_every_file_once() -> None:
    files = [f for name in datasets.names() for f in datasets.dataset(name).files.values()]
    assert len({f.name for f in files}) == len(files)
    for file in files:
        assert re.fullmatch(r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}/.+", file.url)
        assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)
    assert [f.name for f in files if f.sha256 is None] == ["wikitext2-train.txt"]


@pytest.mark.parametrize("name", datasets.names())
def test_real_files_have_the_registered_size_and_checksum(name: str, public_set) -> None:
    files = datasets.dataset(name).files
    for role, path in public_set(name).items():
        assert path.stat().st_size == files[role].size_bytes or files[role].sha256 is None
        assert hashlib.sha256(path.read_bytes()).hexdigest() == files[role].sha256 or not files[role].required


# Counts as published: SST-2 in the table's source, WNUT-17 in Derczynski et al. 2017, Epoch AI's points.
PUBLISHED = {
    "sst-2": ["6,920 sentences", "872 sentences", "1,821 sentences"],
    "wnut-17": ["3,394 messages", "1,009 messages", "1,287 messages"],
    "epoch-chinchilla": ["245 rows"],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_preview_counts_are_the_published_ones(name: str, public_set) -> None:
    public_set(name)
    shown = datasets.preview(name)
    assert re.findall(r"[\d,]+ (?:sentences|messages|rows)", shown) == PUBLISHED[name]
    assert datasets.dataset(name).licence in shown


def test_epoch_points_have_the_columns_the_course_reads(public_set) -> None:
    with open(public_set("epoch-chinchilla")["all"], encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 245
    for row in rows:
        assert all(float(row[column]) > 0 for column in ("Model Size", "Training FLOP", "loss"))


def test_shakespeare_is_one_text_cut_in_two(public_set) -> None:
    whole = public_set("tiny-shakespeare")["all"].read_text(encoding="utf-8")
    made = corpus("tiny-shakespeare")
    assert made.train[0].text + made.held_out[0].text == whole
    assert encode_corpus(made, byte_tokenizer(), cache=None).train_bytes == made.train_bytes


def test_wikitext_has_its_published_articles_and_splits(public_set) -> None:
    paths = public_set("wikitext-2")
    made = corpus("wikitext-2")
    roles = ("train", "valid") if "train" in paths else ("valid", "test")
    # Merity et al. 2016, table 1: 600, 60 and 60 articles.
    published = {"train": 600, "valid": 60, "test": 60}
    assert (len(made.train), len(made.held_out)) == (published[roles[0]], published[roles[1]])
    assert "".join(d.text for d in made.train) == paths[roles[0]].read_text(encoding="utf-8")
    assert "".join(d.text for d in made.held_out) == paths[roles[1]].read_text(encoding="utf-8")
    assert f"trains on {roles[0]}" in made.describe()
    assert made.name == ("wikitext-2" if "train" in paths else "wikitext-2-valid")


def test_wikitext_trains_on_train_where_it_is_there(public_set, tmp_path: Path, monkeypatch) -> None:
    for role, path in public_set("wikitext-2").items():
        (tmp_path / datasets.dataset("wikitext-2").files[role].name).write_bytes(path.read_bytes())
    (tmp_path / "wikitext2-train.txt").write_text(
        " \n = One = \n \n text \n \n = Two = \n \n more \n", "utf-8"
    )
    monkeypatch.setenv("SCALELAB_DATA", str(tmp_path))
    made = corpus("wikitext-2")
    assert [d.text for d in made.train] == [" \n = One = \n \n text \n \n", " = Two = \n \n more \n"]
    assert len(made.held_out) == 60
    assert made.name == "wikitext-2"
