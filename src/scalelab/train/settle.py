"""What the machine decides is decided once: by rank 0, for all processes, and for the rest of the run.

Another measurement might choose otherwise, so a resumed run keeps what its checkpoint says.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

import warnings

import torch
from torch import nn

from scalelab.train.checkpoint import Checkpoint
from scalelab.train.compilation import settle_compilation
from scalelab.train.config import TrainConfig
from scalelab.train.precision import LossFunction, PrecisionPlan, measure_precision, summed_loss
from scalelab.train.strategy import Strategy


def settle(
    model: nn.Module, config: TrainConfig, strategy: Strategy, checkpoint: Checkpoint | None
) -> tuple[bool, PrecisionPlan]:
    """Whether to compile, and which precision to train in.

    Args:
        model: whole, as it is before it is placed; a trial copies it, on rank 0 alone.
        checkpoint: the one that the run goes on from, if any.

    Raises:
        TrainingError: the device lacks the precision asked for.
    """
    if checkpoint is not None:
        return _if_it_can(checkpoint.compiled, strategy), checkpoint.precision
    device = strategy.device
    asked = _if_it_can(config.compile, strategy)
    compiled = strategy.decide(lambda: settle_compilation(asked, device))

    def plan() -> PrecisionPlan:
        return measure_precision(
            model,
            config,
            device,
            lambda copy: compiled_if(compiled, summed_loss(copy)),
            n_shares=strategy.n_shares,
        )

    return compiled, strategy.decide(plan)


def _if_it_can(wanted: bool, strategy: Strategy) -> bool:
    """What was asked for, unless the layout cannot; the mathematics is the same either way."""
    if wanted and not strategy.can_compile and strategy.rank == 0:
        warnings.warn(
            f"compile=True is left aside, the run goes on uncompiled: {strategy.layout} is not compiled",
            stacklevel=4,
        )
    return wanted and strategy.can_compile


def compiled_if(wanted: bool, loss: LossFunction) -> LossFunction:
    """The loss through `torch.compile`, or as it is."""
    return torch.compile(loss) if wanted else loss
