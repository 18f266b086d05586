"""What the theme and docutils get wrong for who uses a keyboard or a screen reader, mended where it is made.

Each mend names what it mends, and stops the build when it finds nothing to mend: a theme that has changed is
noticed here and not by a reader. The site's browser tests hold the result.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.errors import ExtensionError

SIDEBAR = '<div id="pst-primary-sidebar"'


def name_landmarks(page: str) -> str:
    """The left-hand sidebar as a landmark: its title and search button stand in none otherwise."""
    if SIDEBAR not in page:
        raise ExtensionError(f"the theme's layout no longer holds {SIDEBAR!r}: see book/_ext/accessible.py")
    return page.replace(SIDEBAR, f'{SIDEBAR} role="complementary" aria-label="Contents and search"', 1)


def add_filters(app: Any) -> None:
    """Give book/_templates/layout.html the function above."""
    if app.builder.format == "html":
        app.builder.templates.environment.filters["name_landmarks"] = name_landmarks


def name_folds(app: Any, pagename: str, templatename: str, context: Any, doctree: Any) -> None:
    """In the sidebar, say what an arrow unfolds: the theme's `<summary>` holds a picture only."""
    make = context.get("generate_toctree_html")
    if make is None:
        return

    def named(*args: Any, **settings: Any) -> Any:
        tree = make(*args, **settings)
        for summary in tree.select("summary") if hasattr(tree, "select") else ():
            chapter = summary.find_parent("li").find("a")
            summary["aria-label"] = f"Pages under {chapter.get_text(strip=True)}"
        return tree

    context["generate_toctree_html"] = named


def visit_citation(translator: Any, node: nodes.citation) -> None:
    """An entry of the reference list as a list's item: docutils uses a role that ARIA has withdrawn."""
    if not isinstance(node.previous_sibling(), nodes.citation):
        translator.body.append('<div role="list" class="citation-list">\n')
    translator.body.append(translator.starttag(node, "div", CLASS="citation", role="listitem"))


def depart_citation(translator: Any, node: nodes.citation) -> None:
    """Close the entry, and the list after the last one."""
    translator.body.append("</div>\n")
    if not isinstance(node.next_node(descend=False, siblings=True), nodes.citation):
        translator.body.append("</div>\n")


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls this when it loads the extension."""
    app.add_node(nodes.citation, override=True, html=(visit_citation, depart_citation))
    app.connect("builder-inited", add_filters)
    app.connect("html-page-context", name_folds, priority=900)  # after the theme's own
    app.add_css_file("accessible.css")
    app.add_js_file("formulas.js", loading_method="defer")
    app.add_js_file("arrive.js")  # at once: it must see the reader's first move
    return {"parallel_read_safe": True, "parallel_write_safe": True}
