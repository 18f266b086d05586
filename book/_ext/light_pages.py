"""Pages that load what they use: the theme's own take 4.3 MB to show 0.6 MB of text and figures.

The site's browser tests weigh every page.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.errors import ExtensionError

ICON_SCRIPT = re.compile(r'\s*<script src="[^"]*/scripts/fontawesome\.js[^"]*"></script>')
# MathJax without its menu, which is a third of it and makes every formula a stop of the Tab key. The last
# component writes each formula a second time, as MathML, for screen readers.
MATHJAX_PARTS = [
    "core",
    "input/tex",
    "output/chtml",  # loads its fonts' table by itself
    "a11y/assistive-mml",
]


def without_icon_script(head: str) -> str:
    """The page's head without 1.5 MB of icons as JavaScript: the theme's icon font draws the same ones."""
    lighter, removed = ICON_SCRIPT.subn("", head)
    if removed != 1:
        raise ExtensionError("the theme's head no longer loads fontawesome.js: see book/_ext/light_pages.py")
    return lighter


def add_filters(app: Any) -> None:
    """Give book/_templates/layout.html the function above."""
    if app.builder.format == "html":
        app.builder.templates.environment.filters["without_icon_script"] = without_icon_script


def without_brand_icons(app: Any, doctree: nodes.document, page: str) -> None:
    """Take the mark from links to GitHub: 118 KB of icon font for nothing else."""
    for link in doctree.findall(nodes.reference):
        link["classes"] = [name for name in link["classes"] if name not in {"github", "gitlab"}]


def choose_mathjax(app: Any, config: Any) -> None:
    """Load MathJax in parts; sphinx-mathjax-offline would load it in one piece."""
    config.mathjax_path = "mathjax/startup.js"
    config.mathjax3_config = {"loader": {"load": MATHJAX_PARTS}}


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls this when it loads the extension."""
    app.connect("config-inited", choose_mathjax)
    app.connect("builder-inited", add_filters)
    app.connect("doctree-resolved", without_brand_icons)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
