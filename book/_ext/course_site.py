"""What this book adds to Sphinx: its version on every page, and chapters whose numbers never go stale."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import scalelab

FOOTER = """\
<p>Version {version}. Text under
<a href="https://creativecommons.org/licenses/by/4.0/" rel="license">CC BY 4.0</a>,
code under <a href="https://www.apache.org/licenses/LICENSE-2.0" rel="license">Apache 2.0</a>.</p>
"""


def set_version(app: Any, config: Any) -> None:
    """Give Sphinx the package's version, and each page a footer that shows it."""
    config.version = config.release = scalelab.__version__
    config.html_theme_options["extra_footer"] = FOOTER.format(version=scalelab.__version__)


def chapters_with_old_numbers(app: Any, env: Any, added: Any, changed: Any, removed: Any) -> list[str]:
    """Chapters whose cells were run before their figures' code, the package or its records last changed.

    Sphinx looks at a page's own text only, and would go on showing numbers that no longer hold.
    """
    return [
        name
        for name, read_us in env.all_docs.items()
        if name.startswith("book/")
        and any(file.stat().st_mtime > read_us / 1e6 for file in _computed_from(Path(app.srcdir) / name))
    ]


def _computed_from(chapter: Path) -> Iterator[Path]:
    figures = chapter.with_name(f"{chapter.name}_figures.py")
    if figures.exists():
        yield figures
    package = Path(scalelab.__file__).parent
    for kind in ("*.py", "*.json", "*.jsonl"):
        yield from package.rglob(kind)


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls this when it loads the extension."""
    app.connect("config-inited", set_version)
    app.connect("env-get-outdated", chapters_with_old_numbers)
    return {"version": scalelab.__version__, "parallel_read_safe": True, "parallel_write_safe": True}
