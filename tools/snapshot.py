"""The working tree as a repository that can be installed from, made without touching the working tree.

Its one commit on top of HEAD holds what is tracked or new, so what is tried is what would be committed.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

IDENTITY = {
    f"GIT_{role}_{field}": value
    for role in ("AUTHOR", "COMMITTER")
    for field, value in (("NAME", "scalelab course"), ("EMAIL", "course@scalelab.invalid"))
}


class GitError(RuntimeError):
    """git said no; the text holds its own words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A bare repository with one tag.

    Attributes:
        path: its folder. commit: HEAD of the working tree, abbreviated.
        uncommitted: whether the tag holds more than that commit.
    """

    path: Path
    commit: str
    uncommitted: bool


def git(*arguments: str | Path, cwd: Path, environ: Mapping[str, str] | None = None) -> str:
    """Run git; its output without the line's end.

    Raises:
        GitError: it failed, or there is no git.
    """
    try:
        done = subprocess.run(
            ["git", *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, **(environ or {})},
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        raise GitError("git is not installed") from None
    if done.returncode != 0:
        raise GitError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.rstrip("\n")


def take(root: Path, target: Path, tag: str) -> Snapshot:
    """Make a bare repository at `target` whose tag holds the working tree at `root`.

    Raises:
        GitError: root is no git clone with a commit.
    """
    head = git("rev-parse", "HEAD", cwd=root)
    git("init", "--quiet", "--bare", target, cwd=root)
    git("config", "uploadpack.allowFilter", "true", cwd=target)
    objects = (root / git("rev-parse", "--git-path", "objects", cwd=root)).resolve()
    (target / "objects" / "info" / "alternates").write_text(f"{objects}\n", encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="scalelab-index-") as scratch:
        # New objects go into the new repository, and the index is a file of our own.
        environ = {
            **IDENTITY,
            "GIT_INDEX_FILE": str(Path(scratch) / "index"),
            "GIT_OBJECT_DIRECTORY": str(target / "objects"),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(objects),
        }
        git("read-tree", head, cwd=root, environ=environ)
        git("add", "--all", cwd=root, environ=environ)
        tree = git("write-tree", cwd=root, environ=environ)
        uncommitted = tree != git("rev-parse", f"{head}^{{tree}}", cwd=root)
        commit = head
        if uncommitted:
            message = "The working tree"
            commit = git("commit-tree", tree, "-p", head, "-m", message, cwd=root, environ=environ)
    git("update-ref", "refs/heads/main", commit, cwd=target)
    git("symbolic-ref", "HEAD", "refs/heads/main", cwd=target)
    git("update-ref", f"refs/tags/{tag}", commit, cwd=target)
    return Snapshot(path=target, commit=head[:10], uncommitted=uncommitted)


def redirect(address: str, target: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables by which every git below takes `target` when it is asked for `address`."""
    number = int(environ.get("GIT_CONFIG_COUNT", "0"))
    return {
        "GIT_CONFIG_COUNT": str(number + 1),
        f"GIT_CONFIG_KEY_{number}": f"url.{target.resolve().as_uri()}.insteadOf",
        f"GIT_CONFIG_VALUE_{number}": address,
    }
