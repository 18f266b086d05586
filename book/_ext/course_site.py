"""Every page says which version of the course it belongs to, read from the package and typed nowhere else."""

from __future__ import annotations

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


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls this when it loads the extension."""
    app.connect("config-inited", set_version)
    return {"version": scalelab.__version__, "parallel_read_safe": True, "parallel_write_safe": True}
