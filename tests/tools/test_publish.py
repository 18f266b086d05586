"""The student edition reaches its branch whole, alone, and only when something has changed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import address
import notebooks
import publish
import pytest
import snapshot
import student
import yaml
from nbformat import NotebookNode


def git(*arguments: str, cwd: Path) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=cwd, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def clone(course: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The course as a git clone of a bare repository, by a machine that has no name for commits."""
    for name, value in snapshot.IDENTITY.items():
        monkeypatch.setenv(name, value)
    git("init", "--quiet", "--bare", str(tmp_path / "remote.git"), cwd=tmp_path)
    git("init", "--quiet", "--initial-branch=main", cwd=course)
    git("add", "--all", cwd=course)
    git("commit", "--quiet", "-m", "all", cwd=course)
    git("remote", "add", "origin", str(tmp_path / "remote.git"), cwd=course)
    for name in snapshot.IDENTITY:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    return course


def run(clone: Path, *arguments: str) -> int:
    return publish.main(["--root", str(clone), *arguments])


def files(remote: Path) -> set[str]:
    return set(git("ls-tree", "-r", "--name-only", "student", cwd=remote).splitlines())


def state(clone: Path) -> tuple[str, str, str]:
    """What publishing must not touch."""
    return (
        git("status", "--porcelain", cwd=clone),
        git("rev-parse", "HEAD", "--symbolic-full-name", "HEAD", cwd=clone),
        git("for-each-ref", "refs/heads", "refs/tags", cwd=clone),
    )


def test_the_branch_holds_the_notebooks_where_badges_look_for_them(clone, tmp_path):
    before = state(clone)
    assert run(clone) == 0
    remote = tmp_path / "remote.git"
    labs = {notebooks.lab_name(path) for path in notebooks.find_labs(labs=clone / "labs")}
    assert files(remote) == {
        "README.md",
        "environment.yml",
        "LICENSE",
        "LICENSE-TEXT",
        *(f"{name}.ipynb" for name in labs),
    }
    for name in labs:
        published: NotebookNode = json.loads(git("show", f"student:{name}.ipynb", cwd=remote))
        lab = notebooks.read(clone / "labs" / f"{name}.ipynb")
        edition = student.student_edition(lab)
        assert ["".join(cell["source"]) for cell in published["cells"]] == [c.source for c in edition.cells]
        badge = notebooks.badges(name, {}, address.repository(clone).repository).splitlines()[1]
        assert f"/blob/student/{name}.ipynb" in badge
        assert badge.split(" · ")[0] in lab.cells[0].source
        assert name in git("show", "student:README.md", cwd=remote)
    assert state(clone) == before


def test_publishing_again_pushes_nothing(clone, tmp_path, capsys):
    assert run(clone) == 0
    first = git("rev-parse", "student", cwd=tmp_path / "remote.git")
    assert run(clone) == 0
    assert "nothing pushed" in capsys.readouterr().out
    assert git("rev-parse", "student", cwd=tmp_path / "remote.git") == first


def test_a_change_is_a_commit_on_top_and_a_lab_that_went_away_goes(clone, tmp_path):
    remote = tmp_path / "remote.git"
    assert run(clone) == 0
    first = git("rev-parse", "student", cwd=remote)
    lab = clone / "labs" / "transformers" / "training.ipynb"
    lab.rename(lab.with_name("renamed.ipynb"))
    assert run(clone) == 0
    assert git("rev-parse", "student^", cwd=remote) == first
    assert "transformers/renamed.ipynb" in files(remote)
    assert "transformers/training.ipynb" not in files(remote)


