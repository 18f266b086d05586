"""Sliders appear where a person can move them, and nowhere else; the figure appears everywhere."""

from __future__ import annotations

import os
import sys
from typing import Any

import nbformat
import pytest
from matplotlib.figure import Figure
from nbclient import NotebookClient

from scalelab.core.errors import LabError
from scalelab.lab import plots, widgets
from scalelab.lab.widgets import explore, is_live

CELL = """
from scalelab.lab import plots
from scalelab.lab.widgets import explore

def draw(power):
    return plots.curve({"x": ([1, 2], [1, 2**power])}, title="t", xlabel="x", ylabel="y")[0]

def describe(power):
    return f"A line from 1 to 2 to the power {power}."

explore(draw, alt=describe, start={"power": 2}, power=range(1, 4))
"""
MOVE = """
import gc
import ipywidgets
[slider] = [w for w in gc.get_objects() if isinstance(w, ipywidgets.SelectionSlider)]
slider.value = 3
print(slider.value, slider.description)
"""


def draw(layer: int = 0, head: int = 0) -> Figure:
    return plots.curve({"x": ([0, 1], [layer, head])}, title="t", xlabel="x", ylabel="y")[0]


def describe(layer: int, head: int) -> str:
    return f"A line from {layer} to {head}, in words."


def run(source: str, **environ: str) -> Any:
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(part) for part in source.split("\n---\n")]
    )
    for name in (widgets.WIDGETS, "JPY_SESSION_NAME", "VSCODE_PID"):
        environ.setdefault(name, "")
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute(env={**os.environ, **environ})
    return notebook


def test_outside_a_notebook_the_first_figure_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    explore(draw, alt=describe, environ={}, start={"head": 2}, layer=range(3), head=[1, 2])
    assert capsys.readouterr().out == "[Figure: A line from 0 to 2, in words.]\n"


def test_an_executed_notebook_holds_the_figure_with_its_alternative_text_and_no_widget() -> None:
    cell = run(CELL).cells[0]
    [output] = cell.outputs
    assert set(output.data) == {"image/png", "text/plain"}
    assert output.metadata["image/png"]["alt"] == "A line from 1 to 2 to the power 2."


def test_a_live_notebook_has_a_slider_and_moving_it_draws_again() -> None:
    pytest.importorskip("ipywidgets")
    notebook = run(CELL + "\n---\n" + MOVE, SCALELAB_WIDGETS="1")
    assert any(
        "application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in notebook.cells[0].outputs
    )
    assert notebook.cells[1].outputs[-1].text.strip() == "3 power"
    state = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"].values()
    drawn = [s["state"]["outputs"] for s in state if s["model_name"] == "OutputModel"]
    assert "to the power 3" in drawn[0][0]["data"]["text/plain"]


@pytest.mark.parametrize(
    ("environ", "modules"),
    [({"JPY_SESSION_NAME": "lab.ipynb"}, ()), ({"VSCODE_PID": "1"}, ()), ({}, ("google.colab",))],
)
def test_a_frontend_is_recognised_but_only_with_a_kernel(
    environ: dict[str, str], modules: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ipywidgets")
    for name in modules:
        monkeypatch.setitem(sys.modules, name, sys)
    assert not is_live(environ), "there is no kernel in this process"

    class Shell:
        kernel = object()

    class IPython:
        @staticmethod
        def get_ipython() -> Shell:
            return Shell()

    monkeypatch.setitem(sys.modules, "IPython", IPython)  # type: ignore[arg-type]
    assert is_live(environ)
    assert not is_live({**environ, "SCALELAB_WIDGETS": "0"})


def test_without_ipywidgets_nothing_is_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # type: ignore[arg-type]
    assert not is_live({"SCALELAB_WIDGETS": "1"})


@pytest.mark.parametrize(
    ("settings", "about"),
    [
        ({}, "at least one slider"),
        ({"layer": range(0)}, "'layer' needs a sequence"),
        ({"layer": 3}, "'layer' needs a sequence"),
        ({"layer": "abc"}, "'layer' needs a sequence"),
        ({"layer": range(3), "start": {"layer": 3}}, "starts at 3"),
        ({"layer": range(3), "start": {"head": 0}}, "no such slider; there are layer"),
    ],
)
def test_sliders_that_cannot_be_drawn_are_refused(settings: dict[str, Any], about: str) -> None:
    with pytest.raises(LabError, match=about):
        explore(draw, alt=describe, environ={}, **settings)
