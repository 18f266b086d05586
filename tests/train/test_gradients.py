from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scalelab.core.config import DecoderConfig
from scalelab.core.errors import DataError
from scalelab.models import Decoder
from scalelab.train import SingleProcess
from scalelab.train.gradients import accumulate_gradients
from scalelab.train.precision import make_scaler, summed_loss

CPU = torch.device("cpu")


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.integers(0, 64, (7, 16)), rng.integers(0, 64, (7, 16))


def model_of(small: DecoderConfig, dtype: torch.dtype = torch.float64) -> Decoder:
    return Decoder(dataclasses.replace(small, dropout=0.0), seed=3).to(dtype)


def gradients(model: Decoder, inputs: np.ndarray, targets: np.ndarray, **changes: Any) -> tuple[float, dict]:
    arguments: dict[str, Any] = {
        "pieces": 1,
        "precision": "fp32",
        "scaler": make_scaler("fp32", CPU),
        "strategy": SingleProcess("cpu"),
    }
    model.zero_grad()
    loss = accumulate_gradients(summed_loss(model), inputs, targets, **{**arguments, **changes})
    return float(loss), {name: p.grad.clone() for name, p in model.named_parameters()}  # type: ignore[union-attr]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


@pytest.mark.parametrize("pieces", [2, 3, 7, 50])
def test_any_number_of_micro_batches_gives_the_big_batchs_gradients(
    small: DecoderConfig, batch: tuple[np.ndarray, np.ndarray], pieces: int
) -> None:
    inputs, targets = batch  # 7 sequences: 2, 3 and 50 pieces are of unequal size or too many
    model = model_of(small)
    loss, whole = gradients(model, inputs, targets)
    loss_cut, cut = gradients(model, inputs, targets, pieces=pieces)
    assert loss_cut == pytest.approx(loss, rel=1e-6)
    assert max(relative(cut[name], whole[name]) for name in whole) < 1e-12


def test_micro_batches_weigh_as_their_counted_targets_do(
    small: DecoderConfig, batch: tuple[np.ndarray, np.ndarray]
) -> None:
    inputs, targets = batch[0], batch[1].copy()
    targets[:3, 4:] = -100  # the first half has few targets: a mean of means would overweight them
    model = model_of(small)
    loss, cut = gradients(model, inputs, targets, pieces=2)

    tokens, wanted = torch.from_numpy(inputs), torch.from_numpy(targets)
    model.zero_grad()
    expected = F.cross_entropy(model(tokens).flatten(0, 1), wanted.flatten())
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert max(relative(cut[n], p.grad) for n, p in model.named_parameters()) < 1e-6  # type: ignore[arg-type]

    model.zero_grad()
    for rows in (slice(0, 3), slice(3, 7)):
        (F.cross_entropy(model(tokens[rows]).flatten(0, 1), wanted[rows].flatten()) / 2).backward()
    assert max(relative(p.grad, cut[n]) for n, p in model.named_parameters()) > 0.01  # type: ignore[arg-type]


def test_a_batch_without_a_single_target_is_refused(
    small: DecoderConfig, batch: tuple[np.ndarray, np.ndarray]
) -> None:
    with pytest.raises(DataError, match="none that counts"):
        gradients(model_of(small), batch[0], np.full_like(batch[1], -100))


def test_loss_scaling_cancels_out_of_the_gradients(
    small: DecoderConfig, batch: tuple[np.ndarray, np.ndarray]
) -> None:
    model = model_of(small, torch.float32)
    _, plain = gradients(model, *batch)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loss, scaled = gradients(model, *batch, scaler=scaler)
    name = "token_embedding.weight"
    assert relative(scaled[name], 2**10 * plain[name]) < 1e-6
    scaler.unscale_(optimizer)
    assert all(relative(p.grad, plain[n]) < 1e-6 for n, p in model.named_parameters())  # type: ignore[arg-type]
    assert loss == pytest.approx(float(gradients(model, *batch)[0]))
