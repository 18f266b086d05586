"""The recorded study behind book/scaling-laws/compute-optimal.md: Chinchilla's third approach, fitted again.

It needs the 245 points that Epoch AI reconstructed from the paper's figure; they may not be redistributed, so
what is kept are results. Run it again, on two cores without a GPU (five minutes; it keeps what is done):

    SCALELAB_DATA=../shared/data .venv/dev/bin/python studies/scaling-laws/compute_optimal.py

It writes, under src/scalelab/lab/records/scaling-laws/compute-optimal/: chinchilla.json (the minimum, the
objective at published parameters, the bootstrap, the valley over both exponents), stops.json (where scipy's
L-BFGS-B stops from Hoffmann's 4,500 starts, on the mean and on the sum) and provenance.json. The course's own
sweep is studies/scaling-laws/packages.toml.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from scipy.optimize import minimize

import scalelab
from scalelab.core.artifacts import write_atomic
from scalelab.lab.scaling_laws.chinchilla_points import PUBLISHED, chinchilla_points
from scalelab.laws import ChinchillaLaw, fit_chinchilla
from scalelab.laws.batched import columns
from scalelab.laws.chinchilla_fit import grid_starts
from scalelab.laws.descent import settle
from scalelab.laws.huber import objective

OUT = Path(scalelab.__file__).parent / "lab" / "records" / "scaling-laws" / "compute-optimal"
COMMAND = "python studies/scaling-laws/compute_optimal.py"
DELTA = 1e-3
N_RESAMPLES, N_KEPT = 4000, 400
CHINCHILLA_FLOPS = 5.76e23
GRID = {"alpha": np.linspace(0.28, 0.44, 33), "beta": np.linspace(0.24, 0.44, 41)}
SUM_EVERY = 10  # of the 4,500 starts, on the sum, whose descents are long
BEST_ELSEWHERE = 0.00101827402401235  # Epoch's notebook, commit 9225883


def keep(name: str, values: Any) -> None:
    """Write one file of the record whole, or not at all."""
    write_atomic(OUT / f"{name}.json", (json.dumps(values, indent=1) + "\n").encode())


def theta_of(law: ChinchillaLaw) -> np.ndarray:
    """log E, log A, log B, alpha, beta."""
    return np.array([math.log(law.E), math.log(law.A), math.log(law.B), law.alpha, law.beta])


def as_dict(law: Any) -> dict[str, float]:
    """A law's five parameters and what follows from them."""
    best = law.optimal(CHINCHILLA_FLOPS)
    named = {name: getattr(law, name) for name in ("E", "A", "B", "alpha", "beta", "a")}
    return named | {"tokens_per_param": best.tokens_per_param, "n_params": best.n_params}


