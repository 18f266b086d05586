"""`%%px`: a cell that every rank runs; `%px`: a line."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from IPython.core.error import UsageError
from IPython.core.getipython import get_ipython
from IPython.core.magic import no_var_expand

from scalelab.lab.ranks.ranks import STUCK_S, Ranks

TARGETS = re.compile(r"\d+(,\d+)*|\d*:\d*|all")


def register(ranks: Ranks) -> None:
    """Have `%%px` and `%px` mean these ranks, in place of older ones; does nothing outside of a notebook."""
    shell: Any = get_ipython()
    if shell is None:
        return

    @no_var_expand
    def px(line: str, cell: str | None = None) -> None:
        """Run the rest of the line (%px) or the cell (%%px) on every rank.

        %%px [--targets RANKS] [--local] [--stuck [SECONDS]]

        --targets: only these ranks: 0 or 0,2 or 1:3.
        --local: the notebook's kernel runs the cell too, after the ranks.
        --stuck: the ranks are expected to wait in vain; prints who waits for whom after so many seconds.
        """
        if cell is None:
            ranks.run_cell(line)
            return
        options = _parse(line)
        ranks.run_cell(cell, _targets(options.targets, ranks.size), stuck_s=options.stuck)
        if options.local and not shell.run_cell(cell, store_history=False).success:
            raise UsageError("the ranks have run the cell; here it raised what is shown above")

    shell.register_magic_function(px, magic_kind="line_cell", magic_name="px")


def _parse(line: str) -> argparse.Namespace:
    parser = _Parser(prog="%%px", add_help=False)
    parser.add_argument("--targets", "-t", default="all")
    parser.add_argument("--local", action="store_true")
    parser.add_argument("--stuck", nargs="?", type=float, const=STUCK_S)
    return parser.parse_args(line.split())


class _Parser(argparse.ArgumentParser):
    """argparse ends the program at a mistake; a cell shall only turn red."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"%%px: {message}; it takes --targets RANKS, --local, --stuck [SECONDS]")


def _targets(said: str, size: int) -> list[int]:
    """Ranks from "all", "0,2" or "1:3".

    Raises:
        UsageError: it is none of these.
    """
    if not TARGETS.fullmatch(said):
        raise UsageError(f"%%px --targets takes ranks such as 0 or 0,2 or 1:3, got {said!r}")
    if said == "all":
        return list(range(size))
    if ":" in said:
        first, last = said.split(":")
        return list(range(size))[int(first or 0) : int(last or size)]
    return [int(rank) for rank in said.split(",")]
