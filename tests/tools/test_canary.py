"""The canary tells a lab that works in a fresh environment from each way in which it can fail there.

The labs here are tiny, and so is the course they install: no network is needed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import address
import canary
import compatibility_figures
import fresh
import nbformat
import notebooks
import pytest
import snapshot
from canary import Combination
from nbformat import NotebookNode

ADDRESS = "https://github.com/ada/tiny"
LINE = '!pip install -q "tinycourse @ git+{address}@{tag}"'
NO_NETWORK = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
HERE = "{}.{}".format(*sys.version_info)


def lab(*sources: str, tag: str = "v1") -> NotebookNode:
    """A notebook of a set-up cell and these cells."""
    line = LINE.format(address=ADDRESS, tag=tag)
    setup = f'import sys\n\nif "google.colab" in sys.modules:\n    {line}\n\nimport tinycourse'
    cells = [nbformat.v4.new_code_cell(setup, metadata={"tags": ["setup"]})]
    return nbformat.v4.new_notebook(cells=cells + [nbformat.v4.new_code_cell(source) for source in sources])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables by which git finds a package `tinycourse`, of version 1 at the tag v1 and 2 at v2."""
    folder = tmp_path_factory.mktemp("tiny")

    def git(*arguments: str) -> None:
        snapshot.git(*arguments, cwd=folder, environ=snapshot.IDENTITY)

    git("init", "--quiet")
    for version in ("1", "2"):
        (folder / "tinycourse.py").write_text(f"VERSION = {version}\n")
        (folder / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
            f'[project]\nname = "tinycourse"\nversion = "{version}"\n'
            '[tool.setuptools]\npy-modules = ["tinycourse"]\n'
        )
        git("add", "--all")
        git("commit", "--quiet", "-m", version)
        git("tag", f"v{version}")
    return snapshot.redirect(ADDRESS, folder, {})


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> fresh.Environment:
    """An environment that finds all that the tests' own has, but scalelab: nothing has to be fetched."""
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    borrowed = folder / "borrowed"
    borrowed.mkdir()
    for path in map(Path, sys.path):
        if path.name == "site-packages":
            for entry in path.iterdir():
                if "scalelab" not in entry.name and not (borrowed / entry.name).exists():
                    (borrowed / entry.name).symlink_to(entry)
    (own,) = (folder / "env").glob("lib/python*/site-packages")
    (own / "borrowed.pth").write_text(f"{borrowed}\n")
    python = folder / "env" / "bin" / "python"
    version, packages = fresh.installed(python)
    assert "torch" in packages
    assert "scalelab" not in packages
    return fresh.Environment(python=python, version=version, packages=packages)


@pytest.fixture
def run(
    tiny: dict[str, str], where: fresh.Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[NotebookNode], fresh.Result]:
    for name, value in NO_NETWORK.items():
        monkeypatch.setenv(name, value)
    return lambda notebook: fresh.run_lab(notebook, "part/name", where, tmp_path / "scratch", tiny)


def test_a_lab_that_works_passes_is_timed_and_leaves_all_as_it_was(run, where, monkeypatch):
    monkeypatch.setenv("SCALELAB_THREADS", "1")
    notebook = lab(
        "import os, time, numpy\nassert tinycourse.VERSION == 1\ntime.sleep(0.3)",
        "assert os.environ['SCALELAB_STRICT'] == '1' and 'SCALELAB_THREADS' not in os.environ\n"
        "assert os.listdir() == []",
    )
    before = nbformat.writes(notebook)
    result = run(notebook)
    assert (result.status, result.reason) == ("passed", "")
    assert result.added == {"tinycourse": "1"}
    assert result.install_seconds is not None
    assert 0 < result.install_seconds < result.seconds
    assert result.longest_cell_seconds >= 0.3
    assert result.peak_mib > 50
    assert fresh.installed(where.python)[1] == dict(where.packages)
    assert nbformat.writes(notebook) == before


def test_an_install_line_that_fails_is_told_though_a_notebook_goes_on(run):
    result = run(lab(tag="v3"))
    assert result.status == "install failed"
    assert "exit code 1" in result.reason
    assert result.install_seconds is not None


