"""Train to the end, in one call that may be killed and made again until it has returned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from scalelab.core.config import ModelConfig
from scalelab.core.records import RunRecord
from scalelab.data import TokenData
from scalelab.train.checkpoint import FOLDER, CheckpointFolder, load_checkpoint
from scalelab.train.config import TrainConfig
from scalelab.train.loggers import Logger
from scalelab.train.loop import Trainer
from scalelab.train.strategy import Strategy


def train(
    model: ModelConfig | nn.Module,
    data: TokenData,
    config: TrainConfig,
    *,
    run_dir: Path | str | None = None,
    strategy: Strategy | None = None,
    loggers: Sequence[Logger] = (),
    progress: bool = True,
) -> RunRecord:
    """Train a model to the end of its budget; where `run_dir` holds part of the same run, go on with it.

    Args and Raises: as for `Trainer`.
    """
    begun = run_dir is not None and bool(CheckpointFolder(Path(run_dir) / FOLDER).steps())
    trainer = Trainer(
        model,
        data,
        config,
        run_dir=run_dir,
        strategy=strategy,
        loggers=loggers,
        progress=progress,
        checkpoint=load_checkpoint(Path(run_dir)) if begun and run_dir is not None else None,
    )
    return trainer.run()
