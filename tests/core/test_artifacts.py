"""Files that are whole or absent: under SIGKILL at every operation, full disks, exceptions and damage."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from scalelab.core.artifacts import (
    MANIFEST,
    atomic_folder,
    read_artifact,
    read_manifest,
    read_toml,
    remove_leftovers,
    sha256_of_file,
    write_artifact,
    write_atomic,
)
from scalelab.core.errors import CheckpointError, ConfigError

needs_sigkill = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")

# The interpreter reports each file operation before it is done; the child kills itself before its n-th.
KILL_BEFORE = """
import os, signal, sys
from pathlib import Path
from scalelab.core.artifacts import atomic_folder, write_atomic
import json, shutil, tempfile
place, n = Path(sys.argv[1]), int(sys.argv[2])
seen = 0
def hook(event, args):
    global seen
    if event in {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir"}:
        if str(place.parent) not in str(args[0]) and not isinstance(args[0], int):
            return
        seen += 1
        if seen == n:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
"""
NEW_FILE = KILL_BEFORE + 'write_atomic(place, b"new" * 100_000)\n'
NEW_FOLDER = (
    KILL_BEFORE
    + """
with atomic_folder(place) as folder:
    for name in ("a", "b"):
        (folder / name).write_bytes(b"new" * 10_000)
"""
)
OLD_FILE, WHOLE_FILE = b"old" * 50_000, b"new" * 100_000
OLD_FOLDER, WHOLE_FOLDER = {"a": b"old", "c": b"old"}, {"a": b"new" * 10_000, "b": b"new" * 10_000}
MOST_OPERATIONS = 60


def _run(script: str, *arguments: object, ends_by: int = getattr(signal, "SIGKILL", 0)) -> int:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode in (0, -ends_by), run.stderr
    return run.returncode


def _folder_contents(path: Path) -> dict[str, bytes] | None:
    return {file.name: file.read_bytes() for file in path.iterdir()} if path.exists() else None


def _make_old_folder(path: Path) -> None:
    path.mkdir(parents=True)
    for name, content in OLD_FOLDER.items():
        (path / name).write_bytes(content)


@needs_sigkill
@pytest.mark.parametrize("exists", [True, False])
def test_a_file_killed_before_any_of_its_operations_is_the_old_one_or_the_whole_new_one(
    tmp_path: Path, exists: bool
) -> None:
    outcomes = set()
    for n in range(1, MOST_OPERATIONS):
        place = tmp_path / str(n) / "file"
        place.parent.mkdir()
        if exists:
            place.write_bytes(OLD_FILE)
        killed = _run(NEW_FILE, place, n) != 0
        found = place.read_bytes() if place.exists() else None
        assert found in ((OLD_FILE if exists else None), WHOLE_FILE), f"killed before operation {n}"
        outcomes.add(found)
        remove_leftovers(place.parent)
        assert [p.name for p in place.parent.iterdir()] == (["file"] if found else [])
        if not killed:
            break
    assert not killed, f"more than {MOST_OPERATIONS} operations"
    assert outcomes == {OLD_FILE if exists else None, WHOLE_FILE}  # kills fell on both sides of the change


@needs_sigkill
@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_killed_before_any_of_its_operations_is_the_old_one_or_the_whole_new_one(
    tmp_path: Path, exists: bool
) -> None:
    outcomes = []
    for n in range(1, MOST_OPERATIONS):
        place = tmp_path / str(n) / "folder"
        place.parent.mkdir()
        if exists:
            _make_old_folder(place)
        killed = _run(NEW_FOLDER, place, n) != 0
        at_once = _folder_contents(place)
        assert at_once in (None, OLD_FOLDER if exists else None, WHOLE_FOLDER), f"before operation {n}"
        remove_leftovers(place.parent)
        found = _folder_contents(place)
        assert found in (OLD_FOLDER if exists else None, WHOLE_FOLDER), f"killed before operation {n}"
        assert [p.name for p in place.parent.iterdir()] == (["folder"] if found else [])
        outcomes.append(found)
        if not killed:
            break
    assert not killed, f"more than {MOST_OPERATIONS} operations"
    assert (OLD_FOLDER if exists else None) in outcomes
    assert WHOLE_FOLDER in outcomes


@needs_sigkill
def test_kills_at_random_moments_of_writing_without_end_leave_one_whole_version(tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        from scalelab.core.artifacts import atomic_folder, write_atomic
        root, version = Path(sys.argv[1]), 0
        while True:
            version += 1
            text = f"{version:09d}" * 20_000
            write_atomic(root / "file", text.encode())
            with atomic_folder(root / "folder") as folder:
                (folder / "a").write_text(text)
                (folder / "b").write_text(text)
            print(version, flush=True)
    """
    draw = random.Random(0)
    for _ in range(8):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()  # from here on there is a version
        time.sleep(draw.uniform(0, 0.05))
        child.kill()
        child.communicate()
        remove_leftovers(tmp_path)
        assert {p.name for p in tmp_path.iterdir()} == {"file", "folder"}
        text = (tmp_path / "file").read_text()
        assert text == text[:9] * 20_000
        a, b = (tmp_path / "folder" / "a").read_text(), (tmp_path / "folder" / "b").read_text()
        assert a == b == a[:9] * 20_000


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
@pytest.mark.parametrize("n_bytes", [0, 1, 4096, 200_000, 299_999])
def test_a_process_that_dies_inside_the_write_itself_leaves_the_old_file(
    tmp_path: Path, n_bytes: int
) -> None:
    script = """
        import resource, signal, sys
        from pathlib import Path
        from scalelab.core.artifacts import write_atomic
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel ends us in the write that passes the limit
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        write_atomic(Path(sys.argv[1]), b"new" * 100_000)
    """
    place = tmp_path / "file"
    place.write_bytes(OLD_FILE)
    assert _run(script, place, n_bytes, ends_by=signal.SIGXFSZ) == -signal.SIGXFSZ
    assert place.read_bytes() == OLD_FILE
    leftover = next(p for p in tmp_path.iterdir() if p != place)
    assert leftover.stat().st_size == n_bytes  # it did die there
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
def test_a_disk_that_is_full_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    script = """
        import resource, signal, sys
        from pathlib import Path
        from scalelab.core.artifacts import atomic_folder, write_atomic
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        root = Path(sys.argv[1])
        for write in (lambda: write_atomic(root / "file", b"x" * 10_000), lambda: fill(root / "folder")):
            try:
                write()
            except OSError:
                continue
            sys.exit("no error")
    """
    fill = """
        def fill(path):
            with atomic_folder(path) as folder:
                (folder / "a").write_bytes(b"x")
                (folder / "b").write_bytes(b"x" * 10_000)
    """
    (tmp_path / "file").write_bytes(OLD_FILE)
    _make_old_folder(tmp_path / "folder")
    assert _run(textwrap.dedent(fill) + textwrap.dedent(script), tmp_path) == 0
    assert (tmp_path / "file").read_bytes() == OLD_FILE
    assert _folder_contents(tmp_path / "folder") == OLD_FOLDER
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_while_filling_a_folder_leaves_the_old_one(
    tmp_path: Path, error: type[BaseException]
) -> None:
    place = tmp_path / "folder"
    _make_old_folder(place)

    def fill_half() -> None:
        with atomic_folder(place) as folder:
            (folder / "a").write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fill_half()
    assert _folder_contents(place) == OLD_FOLDER
    assert list(tmp_path.iterdir()) == [place]


def test_missing_parents_are_made(tmp_path: Path) -> None:
    write_atomic(tmp_path / "x" / "y" / "file", b"1")
    with atomic_folder(tmp_path / "p" / "q" / "folder") as folder:
        (folder / "a").write_bytes(b"2")
    assert (tmp_path / "x" / "y" / "file").read_bytes() == b"1"
    assert (tmp_path / "p" / "q" / "folder" / "a").read_bytes() == b"2"


def test_leftovers_are_removed_and_the_users_own_hidden_files_are_not(tmp_path: Path) -> None:
    for name in (".file.abc.tmp", ".hidden", "kept.tmp", "file"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".folder.abc.tmp").mkdir()
    remove_leftovers(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {".hidden", "kept.tmp", "file"}


TENSORS = {
    "model": {"w": torch.arange(12.0).view(3, 4), "b": torch.tensor([1.5, -2.5], dtype=torch.bfloat16)},
    "state": {"step": torch.tensor(7), "transposed": torch.arange(6.0).view(2, 3).t()},
}


def _written(tmp_path: Path) -> Path:
    place = tmp_path / "artifact"
    write_artifact(place, TENSORS, {"format": 1, "name": "é"})
    return place


def test_an_artifact_comes_back_as_it_went(tmp_path: Path) -> None:
    tensors, manifest = read_artifact(_written(tmp_path))
    assert manifest["format"] == 1
    assert manifest["name"] == "é"
    assert tensors.keys() == TENSORS.keys()
    for group, named in TENSORS.items():
        assert tensors[group].keys() == named.keys()
        for name, tensor in named.items():
            assert tensors[group][name].dtype == tensor.dtype
            assert torch.equal(tensors[group][name], tensor)


def test_an_artifacts_files_are_what_safetensors_itself_reads(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    place = _written(tmp_path)
    assert {p.name for p in place.iterdir()} == {"model.safetensors", "state.safetensors", MANIFEST}
    assert torch.equal(load_file(place / "model.safetensors")["w"], TENSORS["model"]["w"])


def test_an_artifact_replaces_an_older_one_whole(tmp_path: Path) -> None:
    place = _written(tmp_path)
    write_artifact(place, {"other": {"x": torch.zeros(2)}}, {"format": 2})
    tensors, manifest = read_artifact(place)
    assert list(tensors) == ["other"]
    assert manifest["format"] == 2
    assert {p.name for p in place.iterdir()} == {"other.safetensors", MANIFEST}


def test_a_bit_flipped_anywhere_or_a_byte_cut_off_is_noticed(tmp_path: Path) -> None:
    place = _written(tmp_path)
    file = place / "model.safetensors"
    whole = file.read_bytes()
    draw = random.Random(0)
    for position in (0, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(20))):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
            read_artifact(place)
    for length in (0, 1, 8, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
            read_artifact(place)
    file.write_bytes(whole)
    read_artifact(place)


def test_each_way_of_being_no_artifact_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint folder at"):
        read_artifact(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=rf"holds no {MANIFEST}"):
        read_artifact(tmp_path / "empty")
    place = _written(tmp_path)
    (place / "state.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks state\.safetensors"):
        read_artifact(place)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"{}", b'{"files": 3}', b"null"])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(CheckpointError, match=MANIFEST):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", "x.bin", ""])
def test_a_manifest_cannot_point_outside_its_folder(tmp_path: Path, name: str) -> None:
    place = _written(tmp_path)
    manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"] = {name: "0" * 64}
    (place / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="unusable file"):
        read_artifact(place)


def test_a_file_with_the_right_checksum_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    place = _written(tmp_path)
    (place / "model.safetensors").write_bytes(b"not tensors")
    manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"]["model.safetensors"] = sha256_of_file(place / "model.safetensors")
    (place / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        read_artifact(place)


def test_sha256_is_the_published_digest_of_a_known_text(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256_of_file(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_toml_is_read_and_each_way_of_not_being_toml_is_said(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[model]\nn_layers = 4\n", encoding="utf-8")
    assert read_toml(file) == {"model": {"n_layers": 4}}
    file.write_text("[model]\nn_layers = \n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"run\.toml is not TOML: .*line 2"):
        read_toml(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot read"):
        read_toml(file)
    with pytest.raises(ConfigError, match="no settings file at"):
        read_toml(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="cannot read"):
        read_toml(tmp_path)
