"""What the chapter computes without torch, held against torch."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

SOURCE = Path(__file__).resolve().parents[2] / "book" / "transformers" / "basics_figures.py"


@pytest.fixture(scope="module")
def chapter() -> ModuleType:
    spec = importlib.util.spec_from_file_location("basics_figures", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pairs(chapter: ModuleType) -> Any:
    """A few bytes in use, the space far more often than the q."""
    rng = np.random.default_rng(0)
    counts = np.zeros((256, 256), dtype=np.int64)
    letters = [ord(letter) for letter in " qu.a"]
    counts[np.ix_(letters, letters)] = rng.integers(1, 50, (5, 5))
    counts[ord(" ")] *= 40
    return chapter.Bigrams(train=counts, held_out=counts)


def test_log_softmax_equals_torchs(chapter: ModuleType) -> None:
    logits = 400 * np.random.default_rng(1).standard_normal((5, 9))
    expected = torch.log_softmax(torch.tensor(logits), 1).numpy()
    np.testing.assert_allclose(chapter.log_softmax(logits), expected, rtol=1e-12)


def test_the_losses_of_a_descent_equal_torchs_sgd_and_adam(chapter: ModuleType, pairs: Any) -> None:
    before, after = (torch.tensor(axis) for axis in np.nonzero(pairs.train))
    weights = torch.tensor(pairs.joint)[before, after]
    for way, make in {
        "gradient descent": lambda p: torch.optim.SGD(p, lr=5.0),
        "momentum": lambda p: torch.optim.SGD(p, lr=5.0, momentum=0.9),
        "Adam": lambda p: torch.optim.Adam(p, lr=5.0, eps=1e-12),
    }.items():
        table = torch.zeros(256, 256, dtype=torch.float64, requires_grad=True)
        optimiser, losses = make([table]), []
        for _ in range(20):
            loss = (functional.cross_entropy(table[before], after, reduction="none") * weights).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        got = chapter.descend(pairs, way, 5.0, 20).losses[:20]
        # Adam divides by the root of gradients that rounding alone makes: float32 shows there first.
        np.testing.assert_allclose(got, losses, rtol=1e-3 if way == "Adam" else 1e-5, err_msg=way)


def test_the_steepest_curvature_is_that_of_torchs_hessian(chapter: ModuleType, pairs: Any) -> None:
    row = torch.tensor(pairs.joint[ord("q")])
    logits = torch.tensor(np.where(pairs.counted[ord("q")] > 0, pairs.counted[ord("q")], 1e-300)).log()
    hessian = torch.autograd.functional.hessian(lambda z: -(row * z.log_softmax(0)).sum(), logits)
    assert chapter.steepest(pairs, "q") == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-9)


def test_an_unseen_pair_makes_the_counted_loss_infinite(chapter: ModuleType, pairs: Any) -> None:
    shares = np.zeros((256, 256))
    shares[0, 1] = 1.0
    assert math.isinf(chapter.loss(pairs.counted, shares))
    assert math.isfinite(chapter.loss(pairs.counted, pairs.joint))


def test_the_path_down_the_valley_is_torchs_sgd(chapter: ModuleType) -> None:
    at = torch.tensor([-9.0, 2.0], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([at], lr=0.07, momentum=0.5)
    path = chapter.valley(0.07, 0.5, 15)
    for step in range(1, 16):
        optimiser.zero_grad()
        (0.5 * at[0] ** 2 + 12.5 * at[1] ** 2).backward()
        optimiser.step()
        np.testing.assert_allclose(path[step], at.detach().numpy(), rtol=1e-12)
