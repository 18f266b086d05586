"""The runs reconstructed from the Chinchilla paper's figure, where to be had, and the laws printed of them.

The points carry no licence that lets us pass them on, so they come from Epoch AI's repository (or the folder
SCALELAB_DATA) and a lab without either goes on with the course's record.

Source: Hoffmann et al. 2022, arXiv:2203.15556; Besiroglu et al. 2024, arXiv:2404.10102.
Taught in book/scaling-laws/compute-optimal.md.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping

import numpy as np

from scalelab.core.errors import DataError
from scalelab.data import datasets
from scalelab.laws import ChinchillaLaw

Points = tuple[np.ndarray, np.ndarray, np.ndarray]
N_LEFT_OUT = 5  # those of highest loss, which the re-analysis leaves out

PUBLISHED: Mapping[str, ChinchillaLaw] = {
    "Hoffmann, printed": ChinchillaLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28),
    "Hoffmann's source": ChinchillaLaw(
        E=1.69337368, A=406.401018, B=410.722827, alpha=0.33917084, beta=0.2849083
    ),
    "Besiroglu, printed": ChinchillaLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658),
}


def chinchilla_points() -> Points | None:
    """n_params, n_tokens and loss of the 240 runs, R each; None where the points are not to be had.

    D = C / 6N. Looked for in SCALELAB_DATA, then in the cache, then on the network.
    """
    try:
        path = datasets.find("epoch-chinchilla", progress=False)["all"]
    except (DataError, OSError):
        return None
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    n_params, flops, loss = (
        np.array([float(row[name]) for row in rows]) for name in ("Model Size", "Training FLOP", "loss")
    )
    kept = loss < np.sort(loss)[-N_LEFT_OUT]
    return n_params[kept], flops[kept] / (6 * n_params[kept]), loss[kept]
