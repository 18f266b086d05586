"""What every lab must have and must not have, as checks of its notebook file; see "A lab" in CONTRIBUTING.

python tools/lint_labs.py [NAME …]     prints what is wrong, exit code 1 if anything is
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import address
import nbformat
import notebooks
from address import Address
from nbformat import NotebookNode
from normalise import alt_texts, problems_of_outputs
from notebooks import BADGES, ToolError, badges, code_cells, lab_name, tagged, tags

from scalelab.core.checks import is_number
from scalelab.core.errors import LabError
from scalelab.lab.checks import Exercise, exercises

MAX_SECONDS, MAX_CELL_SECONDS, MAX_MIB = 120, 30, 3 * 1024
MAX_BYTES, MAX_LINES, MAX_WIDTH = 1_500_000, 25, 92
MIN_EXERCISES, MIN_MISTAKES, MIN_ALT = 3, 4, 15
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
WITHOUT_RANKS = ("parameters", "setup", "exercise", "check", "hidden")
RANKS = re.compile(r"^%%?px\b|\branks\.\w|\branks\[|\blab\.ranks\(", re.MULTILINE)
BEGIN_HIDDEN, END_HIDDEN = "### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS"


@dataclass(frozen=True, slots=True)
class Lab:
    """A lab's notebook with what the rules ask of it again and again."""

    name: str
    notebook: NotebookNode
    n_bytes: int
    repository: str

    @property
    def prose(self) -> str:
        """All Markdown."""
        return "\n\n".join(cell.source for cell in self.notebook.cells if cell.cell_type == "markdown")

    @property
    def code(self) -> str:
        """All code."""
        return "\n".join(cell.source for cell in code_cells(self.notebook))

    @property
    def exercises(self) -> dict[str, Exercise]:
        """What the package can check in it; {} for a lab it does not know."""
        try:
            return dict(exercises(self.name))
        except LabError:
            return {}


def problems(path: Path, repository: str | None = None) -> list[str]:
    """Everything wrong with a lab, a line each; [] when nothing is."""
    try:
        notebook = notebooks.read(path)
        nbformat.validate(notebook)
    except (ToolError, nbformat.ValidationError) as error:
        return [f"not a valid notebook: {str(error).splitlines()[0]}"]
    lab = Lab(lab_name(path), notebook, path.stat().st_size, repository or notebooks.repository_url())
    return [problem for rule in RULES for problem in rule(lab)]


def opening(lab: Lab) -> Iterator[str]:
    """Title, badges that say what was measured, and a question before the first code."""
    first = lab.notebook.cells[0] if lab.notebook.cells else None
    if first is None or first.cell_type != "markdown" or not re.match(r"# \S", first.source):
        yield "the first cell must be Markdown that begins with a title, '# …'"
        return
    found = BADGES.search(first.source)
    if not found:
        yield "the first cell lacks the lines between '<!-- badges -->' and '<!-- /badges -->'"
    elif "badges -->" in BADGES.sub("", first.source):
        yield "the first cell has a second '<!-- badges -->' or '<!-- /badges -->'"
    elif found[0] != badges(lab.name, lab.notebook.metadata.get("scalelab", {}), lab.repository):
        yield "its badges do not say what is stored: run `make labs`"
    before_code = []
    for cell in lab.notebook.cells:
        if cell.cell_type == "code":
            break
        before_code.append(BADGES.sub("", cell.source))
    if "?" not in "\n".join(before_code):
        yield "no question is asked before the first code cell"


