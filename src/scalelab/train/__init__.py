"""Floor 2: training a model on tokens, from settings to a record, through kills and resumptions."""

from scalelab.train.checkpoint import Checkpoint, CheckpointFolder, load_checkpoint, save_checkpoint
from scalelab.train.config import TrainConfig, train_config_from_dict, train_config_to_dict
from scalelab.train.evaluate import Evaluation, evaluate
from scalelab.train.history import History, Metrics
from scalelab.train.loggers import JsonlLogger, Logger, TensorBoardLogger, WandbLogger
from scalelab.train.loop import Trainer
from scalelab.train.optimizer import make_optimizer, parameter_groups
from scalelab.train.precision import PrecisionPlan, measure_precision
from scalelab.train.run import train
from scalelab.train.schedule import (
    Constant,
    Cosine,
    Linear,
    Schedule,
    WarmupStableDecay,
    learning_rate,
    make_schedule,
)
from scalelab.train.strategy import SingleProcess, Strategy
from scalelab.train.throughput import Peak, find_peak, measure_peak_flops

__all__ = [
    "Checkpoint",
    "CheckpointFolder",
    "Constant",
    "Cosine",
    "Evaluation",
    "History",
    "JsonlLogger",
    "Linear",
    "Logger",
    "Metrics",
    "Peak",
    "PrecisionPlan",
    "Schedule",
    "SingleProcess",
    "Strategy",
    "TensorBoardLogger",
    "TrainConfig",
    "Trainer",
    "WandbLogger",
    "WarmupStableDecay",
    "evaluate",
    "find_peak",
    "learning_rate",
    "load_checkpoint",
    "make_optimizer",
    "make_schedule",
    "measure_peak_flops",
    "measure_precision",
    "parameter_groups",
    "save_checkpoint",
    "train",
    "train_config_from_dict",
    "train_config_to_dict",
]
