"""Pack the course for a classroom without a network: one folder, one archive, one README.

    python tools/bundle.py                  into _build/bundle/scalelab-<version>-<platform>/ and .zip
    python tools/bundle.py --check          and try it: the README's own commands, with no network at all
    python tools/bundle.py --no-solutions   for students' machines

The wheels are those of this Python and platform: pack on a machine like those in the room.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import address
import bundle_check
import notebooks
import student
from notebooks import ToolError, lab_name

from scalelab.core.artifacts import atomic_folder, sha256_of_file
from scalelab.core.errors import DataFileError
from scalelab.data import datasets

EXTRAS = "lab,notebook"
CHECKSUMS = "SHA256SUMS"
# What may be handed on to a class; a set under any other licence stays out.
REDISTRIBUTABLE = ("public domain", "CC BY 4.0", "CC BY-SA")
README = """\
# {title}, for a room without a network

Version {version}, for Python {python} on `{platform}`. All that the labs need lies in this folder.

| folder | what it holds |
|---|---|
| `wheels/` | JupyterLab, PyTorch, the course's package and all they need ({wheels_mb} MB) |
| `notebooks/` | the labs, for students |
{solutions_row}| `data/` | public data sets that may be handed on; the labs run without them |
| `site/` | the book: open `site/index.html` |

## Set up

Python {python} must be there. In this folder, on Linux and macOS:

```sh
{setup_posix}
```

On Windows, if the bundle was packed there (these commands were not tried, those for Linux were):

```bat
{setup_windows}
```

## Work

On Linux and macOS:

```sh
{work_posix}
```

On Windows:

```bat
{work_windows}
```

The book needs no server. To show it to the whole room from one machine:
`python{python} -m http.server 8000 --directory site`, and students open `http://ADDRESS:8000`.
{try_section}
## Data

{data}

`SHA256SUMS` lists every file: `sha256sum --check --quiet SHA256SUMS` says which copy is damaged.
Text is under CC BY 4.0 (`LICENSE-TEXT`), code under Apache 2.0 (`LICENSE`). The wheels keep their own
licences.
"""
SETUP_POSIX = """\
python{python} -m venv .venv
.venv/bin/python -m pip install --no-index --find-links wheels 'scalelab[{extras}]'"""
SETUP_WINDOWS = """\
py -{python} -m venv .venv
.venv\\Scripts\\python -m pip install --no-index --find-links wheels scalelab[{extras}]"""
WORK_POSIX = """\
export SCALELAB_DATA="$PWD/data"
.venv/bin/jupyter lab notebooks"""
WORK_WINDOWS = """\
set SCALELAB_DATA=%CD%\\data
.venv\\Scripts\\jupyter lab notebooks"""
TRY = """
## Try it before the lesson

This runs a lab with its solutions from the first cell to the last, in about two minutes:

