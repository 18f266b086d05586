from __future__ import annotations

import pytest
import torch
from torch import nn

from scalelab.core.config import DecoderConfig
from scalelab.core.errors import ConfigError
from scalelab.models import Decoder
from scalelab.train import TrainConfig, make_optimizer, parameter_groups

CONFIG = TrainConfig(n_tokens=1024, batch_size=2, seq_len=16, learning_rate=0.01, weight_decay=0.3)


def names_by_decay(model: nn.Module) -> dict[float, set[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        group["weight_decay"]: {names[id(parameter)] for parameter in group["params"]}
        for group in parameter_groups(model, 0.3)
    }


def test_matrices_decay_and_biases_and_gains_do_not(small: DecoderConfig) -> None:
    groups = names_by_decay(Decoder(small, seed=0))
    assert groups[0.3]
    assert all("norm" not in name and not name.endswith("bias") for name in groups[0.3])
    assert all("norm" in name or name.endswith("bias") for name in groups[0.0])


def test_every_parameter_is_in_one_group_and_a_tied_table_once(small: DecoderConfig) -> None:
    model = Decoder(small, seed=0)
    grouped = [parameter for group in parameter_groups(model, 0.1) for parameter in group["params"]]
    assert len({id(parameter) for parameter in grouped}) == len(grouped) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out_and_a_wholly_frozen_model_is_refused() -> None:
    model = nn.Linear(3, 3)
    model.weight.requires_grad_(False)
    assert names_by_decay(model) == {0.0: {"bias"}}
    model.bias.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        parameter_groups(model, 0.1)


def test_a_step_moves_weights_as_adamws_formula_says() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 4).double()
    optimizer = make_optimizer(model, CONFIG)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    model(torch.randn(5, 4, dtype=torch.float64)).square().sum().backward()
    gradients = model.weight.grad.clone(), model.bias.grad.clone()  # type: ignore[union-attr]
    optimizer.step()
    # At the first step both moments are corrected to the gradient itself: the update is lr · g / (|g| + eps).
    for before, gradient, after, decay in (
        (weight, gradients[0], model.weight, 0.3),
        (bias, gradients[1], model.bias, 0.0),
    ):
        expected = before * (1 - 0.01 * decay) - 0.01 * gradient / (gradient.abs() + CONFIG.eps)
        torch.testing.assert_close(after.detach(), expected, rtol=1e-9, atol=1e-12)
