"""Which collectives torch sends: each passes its dispatcher, where it can be counted.

torch's own CommDebugMode also keeps an account of modules, and stumbles over one that is called twice in a
forward pass, as a decoder's dropout is (torch 2.13: "list index out of range").
Taught in book/parallelism/sharding.md.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Collectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """`with Collectives() as seen: …` counts torch's collectives by name in `seen.counts`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            self.counts[func.__name__.split(".")[0].strip("_")] += 1
        return func(*args, **(kwargs or {}))