def setting_up(lab: Lab) -> Iterator[str]:
    """One parameters cell, one set-up cell that installs on Colab and starts this lab."""
    for tag in ("parameters", "setup"):
        count = len(tagged(lab.notebook, tag))
        if count == 0 or (tag == "parameters" and count > 1):
            yield f"{count} cells are tagged {tag!r}; " + (
                "one is needed" if count == 0 else "one is allowed"
            )
    started = [cell for cell in tagged(lab.notebook, "setup") if "lab.start(" in cell.source]
    if len(started) != 1:
        yield "exactly one set-up cell must call scalelab.lab.start(…)"
    elif f'"{lab.name}"' not in started[0].source:
        yield f'the set-up cell must start this lab: scalelab.lab.start("{lab.name}", …)'
    elif not re.search("colab", "\n".join(c.source for c in tagged(lab.notebook, "setup")), re.IGNORECASE):
        yield "no set-up cell installs the package on Colab"
    else:
        expected = Address.parse(lab.repository).install_line(address.version())
        found = [line.strip() for line in lab.code.splitlines() if "pip install" in line]
        if found != [expected]:
            yield f"the set-up cell must install by the line {expected!r}, once: run `make stamp`"
    for number, cell in enumerate(code_cells(lab.notebook), start=1):
        if set(tags(cell)) & set(WITHOUT_RANKS) and RANKS.search(cell.source):
            yield (
                f"code cell {number} is tagged {tags(cell)[0]!r} and uses ranks: such cells are also run by "
                "themselves, where none were started; use a cell of its own, without these tags"
            )
    if re.search(r"\blab\.tier\b", lab.code):
        yield "code depends on lab.tier: use lab.budget(cpu=…, gpu=…), so that both tiers run the same cells"


def predicting(lab: Lab) -> Iterator[str]:
    """At least one prediction, each in a predict cell with a guess to clear, before it is measured."""
    predicted = _calls(lab, "predict")
    measured = _calls(lab, "measured")
    if not predicted:
        yield "nothing is predicted: lab.predict(…) in a cell tagged 'predict'"
    for name, place in predicted.items():
        cell = code_cells(lab.notebook)[place]
        if "predict" not in tags(cell):
            yield f"lab.predict({name!r}, …) stands in a cell that is not tagged 'predict'"
        if BEGIN not in cell.source or END not in cell.source:
            yield f"the guess of {name!r} must stand between the solution markers, or it is given away"
        if name not in measured:
            yield f"{name!r} is predicted and never measured: lab.measured({name!r}, …)"
        elif measured[name] < place:
            yield f"{name!r} is measured before it is predicted"


def exercising(lab: Lab) -> Iterator[str]:
    """Three exercises or more, each with starter, solution, a check that knows mistakes, hidden test."""
    cells = code_cells(lab.notebook)
    written = {name: i for i, cell in enumerate(cells) for name in _defined(cell) if "exercise" in tags(cell)}
    checked = {name: i for i, cell in enumerate(cells) for name in _checked(cell)}
    if len(checked) < MIN_EXERCISES:
        yield f"{len(checked)} exercises are checked, and {MIN_EXERCISES} are the least"
    for name in checked:
        yield from _exercise(lab, name, written.get(name), checked[name])
    for name in lab.exercises:
        if name not in checked:
            yield f"the package has an exercise {name!r}, and no cell calls lab.check.{name}(…)"
    for number, cell in enumerate(cells, start=1):
        if "exercise" in tags(cell) and not (BEGIN in cell.source and END in cell.source):
            yield f"code cell {number} is tagged 'exercise' and has no {BEGIN} … {END}"
        if _checked(cell) and "check" not in tags(cell):
            yield f"code cell {number} checks an answer and is not tagged 'check'"


def _exercise(lab: Lab, name: str, written: int | None, checked: int) -> Iterator[str]:
    exercise = lab.exercises.get(name)
    if exercise is None:
        yield f"lab.check.{name}: the package knows no such exercise of this lab"
    elif len(exercise.mistakes) < MIN_MISTAKES:
        yield f"the check of {name} knows {len(exercise.mistakes)} mistakes, and {MIN_MISTAKES} are the least"
    if written is None or written > checked:
        yield f"no cell tagged 'exercise' before the check defines {name}"
    source = code_cells(lab.notebook)[checked].source
    if not re.search(rf"^{name} = lab\.check\.{name}\({name}\)", source, re.MULTILINE):
        yield f"the check of {name} must read `{name} = lab.check.{name}({name})`, so that the lab goes on"
    hidden = re.compile(rf"{BEGIN_HIDDEN}.*?lab\.hidden_test\(\s*[\"']{name}[\"'].*?{END_HIDDEN}", re.DOTALL)
    if not any(hidden.search(cell.source) for cell in code_cells(lab.notebook)[checked:]):
        yield f'no cell after the check holds `lab.hidden_test("{name}")` between the hidden-test markers'


