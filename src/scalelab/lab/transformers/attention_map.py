"""A picture of what one head looks at: a square for every query and key, darker for more weight.

Taught in book/transformers/attention.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from scalelab.core.errors import LabError
from scalelab.lab import plots

SPACE, NEWLINE = "·", "↵"  # white space in a token would not be seen


def attention_map(
    weights: Any, tokens: Sequence[str], *, title: str, size: float = 6.2
) -> tuple[Figure, Axes]:
    """One head's weights as a figure: rows ask, columns answer.

    Args:
        weights: [T, T], rows that sum to one. tokens: their texts. title: what is to be seen.
        size: width and height, inches.

    Raises:
        LabError: weights and tokens are not of one length.
    """
    figure, axes = plots.new(title, "key: looked at", "query: looks", width=size, height=size)
    draw_map(axes, weights, tokens)
    return figure, axes


def draw_map(axes: Axes, weights: Any, tokens: Sequence[str], *, fontsize: float = 7) -> None:
    """The map itself, into axes that are there.

    Raises:
        LabError: weights and tokens are not of one length.
    """
    values = np.asarray(weights, dtype=float)
    if values.shape != (len(tokens), len(tokens)):
        raise LabError(
            f"{len(tokens)} tokens need weights [{len(tokens)}, {len(tokens)}], got {values.shape}"
        )
    with matplotlib.rc_context({"axes.grid": False}):
        # A square root: a weight of 0.05 is worth seeing beside one of 0.9.
        axes.imshow(values, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    names = [visible(token) for token in tokens]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=fontsize, family="monospace")
    axes.set_yticks(range(len(names)), names, fontsize=fontsize, family="monospace")
    axes.tick_params(length=0)
    axes.grid(visible=False)


def visible(token: str) -> str:
    """A token's text with its white space made visible; three spaces or more as their number."""
    short = re.sub(" {3,}", lambda run: f"{SPACE}{len(run[0])}", token)
    return short.replace(" ", SPACE).replace("\n", NEWLINE) or "∅"
