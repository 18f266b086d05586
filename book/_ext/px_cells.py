"""Colours in `%%px` cells: what follows the magic is Python, which the notebook lexer does not know of it."""

from __future__ import annotations

from typing import Any

from ipython_pygments_lexers import IPython3Lexer
from pygments.lexer import bygroups, using
from pygments.lexers.python import Python3Lexer
from pygments.token import Operator, Text
from sphinx.application import Sphinx


class CellLexer(IPython3Lexer):
    """IPython's own, whose rules come after those of `%%px` and `%px`."""

    tokens = {  # noqa: RUF012  Pygments wants a plain class attribute
        **IPython3Lexer.tokens,
        "root": [
            (r"(?s)(\s*)(%%px)([^\n]*\n)(.*)", bygroups(Text, Operator, Text, using(Python3Lexer))),
            (r"(^%px)([^\n]*\n?)", bygroups(Operator, using(Python3Lexer))),
            *IPython3Lexer.tokens["root"],
        ],
    }


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_lexer("ipython3", CellLexer)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
