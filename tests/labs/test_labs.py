"""Every lab of the course: whole by the lint, solved in one edition, empty in the other.

Each claim is also tried on the sample lab, so that these tests mean something before and beside the labs.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
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
    return path_of(request.param, request)


def path_of(name: str, request: pytest.FixtureRequest) -> Path:
    return (
        Path(request.getfixturevalue("executed_path")) if name == "sample" else notebooks.find_labs([name])[0]
    )


@dataclass(frozen=True)
class Ran:
    """A lab's cells after they were run: those that its exercises need, three times in one kernel.

    Attributes:
        strict, lenient: the student edition, with and without SCALELAB_STRICT=1. solved: the solutions,
            strictly. hidden: then each exercise's hidden test. mistakes: name → the hidden test after that
            mistake was handed in to its check.
    """

    strict: list[NotebookNode]
    lenient: list[NotebookNode]
    solved: list[NotebookNode]
    hidden: list[NotebookNode]
    mistakes: list[tuple[str, NotebookNode]]


@pytest.fixture(scope="module", params=["sample", *(lab_name(path) for path in LABS)])
def ran(request: pytest.FixtureRequest) -> Ran:
    path = path_of(request.param, request)
    notebook = notebooks.read(path)
    student_cells = tagged(student.student_edition(notebook), *NEEDED)
    strict, lenient = copy.deepcopy(student_cells), copy.deepcopy(student_cells)
    solved = copy.deepcopy(tagged(notebook, *NEEDED))
    tests = hidden_tests(notebook, lab_name(path))
    hidden = [code(source) for source in tests.values()]
    mistakes = [
        (mistake.name, code(handing_in(lab_name(path), name, mistake.name) + tests[name]))
        for name, exercise in exercises(lab_name(path)).items()
        for mistake in exercise.mistakes
    ]
    anew = "%reset -f\nimport os\nos.environ['SCALELAB_STRICT'] = '{}'"
    parts = [
        *[code(anew.format(1)), *strict],
        *[code(anew.format(0)), *lenient],
        *[code(anew.format(1)), *solved, *hidden, *(cell for _, cell in mistakes)],
    ]
    for number, cell in enumerate(parts):
        cell.id = f"cell-{number}"
        cell.metadata["tags"] = [*tags(cell), "raises-exception"]
        if cell.cell_type == "code":
            cell.outputs = []
    environ = {**os.environ, "SCALELAB_TIER": "cpu", "OMP_NUM_THREADS": "1"}
    whole = nbformat.v4.new_notebook(cells=parts, metadata=notebook.metadata)
    labs.execute(whole, folder=path.parent, environ=environ, name="test")
    return Ran(strict, lenient, solved, hidden, mistakes)


def code(source: str) -> NotebookNode:
    return nbformat.v4.new_code_cell(source)


def hidden_tests(notebook: NotebookNode, name: str) -> dict[str, str]:
    """The notebook's own hidden-test cell of each exercise."""
    return {
        exercise: next(
            cell.source for cell in code_cells(notebook) if f'lab.hidden_test("{exercise}"' in cell.source
        )
        for exercise in exercises(name)
    }


def handing_in(lab: str, exercise: str, mistake: str) -> str:
    """Code that hands a usual mistake in to its check."""
    return (
        "import contextlib\n"
        "from scalelab.lab.checks import find_exercise\n"
        f"wrong = find_exercise({lab!r}, {exercise!r}).make_mistake({mistake!r})\n"
        f"with contextlib.suppress(ValueError): lab.check.{exercise}(wrong)\n"
    )


def error_of(cell: NotebookNode) -> str | None:
    """What a cell raised, as "Type: text"; None when it did not."""
    errors = [output for output in cell.get("outputs", []) if output.output_type == "error"]
    return f"{errors[0].ename}: {errors[0].evalue}" if errors else None


def exercise_of(cell: NotebookNode) -> str:
    return cell.source.split("lab.check.")[1].split("(")[0]


def test_the_first_lab_is_there() -> None:
    assert "transformers/training" in [lab_name(path) for path in LABS]


def test_the_lint_finds_nothing(lab: Path) -> None:
    assert lint_labs.problems(lab) == []


def test_the_student_edition_fails_at_exactly_its_checks_each_in_its_own_words(ran: Ran) -> None:
    checks = [cell for cell in ran.strict if "check" in tags(cell)]
    assert checks
    for cell in ran.strict:
        error = error_of(cell)
        if cell in checks:
            assert error is not None, f"passed without being written: {cell.source}"
            assert error.startswith(f"LabError: not written yet: {exercise_of(cell)}"), error
        else:
            assert error is None, f"{cell.source}\n{error}"


def test_an_unwritten_lab_goes_on_with_the_references(ran: Ran) -> None:
    assert [error_of(cell) for cell in ran.lenient] == [None] * len(ran.lenient)
    assert all(cell.execution_count for cell in ran.lenient if cell.cell_type == "code")


def test_hidden_tests_pass_the_solutions_and_fail_every_known_mistake(ran: Ran) -> None:
    right = [*ran.solved, *ran.hidden]
    assert ran.hidden
    assert [error_of(cell) for cell in right] == [None] * len(right)
    assert all(cell.execution_count for cell in right if cell.cell_type == "code")
    for mistake, cell in ran.mistakes:
        error = error_of(cell)
        assert error is not None, f"the hidden test passes {mistake!r}"
        assert "hidden test" in error
        assert mistake in error
