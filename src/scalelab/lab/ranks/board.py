"""A board that all ranks of one machine see at once: a line for each rank, in a file mapped into memory.

A rank that waits writes what for; whoever looks finds it there, even when that rank hears nothing any more.
"""

from __future__ import annotations

import mmap
from pathlib import Path

ROW_BYTES = 256


class FileBoard:
    """A row of text for each rank (`scalelab.parallel.scratch.torch_group.Board`).

    Args:
        path: of the file, which `create` has made. size: how many rows.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._size = size
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size * ROW_BYTES)

    @classmethod
    def create(cls, path: Path, size: int) -> FileBoard:
        """An empty board; who still has the one of before writes to that, and not to this."""
        new = path.with_suffix(".new")
        new.write_bytes(bytes(size * ROW_BYTES))
        new.replace(path)
        return cls(path, size)

    def write(self, rank: int, words: str) -> None:
        """Put words into a rank's row, cut to its length."""
        row = words.encode()[: ROW_BYTES - 1].ljust(ROW_BYTES, b"\0")
        self._map[rank * ROW_BYTES : (rank + 1) * ROW_BYTES] = row

    def read(self) -> list[str]:
        """What stands in each row; a row that is being written may be torn."""
        content = bytes(self._map)
        rows = [content[start : start + ROW_BYTES] for start in range(0, len(content), ROW_BYTES)]
        return [row.split(b"\0", 1)[0].decode(errors="replace") for row in rows]


def board_file(folder: Path) -> Path:
    """Where the board of the ranks is that have this folder."""
    return folder / "board"