def test_a_cell_that_raises_is_told_by_its_error_without_a_folder_of_this_machine(run, where, tmp_path):
    result = run(lab(f"raise ValueError('loss is nan, see ' + {str(where.python)!r})", "1 + 1"))
    assert result.status == "lab failed"
    assert result.reason.startswith("ValueError: loss is nan")
    assert str(where.python.parent) not in result.reason
    assert str(tmp_path) not in result.reason
    assert result.added == {"tinycourse": "1"}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"torch": "2.4.0"}, {"torch": "2.15.0"}, "torch 2.4.0 became 2.15.0"),
        ({"numpy": "1.26.0"}, {}, "numpy 1.26.0 became absent"),
    ],
)
def test_a_package_that_the_install_changes_is_a_failure_though_the_lab_passes(tmp_path, before, after, said):
    log = tmp_path / "pip.jsonl"
    log.write_text(json.dumps({"arguments": [], "seconds": 1.5, "exit_code": 0}) + "\n")
    assert fresh.judge("", log, before, {**after, "scalelab": "1"}) == ("packages changed", said, 1.5)
    assert fresh.judge("", log, before, {**before, "scalelab": "1"}) == ("passed", "", 1.5)


def test_a_set_up_cell_that_installs_nothing_is_a_failure(tmp_path):
    status, reason, seconds = fresh.judge("", tmp_path / "none", {}, {})
    assert (status, seconds) == ("install failed", None)
    assert "ran no pip" in reason


def test_a_python_that_is_not_here_is_a_row_that_says_so():
    with pytest.raises(fresh.CannotInstall, match=r"Python 3\.99 is not on this machine"):
        fresh.find_python("3.99")


def test_the_python_that_runs_is_found_by_its_version():
    assert fresh.find_python(HERE).exists()


def test_packages_that_cannot_be_had_are_told_in_one_line(tmp_path, monkeypatch):
    for name, value in NO_NETWORK.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(fresh.CannotInstall, match=r"pip cannot install torch==0\.0\.1: ") as caught:
        with fresh.environment(tmp_path / "env", Path(sys.executable), ["torch==0.0.1"]):
            pass
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "env").exists()


def entry(status: str, date: str = "2026-01-01") -> dict[str, object]:
    return {"status": status, "reason": "" if status == "passed" else "why", "date": date}


def combination(name: str, python: str = HERE) -> Combination:
    return Combination(name=name, why="a test", python=python, requirements=("torch", "numpy", "ipykernel"))


def test_a_combination_that_was_not_run_does_not_hide_an_older_result():
    record = canary.merge({}, combination("a"), {"p/one": entry("passed"), "p/two": entry("not run")})
    record = canary.merge(record, combination("a"), {"p/one": entry("not run", "2026-02-02")})
    assert record["a"]["labs"] == {"p/one": entry("passed"), "p/two": entry("not run")}
    record = canary.merge(record, combination("a"), {"p/one": entry("lab failed", "2026-03-03")})
    assert record["a"]["labs"]["p/one"]["status"] == "lab failed"


def test_labs_and_combinations_that_are_no_more_leave_the_record():
    record = canary.merge({}, combination("b"), {"p/one": entry("passed"), "p/gone": entry("passed")})
    record = canary.merge(record, combination("gone"), {"p/one": entry("passed")})
    record = canary.merge(record, combination("a"), {"p/one": entry("passed")})
    pruned = canary.prune(record, ["a", "b"], ["p/one"])
    assert list(pruned) == ["a", "b"]
    assert list(pruned["b"]["labs"]) == ["p/one"]


@pytest.fixture
def small_labs(tmp_path: Path) -> Path:
    folder = tmp_path / "labs"
    notebooks.write(folder / "part" / "good.ipynb", lab("assert True"))
    notebooks.write(folder / "part" / "bad.ipynb", lab("raise RuntimeError('no')"))
    return folder


def test_the_command_runs_every_lab_records_it_and_fails_if_one_does(
    small_labs, tiny, where, tmp_path, monkeypatch, capsys
):
    @contextmanager
    def borrowed(*_: object) -> Iterator[fresh.Environment]:
        yield where

    for name, value in NO_NETWORK.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(fresh, "environment", borrowed)
    monkeypatch.setattr(snapshot, "redirect", lambda *_: tiny)
    record = tmp_path / "record.json"
    matrix = [combination("here"), combination("elsewhere", python="3.99")]
    options = ["--labs", str(small_labs), "--record", str(record)]
    assert canary.main(options, matrix) == 1
    shown = capsys.readouterr().out
    assert "lab failed: RuntimeError: no" in shown
    assert "not run: Python 3.99 is not on this machine" in shown
    found = json.loads(record.read_text())
    good = found["here"]["labs"]["part/good"]
    assert good["status"] == "passed"
    assert good["install_line"] == LINE.format(address=ADDRESS, tag="v1")
    assert good["torch"] == where.packages["torch"]
    assert good["installed"] == {"tinycourse": "1"}
    assert found["here"]["labs"]["part/bad"]["status"] == "lab failed"
    assert found["elsewhere"]["labs"]["part/good"]["status"] == "not run"
    assert canary.main([*options, "--only", "elsewhere"], matrix) == 1, "nothing was run"


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--only", "py27"], "no combination py27; known: here"), (["part/none"], "no lab 'part/none'")],
)
def test_unknown_names_are_told_with_those_that_are_known(small_labs, tmp_path, capsys, options, said):
    record = tmp_path / "record.json"
    arguments = ["--labs", str(small_labs), "--record", str(record), *options]
    assert canary.main(arguments, [combination("here")]) == 2
    assert said in capsys.readouterr().err
    assert not record.exists()


