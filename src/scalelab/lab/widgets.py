"""A figure with sliders where somebody can move them, and the same figure without where nobody can.

`explore` shows one figure, with its alternative text. In a notebook that a person has open, and where
ipywidgets is installed, sliders stand above it and redraw it. A stored notebook, a page of the book, a test
run or a terminal gets the figure alone: a widget stored there would be a grey box that asks for a script.
Taught in book/transformers/attention.md.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from scalelab.core.errors import LabError
from scalelab.lab import plots

WIDGETS = "SCALELAB_WIDGETS"  # 1 or 0 overrides what is found out below
Draw = Callable[..., Figure]
Describe = Callable[..., str]


def explore(
    draw: Draw,
    *,
    alt: Describe,
    start: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    **choices: Sequence[Any],
) -> None:
    """Show draw(**values), with a slider for each of the values if a person can move it.

    Args:
        draw: makes the figure for one value of each slider, given by name. alt: says in words what the
            figure of those values shows.
        start: the values to begin with; for a name left out, the first of its choices.
        environ: of the process, when None.
        choices: name → the values that its slider runs through, in order: `layer=range(4)`.

    Raises:
        LabError: no slider, one without choices, or a start that is not among them.

    Example:
        explore(draw_map, alt=describe_map, start={"layer": 1}, layer=range(4), head=range(6))
    """
    values = _starting_values(choices, start or {})
    if not is_live(os.environ if environ is None else environ):
        plots.show(draw(**values), alt=alt(**values))
        return
    from IPython.display import display

    display(sliders(draw, alt=alt, values=values, choices=choices))  # type: ignore[no-untyped-call]


def is_live(environ: Mapping[str, str]) -> bool:
    """Whether a person with a notebook open would see widgets: they are installed, and a frontend is known.

    Frontends give themselves away: Jupyter's server names the notebook to each kernel that it starts
    (JPY_SESSION_NAME), VS Code its process (VSCODE_PID), Colab by a module. Tools that execute notebooks do
    none of it. SCALELAB_WIDGETS=1 or 0 decides instead.
    """
    wanted = environ.get(WIDGETS, "")
    if wanted in ("0", "1"):
        return wanted == "1" and _has_ipywidgets()
    if (
        "google.colab" not in sys.modules
        and not environ.get("JPY_SESSION_NAME")
        and not environ.get("VSCODE_PID")
    ):
        return False
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None and _has_ipywidgets()


def sliders(
    draw: Draw, *, alt: Describe, values: Mapping[str, Any], choices: Mapping[str, Sequence[Any]]
) -> Any:
    """The widget: a slider for each name, and below them the figure, redrawn when one is moved."""
    ipywidgets = importlib.import_module("ipywidgets")  # by name: it carries no types
    controls = {
        name: ipywidgets.SelectionSlider(
            options=list(options),
            value=values[name],
            description=name.replace("_", " "),
            continuous_update=False,  # draw when it is let go: a map takes a moment
            style={"description_width": "initial"},
        )
        for name, options in choices.items()
    }

    def redraw(**chosen: Any) -> None:
        plots.show(draw(**chosen), alt=alt(**chosen))

    return ipywidgets.VBox([*controls.values(), ipywidgets.interactive_output(redraw, controls)])


def _starting_values(choices: Mapping[str, Sequence[Any]], start: Mapping[str, Any]) -> dict[str, Any]:
    if not choices:
        raise LabError("explore needs at least one slider: layer=range(4), for example")
    unknown = [name for name in start if name not in choices]
    if unknown:
        raise LabError(
            f"start names {unknown[0]!r}, and there is no such slider; there are {', '.join(choices)}"
        )
    values = {}
    for name, options in choices.items():
        if not isinstance(options, Sequence) or isinstance(options, str) or not len(options):
            raise LabError(f"the slider {name!r} needs a sequence of at least one value, got {options!r}")
        values[name] = start.get(name, options[0])
        if values[name] not in options:
            raise LabError(f"the slider {name!r} starts at {values[name]!r}, which is none of its values")
    return values


def _has_ipywidgets() -> bool:
    return importlib.util.find_spec("ipywidgets") is not None
