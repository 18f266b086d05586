"""The whole book on one page, for tools/pdf.py to print: what Sphinx's `singlehtml` builder needs for it."""

from __future__ import annotations

from typing import Any


def share_visitors(app: Any) -> None:
    """Let all extensions' nodes be written by this builder.

    Sphinx takes the visitors registered for `singlehtml` alone as soon as one extension has registered any;
    sphinx-exercise does, and the nodes of those that did so for `html` only would have none.
    """
    if app.builder.name == "singlehtml":
        handlers = app.registry.translation_handlers
        handlers["singlehtml"] = {**handlers.get("html", {}), **handlers.get("singlehtml", {})}


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls this when it loads the extension."""
    app.connect("builder-inited", share_visitors)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
