"""A checkpoint can be whole and still describe no run: its values are checked before any is used.

Checksums find damage. They do not find a checkpoint that another program wrote, or that a person edited and
sealed again; and one wrong type met halfway through a resumption would leave a trainer half restored.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from scalelab.core.checks import is_number
from scalelab.core.errors import CheckpointError

if TYPE_CHECKING:
    from scalelab.train.checkpoint import Checkpoint

_SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}


def check_sound(path: Path, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, if a run can go on from it.

    Args:
        path: where it lies, for the message.

    Raises:
        CheckpointError: a value of the wrong type, one that contradicts another, or weights not finite.
    """
    problem = _of_values(checkpoint) or _of_aliases(checkpoint) or _of_tensors(checkpoint)
    if problem:
        raise CheckpointError(f"{path} describes no run: {problem}; use an older checkpoint")
    return checkpoint


def _of_values(found: Checkpoint) -> str:
    for name in ("data", "data_state", "scaler", "environment", "aliases"):
        if not isinstance(getattr(found, name), Mapping):
            return f"{name} must be a mapping, got {getattr(found, name)!r}"
    last = found.train_config.n_steps
    if isinstance(found.step, bool) or not isinstance(found.step, int) or not 0 <= found.step <= last:
        return f"step must be a whole number from 0 to {last}, got {found.step!r}"
    if len(found.history) != found.step:
        return f"step is {found.step}, the history has {len(found.history)} steps"
    if not isinstance(found.compiled, bool):
        return f"compiled must be true or false, got {found.compiled!r}"
    if not is_number(found.seconds) or found.seconds < 0:
        return f"seconds must be a finite number of at least 0, got {found.seconds!r}"
    if found.scaler and (set(found.scaler) != _SCALER or not all(map(is_number, found.scaler.values()))):
        return f"scaler is no state of loss scaling: {dict(found.scaler)!r}"
    return ""


def _of_aliases(found: Checkpoint) -> str:
    for alias, name in found.aliases.items():
        if name not in found.weights:
            return f"the weight {alias} is another name of {name!r}, which is not there"
    return ""


def _of_tensors(found: Checkpoint) -> str:
    if found.step and not found.optimizer:
        return "it has no optimiser state"
    for group, named in (("weight", found.weights), ("optimiser state", found.optimizer)):
        for name, tensor in named.items():
            if not bool(torch.isfinite(tensor).all()):
                return f"the {group} {name} is not finite everywhere"
    return ""