def chinchilla(n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> None:
    """The minimum, published points beside it, intervals, and the valley in which all of them lie."""
    fit = fit_chinchilla(n, d, loss)
    draws = fit.bootstrap(N_RESAMPLES, seed=0)
    ratio = draws.interval_of(lambda law: law.optimal(CHINCHILLA_FLOPS).tokens_per_param)
    names = ("E", "A", "B", "alpha", "beta", "a")
    keep(
        "chinchilla",
        {
            "n_runs": fit.n_runs,
            "minimum": as_dict(fit) | {"objective": fit.objective, "condition": fit.condition},
            "best_elsewhere": BEST_ELSEWHERE,
            "published": {
                name: as_dict(law) | {"objective": objective(theta_of(law), n, d, loss, DELTA)[0]}
                for name, law in PUBLISHED.items()
            },
            "bootstrap": {
                "n_resamples": N_RESAMPLES,
                "standard_deviations": dict(draws.standard_deviations),
                "intervals": {
                    name: [found.low, found.high] for name in names for found in [draws.interval(name)]
                },
                "tokens_per_param": [ratio.low, ratio.high],
                "draws": np.round(draws.draws[:N_KEPT], 6).tolist(),
            },
            "residuals": residuals(fit),
            "valley": valley(n, d, loss, fit.theta),
        },
    )
    print(fit.objective, fit.theta, ratio)


def residuals(fit: Any) -> dict[str, Any]:
    """How far the runs lie off each law, as quantiles: the points themselves are not ours to give."""
    laws = {"minimum": fit.law, **PUBLISHED}
    shares = [0.05, 0.25, 0.5, 0.75, 0.95]
    found: dict[str, Any] = {"quantiles": shares}
    for name, law in laws.items():
        off = np.log(law.loss(fit.n_params, fit.n_tokens)) - np.log(fit.observed)
        found[name] = [float(v) for v in np.quantile(off, shares)]
    return found


def valley(n: np.ndarray, d: np.ndarray, loss: np.ndarray, theta: np.ndarray) -> Mapping[str, Any]:
    """The lowest objective at each pair of exponents, E, A and B refitted."""
    c = columns(n, d, loss)
    pairs = np.array([(alpha, beta) for alpha in GRID["alpha"] for beta in GRID["beta"]])
    starts = np.tile(c.centred(theta)[0], (len(pairs), 1))
    starts[:, 3:] = pairs
    free = np.ones((len(pairs), 5), dtype=bool)
    free[:, 3:] = False
    found = settle(c, starts, None, DELTA, free=free, tolerance=1e-6).value
    shape = (len(GRID["alpha"]), len(GRID["beta"]))
    return {
        "alpha": GRID["alpha"].tolist(),
        "beta": GRID["beta"].tolist(),
        "objective": [[float(f"{v:.6g}") for v in row] for row in found.reshape(shape)],
    }


def stops(n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> None:
    """Where L-BFGS-B with scipy's own tolerances stops: objective, exponents, what it said."""
    starts = grid_starts()
    tex = theta_of(PUBLISHED["Hoffmann's source"])
    found: dict[str, Any] = {}
    for name, scale, chosen in (("mean", 1 / len(n), starts), ("sum", 1.0, starts[::SUM_EVERY])):
        begin = time.perf_counter()
        ends = [_descend(start, n, d, loss, scale) for start in chosen]
        values = np.array([end["objective"] for end in ends])
        best = ends[int(np.argmin(values))]
        good = [end for end in ends if math.isfinite(end["objective"])]
        found[name] = {
            "n_starts": len(chosen),
            "seconds": time.perf_counter() - begin,
            "best": best,
            "n_within_a_thousandth": int(np.sum(values < 1.001 * BEST_ELSEWHERE)),
            "share_said_converged": float(np.mean([end["converged"] for end in ends])),
            "quantiles": {
                f"{share:g}": float(np.quantile([end["objective"] for end in good], share))
                for share in (0.01, 0.1, 0.25, 0.5)
            },
            "lowest": sorted(good, key=lambda end: end["objective"])[:60],
            "from_published": _descend(tex, n, d, loss, scale),
        }
        print(name, found[name]["best"], found[name]["seconds"])
    keep("stops", found)


def _descend(
    start: np.ndarray, n: np.ndarray, d: np.ndarray, loss: np.ndarray, scale: float
) -> dict[str, Any]:
    def scaled(theta: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective(theta, n, d, loss, DELTA)
        return scale * value, scale * gradient

    with np.errstate(all="ignore"):
        found = minimize(scaled, start, jac=True, method="L-BFGS-B")
    alpha, beta = float(found.x[3]), float(found.x[4])
    return {
        "objective": float(found.fun) / scale,
        "alpha": round(alpha, 5),
        "beta": round(beta, 5),
        "a": round(beta / (alpha + beta), 5) if alpha + beta else None,
        "steps": int(found.nit),
        "moved": float(np.max(np.abs(found.x - start))),
        "converged": bool(found.success),
    }


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--again", action="store_true", help="also what is there")
    options = parser.parse_args()
    points = chinchilla_points()
    if points is None:
        raise SystemExit("the Chinchilla points are not to be had: set SCALELAB_DATA, or connect once")
    OUT.mkdir(parents=True, exist_ok=True)
    for name, part in (("chinchilla", chinchilla), ("stops", stops)):
        if options.again or not (OUT / f"{name}.json").exists():
            part(*points)
    provenance = {
        "command": COMMAND,
        "data": "epoch-chinchilla of scalelab.data.datasets, the five runs of highest loss left out",
        "machine": "CPU, no GPU",
        "python": platform.python_version(),
        "versions": {
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "scalelab": scalelab.__version__,
        },
        "date": time.strftime("%Y-%m-%d"),
    }
    keep("provenance", provenance)


if __name__ == "__main__":
    main()
