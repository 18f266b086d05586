"""What a lab calls: start it, predict, check answers, measure, plot, report.

    import scalelab.lab

    lab = scalelab.lab.start("transformers/training", seed=0)

Nothing here is needed to train or to count; a lab's plumbing lives here so that its cells show the subject.
Chapters use `scalelab.lab.plots` where there is no torch, so the lab itself is loaded when asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalelab.lab.pretrained import base
    from scalelab.lab.session import Lab, start

__all__ = ["Lab", "base", "start"]


def __getattr__(name: str) -> Any:
    if name == "base":
        from scalelab.lab import pretrained

        return pretrained.base
    if name in __all__:
        from scalelab.lab import session

        return getattr(session, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