def test_a_shallow_clone_of_a_tag_as_a_workflow_has_it_publishes_on_top(clone, tmp_path, monkeypatch):
    remote = tmp_path / "remote.git"
    assert run(clone) == 0
    first = git("rev-parse", "student", cwd=remote)
    for name, value in snapshot.IDENTITY.items():
        monkeypatch.setenv(name, value)
    git("mv", "labs/transformers/training.ipynb", "labs/transformers/renamed.ipynb", cwd=clone)
    git("commit", "--quiet", "-m", "renamed", cwd=clone)
    git("push", "--quiet", "origin", "main:refs/tags/v1", cwd=clone)
    for name in snapshot.IDENTITY:
        monkeypatch.delenv(name)
    shallow = tmp_path / "shallow"
    git("clone", "--quiet", "--depth", "1", "--branch", "v1", remote.as_uri(), str(shallow), cwd=tmp_path)
    assert run(shallow) == 0
    assert git("rev-parse", "student^", cwd=remote) == first
    assert "transformers/renamed.ipynb" in files(remote)


def test_work_of_a_student_in_the_build_folder_is_never_published(clone, tmp_path):
    worked_in = clone / "_build" / "student" / "transformers" / "training.ipynb"
    worked_in.parent.mkdir(parents=True)
    worked_in.write_text(json.dumps({"cells": [], "secret": "my answer"}))
    assert run(clone) == 0
    text = git("show", "student:transformers/training.ipynb", cwd=tmp_path / "remote.git")
    assert "my answer" not in text
    assert "BEGIN SOLUTION" not in text


def test_a_dry_run_pushes_nothing_and_says_what_it_would(clone, tmp_path, capsys):
    assert run(clone, "--dry-run") == 0
    assert "transformers/training.ipynb" in capsys.readouterr().out
    assert git("for-each-ref", cwd=tmp_path / "remote.git") == ""


def test_what_is_not_stamped_is_not_published(clone, tmp_path, capsys):
    text = (clone / "README.md").read_text(encoding="utf-8")
    version = clone / "src" / "scalelab" / "__init__.py"
    version.write_text('__version__ = "9.9.9"\n')
    assert run(clone) == 2
    assert "make stamp" in capsys.readouterr().err
    assert git("for-each-ref", cwd=tmp_path / "remote.git") == ""
    assert (clone / "README.md").read_text(encoding="utf-8") == text


def test_a_remote_that_is_not_there_is_told_in_a_line(clone, tmp_path, capsys):
    assert run(clone, "--remote", str(tmp_path / "nowhere.git")) == 2
    said = capsys.readouterr().err
    assert said.startswith("publish: ")
    assert "nowhere.git" in said


def test_binder_gets_the_package_of_the_same_tag_and_torch_s_cpu_build(clone, tmp_path):
    assert run(clone) == 0
    environment = yaml.safe_load(git("show", "student:environment.yml", cwd=tmp_path / "remote.git"))
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    repository, version = address.repository(clone).repository, address.version(clone)
    main = yaml.safe_load((clone / "environment.yml").read_text(encoding="utf-8"))["dependencies"][-1]["pip"]
    assert pip == [main[0], f"scalelab[lab,notebook] @ git+{repository}@v{version}"]
    assert "git" in environment["dependencies"]


def test_a_snapshot_holds_uncommitted_changes_and_touches_nothing(clone, tmp_path):
    clean = snapshot.take(clone, tmp_path / "clean.git", "v1")
    assert not clean.uncommitted
    (clone / "new.txt").write_text("new\n")
    (clone / "README.md").write_text("changed\n")
    before = state(clone)
    dirty = snapshot.take(clone, tmp_path / "dirty.git", "v1")
    assert dirty.uncommitted
    assert dirty.commit == clean.commit == git("rev-parse", "HEAD", cwd=clone)[:10]
    assert state(clone) == before
    git(
        "clone", "--quiet", "--branch", "v1", str(tmp_path / "dirty.git"), str(tmp_path / "out"), cwd=tmp_path
    )
    assert (tmp_path / "out" / "README.md").read_text() == "changed\n"
    assert (tmp_path / "out" / "new.txt").read_text() == "new\n"
    assert not (tmp_path / "out" / "_build").exists()
