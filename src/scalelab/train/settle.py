"""What the machine decides is decided once: by rank 0, for all processes, and for the rest of the run.

Another measurement might choose otherwise, so a resumed run keeps what its checkpoint says.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

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
        return checkpoint.compiled, checkpoint.precision
    device = strategy.device
    compiled = strategy.decide(lambda: settle_compilation(config.compile, device))

    def plan() -> PrecisionPlan:
        return measure_precision(
            model,
            config,
            device,
            lambda copy: compiled_if(compiled, summed_loss(copy)),
            n_shares=strategy.n_shares,
        )

    return compiled, strategy.decide(plan)


def compiled_if(wanted: bool, loss: LossFunction) -> LossFunction:
    """The loss through `torch.compile`, or as it is."""
    return torch.compile(loss) if wanted else loss
