"""Fresh environments that look to a lab as Colab does: they hold torch, numpy and a kernel, and no scalelab.

The lab's own set-up cell installs the package there. Its line runs unchanged; git is told to take the
course's address from a snapshot of the working tree. For Linux and macOS.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import labs
import notebooks
from nbformat import NotebookNode

# A module of this name is how a set-up cell tells Colab from elsewhere.
COLAB = "import sys, types; sys.modules['google.colab'] = types.ModuleType('google.colab')"
VERSIONS = """\
import json, platform
from importlib import metadata
found = {item.metadata["Name"].lower().replace("_", "-"): item.version for item in metadata.distributions()}
print(json.dumps({"python": platform.python_version(), "packages": found}))
"""
# Stands before the environment's own pip on the path: runs it, and writes down what it took.
SHIM = """\
#!{python}
import json, subprocess, sys, time
begun = time.perf_counter()
code = subprocess.call([sys.executable, "-m", "pip", *sys.argv[1:]])
line = {{"arguments": sys.argv[1:], "seconds": time.perf_counter() - begun, "exit_code": code}}
with open({log!r}, "a", encoding="utf-8") as file:
    file.write(json.dumps(line) + "\\n")
sys.exit(code)
"""
# What would make a fresh environment less fresh.
LEFT_OUT = re.compile(
    r"SCALELAB_\w+|PYTHON\w+|VIRTUAL_ENV|OMP_\w+|MKL_\w+|MPL\w+|JUPYTER_\w+|IPYTHON\w*|CONDA_\w+"
)


class CannotInstall(Exception):
    """An environment that cannot be had here; the text says why, in one line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What became of one lab in one environment.

    Attributes:
        status: "passed", or what went wrong: "install failed", "lab failed", "packages changed".
        reason: one line; "" where it passed.
        install_seconds: of the set-up cell's pip line; None where it did not run.
        seconds: of all cells, the install among them. longest_cell_seconds, peak_mib: as in `labs.Cost`.
        added: packages the set-up brought, with their versions.
    """

    status: str
    reason: str
    install_seconds: float | None
    seconds: float
    longest_cell_seconds: float
    peak_mib: float
    added: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """A virtual environment.

    Attributes:
        python: its interpreter. version: that interpreter's. packages: name → version, before any lab.
    """

    python: Path
    version: str
    packages: Mapping[str, str]


def find_python(version: str) -> Path:
    """An interpreter of this version, such as "3.12": this one, one on the path, or one of pyenv's.

    Raises:
        CannotInstall: there is none.
    """
    candidates: list[str | Path | None] = [sys.executable, shutil.which(f"python{version}")]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates += sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"), reverse=True)
    for candidate in candidates:
        if candidate and _has_version(candidate, version):
            return Path(candidate)
    raise CannotInstall(f"Python {version} is not on this machine")


def _has_version(python: str | Path, version: str) -> bool:
    """Whether it runs and is of this version; pyenv's own shims may do neither."""
    ask = "import ensurepip, sys, venv; print('{}.{}'.format(*sys.version_info))"
    done = subprocess.run([python, "-c", ask], capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.strip() == version


@contextlib.contextmanager
def environment(
    folder: Path, python: Path, requirements: Sequence[str], pip_options: Sequence[str] = ()
) -> Iterator[Environment]:
    """Make an environment with these requirements in `folder`; it is deleted afterwards.

    Raises:
        CannotInstall: pip could not; names what it said.
    """
    try:
        subprocess.run([python, "-m", "venv", folder], check=True, capture_output=True)
        inside = folder / "bin" / "python"
        command = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run(
            [*command, *pip_options, *requirements], capture_output=True, text=True, env=_clean(os.environ)
        )
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
            said = (errors or done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]
            raise CannotInstall(
                f"pip cannot install {' '.join(requirements)}: {said.removeprefix('ERROR: ')}"
            )
        version, packages = installed(inside)
        yield Environment(python=inside, version=version, packages=packages)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def installed(python: Path) -> tuple[str, dict[str, str]]:
    """An interpreter's version, and every package it finds with its version."""
    shown = subprocess.run(
        [python, "-c", VERSIONS], check=True, capture_output=True, text=True, env=_clean(os.environ)
    )
    found = json.loads(shown.stdout)
    return found["python"], found["packages"]


def run_lab(
    notebook: NotebookNode, name: str, where: Environment, scratch: Path, variables: Mapping[str, str]
) -> Result:
    """Run a lab as it stands, in a folder that holds nothing, and take out again what it installed.

    Args:
        scratch: an empty folder for caches and the notebook's own files.
        variables: what git needs to find the course.
    """
    log = scratch / "pip.jsonl"
    kernel = (str(where.python), "-m", "ipykernel_launcher", f"--IPKernelApp.exec_lines={COLAB}")
    folder = scratch / "content"
    folder.mkdir(parents=True)
    error, cost, begun = "", labs.Cost(), time.perf_counter()
    try:
        cost = labs.execute(
            copy.deepcopy(notebook),
            folder=folder,
            environ=_kernel_environment(where, scratch, log) | dict(variables),
            name=name,
            kernel=kernel,
        )
    except notebooks.ToolError as failure:
        error = _one_line(str(failure))
    seconds = cost.seconds or time.perf_counter() - begun
    _, after = installed(where.python)
    status, reason, install_seconds = judge(error, log, where.packages, after)
    added = {name: version for name, version in after.items() if name not in where.packages}
    if added:
        uninstall = [where.python, "-m", "pip", "uninstall", "--quiet", "--yes", *added]
        subprocess.run(uninstall, check=True, capture_output=True, env=_clean(os.environ))
    return Result(
        status=status,
        reason=_without_folders(reason, where, scratch),
        install_seconds=install_seconds,
        seconds=seconds,
        longest_cell_seconds=max(cost.cell_seconds, default=0.0),
        peak_mib=cost.peak_mib,
        added=added,
    )


def judge(
    error: str, log: Path, before: Mapping[str, str], after: Mapping[str, str]
) -> tuple[str, str, float | None]:
    """Status, reason and seconds of the install, from what the lab said and what pip did."""
    runs = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    seconds = sum(run["seconds"] for run in runs) if runs else None
    failed = next((run for run in runs if run["exit_code"] != 0), None)
    if not runs:
        return "install failed", error or "the set-up cell ran no pip", None
    if failed:
        return "install failed", f"pip ended with exit code {failed['exit_code']}", seconds
    changed = [
        f"{name} {old} became {after.get(name, 'absent')}"
        for name, old in before.items()
        if after.get(name) != old
    ]
    if changed:
        return "packages changed", "; ".join(sorted(changed)), seconds
    return ("lab failed", error, seconds) if error else ("passed", "", seconds)


def _kernel_environment(where: Environment, scratch: Path, log: Path) -> dict[str, str]:
    """Variables of a kernel that finds its own pip first, no cache, and nobody's settings."""
    bin_folder = scratch / "bin"
    bin_folder.mkdir(parents=True)
    shim = bin_folder / "pip"
    shim.write_text(SHIM.format(python=where.python, log=str(log)), encoding="utf-8")
    shim.chmod(0o755)
    clean = _clean(os.environ)
    return {
        **clean,
        "PATH": os.pathsep.join([str(bin_folder), str(where.python.parent), clean.get("PATH", os.defpath)]),
        "PIP_NO_CACHE_DIR": "1",
        "SCALELAB_TIER": "cpu",
        "SCALELAB_STRICT": "1",
        "SCALELAB_CACHE": str(scratch / "cache"),
        "MPLCONFIGDIR": str(scratch / "matplotlib"),
        "IPYTHONDIR": str(scratch / "ipython"),
    }


def _clean(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if not LEFT_OUT.fullmatch(name)}


def _one_line(text: str) -> str:
    """The last line that says something: of a traceback, the exception."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    return textwrap.shorten(lines[-1], 300) if lines else "it failed without a word"


def _without_folders(text: str, where: Environment, scratch: Path) -> str:
    """The same text without folders that only this machine has."""
    for folder in (scratch, where.python.parent.parent, notebooks.ROOT, Path.home()):
        text = text.replace(str(folder), "…")
    return text
