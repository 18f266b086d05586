"""Every chapter has a list of sources of its own, and its citations lead to that list.

Two lists that name one paper would clash: a citation could not know which of them it means. So the keys on
each page get the page's name in front, in its citations and in its list, before the page is parsed.
"""

from __future__ import annotations

import re
from typing import Any

CITED = re.compile(r"\{cite(?P<kind>[:a-z]*)\}`(?P<keys>[^`]+)`")
LIST = re.compile(r"^```\{bibliography\}[ ]*\n", re.MULTILINE)


def with_own_keys(docname: str, text: str) -> str:
    """The page's source with the page's name in front of each key.

    Args:
        docname: as Sphinx names the page, "book/transformers/training".
    """
    prefix = re.sub(r"[^a-z0-9]+", "-", docname.lower()).strip("-") + "-"

    def cite(found: re.Match[str]) -> str:
        keys = ",".join(prefix + key.strip() for key in found["keys"].split(","))
        return f"{{cite{found['kind']}}}`{keys}`"

    options = f":keyprefix: {prefix}\n:labelprefix: {prefix}\n"
    return LIST.sub(lambda found: found[0] + options, CITED.sub(cite, text))


def _on_source_read(_app: Any, docname: str, source: list[str]) -> None:
    source[0] = with_own_keys(docname, source[0])


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("source-read", _on_source_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
