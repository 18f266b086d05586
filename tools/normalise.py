"""What of an executed notebook is kept, so that running it again changes little, and tells nothing private.

Kept: outputs, counts from 1, cell ids, tags, alternative texts. Gone: times of execution, progress
bars, widgets, the kernel's version. Refused: errors, warnings, addresses in memory, paths of a machine.
"""

from __future__ import annotations

import getpass
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from nbformat import NotebookNode
from notebooks import ROOT, code_cells, give_ids, tags, text_of

KEPT_CELL_METADATA = ("tags", "mystnb", "nbgrader", "editable", "deletable", "slideshow")
FOLDED = {"exercise": "a solution", "predict": "a guess"}  # tags of cells whose code the book folds
WIDGET = "application/vnd.jupyter.widget-view+json"
# Paths that look like somebody's machine, whichever it is.
PATH = re.compile(
    r"(?<![\w.:/])/(?:home|root|Users|tmp|var|usr|opt|mnt|work|workspace|content|private)/[\w.\-]+"
    r"|\b[A-Z]:\\\\?\w"
)
ADDRESS = re.compile(r"\b0x[0-9a-f]{8,}\b")
PROGRESS = re.compile(r"\d+%\|.*\||it/s|s/it")


def normalise(notebook: NotebookNode) -> None:
    """Bring a notebook into the form in which it is committed, in place."""
    saved = notebook.metadata.get("scalelab")
    notebook.metadata.clear()
    notebook.metadata.update(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            # The lexer that knows `!pip` and `%magic`: with plain "python" the site would warn of them.
            "language_info": {"name": "python", "pygments_lexer": "ipython3"},
        }
    )
    if saved is not None:
        notebook.metadata["scalelab"] = saved
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    give_ids(notebook)
    for count, cell in enumerate(code_cells(notebook), start=1):
        cell.execution_count = count
        cell.outputs = [output for output in map(_clean, cell.outputs) if output is not None]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    for cell in notebook.cells:
        cell.metadata = type(cell.metadata)(
            {key: cell.metadata[key] for key in KEPT_CELL_METADATA if key in cell.metadata}
        )
        _carry_alt(cell)
        _name_fold(cell)


def alt_texts(cell: NotebookNode) -> list[str | None]:
    """The alternative text of each image among a cell's outputs, None where it has none."""
    texts: list[str | None] = []
    for output in cell.get("outputs", []):
        for mime in output.get("data", {}):
            if mime.startswith("image/"):
                alt = output.get("metadata", {}).get(mime, {}).get("alt")
                texts.append(alt or None)
    return texts


def problems_of_outputs(notebook: NotebookNode, private: Sequence[str] = ()) -> list[str]:
    """What keeps a notebook's outputs from being published, each with its cell; [] when nothing does.

    Args:
        private: texts, besides this machine's own paths, that no output may hold.
    """
    problems = []
    for number, cell in enumerate(code_cells(notebook), start=1):
        for output in cell.outputs:
            problems += [f"code cell {number}: {problem}" for problem in _problems(output, private)]
    return problems


def _problems(output: NotebookNode, private: Sequence[str]) -> Iterator[str]:
    text = text_of(output)
    if output.output_type == "error":
        yield f"it raised {output.ename}: {output.evalue.splitlines()[0] if output.evalue else ''}"
        return
    if output.output_type == "stream" and output.name == "stderr":
        yield f"it wrote to stderr: {text.strip()[:200]}"
    if WIDGET in output.get("data", {}):
        yield "it shows a widget, which no page can show; print instead"
    for found in _private_texts(text, private):
        yield f"its output holds a path of this machine: {found}"
    address = ADDRESS.search(text)
    if address:
        yield f"its output holds an address in memory, another on each run: {address[0]}"


def _private_texts(text: str, private: Sequence[str]) -> Iterator[str]:
    here = {str(ROOT), str(Path.home()), sys.prefix, tempfile.gettempdir(), *private} - {"/", ""}
    for known in sorted(here):
        if known in text:
            yield known
            return
    found = PATH.search(text)
    if found:
        yield found[0]
    user = getpass.getuser()
    if len(user) > 4 and re.search(rf"\b{re.escape(user)}\b", text):
        yield user


def _clean(output: NotebookNode) -> NotebookNode | None:
    """An output without what changes from run to run; None when nothing of it is left."""
    if output.output_type == "stream":
        output.text = _without_progress(output.text)
        return output if output.text else None
    if WIDGET in output.get("data", {}):
        # tqdm's bar in notebooks: a widget with a text beside it.
        return None if PROGRESS.search(text_of(output)) else output
    output.get("metadata", {}).pop("isolated", None)
    return output


def _without_progress(text: str) -> str:
    r"""What a terminal shows in the end: \r starts a line over; a finished bar is no result."""
    lines = []
    for line in text.split("\n"):
        drawn_over = "\r" in line
        last = next((part for part in reversed(line.split("\r")) if part.strip()), "") if drawn_over else line
        if not (drawn_over and (PROGRESS.search(last) or not last.strip())):
            lines.append(last)
    return "\n".join(lines) if any(line.strip() for line in lines) else ""


def _carry_alt(cell: NotebookNode) -> None:
    """Copy an image's alternative text to where the book reads it: the cell's metadata."""
    texts = [text for text in alt_texts(cell) if text]
    settings = {key: value for key, value in cell.metadata.get("mystnb", {}).items() if key != "image"}
    if texts:
        settings["image"] = {"alt": " ".join(texts)}
    cell.metadata.pop("mystnb", None)
    if settings:
        cell.metadata["mystnb"] = settings


def _name_fold(cell: NotebookNode) -> None:
    """What the book's fold over a cell says: "the source" would not tell a solution from a guess."""
    for tag, name in FOLDED.items():
        if tag in tags(cell):
            cell.metadata.setdefault("mystnb", {})["code_prompt_show"] = f"Show {name}"
            cell.metadata["mystnb"]["code_prompt_hide"] = f"Hide {name}"
