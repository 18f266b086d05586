"""Files that are whole or absent: atomic writes, checksums, and folders of safetensors + JSON.

A reader never meets a half-written file: everything is written beside its place under a temporary
name, flushed to the disk, and renamed into place in one step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.core.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"


def user_path(text: str | Path) -> Path:
    """A path as people type it, `~` for their home folder.

    Raises:
        ConfigError: `~name` of somebody this machine does not know, or no home folder at all.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{str(text)!r} names no folder of this machine: {error}") from None


def sha256_of_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that it is either the old one or the whole new one, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, ".tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on a clean exit it takes `path`'s place.

    An existing folder of that name is set aside whole, and deleted when the new one has its place. A writer
    killed between the two leaves no folder of that name; `remove_leftovers` puts the old one back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, ".tmp")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            _sync_file(file)
        _sync_folder(temporary)
        if path.exists():
            retired = _beside(path, ".old")
            retired.mkdir()
            os.replace(path, retired / path.name)
            os.replace(temporary, path)
            shutil.rmtree(retired, ignore_errors=True)
        else:
            os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_folder(path: Path) -> None:
    """Delete a folder: a kill on the way leaves it whole or out of sight, never half of it in its place."""
    hidden = _beside(path, ".gone")  # not ".old": what lies in such a folder is put back
    os.replace(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed writer left in `folder`; put back in its place a folder that it had set aside."""
    for retired in folder.glob(".*.old"):
        for held in retired.iterdir():
            if not (folder / held.name).exists():
                os.replace(held, folder / held.name)
    for leftover in [path for kind in ("tmp", "old", "gone") for path in folder.glob(f".*.{kind}")]:
        shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def write_artifact(
    path: Path, tensors: Mapping[str, Mapping[str, torch.Tensor]], manifest: Mapping[str, Any]
) -> None:
    """Write a folder of `<group>.safetensors` files and a manifest that holds their checksums, atomically.

    Args:
        path: the folder to make; replaced whole if it exists.
        tensors: group name → tensor name → tensor (any device; contiguous copies are stored).
        manifest: JSON values; the key "files" is added here.

    Raises:
        CheckpointError: the disk is full, or refuses.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_folder(path) as folder:
        files = {}
        for group, named in tensors.items():
            file = folder / f"{group}.safetensors"
            try:
                save_file({name: t.detach().cpu().contiguous() for name, t in named.items()}, file)
            except SafetensorError as error:  # the library's word for a disk that refuses, too
                raise CheckpointError(f"cannot write {path}: {error}; is the disk full?") from None
            files[file.name] = sha256_of_file(file)
        (folder / MANIFEST).write_text(json.dumps({**manifest, "files": files}, indent=1), encoding="utf-8")


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an artifact, unchecked beyond being a JSON object with "files".

    Raises:
        CheckpointError: the folder or its manifest is missing or cannot be read.
    """
    file = path / MANIFEST
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint folder at {path}; give the folder that holds {MANIFEST}")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} holds no {MANIFEST}: it is not a checkpoint, or its writing was cut"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON ({error}); use an older checkpoint") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise CheckpointError(f"{file} does not list its files: it is not a manifest of ours, or damaged")
    return manifest


def read_artifact(path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """The tensors (on the CPU) and manifest that `write_artifact` wrote, every checksum verified.

    Raises:
        CheckpointError: something is missing, truncated, or differs from its checksum.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    manifest = read_manifest(path)
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for name, expected in manifest["files"].items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{path / MANIFEST} names an unusable file {name!r}: it is damaged")
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{path} lacks {name}, which its manifest names; use an older checkpoint")
        found = sha256_of_file(file)
        if found != expected:
            raise CheckpointError(
                f"{file} is damaged: its sha256 starts {found[:12]}, its manifest says {str(expected)[:12]}; "
                "use an older checkpoint"
            )
        try:
            tensors[name.removesuffix(".safetensors")] = load_file(file)
        except SafetensorError as error:
            raise CheckpointError(f"{file} is not a safetensors file ({error})") from None
    return tensors, manifest


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dict.

    Raises:
        ConfigError: the file is missing, unreadable, or not TOML; the message gives the line.
    """
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no settings file at {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _beside(path: Path, suffix: str) -> Path:
    """A free hidden name next to `path`. (The tempfile module's could be read by their owner alone.)"""
    return path.parent / f".{path.name}.{secrets.token_hex(6)}{suffix}"


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(path: Path) -> None:
    if os.name == "posix":  # Windows cannot open folders
        _sync_file(path)
