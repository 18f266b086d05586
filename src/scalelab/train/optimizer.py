"""AdamW decays matrices only: a norm's gain or a bias pulled towards zero loses its meaning, not its excess.

Tensors of two or more axes decay (linear maps, embedding tables); vectors (biases, norms' gains) do not.

Sources: Loshchilov & Hutter 2017, arXiv:1711.05101 (decoupled decay); Brown et al. 2020, arXiv:2005.14165,
appendix B (betas 0.9 and 0.95, decay 0.1); the split by axes as in nanoGPT's `configure_optimizers`.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from scalelab.core.errors import ConfigError
from scalelab.train.config import TrainConfig

if TYPE_CHECKING:
    from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimiser: what decays and what does not; frozen parameters are in neither.

    Raises:
        ConfigError: the model has nothing to train.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ConfigError("the model has no parameter that requires a gradient: nothing to train")
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """torch's AdamW over the model's parameters, in its fused form where there is one.

    That does a tensor in one pass, where the plain and the `foreach` form take one for each operation: in
    small models the optimiser is a large share of a step.
    """
    groups = parameter_groups(model, config.weight_decay)
    on_known_device = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=on_known_device
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the rate of the coming step."""
    for group in optimizer.param_groups:
        group["lr"] = rate
