"""Which machine a lab finds itself on, and which of its two budgets it takes there.

`cpu`: the whole lab in at most 120 s on two cores; `gpu`: larger budgets for the same cells. The tier is
what is there, unless SCALELAB_TIER says otherwise.
"""

from __future__ import annotations

import platform
import random
from collections.abc import Mapping
from importlib import metadata
from typing import Literal

import numpy as np
import torch

from scalelab import __version__
from scalelab.core.errors import LabError

Tier = Literal["cpu", "gpu"]


def choose_tier(environ: Mapping[str, str]) -> Tier:
    """The tier asked for by SCALELAB_TIER, else "gpu" exactly where torch sees a CUDA device.

    Raises:
        LabError: an unknown tier, or "gpu" where there is none.
    """
    asked = environ.get("SCALELAB_TIER", "").strip().lower()
    if asked not in ("", "cpu", "gpu"):
        raise LabError(f"SCALELAB_TIER must be cpu or gpu, got {asked!r}; unset it to take what is there")
    has_gpu = torch.cuda.is_available()
    if asked == "gpu" and not has_gpu:
        raise LabError(
            "SCALELAB_TIER=gpu, and torch sees no CUDA device here; unset it, or choose a runtime with a GPU "
            "(in Colab: Runtime, Change runtime type)"
        )
    if asked == "cpu" or not has_gpu:
        return "cpu"
    return "gpu"


def choose_threads(environ: Mapping[str, str]) -> int:
    """How many threads torch uses: set to SCALELAB_THREADS where that is given, else left as it is.

    Raises:
        LabError: SCALELAB_THREADS is not a whole number of at least 1.
    """
    asked = environ.get("SCALELAB_THREADS", "").strip()
    if asked:
        if not (asked.isascii() and asked.isdigit() and int(asked) >= 1):
            raise LabError(f"SCALELAB_THREADS must be a whole number of at least 1, got {asked!r}")
        torch.set_num_threads(int(asked))
    return torch.get_num_threads()


def seed_everything(seed: int) -> None:
    """Seed random, numpy and torch (every device).

    Raises:
        LabError: not a whole number in [0, 2^32), which is what numpy takes.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise LabError(f"seed must be a whole number from 0 to 2**32 - 1, got {seed!r}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def is_strict(environ: Mapping[str, str]) -> bool:
    """Whether a wrong answer raises (SCALELAB_STRICT=1: grading, tests) or the lab goes on."""
    return environ.get("SCALELAB_STRICT", "").strip().lower() not in ("", "0", "false", "no")


def versions() -> dict[str, str]:
    """Versions of what a lab's results depend on."""
    return {
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "numpy": np.__version__,
        "scalelab": __version__,
    }


def device_name(device: torch.device) -> str:
    """What the device is, for people: "NVIDIA T4", or the processor's architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.machine() or "CPU"
