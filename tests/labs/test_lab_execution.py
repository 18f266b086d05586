"""Executing a lab stores what it shows and what it costs, and a failure changes nothing."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import labs
import nbformat
import normalise
import notebooks
import psutil
import pytest
from nbformat import NotebookNode


def write_lab(folder: Path, *sources: str) -> Path:
    """A lab of a title and these code cells."""
    path = folder / "labs" / "part" / "name.ipynb"
    cells = [nbformat.v4.new_markdown_cell("# T\n\n<!-- badges -->\n<!-- /badges -->")]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    notebooks.write(path, nbformat.v4.new_notebook(cells=cells))
    return path


def run(path: Path) -> int:
    return labs.main(["--labs", str(path.parents[1])])


def test_the_stored_cost_is_that_of_the_run(executed_path: Path) -> None:
    figures = notebooks.read(executed_path).metadata["scalelab"]
    assert 0 < figures["cpu"]["longest_cell_seconds"] <= figures["cpu"]["seconds"] < 120
    assert 100 < figures["cpu"]["peak_mib"] < 3000, "torch alone takes more than 100 MiB"
    assert figures["cpu"]["machine"].startswith("2 cores, ")
    assert figures["gpu"] is None


def test_time_and_memory_are_measured_and_not_guessed(tmp_path: Path) -> None:
    path = write_lab(
        tmp_path, "x = bytearray(b'x') * (300 * 2**20)\ndel x", "import time; time.sleep(1.2)", "1"
    )
    assert run(path) == 0
    cpu = notebooks.read(path).metadata["scalelab"]["cpu"]
    assert 1.2 <= cpu["longest_cell_seconds"] < 3
    assert 300 < cpu["peak_mib"] < 700


@pytest.mark.skipif(not hasattr(psutil.Process().memory_full_info(), "pss"), reason="no shares are told here")
def test_memory_of_children_counts_and_what_they_share_counts_once(tmp_path: Path) -> None:
    ours = "import os, time\nx = bytearray(b'x') * (200 * 2**20)"
    theirs = (
        "pid = os.fork()\nif pid == 0:\n    y = bytearray(b'y') * (100 * 2**20)\n    time.sleep(2)\n"
        "    os._exit(0)\n_ = os.waitpid(pid, 0)"
    )
    path = write_lab(tmp_path, ours, theirs)
    assert run(path) == 0
    assert 300 < notebooks.read(path).metadata["scalelab"]["cpu"]["peak_mib"] < 450


def test_the_badges_say_the_stored_cost_and_where_to_open_the_lab(executed_path: Path) -> None:
    first = notebooks.read(executed_path).cells[0].source
    figures = {"cpu": {"seconds": 100.2, "peak_mib": 922}, "gpu": None}
    text = notebooks.badges("a/b", figures, "https://github.com/owner/course")
    assert "Measured: 1 min 40 s and 0.9 GiB on 2 CPU cores; not measured on a GPU." in text
    assert "https://colab.research.google.com/github/owner/course/blob/student/a/b.ipynb" in text
    assert "https://colab.research.google.com/github/owner/course/blob/main/labs/a/b.ipynb" in text
    assert "https://raw.githubusercontent.com/owner/course/student/a/b.ipynb" in text
    assert "![" not in first, "an image from another host would be asked for by every page"
    assert notebooks.repository_url() in first.replace("colab.research.google.com/github", "github.com")


def test_the_kernel_is_at_the_cpu_tier_strict_and_on_two_cores_with_a_cache_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALELAB_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("SCALELAB_TIER", "gpu")
    path = write_lab(
        tmp_path,
        "import os, sys\n"
        "assert os.environ['SCALELAB_TIER'] == 'cpu' and os.environ['SCALELAB_STRICT'] == '1'\n"
        f"assert os.environ['SCALELAB_CACHE'] != {str(tmp_path / 'mine')!r}\n"
        f"assert sys.executable == {sys.executable!r}\n"
        "assert not hasattr(os, 'sched_getaffinity') or len(os.sched_getaffinity(0)) <= 2",
    )
    assert run(path) == 0


@pytest.mark.parametrize(
    "source",
    [
        "1 / 0",
        "print('/home/ada/file')",
        "import os; print(os.getcwd())",
        "import warnings; warnings.warn('odd')",
        "object()",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
def test_a_lab_that_fails_or_shows_too_much_keeps_its_old_file(
    tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lab(tmp_path, "print('first')", source)
    before = path.read_bytes()
    assert run(path) == 1
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["name.ipynb"]
    assert "part/name" in capsys.readouterr().err
    assert not [child for child in psutil.Process().children(recursive=True) if is_kernel(child)]


def is_kernel(process: psutil.Process) -> bool:
    try:
        return "ipykernel_launcher" in " ".join(process.cmdline()) and process.status() != "zombie"
    except psutil.Error:
        return False


def test_a_lab_without_badge_markers_is_refused_before_it_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lab(tmp_path, "open('ran', 'w')")
    notebook = notebooks.read(path)
    notebook.cells[0].source = "# T"
    notebooks.write(path, notebook)
    assert run(path) == 1
    assert "<!-- badges -->" in capsys.readouterr().err
    assert not (path.parent / "ran").exists()


def test_unknown_labs_are_refused_with_what_there_is(
    executed_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert labs.main(["--labs", str(executed_path.parents[1]), "transformers/nothing"]) == 2
    assert "known: transformers/training" in capsys.readouterr().err
    assert notebooks.find_labs(["labs/transformers/training.ipynb"], executed_path.parents[1])


def noisy() -> NotebookNode:
    """A notebook as a kernel and three front ends leave it."""
    cell = nbformat.v4.new_code_cell("x", id="kept", execution_count=17)
    cell.metadata = nbformat.from_dict(
        {"tags": ["measure"], "execution": {"iopub.status.busy": "2026"}, "ExecuteTime": 1, "colab": {}}
    )
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="\r  0%|   | 0/9\r100%|##| 9/9 [0:01, 9it/s]\n"),
        nbformat.v4.new_output("stream", name="stdout", text="half\rdone\nkept\n"),
        nbformat.v4.new_output("execute_result", data={"text/plain": "1"}, execution_count=17),
    ]
    twin = nbformat.v4.new_code_cell("y")
    notebook = nbformat.v4.new_notebook(cells=[cell, twin])
    twin.id = "kept"  # as a copied cell has it in some front ends
    notebook.metadata.update(
        {
            "widgets": {"a": 1},
            "kernelspec": {"name": "mine", "display_name": "Mine"},
            "scalelab": {"cpu": None},
        }
    )
    return notebook


def test_normalising_keeps_what_readers_see_and_drops_what_changes() -> None:
    notebook = noisy()
    normalise.normalise(notebook)
    first, second = notebook.cells
    assert first.metadata == {"tags": ["measure"]}
    assert [output.get("text") for output in first.outputs] == ["done\nkept\n", None]
    assert (first.execution_count, first.outputs[1].execution_count, second.execution_count) == (1, 1, 2)
    assert first.id == "kept"
    assert second.id != "kept"
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info", "scalelab"}
    nbformat.validate(notebook)


def test_normalising_again_changes_nothing_and_gives_the_same_ids() -> None:
    notebook = noisy()
    normalise.normalise(notebook)
    again, other = copy.deepcopy(notebook), noisy()
    normalise.normalise(again)
    normalise.normalise(other)
    assert again == notebook == other


@pytest.mark.parametrize(
    ("tag", "says"), [("exercise", "Show a solution"), ("predict", "Show a guess"), ("measure", None)]
)
def test_the_fold_over_a_cell_says_what_it_hides(tag: str, says: str | None) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x = 1", metadata={"tags": [tag]})])
    normalise.normalise(notebook)
    assert notebook.cells[0].metadata.get("mystnb", {}).get("code_prompt_show") == says


def test_executing_again_changes_only_the_measured_cost(executed_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "labs" / "transformers" / "training.ipynb"
    path.parent.mkdir(parents=True)
    path.write_bytes(executed_path.read_bytes())
    assert run(path) == 0

    def stable(notebook: NotebookNode) -> NotebookNode:
        notebook.metadata["scalelab"] = None
        notebook.cells[0].source = ""
        return notebook

    assert stable(notebooks.read(path)) == stable(notebooks.read(executed_path))


def test_nbval_passes_an_executed_lab_and_fails_a_changed_one(executed_path: Path, tmp_path: Path) -> None:
    def nbval(path: Path) -> int:
        command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-q", "-p",
                   "no:cacheprovider", "--rootdir", str(tmp_path), str(path)]  # fmt: skip
        return subprocess.run(command, capture_output=True, timeout=120, check=False).returncode

    notebook = notebooks.read(executed_path)
    changed = copy.deepcopy(notebook)
    cell = next(cell for cell in changed.cells if "lab.measured(" in cell.source)
    cell.source = "# NBVAL_CHECK_OUTPUT\n" + cell.source.replace("math.log(16)", "math.log(15)")
    for name, version in (("same", notebook), ("changed", changed)):
        notebooks.write(tmp_path / f"{name}.ipynb", version)
    assert nbval(tmp_path / "same.ipynb") == 0
    assert nbval(tmp_path / "changed.ipynb") == 1
