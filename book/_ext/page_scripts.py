"""Scripts and styles that only some pages use, loaded on those alone."""

from __future__ import annotations

from typing import Any

# What a page holds → the files of book/_static that it needs, scripts in the order in which they run.
NEEDED = {
    'class="plan-calculator"': ("plan-calculator.css", "plan-formulas.js", "plan-calculator.js"),
}


def files_for(body: str) -> list[str]:
    """The files that a page with this body needs."""
    return [file for mark, files in NEEDED.items() if mark in body for file in files]


def add_files(app: Any, pagename: str, templatename: str, context: Any, doctree: Any) -> None:
    """Load them on this page; from within this event, Sphinx adds them to no other."""
    for file in files_for(context.get("body", "")):
        if file.endswith(".css"):
            app.add_css_file(file)
        else:
            app.add_js_file(file, loading_method="defer")


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls this when it loads the extension."""
    app.connect("html-page-context", add_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