```sh
{commands}
```
"""
TRY_COMMAND = '.venv/bin/jupyter execute "solutions/{lab}.ipynb"'


def pack(target: Path, *, solutions: bool, site: Path, pip_options: Sequence[str] = ()) -> None:
    """Write the bundle into `target`, which is whole or not there.

    Raises:
        ToolError: pip could not get the wheels, the site is not built, or a lab is no lab.
    """
    if not (site / "index.html").is_file():
        raise ToolError("the book is not built: run `make book` first")
    paths = notebooks.find_labs()
    with atomic_folder(target) as folder:
        get_wheels(folder / "wheels", EXTRAS, pip_options)
        shutil.copytree(site, folder / "site", ignore=shutil.ignore_patterns("_sources", ".buildinfo"))
        for path in paths:
            edition = student.student_edition(notebooks.read(path))
            student.write_edition(folder / "notebooks" / f"{lab_name(path)}.ipynb", edition)
            if solutions:
                copy = folder / "solutions" / f"{lab_name(path)}.ipynb"
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        for licence in ("LICENSE", "LICENSE-TEXT"):
            shutil.copyfile(notebooks.ROOT / licence, folder / licence)
        data = copy_data(folder / "data")
        labs = [lab_name(path) for path in paths]
        (folder / "README.md").write_text(readme(folder, labs, data, solutions=solutions), encoding="utf-8")
        write_checksums(folder)


def get_wheels(folder: Path, extras: str, pip_options: Sequence[str]) -> None:
    """Every wheel that the package with these extras needs here, at the tested versions, and its own.

    Raises:
        ToolError: pip could not get or build one.
    """
    root = notebooks.ROOT
    with tempfile.TemporaryDirectory(prefix="scalelab-wheel-") as scratch:
        # Built from a copy: a build in place would leave its folders in the repository.
        source = Path(scratch)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copyfile(root / name, source / name)
        shutil.copytree(
            root / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
        command += ["--wheel-dir", str(folder), "--constraint", str(root / "constraints.txt"), *pip_options]
        done = subprocess.run([*command, f"{source}[{extras}]"], capture_output=True, text=True)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise ToolError(f"pip cannot get the wheels: {(errors or [done.stderr[-500:]])[-1]}")


def copy_data(folder: Path) -> list[str]:
    """Copy the named sets that are on this machine and may be handed on; a line about each set."""
    folder.mkdir()
    lines = []
    for name in datasets.names():
        chosen = datasets.dataset(name)
        if not may_be_handed_on(chosen.licence):
            lines.append(f"- `{name}`: left out; its licence is “{chosen.licence}”.")
            continue
        try:
            found = datasets.find(name, download_missing=False)
        except DataFileError:
            lines.append(f"- `{name}`: left out; it was not on the machine that packed ({chosen.licence}).")
            continue
        for role, path in found.items():
            copy = folder / chosen.files[role].name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        lines.append(f"- `{name}`: {plain(chosen.title)} ({chosen.licence}); from <{_source(chosen)}>.")
    text = "# Data sets\n\n" + "\n".join(lines) + "\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
    return lines


def may_be_handed_on(licence: str) -> bool:
    """Whether a set under this licence may go into a bundle."""
    return licence in REDISTRIBUTABLE


def readme(folder: Path, labs: Sequence[str], data: Sequence[str], *, solutions: bool) -> str:
    """The bundle's README."""
    python = ".".join(map(str, sys.version_info[:2]))
    names = {"python": python, "extras": EXTRAS}
    tries = "\n".join(TRY_COMMAND.format(lab=lab) for lab in labs)
    return README.format(
        title="How language models scale",
        version=address.version(),
        python=python,
        platform=sysconfig.get_platform(),
        wheels_mb=round(sum(file.stat().st_size for file in (folder / "wheels").iterdir()) / 1e6),
        solutions_row="| `solutions/` | the same with solutions, for the teacher |\n" if solutions else "",
        setup_posix=SETUP_POSIX.format(**names),
        setup_windows=SETUP_WINDOWS.format(**names),
        work_posix=WORK_POSIX,
        work_windows=WORK_WINDOWS,
        try_section=TRY.format(commands=tries) if solutions else "",
        data="\n".join(data),
    )


def write_checksums(folder: Path) -> None:
    """List the sha256 of every file, in the format that sha256sum reads."""
    lines = [f"{sha256_of_file(file)}  {file.relative_to(folder).as_posix()}\n" for file in _files(folder)]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def archive(folder: Path) -> Path:
    """Zip a bundle beside itself; the old archive stays until the new one is whole."""
    target = folder.with_name(f"{folder.name}.zip")
    temporary = target.with_suffix(".tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as packed:
            for file in _files(folder):
                # A wheel is a zip itself: packing it again takes minutes and saves nothing.
                how = zipfile.ZIP_STORED if file.suffix == ".whl" else zipfile.ZIP_DEFLATED
                packed.write(file, Path(folder.name) / file.relative_to(folder), how)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def platform_name() -> str:
    """Of this Python and machine, as in "py311-linux-x86_64"."""
    return f"py{sys.version_info[0]}{sys.version_info[1]}-{sysconfig.get_platform()}"


def plain(text: str) -> str:
    """Text in which Markdown sees no tag."""
    return text.replace("<", "\\<")


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(file for file in folder.rglob("*") if file.is_file())


def _source(chosen: datasets.Dataset) -> str:
    return next(iter(chosen.files.values())).url


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=notebooks.ROOT / "_build" / "bundle")
    parser.add_argument("--no-solutions", action="store_true", help="leave the notebooks with solutions out")
    parser.add_argument("--check", action="store_true", help="try the bundle without a network")
    parser.add_argument("--extra-index-url", help="where pip looks for torch as well")
    options = parser.parse_args(arguments)
    pip_options = ["--extra-index-url", options.extra_index_url] if options.extra_index_url else []
    target = options.out / f"scalelab-{address.version()}-{platform_name()}"
    try:
        pack(
            target,
            solutions=not options.no_solutions,
            site=notebooks.ROOT / "_build" / "html",
            pip_options=pip_options,
        )
        packed = archive(target)
        if options.check:
            bundle_check.check(packed)
    except (ToolError, OSError) as error:
        print(f"bundle: {error}", file=sys.stderr)
        return 2
    for part in sorted(target.iterdir()):
        size = sum(file.stat().st_size for file in ([part] if part.is_file() else _files(part)))
        print(f"{part.name:<14} {size / 1e6:8.1f} MB")
    print(f"{packed.name}: {packed.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