def test_a_record_that_cannot_be_read_is_told_and_kept(small_labs, tmp_path, capsys):
    record = tmp_path / "record.json"
    record.write_text("{half")
    assert canary.main(["--labs", str(small_labs), "--record", str(record)], [combination("here")]) == 2
    assert "record.json cannot be read" in capsys.readouterr().err
    assert record.read_text() == "{half"


@pytest.mark.parametrize("count", [0, 2])
def test_a_lab_without_its_one_install_line_is_refused(count):
    notebook = lab()
    cell = notebook.cells[0]
    line = next(line for line in cell.source.splitlines() if "pip install" in line)
    cell.source = cell.source.replace(line, "\n".join([line] * count))
    with pytest.raises(notebooks.ToolError, match=f"^{count} lines"):
        canary.install_line(notebook)


# What is committed: the record, and the page that shows it.


def test_the_matrix_takes_its_oldest_versions_from_the_bounds_and_its_tested_ones_from_the_pins():
    known = {one.name: one for one in canary.combinations()}
    constraints = (notebooks.ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pyproject = (notebooks.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for requirement in known["py311-floor"].requirements:
        assert requirement == "ipykernel" or f'"{requirement.replace("==", ">=")}"' in pyproject
    torch, numpy, _ = known["py311-tested"].requirements
    assert torch in constraints
    assert numpy in constraints
    assert {one.python for one in known.values()} >= {"3.11", "3.12", "3.13"}


def test_the_record_covers_every_lab_in_every_combination_by_this_version_s_line():
    record = canary.read_record(canary.RECORD)
    line = address.repository().install_line(address.version())
    labs = {notebooks.lab_name(path) for path in notebooks.find_labs()}
    assert list(record) == [one.name for one in canary.combinations()]
    for one in canary.combinations():
        assert record[one.name]["before"] == list(one.requirements), "run `make canary` again"
        assert set(record[one.name]["labs"]) == labs, "run `make canary` again"
        for result in record[one.name]["labs"].values():
            assert result["status"] in ("passed", canary.NOT_RUN) or result["reason"]
            assert result["status"] == canary.NOT_RUN or result["install_line"] == line


def test_every_lab_that_was_run_passed_on_the_oldest_and_on_the_tested_versions_with_a_quick_set_up_line():
    record = canary.read_record(canary.RECORD)
    for name in ("py311-oldest", "py311-floor", "py311-tested"):
        run = [entry for entry in record[name]["labs"].values() if entry["status"] != canary.NOT_RUN]
        assert run
        for result in run:
            assert result["status"] == "passed"
            assert result["install_seconds"] < 30


def test_the_page_s_table_and_numbers_are_those_of_the_record(tmp_path, monkeypatch):
    record = canary.read_record(canary.RECORD)
    rows = compatibility_figures.table().data.split("<tr>")
    for name, one in record.items():
        for lab_of_it, result in one["labs"].items():
            (row,) = [text for text in rows if f">{name}: {lab_of_it}<" in text]
            assert f"<td>{result['status']}</td>" in row
            assert all(
                f"<td>{result[key]}</td>" in row for key in ("torch", "numpy", "date") if key in result
            )
    changed = {"x": {"why": "w", "labs": {"p/q": entry("lab failed") | {"reason": "a < b"}}}}
    monkeypatch.setattr(compatibility_figures, "RECORD", tmp_path / "record.json")
    (tmp_path / "record.json").write_text(json.dumps(changed))
    shown = compatibility_figures.table().data
    assert ">x: p/q<" in shown
    assert "<code>x</code>, p/q: lab failed, a &lt; b." in compatibility_figures.remarks().data
    assert compatibility_figures.numbers()["passed"] == "0"
    assert compatibility_figures.numbers()["runs"] == "1"


def test_the_page_s_bounds_are_those_of_the_package():
    shown = compatibility_figures.bounds().data
    for one in canary.combinations():
        if one.name == "py311-floor":
            for requirement in set(one.requirements) - {"ipykernel"}:
                package, bound = requirement.split("==")
                assert f">{package}</th><td>{bound}<" in shown


def test_the_page_types_no_result():
    text = (notebooks.ROOT / "book" / "about" / "compatibility.md").read_text(encoding="utf-8")
    assert "page.table()" in text
    assert "**passed** when" in text
    assert not [line for line in text.splitlines() if "| " in line or " s |" in line]
