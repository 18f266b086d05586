"""Rows in aligned columns: names to the left, figures to the right."""

from __future__ import annotations

from collections.abc import Sequence


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A titled table; the first cell of a row is its name, the others are right-aligned.

    Args:
        title: stands in the head of the first column.
        columns: heads of the other columns.
        rows: cells, a name and one for each of `columns`.
    """
    heads = [title, *columns]
    widths = [max(len(head), *(len(row[i]) for row in rows)) for i, head in enumerate(heads)]
    lines = [heads, *([f"  {row[0]}", *row[1:]] for row in rows)]
    widths[0] = max(len(line[0]) for line in lines)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
