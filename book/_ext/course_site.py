"""What this book adds to Sphinx: version, description, problem link; and numbers that never go stale."""

from __future__ import annotations

import html
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from docutils import nodes

import scalelab

FOOTER = """\
<p><a class="report-a-problem" href="{report}">Report a problem on this page</a></p>
<p>Version {version}. Text under
<a href="https://creativecommons.org/licenses/by/4.0/" rel="license">CC BY 4.0</a>,
code under <a href="https://www.apache.org/licenses/LICENSE-2.0" rel="license">Apache 2.0</a>.</p>
"""
DESCRIPTION_CHARACTERS = 160  # about what search engines show
GENERATED = {"genindex": "Index", "search": "Search"}  # Sphinx names these in their templates only
SHORTEST_DESCRIPTION = 60  # a shorter paragraph is a line of badges or links


def set_version(app: Any, config: Any) -> None:
    """Give Sphinx the package's version."""
    config.version = config.release = scalelab.__version__


def repository(source: Path) -> str:
    """The repository's address, as pyproject.toml gives it: its only place."""
    project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["urls"]["Homepage"])


def report_link(repository: str, page: str, title: str) -> str:
    """Where a reader reports a problem: a new issue that already names the page and the version.

    Args:
        repository: its address, as in https://github.com/owner/name.
        page: the page's path without suffix; one under labs/ is a lab.
        title: the page's own.
    """
    facts = {"Page": f"{page}.html ({title})", "Version": scalelab.__version__}
    if page.startswith("labs/"):
        facts |= {"Lab": page.removeprefix("labs/"), "Ran on (Colab, laptop, …)": "", "Exercise or cell": ""}
    body = "\n".join(f"{name}: {value}".rstrip() for name, value in facts.items())
    query = {
        "title": f"{page}: ",
        "body": f"{body}\n\nWhat I expected:\n\nWhat I saw:\n",
    }
    return f"{repository}/issues/new?{urlencode(query)}"


def description(doctree: nodes.document | None) -> str:
    """The page's first full paragraph, cut at a word; empty for a page that has none."""
    paragraphs = doctree.findall(nodes.paragraph) if doctree else ()
    for paragraph in paragraphs:
        if isinstance(paragraph.parent, nodes.section):
            text = " ".join(paragraph.astext().split())
            if len(text) >= SHORTEST_DESCRIPTION and "$" not in text and "\\" not in text:
                return text if len(text) <= DESCRIPTION_CHARACTERS else _cut(text)
    return ""


def _cut(text: str) -> str:
    return text[:DESCRIPTION_CHARACTERS].rsplit(" ", 1)[0].rstrip(",;:") + " …"


def describe_page(app: Any, pagename: str, templatename: str, context: Any, doctree: Any) -> None:
    """Footer and meta tags of one page."""
    title = _plain(context.get("title") or GENERATED.get(pagename, pagename))
    context["theme_extra_footer"] = FOOTER.format(
        version=scalelab.__version__,
        report=html.escape(report_link(repository(Path(app.srcdir)), pagename, title)),
    )
    properties = {"og:type": "article", "og:title": title, "og:site_name": app.config.html_title}
    tags = [
        f'<meta property="{name}" content="{html.escape(value)}" />' for name, value in properties.items()
    ]
    if text := description(doctree):
        tags.append(f'<meta name="description" content="{html.escape(text)}" />')
    context["metatags"] = context.get("metatags", "") + "\n    ".join(["", *tags])


def _plain(title: str) -> str:
    """A title without tags: Sphinx hands it over as HTML."""
    return html.unescape(
        "".join(part.partition(">")[2] if n else part for n, part in enumerate(title.split("<")))
    )


def chapters_with_old_numbers(app: Any, env: Any, added: Any, changed: Any, removed: Any) -> list[str]:
    """Pages whose cells were run before what they compute from last changed: figures' code, package, records.

    Sphinx looks at a page's own text only, and would go on showing numbers that no longer hold.
    """
    folders = (Path(app.srcdir) / "book", Path(scalelab.__file__).parent)
    newest = _newest(folders, ("*.py", "*.json", "*.jsonl"))
    return [
        name
        for name, read_us in env.all_docs.items()
        if name.startswith(("book/", "index")) and newest > read_us / 1e6
    ]


def pages_of_another_look(app: Any, env: Any, added: Any, changed: Any, removed: Any) -> list[str]:
    """Pages written before extensions, styles or scripts last changed: Sphinx would keep the old ones."""
    book = Path(app.srcdir) / "book"
    newest = _newest((book / "_ext", book / "_static", book / "_templates"), ("*.*",))
    return [name for name, read_us in env.all_docs.items() if newest > read_us / 1e6]


def _newest(folders: Iterable[Path], kinds: Iterable[str]) -> float:
    """When any of the files in these folders last changed, in seconds since 1970."""
    files = (file for folder in folders for kind in kinds for file in folder.rglob(kind))
    return max(file.stat().st_mtime for file in files if "__pycache__" not in file.parts)


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls this when it loads the extension."""
    app.connect("config-inited", set_version)
    app.connect("env-get-outdated", chapters_with_old_numbers)
    app.connect("env-get-outdated", pages_of_another_look)
    app.connect("html-page-context", describe_page)
    return {"version": scalelab.__version__, "parallel_read_safe": True, "parallel_write_safe": True}
