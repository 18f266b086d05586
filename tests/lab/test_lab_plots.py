"""Figures come in one style, without pyplot, and never without words for those who do not see them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import matplotlib
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from scalelab.core.errors import LabError
from scalelab.lab import plots

LINES = {"small": ([1, 10, 100], [4.0, 3.0, 2.5]), "large": ([1, 10, 100], [4.2, 2.9, 2.45])}
LABELS = {"title": "Loss falls", "xlabel": "tokens", "ylabel": "nats per token"}


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2.2."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@pytest.mark.parametrize("colour", [plots.INK, plots.GREY])
def test_text_has_at_least_seven_to_one_contrast_on_the_figures_background(colour: str) -> None:
    assert 1.05 / (luminance(colour) + 0.05) >= 7


def test_a_curve_names_its_lines_references_and_marks_on_the_figure_itself() -> None:
    figure, axes = plots.curve(LINES, **LABELS, references={"gzip": 2.7}, marks={"half-way": (10, 3)})
    texts = {text.get_text() for text in axes.texts}
    assert texts == {"small", "large", "gzip", "half-way"}
    assert axes.get_legend() is None
    assert axes.get_title(loc="left") == "Loss falls"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("tokens", "nats per token")
    assert plots.as_png(figure).startswith(b"\x89PNG")


def test_names_of_lines_that_end_close_together_do_not_overlap() -> None:
    lines = {name: ([1, 2], [1.0, 2.0 + i / 1000]) for i, name in enumerate("abcd")}
    figure, axes = plots.curve(lines, **LABELS)
    figure.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
    for below, above in itertools.pairwise(boxes):
        assert above.y0 >= below.y0 + 0.6 * below.height


def test_a_diverged_run_leaves_a_gap_and_not_an_error() -> None:
    _, axes = plots.curve(
        {"diverged": ([1, 2, 3], [2.0, 9.0, math.nan]), "gone": ([1], [math.inf])}, **LABELS
    )
    assert [text.get_text() for text in axes.texts] == ["diverged"]


def test_bars_put_predicted_beside_measured_and_show_a_missing_guess() -> None:
    _, panels = plots.bars(
        {"seconds": (40, 52.1), "peak": (None, 812)}, title="The bill", units={"seconds": "s"}
    )
    assert [text.get_text() for text in panels[0].texts] == ["40", "52.1"]
    assert [text.get_text() for text in panels[1].texts] == ["no guess", "812"]
    assert panels[0].get_title(loc="left") == "seconds, s"


def test_the_style_is_not_set_globally_and_the_same_figure_gives_the_same_bytes() -> None:
    before = dict(matplotlib.rcParams)
    first = plots.as_png(plots.curve(LINES, **LABELS)[0])
    assert dict(matplotlib.rcParams) == before
    assert plots.as_png(plots.curve(LINES, **LABELS)[0]) == first


@pytest.mark.parametrize("alt", ["", "  ", "a plot", None, 3])
def test_a_figure_without_words_is_refused(alt: Any) -> None:
    with pytest.raises(LabError, match="alt must say"):
        plots.show(Figure(), alt=alt)


def test_bad_figures_and_lines_are_refused() -> None:
    with pytest.raises(LabError, match="Figure, got str"):
        plots.show("figure", alt="Loss falls from 3 to 2 nats")
    with pytest.raises(LabError, match="shape"):
        plots.curve({"a": ([1, 2], [1])}, **LABELS)
    with pytest.raises(LabError, match="at least one line"):
        plots.curve({}, **LABELS)
    with pytest.raises(LabError, match="at least one pair"):
        plots.bars({}, title="The bill")
