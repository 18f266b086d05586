"""Put the student edition on the branch `student` of a remote, from where badges open it.

    python tools/publish.py                  to origin
    python tools/publish.py --remote NAME    to another remote, or to an address
    python tools/publish.py --dry-run        say what would change

The branch holds the notebooks at <part>/<name>.ipynb, a README, the licences, and an environment.yml for
Binder. The edition is made anew, so that work in _build/student is never published. Neither the working tree
nor the branch that is checked out is touched; nothing is pushed where nothing has changed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import address
import notebooks
import stamp
import student
from address import STUDENT_BRANCH, Address
from notebooks import ToolError, lab_name
from snapshot import IDENTITY, GitError, git

TORCH_CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
README = """\
# {title}: student edition

Notebooks of the course [{title}]({site}), version {version}, without solutions and outputs.
Open one here:

{links}

In Colab the first cell installs what is missing. In Binder, or with conda, `environment.yml` does.

This branch is written by the course's release; changes belong into the [source]({repository}).
Text is under CC BY 4.0 (`LICENSE-TEXT`), code under Apache 2.0 (`LICENSE`).
"""
ENVIRONMENT = """\
# For Binder and conda: the course's package at the version of these notebooks, and JupyterLab.
name: scalelab-student
channels: [conda-forge]
dependencies:
  - python=3.11
  - pip
  - git
  - pip:
      - --extra-index-url {wheels}
      - scalelab[lab,notebook] @ git+{repository}@v{version}
"""


def stage(folder: Path, root: Path, labs: Sequence[Path], course: Address, version: str) -> None:
    """Write all that the branch holds into an empty folder.

    Raises:
        ToolError: a lab that cannot be made into a student edition.
    """
    links = []
    for path in labs:
        name = lab_name(path)
        try:
            edition = student.student_edition(notebooks.read(path))
        except ToolError as error:
            raise ToolError(f"{name}: {error}") from None
        student.write_edition(folder / f"{name}.ipynb", edition)
        title = edition.cells[0].source.splitlines()[0].removeprefix("# ")
        colab, binder = course.student_in_colab(name), course.student_in_binder(name)
        links.append(f"- [{title}]({name}.ipynb): [in Colab]({colab}), [in Binder]({binder})")
    readme = README.format(
        title="How language models scale",
        site=f"{course.site}/",
        repository=course.repository,
        version=version,
        links="\n".join(links),
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")
    environment = ENVIRONMENT.format(wheels=TORCH_CPU_WHEELS, repository=course.repository, version=version)
    (folder / "environment.yml").write_text(environment, encoding="utf-8")
    for licence in ("LICENSE", "LICENSE-TEXT"):
        shutil.copyfile(root / licence, folder / licence)


def publish(folder: Path, root: Path, remote: str, version: str, *, dry_run: bool = False) -> str:
    """Push a folder as the branch `student`, on top of what is there; what was done, in a line.

    Raises:
        GitError: the remote cannot be reached, or refuses.
    """
    with tempfile.TemporaryDirectory(prefix="scalelab-index-") as scratch:
        environ = {**_identity(root), "GIT_INDEX_FILE": str(Path(scratch) / "index")}
        # --force: what a student gets does not depend on anybody's ignore file.
        git(
            "--work-tree",
            folder,
            "add",
            "--all",
            "--force",
            ".",
            cwd=folder,
            environ=environ | _git_dir(root),
        )
        tree = git("write-tree", cwd=root, environ=environ)
        parent = _branch(root, remote)
        if parent and git("rev-parse", f"{parent}^{{tree}}", cwd=root) == tree:
            return f"branch {STUDENT_BRANCH} of {remote} is as it should be; nothing pushed"
        names = git("ls-tree", "-r", "--name-only", tree, cwd=root).splitlines()
        if dry_run:
            return f"branch {STUDENT_BRANCH} of {remote} would get {len(names)} files: {', '.join(names)}"
        message = f"Student edition of v{version}"
        parents = ["-p", parent] if parent else []
        commit = git("commit-tree", tree, *parents, "-m", message, cwd=root, environ=environ)
    git("push", "--quiet", remote, f"{commit}:refs/heads/{STUDENT_BRANCH}", cwd=root)
    return f"pushed {len(names)} files to branch {STUDENT_BRANCH} of {remote}"


def _branch(root: Path, remote: str) -> str | None:
    """The remote branch's commit, fetched; None where there is no such branch yet."""
    reference = f"refs/heads/{STUDENT_BRANCH}"
    found = git("ls-remote", remote, reference, cwd=root)
    if not found:
        return None
    git("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", remote, reference, cwd=root)
    return found.split()[0]


def _git_dir(root: Path) -> dict[str, str]:
    return {"GIT_DIR": git("rev-parse", "--absolute-git-dir", cwd=root)}


def _identity(root: Path) -> dict[str, str]:
    """Nothing where git knows who commits; else a name for machines."""
    try:
        git("var", "GIT_COMMITTER_IDENT", cwd=root)
    except GitError:
        return dict(IDENTITY)
    return {}


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--remote", default="origin", help="name or address (default: origin)")
    parser.add_argument("--dry-run", action="store_true", help="push nothing")
    parser.add_argument("--root", type=Path, default=notebooks.ROOT, help="folder of the course")
    options = parser.parse_args(arguments)
    root = options.root.resolve()
    try:
        if unstamped := stamp.stamped(root, address.repository(root)):
            raise ToolError(f"{', '.join(map(str, unstamped))} not stamped: run `make stamp` first")
        labs = notebooks.find_labs(labs=root / "labs")
        version = address.version(root)
        with tempfile.TemporaryDirectory(prefix="scalelab-student-") as scratch:
            stage(Path(scratch), root, labs, address.repository(root), version)
            print(publish(Path(scratch), root, options.remote, version, dry_run=options.dry_run))
    except (ToolError, GitError, address.AddressError, OSError) as error:
        print(f"publish: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
