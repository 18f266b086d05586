"""Notebooks of labs as files: where they are, how they are read, written and addressed, what badges say."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import address
import nbformat
from address import STUDENT_BRANCH, Address
from nbformat import NotebookNode

from scalelab.core.artifacts import write_atomic
from scalelab.core.checks import is_number
from scalelab.core.units import format_seconds

ROOT = Path(__file__).resolve().parent.parent
LABS = ROOT / "labs"
BADGES = re.compile(r"<!-- badges -->\n.*?<!-- /badges -->", re.DOTALL)


class ToolError(Exception):
    """A notebook that cannot be used as it is; the text says what to change in it."""


def repository_url(root: Path = ROOT) -> str:
    """The repository's address: the one setting is `Homepage` in pyproject.toml's project.urls."""
    return address.repository(root).repository


def find_labs(names: Iterable[str] = (), labs: Path = LABS) -> list[Path]:
    """The notebooks of the labs named ("part/name" or a path), or of all.

    Raises:
        ToolError: there is none of that name.
    """
    known = {lab_name(path): path for path in sorted(labs.glob("*/*.ipynb"))}
    chosen = []
    for name in names:
        short = lab_name(Path(name)) if name.endswith(".ipynb") else name.strip("/")
        if short not in known:
            raise ToolError(f"no lab {name!r} under {labs.name}/; known: {', '.join(known) or 'none'}")
        chosen.append(known[short])
    return chosen or list(known.values())


def lab_name(path: Path) -> str:
    """ "part/name" of a notebook labs/part/name.ipynb."""
    return f"{path.parent.name}/{path.stem}"


def read(path: Path) -> NotebookNode:
    """A notebook in nbformat 4.

    Raises:
        ToolError: missing, or not a notebook.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        # nbformat gives missing ids at random, so that each reading would differ: give them before it can.
        _give_ids(raw["cells"])
        return nbformat.reads(json.dumps(raw), as_version=4)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ToolError(f"{path.name} cannot be read as a notebook: {error!r}") from None


def write(path: Path, notebook: NotebookNode) -> None:
    """Write a notebook so that a crash leaves the old one whole."""
    nbformat.validate(notebook)
    write_atomic(path, (nbformat.writes(notebook).rstrip("\n") + "\n").encode("utf-8"))


def tags(cell: NotebookNode) -> list[str]:
    """A cell's tags."""
    return list(cell.metadata.get("tags", []))


def tagged(notebook: NotebookNode, *names: str) -> list[NotebookNode]:
    """The cells that have any of these tags, in order."""
    return [cell for cell in notebook.cells if set(tags(cell)) & set(names)]


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The code cells, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def badges(name: str, figures: dict[str, Any], repository: str) -> str:
    """The lines between a lab's badge markers: where to open it, and what it costs.

    Text links only: a badge drawn by another host would make every reader's page ask that host.
    """
    course = Address.parse(repository)
    links = (
        f"[Open in Colab]({course.student_in_colab(name)})",
        f"[in Colab, with solutions]({course.colab}/blob/main/labs/{name}.ipynb)",
        f"[download]({course.raw}/{STUDENT_BRANCH}/{name}.ipynb)",
    )
    return (
        "<!-- badges -->\n"
        + " · ".join(links)
        + f"\\\nMeasured: {_cost(figures.get('cpu'), 'on 2 CPU cores')}; "
        + f"{_cost(figures.get('gpu'), 'on a GPU')}.\n<!-- /badges -->"
    )


def set_badges(notebook: NotebookNode, name: str, repository: str) -> None:
    """Rewrite the badge lines of the first cell from the notebook's stored figures.

    Raises:
        ToolError: the first cell is not Markdown with the two markers.
    """
    first = notebook.cells[0] if notebook.cells else None
    if first is None or first.cell_type != "markdown" or not BADGES.search(first.source):
        raise ToolError(
            f"{name}: the first cell must be Markdown that holds '<!-- badges -->' and, on a line after it, "
            "'<!-- /badges -->'"
        )
    lines = badges(name, notebook.metadata.get("scalelab", {}), repository)
    first.source = BADGES.sub(lambda _: lines, first.source, count=1)


def text_of(output: NotebookNode) -> str:
    """All text a reader sees of one output."""
    if output.output_type == "stream":
        return str(output.text)
    if output.output_type == "error":
        return "\n".join([output.ename, output.evalue, *output.traceback])
    parts: Sequence[Any] = [
        value for mime, value in output.get("data", {}).items() if mime.startswith("text/")
    ]
    return "\n".join("".join(part) for part in parts)


def give_ids(notebook: NotebookNode) -> None:
    """Keep each cell's id; a missing or repeated one is replaced by a hash of its place and kind."""
    _give_ids(notebook.cells)


def _give_ids(cells: list[dict[str, Any]]) -> None:
    seen: set[str] = set()
    for place, cell in enumerate(cells):
        if not cell.get("id") or cell["id"] in seen:
            text = f"{place} {cell['cell_type']} {''.join(cell['source'])}"
            cell["id"] = hashlib.sha256(text.encode()).hexdigest()[:8]
        seen.add(cell["id"])


def _cost(figure: dict[str, Any] | None, where: str) -> str:
    if not figure or not all(is_number(figure.get(key)) for key in ("seconds", "peak_mib")):
        return f"not measured {where}"
    machine = f" ({figure['machine']})" if where == "on a GPU" else ""
    return f"{format_seconds(figure['seconds'])} and {figure['peak_mib'] / 1024:.1f} GiB {where}{machine}"
