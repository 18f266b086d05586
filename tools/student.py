"""Make the student edition of labs: no solutions, no hidden tests, no outputs, no guesses made for them.

    python tools/student.py            every lab, into _build/student/<part>/<name>.ipynb
    python tools/student.py NAME …     those named

nbgrader's own preprocessors do the clearing, so a teacher who grades with nbgrader gets the same.
A notebook that somebody has worked in is never written over.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import json
import re
import sys
import textwrap
from pathlib import Path

import notebooks
from nbconvert.preprocessors import ClearOutputPreprocessor
from nbformat import NotebookNode
from nbgrader.preprocessors import ClearHiddenTests, ClearMarkScheme, ClearSolutions, LockCells
from notebooks import ToolError, lab_name, tags
from traitlets.config import Config

STUB = 'raise NotImplementedError("write this, then run this cell and the next")'
TEXT_STUB = "*Write your answer here.*"
MARK = "scalelab_student"  # notebook metadata: the fingerprint of the edition as it was written
REGION = re.compile(
    r"^(?P<indent>[ \t]*)### BEGIN SOLUTION[^\n]*\n(?P<body>.*?)^[ \t]*### END SOLUTION[^\n]*\n?",
    re.DOTALL | re.MULTILINE,
)


def student_edition(notebook: NotebookNode) -> NotebookNode:
    """A copy of a lab for learners; the lab itself stays as it is.

    Raises:
        ToolError: a marker without its partner, or a guess that is not a plain assignment.
    """
    edition = copy.deepcopy(notebook)
    for cell in edition.cells:
        if "predict" in tags(cell) and cell.cell_type == "code":
            cell.source = _blank_guesses(cell.source)
        if "solution" in tags(cell) and cell.cell_type == "markdown" and "### BEGIN" not in cell.source:
            cell.source = TEXT_STUB
    _clear(edition)
    edition.cells = [cell for cell in edition.cells if cell.source.strip() or "nbgrader" in cell.metadata]
    for cell in edition.cells:
        cell.metadata.pop("mystnb", None)  # alternative texts of figures that are not there yet
        if not cell.source.strip():
            cell.source = "# Tests that are not shown run here when this is graded."
    return edition


def write_edition(target: Path, edition: NotebookNode) -> bool:
    """Write an edition, unless the notebook that is there holds somebody's work; whether it was written."""
    if target.exists() and not _is_untouched(target):
        return False
    edition.metadata[MARK] = _fingerprint(edition)
    notebooks.write(target, edition)
    return True


def _is_untouched(path: Path) -> bool:
    """Whether all cells of a notebook read as this tool wrote them; it may have been run."""
    try:
        found = notebooks.read(path)
    except ToolError:
        return False
    return bool(found.metadata.get(MARK) == _fingerprint(found))


def _fingerprint(edition: NotebookNode) -> str:
    cells = [[cell.cell_type, cell.source] for cell in edition.cells]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:16]


def _clear(edition: NotebookNode) -> None:
    settings = Config()
    settings.ClearSolutions.code_stub = {"python": STUB}
    settings.ClearSolutions.text_stub = TEXT_STUB
    settings.ClearSolutions.enforce_metadata = False
    settings.ClearHiddenTests.enforce_metadata = False
    for preprocessor in (
        ClearSolutions, ClearHiddenTests, ClearMarkScheme, LockCells, ClearOutputPreprocessor,
    ):  # fmt: skip
        try:
            preprocessor(config=settings).preprocess(edition, {})
        except RuntimeError as error:  # nbgrader's word for markers that do not pair up
            raise ToolError(str(error)) from None


def _blank_guesses(source: str) -> str:
    """Replace the value of each assignment between the solution markers by `...`.

    Raises:
        ToolError: something else than assignments of names stands there.
    """
    return REGION.sub(lambda match: _blank(match["body"], match["indent"]), source)


def _blank(body: str, indent: str) -> str:
    code = textwrap.dedent(body)
    lines = []
    for statement in ast.parse(code).body:
        if not isinstance(statement, ast.Assign) or not all(
            isinstance(target, ast.Name) for target in statement.targets
        ):
            shown = ast.unparse(statement)
            raise ToolError(
                f"between the solution markers of a predict cell only `name = guess` may stand, got {shown!r}"
            )
        names = " = ".join(ast.unparse(target) for target in statement.targets)
        last_line = code.split("\n")[(statement.end_lineno or 1) - 1]
        remark = last_line.encode()[statement.end_col_offset :].decode().strip()
        lines.append(f"{indent}{names} = ..." + (f"  {remark}" if remark.startswith("#") else ""))
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="part/name of a lab; all when none is given")
    parser.add_argument("--labs", type=Path, default=notebooks.LABS, help="folder of labs (default: labs/)")
    parser.add_argument("--out", type=Path, default=notebooks.ROOT / "_build" / "student")
    options = parser.parse_args(arguments)
    try:
        for path in notebooks.find_labs(options.names, options.labs):
            try:
                edition = student_edition(notebooks.read(path))
            except ToolError as error:
                raise ToolError(f"{lab_name(path)}: {error}") from None
            target = options.out / f"{lab_name(path)}.ipynb"
            if write_edition(target, edition):
                print(f"wrote {lab_name(path)}.ipynb")
            else:
                print(f"kept {lab_name(path)}.ipynb: somebody has worked in it; rename it to get a fresh one")
    except ToolError as error:
        print(f"student: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
