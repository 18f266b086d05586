"""Every lab of the course: whole by the lint, solved in one edition, empty in the other.

Each claim is also tried on the sample lab, so that these tests mean something before and beside the labs.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

import labs
import lint_labs
import nbformat
import notebooks
import pytest
import student
from nbformat import NotebookNode
from notebooks import code_cells, lab_name, tagged, tags

from scalelab.lab.checks import exercises

LABS = notebooks.find_labs()
NEEDED = ("parameters", "setup", "exercise", "check")


@pytest.fixture(params=["sample", *(lab_name(path) for path in LABS)])
def lab(request: pytest.FixtureRequest) -> Path:
    if request.param == "sample":
        return Path(request.getfixturevalue("executed_path"))
    return notebooks.find_labs([request.param])[0]


def execute(notebook: NotebookNode, folder: Path, *, strict: bool) -> None:
    """Run a notebook to its end, whatever its cells raise (they are tagged to be allowed to)."""
    for cell in code_cells(notebook):
        cell.metadata["tags"] = [*tags(cell), "raises-exception"]
    environ = {**os.environ, "SCALELAB_TIER": "cpu", "SCALELAB_STRICT": "1" if strict else "0"}
    labs.execute(notebook, folder=folder, environ={**environ, "OMP_NUM_THREADS": "1"}, name="test")


def error_of(cell: NotebookNode) -> str | None:
    """What a cell raised, as "Type: text"; None when it did not."""
    errors = [output for output in cell.outputs if output.output_type == "error"]
    return f"{errors[0].ename}: {errors[0].evalue}" if errors else None


def exercise_of(cell: NotebookNode) -> str:
    return cell.source.split("lab.check.")[1].split("(")[0]


def test_the_first_lab_is_there() -> None:
    assert "transformers/training" in [lab_name(path) for path in LABS]


def test_the_lint_finds_nothing(lab: Path) -> None:
    assert lint_labs.problems(lab) == []


def test_the_student_edition_fails_at_exactly_its_checks_each_in_its_own_words(lab: Path) -> None:
    edition = student.student_edition(notebooks.read(lab))
    edition.cells = tagged(edition, *NEEDED)
    execute(edition, lab.parent, strict=True)
    checks = tagged(edition, "check")
    assert checks
    for cell in code_cells(edition):
        error = error_of(cell)
        if cell in checks:
            assert error is not None, f"passed without being written: {cell.source}"
            assert error.startswith(f"LabError: not written yet: {exercise_of(cell)}"), error
        else:
            assert error is None, f"{cell.source}\n{error}"


def test_an_unwritten_lab_goes_on_with_the_references(lab: Path) -> None:
    edition = student.student_edition(notebooks.read(lab))
    edition.cells = tagged(edition, *NEEDED)
    execute(edition, lab.parent, strict=False)
    assert [error_of(cell) for cell in code_cells(edition)] == [None] * len(edition.cells)


def test_hidden_tests_pass_the_solutions_and_fail_every_known_mistake(lab: Path) -> None:
    """Each mistake is handed in to its check, and then the notebook's own hidden-test cell is run."""
    notebook = copy.deepcopy(notebooks.read(lab))
    name = lab_name(lab)
    hidden = {
        exercise: next(
            cell.source for cell in code_cells(notebook) if f'lab.hidden_test("{exercise}"' in cell.source
        )
        for exercise in exercises(name)
    }
    notebook.cells = tagged(notebook, *NEEDED)
    for cell in notebook.cells:
        cell.outputs = []
    solved = len(notebook.cells)
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in hidden.values()]
    expected: list[str] = []
    for exercise, known in exercises(name).items():
        for mistake in known.mistakes:
            notebook.cells.append(
                nbformat.v4.new_code_cell(
                    "from scalelab.lab.checks import find_exercise\n"
                    f"wrong = find_exercise({name!r}, {exercise!r}).make_mistake({mistake.name!r})\n"
                    "import contextlib\n"
                    f"with contextlib.suppress(ValueError): lab.check.{exercise}(wrong)\n" + hidden[exercise]
                )
            )
            expected.append(mistake.name)
    execute(notebook, lab.parent, strict=True)
    errors = [error_of(cell) for cell in notebook.cells]
    n_right = solved + len(hidden)
    assert errors[:n_right] == [None] * n_right
    for error, mistake_name in zip(errors[n_right:], expected, strict=True):
        assert error is not None, f"the hidden test passes {mistake_name!r}"
        assert "hidden test" in error
        assert mistake_name in error
