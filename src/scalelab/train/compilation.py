"""Whether `torch.compile` can work here: it writes C++ or Triton code, and needs a compiler for it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import warnings

import torch

_COMPILERS = ("c++", "g++", "clang++")


def settle_compilation(asked: bool, device: torch.device) -> bool:
    """Whether to compile: as asked, unless nothing here can; then a warning says so and the run is eager.

    The mathematics is the same either way, so a missing compiler costs speed, not the run.
    """
    missing = missing_compiler(device) if asked else None
    if missing is not None:
        warnings.warn(f"compile=True is left aside, the run goes on uncompiled: {missing}", stacklevel=2)
    return asked and missing is None


def missing_compiler(device: torch.device) -> str | None:
    """What `torch.compile` lacks on this device and how to get it, or None when it lacks nothing."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "torch.compile on a GPU needs the package triton (it comes with torch's CUDA builds)"
        return None
    if sys.platform == "win32":
        return None if shutil.which("cl") else "torch.compile needs Microsoft's C++ compiler, cl"
    wanted = (os.environ["CXX"],) if os.environ.get("CXX") else _COMPILERS
    if any(shutil.which(name) for name in wanted):
        return None
    return f"torch.compile on a CPU needs a C++ compiler, and there is no {' or '.join(wanted)}; install one"
