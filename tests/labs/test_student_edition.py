"""Learners get the lab without what they are to find out, and each empty exercise says so itself."""

from __future__ import annotations

from pathlib import Path

import nbformat
import notebooks
import pytest
import student
from nbformat import NotebookNode


def source(notebook: NotebookNode) -> str:
    return "\n".join(cell.source for cell in notebook.cells)


def test_no_solution_hidden_test_guess_or_output_is_left(executed_path: Path) -> None:
    lab = notebooks.read(executed_path)
    edition = student.student_edition(lab)
    text = notebooks.BADGES.sub("", source(edition))  # its measured seconds may be any number, a guess's too
    for secret in (
        "SOLUTION",
        "HIDDEN",
        "hidden_test",
        "2.5",
        "log_softmax",
        "lerp",
        "all tokens look alike",
    ):
        assert secret in source(lab)
        assert secret not in text
    assert "guess = ...  # nats" in text
    assert text.count("raise NotImplementedError") == 5
    assert student.TEXT_STUB in text
    assert all(not cell.outputs and cell.execution_count is None for cell in notebooks.code_cells(edition))
    assert all(cell.source.strip() for cell in edition.cells)
    nbformat.validate(edition)


def test_the_badges_go_along_and_the_lab_itself_is_unchanged(executed_path: Path) -> None:
    lab = notebooks.read(executed_path)
    edition = student.student_edition(lab)
    assert lab == notebooks.read(executed_path)
    assert edition.cells[0].source == lab.cells[0].source


def test_signatures_and_words_outside_the_markers_stay() -> None:
    solved = "    ### BEGIN SOLUTION\n    return 2 * x\n    ### END SOLUTION"
    cell = nbformat.v4.new_code_cell(f'def f(x):\n    """Double x."""\n{solved}\n\nf(1)')
    edition = student.student_edition(nbformat.v4.new_notebook(cells=[cell]))
    assert edition.cells[0].source == (f'def f(x):\n    """Double x."""\n    {student.STUB}\n\nf(1)')


@pytest.mark.parametrize(
    ("body", "blank"),
    [
        ("guess = 2.5", "guess = ..."),
        ("guess = 2.5  # bits a byte", "guess = ...  # bits a byte"),
        ("low = 1\nhigh = {\n  'a': 2,\n}", "low = ...\nhigh = ..."),
        ("a = b = 'é'  # ça", "a = b = ...  # ça"),
    ],
)
def test_guesses_are_blanked_and_their_names_stay(body: str, blank: str) -> None:
    cell = nbformat.v4.new_code_cell(
        f"### BEGIN SOLUTION\n{body}\n### END SOLUTION\nlab.predict('x', guess)",
        metadata={"tags": ["predict"]},
    )
    edition = student.student_edition(nbformat.v4.new_notebook(cells=[cell]))
    assert edition.cells[0].source == f"{blank}\nlab.predict('x', guess)"


@pytest.mark.parametrize("body", ["lab.predict('x', 2.5)", "low, high = 1, 2", "x += 1"])
def test_a_guess_that_cannot_be_blanked_is_refused(body: str) -> None:
    cell = nbformat.v4.new_code_cell(
        f"### BEGIN SOLUTION\n{body}\n### END SOLUTION", metadata={"tags": ["predict"]}
    )
    with pytest.raises(notebooks.ToolError, match="only `name = guess` may stand"):
        student.student_edition(nbformat.v4.new_notebook(cells=[cell]))


def test_cells_that_all_ranks_run_stay_as_they_are() -> None:
    source = "%%px --stuck 1\ngroup.recv(x, rank)"
    cell = nbformat.v4.new_code_cell(source, outputs=[nbformat.v4.new_output("stream", text="[stdout:0] 1")])
    edition = student.student_edition(nbformat.v4.new_notebook(cells=[cell]))
    assert edition.cells[0].source == source
    assert edition.cells[0].outputs == []


def test_markers_without_a_partner_are_refused() -> None:
    cell = nbformat.v4.new_code_cell("def f():\n    ### BEGIN SOLUTION\n    return 1")
    with pytest.raises(notebooks.ToolError, match="no end solution"):
        student.student_edition(nbformat.v4.new_notebook(cells=[cell]))


def test_a_hidden_test_that_nbgrader_grades_keeps_its_cell() -> None:
    graded = {"nbgrader": {"grade": True, "grade_id": "a", "locked": True, "points": 1, "schema_version": 3,
                           "solution": False, "task": False}}  # fmt: skip
    cell = nbformat.v4.new_code_cell(
        "### BEGIN HIDDEN TESTS\nassert True\n### END HIDDEN TESTS", metadata=graded
    )
    edition = student.student_edition(nbformat.v4.new_notebook(cells=[cell]))
    assert edition.cells[0].source.startswith("#")
    assert edition.cells[0].metadata["nbgrader"]["grade_id"] == "a"
    assert edition.cells[0].metadata["editable"] is False


def test_work_begun_in_an_edition_is_kept_and_an_untouched_one_is_renewed(
    executed_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--labs", str(executed_path.parents[1]), "--out", str(tmp_path)]
    place = tmp_path / "transformers" / "training.ipynb"
    assert student.main(arguments) == 0
    begun = notebooks.read(place)
    notebooks.code_cells(begun)[0].execution_count = 1  # run, not changed
    notebooks.write(place, begun)
    assert student.main(arguments) == 0
    assert notebooks.code_cells(notebooks.read(place))[0].execution_count is None
    begun.cells[-1].source += "\n# mine"
    notebooks.write(place, begun)
    assert student.main(arguments) == 0
    assert notebooks.read(place) == begun
    assert "kept transformers/training.ipynb" in capsys.readouterr().out


def test_the_command_writes_part_and_name_and_says_what_is_wrong(
    executed_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(executed_path.parents[1])
    assert student.main(["--labs", folder, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "transformers" / "training.ipynb").exists()
    assert student.main(["--labs", folder, "--out", str(tmp_path), "no/lab"]) == 2
    assert "known: transformers/training" in capsys.readouterr().err