def finishing(lab: Lab) -> Iterator[str]:
    """It asserts its finding, ends with the report, and shows the way to its chapter."""
    cells = code_cells(lab.notebook)
    if not cells or "lab.report(" not in cells[-1].source:
        yield "the last code cell must be lab.report()"
    if not re.search(r"^\s*assert ", lab.code, re.MULTILINE):
        yield "nothing is asserted: the lab's finding must be, so that it cannot go stale unseen"
    if f"book/{lab.name}" not in lab.prose:
        yield f"no link leads to its chapter, book/{lab.name}.md"


def outputs(lab: Lab) -> Iterator[str]:
    """Executed from top to bottom without errors, with nothing private, each figure put into words."""
    cells = code_cells(lab.notebook)
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        yield "it was not executed from top to bottom: run `make labs`"
    for number, cell in enumerate(cells, start=1):
        if {"check", "measure"} & set(tags(cell)) and not cell.outputs:
            yield f"code cell {number} has no output"
        alts = alt_texts(cell)
        if any(alt is None or len(alt) < MIN_ALT for alt in alts):
            yield f"code cell {number} shows a figure without alternative text: use lab.show(figure, alt=…)"
        elif len(alts) > 1:
            yield f"code cell {number} shows {len(alts)} figures: one a cell, for the book's alternative text"
        elif alts and cell.metadata.get("mystnb", {}).get("image", {}).get("alt") != alts[0]:
            yield f"code cell {number}: the book's alternative text is not the figure's: run `make labs`"
    yield from problems_of_outputs(lab.notebook)


def budget(lab: Lab) -> Iterator[str]:
    """The stored figures of the cpu tier keep to the limits, and so do file and cells."""
    figures = lab.notebook.metadata.get("scalelab", {}).get("cpu")
    if not figures:
        yield "no cost is stored: run `make labs`"
    else:
        for key, limit in (
            ("seconds", MAX_SECONDS),
            ("longest_cell_seconds", MAX_CELL_SECONDS),
            ("peak_mib", MAX_MIB),
        ):
            value = figures.get(key)
            if not (is_number(value) and 0 <= value <= limit):
                yield f"{key} is {value!r} at the cpu tier; the limit is {limit}"
    if lab.n_bytes > MAX_BYTES:
        yield f"the file has {lab.n_bytes:,} bytes; the limit is {MAX_BYTES:,}"
    for number, cell in enumerate(code_cells(lab.notebook), start=1):
        lines = len(cell.source.splitlines())
        if lines > MAX_LINES:
            yield f"code cell {number} has {lines} lines; the limit is {MAX_LINES}"
        for line in cell.source.splitlines():
            if len(line) > MAX_WIDTH and not line.lstrip().startswith("!pip "):
                yield f"code cell {number}: wider than {MAX_WIDTH} characters, pages cut it: {line[:50]!r} …"


RULES: tuple[Callable[[Lab], Iterator[str]], ...] = (
    opening,
    setting_up,
    predicting,
    exercising,
    finishing,
    outputs,
    budget,
)


def _calls(lab: Lab, method: str) -> dict[str, int]:
    """First argument of each `lab.<method>("…")` → the first code cell it stands in."""
    found: dict[str, int] = {}
    for place, cell in enumerate(code_cells(lab.notebook)):
        for name in re.findall(rf"\blab\.{method}\(\s*[\"']([^\"']+)[\"']", cell.source):
            found.setdefault(name, place)
    return found


def _checked(cell: NotebookNode) -> list[str]:
    return re.findall(r"\blab\.check\.(\w+)\(", cell.source)


def _defined(cell: NotebookNode) -> list[str]:
    try:
        tree = ast.parse(cell.source)
    except SyntaxError:  # magics; an exercise has none
        return []
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="part/name of a lab; all when none is given")
    options = parser.parse_args(arguments)
    try:
        paths = notebooks.find_labs(options.names)
    except ToolError as error:
        print(f"lint: {error}", file=sys.stderr)
        return 2
    found = [f"{lab_name(path)}: {problem}" for path in paths for problem in problems(path)]
    print("\n".join(found) or f"{len(paths)} labs, nothing wrong")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
