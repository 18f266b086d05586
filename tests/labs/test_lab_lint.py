"""The lint passes a whole lab, and finds each way to break one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lint_labs
import nbformat
import notebooks
import pytest
from nbformat import NotebookNode

Broken = Callable[[Callable[[NotebookNode], object]], list[str]]


def cell_with(notebook: NotebookNode, text: str) -> NotebookNode:
    return next(cell for cell in notebook.cells if text in cell.source)


def replace(old: str, new: str) -> Callable[[NotebookNode], None]:
    """A change of the first cell that holds `old`."""

    def change(notebook: NotebookNode) -> None:
        cell = cell_with(notebook, old)
        cell.source = cell.source.replace(old, new)

    return change


def drop(text: str) -> Callable[[NotebookNode], None]:
    return lambda notebook: notebook.cells.remove(cell_with(notebook, text))


def retag(text: str, *tags: str) -> Callable[[NotebookNode], None]:
    return lambda notebook: cell_with(notebook, text).metadata.update(tags=list(tags))


def figure(**values: Any) -> Callable[[NotebookNode], None]:
    return lambda notebook: notebook.metadata["scalelab"]["cpu"].update(values)


def output(*outputs: NotebookNode) -> Callable[[NotebookNode], None]:
    return lambda notebook: cell_with(notebook, "lab.measured(").outputs.extend(outputs)


def printed(text: str, name: str = "stdout") -> NotebookNode:
    return nbformat.v4.new_output("stream", name=name, text=text)


def without_alt(notebook: NotebookNode) -> None:
    cell_with(notebook, "lab.show(").outputs[0].metadata["image/png"].pop("alt")


def two_figures(notebook: NotebookNode) -> None:
    cell = cell_with(notebook, "lab.show(")
    cell.outputs.append(cell.outputs[0])


def swap_predict_and_measure(notebook: NotebookNode) -> None:
    cells = notebook.cells
    first, second = (cells.index(cell_with(notebook, text)) for text in ("lab.predict(", "lab.measured("))
    cells[first], cells[second] = cells[second], cells[first]


def test_a_whole_lab_passes(executed_path: Path) -> None:
    assert lint_labs.problems(executed_path) == []


def test_cells_that_all_ranks_run_break_no_rule(broken: Broken) -> None:
    def change(notebook: NotebookNode) -> None:
        said = printed("[stdout:0] 0\n[stdout:1] 1\n")
        cell = nbformat.v4.new_code_cell("%%px\nprint(rank)", outputs=[said], metadata={"tags": ["measure"]})
        notebook.cells.insert(-1, cell)
        for count, each in enumerate(notebooks.code_cells(notebook), start=1):
            each.execution_count = count

    assert broken(change) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (replace("# A sample", "A sample"), "begins with a title"),
        (replace("<!-- /badges -->", ""), "lacks the lines between"),
        (replace("<!-- /badges -->", "<!-- /badges -->\n<!-- /badges -->"), "has a second"),
        (replace("Open in Colab", "Run in Colab"), "badges do not say what is stored"),
        (figure(seconds=1.0), "badges do not say what is stored"),
        (replace("How large is a loss at first?", "Losses."), "no question"),
        (retag("SEED = 0"), "0 cells are tagged 'parameters'"),
        (retag("lab.report()", "parameters"), "2 cells are tagged 'parameters'"),
        (retag("lab.start("), "0 cells are tagged 'setup'"),
        (replace("transformers/training", "transformers/basics"), "badges do not say"),
        (replace('start("transformers/training"', 'start("transformers/basics"'), "must start this lab"),
        (replace("google.colab", "google.cloud"), "installs the package on Colab"),
        (replace("@v", "@w"), "must install by the line '!pip install -q"),
        (replace("    !pip", "    !pip install numpy\n    !pip"), "once: run `make stamp`"),
        (replace("lab.report()", 'if lab.tier == "gpu":\n    lab.report()'), "lab.budget"),
        (replace("import math", "import math\nranks = lab.ranks(4)"), "is tagged 'setup' and uses ranks"),
        (replace("def step_bill", "ranks.push(a=1)\ndef step_bill"), "is tagged 'exercise' and uses ranks"),
        (replace("step_bill = lab", "%px 1\nstep_bill = lab"), "is tagged 'check' and uses ranks"),
        (drop("lab.predict("), "nothing is predicted"),
        (retag("lab.predict(", "measure"), "not tagged 'predict'"),
        (replace("### BEGIN SOLUTION\nguess", "guess"), "given away"),
        (replace("lab.measured(", "print("), "never measured"),
        (swap_predict_and_measure, "measured before it is predicted"),
        (retag("def step_bill"), "no cell tagged 'exercise' before the check defines step_bill"),
        (replace("    ### END SOLUTION", "    "), "tagged 'exercise' and has no"),
        (
            replace("step_bill = lab.check.step_bill(step_bill)", "lab.check.step_bill(step_bill)"),
            "must read",
        ),
        (replace("= lab.check.step_bill(", "= lab.check.bill("), "knows no such exercise"),
        (retag("lab.check.step_bill("), "not tagged 'check'"),
        (drop("lab.check.step_bill("), "has an exercise 'step_bill', and no cell calls"),
        (drop('lab.hidden_test("step_bill"'), 'holds `lab.hidden_test("step_bill")`'),
        (replace("### BEGIN HIDDEN TESTS", "#"), "hidden-test markers"),
        (drop("lab.report()"), "last code cell must be lab.report()"),
        (replace("assert ", "print(1) # "), "nothing is asserted"),
        (replace("book/transformers/training.md", "README.md"), "no link leads to its chapter"),
        (lambda nb: cell_with(nb, "lab.report()").update(execution_count=None), "not executed from top"),
        (lambda nb: cell_with(nb, "lab.check.step_bill(").update(outputs=[]), "has no output"),
        (without_alt, "without alternative text"),
        (two_figures, "one a cell"),
        (lambda nb: cell_with(nb, "lab.show(").metadata.pop("mystnb"), "alternative text is not"),
        (output(nbformat.v4.new_output("error", ename="E", evalue="bad", traceback=[])), "raised E: bad"),
        (output(printed("UserWarning: odd", "stderr")), "wrote to stderr"),
        (output(printed("saved to /home/ada/runs/1")), "path of this machine: /home/ada"),
        (output(printed(f"in {notebooks.ROOT}/labs")), "path of this machine"),
        (output(printed(r"in C:\Users\ada")), "path of this machine"),
        (output(printed("<Decoder at 0x7f3a2b1c4d50>")), "address in memory"),
        (
            output(
                nbformat.v4.new_output(
                    "display_data", data={"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}
                )
            ),
            "widget",
        ),
        (lambda nb: nb.metadata.pop("scalelab"), "no cost is stored"),
        (figure(seconds=121.0), "seconds is 121.0"),
        (figure(longest_cell_seconds=30.5), "longest_cell_seconds is 30.5"),
        (figure(peak_mib=3073), "peak_mib is 3073"),
        (figure(seconds=float("nan")), "seconds is nan"),
        (figure(seconds="fast", peak_mib=None), "seconds is 'fast'"),
        (output(printed("x" * 1_500_000)), "bytes; the limit is"),
        (replace("SEED = 0", "SEED = 0" + "\n" * 25 + "x = 1"), "has 26 lines"),
        (replace("SEED = 0", "SEED = 0  # " + "x" * 81), "wider than 92 characters"),
    ],
)
def test_a_broken_lab_is_told_what_is_wrong(
    broken: Broken, change: Callable[[NotebookNode], object], said: str
) -> None:
    found = broken(change)
    assert any(said in problem for problem in found), found


def test_fewer_than_three_exercises_are_too_few(broken: Broken) -> None:
    def change(notebook: NotebookNode) -> None:
        notebook.cells = [cell for cell in notebook.cells if "check." not in cell.source]

    assert any(problem.startswith("0 exercises are checked") for problem in broken(change))


def test_text_that_is_no_notebook_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "part" / "name.ipynb"
    path.parent.mkdir()
    for content in ("", "{}", "text", '{"cells": 3, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}'):
        path.write_text(content)
        assert lint_labs.problems(path)[0].startswith("not a valid notebook")


def test_links_and_fractions_are_not_taken_for_paths(broken: Broken) -> None:
    text = "see https://github.com/home/page, 3/4, and/or src/usr/x, tokens/s, book/var/x.md\n"
    assert broken(output(printed(text))) == []
