"""Dropout draws from a stream for each process; a checkpoint holds them all, or resuming would not be exact.

Processes must draw apart: with the same masks on different rows, noise that should average out would not.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from torch import Tensor

from scalelab.core.seeding import RandomStream, derive_seed
from scalelab.train.state import random_states
from scalelab.train.strategy import Strategy


def dropout_stream(seed: int, strategy: Strategy) -> RandomStream:
    """This process's stream at the beginning of a run."""
    return RandomStream(derive_seed(seed, "dropout", strategy.rank), strategy.device)


def resumed_stream(
    stored: Mapping[str, Tensor], *, seed: int, strategy: Strategy, step: int, dropout: float
) -> RandomStream:
    """This process's stream as a checkpoint left it.

    Under another number of processes there is no stream to go on with for each; all begin new ones, of the
    step at hand, and a warning says so where anything is drawn from them.

    Args:
        stored: every process's generators, as `random_tensors` names them.
        seed, step: of the run, and how far it has come.
        dropout: the model's; at 0 nothing is drawn.

    Raises:
        CheckpointError: the state is of another kind of device, or another generator.
    """
    states = random_states(stored)
    if len(states) == strategy.n_processes:
        stream = dropout_stream(seed, strategy)
        stream.restore(states[strategy.rank])
        return stream
    if dropout and strategy.rank == 0:
        warnings.warn(
            f"the run was stopped in {len(states)} processes and goes on in {strategy.n_processes}: dropout "
            "draws other masks from here on than it would have",
            stacklevel=5,
        )
    return RandomStream(derive_seed(seed, "dropout", strategy.rank, "from step", step), strategy.device)
