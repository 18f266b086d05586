"""Oracles: transformers' get_*_schedule and torch's learning-rate schedulers.

transformers at step s + 1 is ours at step s: there, step 0 has rate zero, and the final rate belongs to the
step after the last one trained.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from scalelab.core.errors import ConfigError
from scalelab.train import (
    Constant,
    Cosine,
    Linear,
    Schedule,
    TrainConfig,
    WarmupStableDecay,
    learning_rate,
)

N, WARMUP, DECAY, PEAK = 200, 17, 60, 3e-4
ALL = [
    Constant(peak=PEAK, n_steps=N, warmup_steps=WARMUP),
    Cosine(peak=PEAK, n_steps=N, warmup_steps=WARMUP, final_share=0.1),
    Linear(peak=PEAK, n_steps=N, warmup_steps=WARMUP),
    WarmupStableDecay(peak=PEAK, n_steps=N, warmup_steps=WARMUP, decay_steps=DECAY, final_share=0.05),
]


def rates_of(make: Callable[..., Any], count: int, **arguments: Any) -> list[float]:
    """The rates that a torch-style scheduler gives to steps 0, 1, 2 …"""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = make(optimizer, **arguments)
    rates = []
    for _ in range(count):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def ours(schedule: Schedule) -> list[float]:
    return [schedule.rate(step) for step in range(schedule.n_steps)]


@pytest.mark.parametrize(
    ("schedule", "oracle", "arguments"),
    [
        (
            Constant(peak=PEAK, n_steps=N, warmup_steps=WARMUP),
            transformers.get_constant_schedule_with_warmup,
            {"num_warmup_steps": WARMUP},
        ),
        (
            Cosine(peak=PEAK, n_steps=N, warmup_steps=WARMUP),
            transformers.get_cosine_schedule_with_warmup,
            {"num_warmup_steps": WARMUP, "num_training_steps": N},
        ),
        (
            Cosine(peak=PEAK, n_steps=N, warmup_steps=WARMUP, final_share=0.1),
            transformers.get_cosine_with_min_lr_schedule_with_warmup,
            {"num_warmup_steps": WARMUP, "num_training_steps": N, "min_lr_rate": 0.1},
        ),
        (
            Linear(peak=PEAK, n_steps=N, warmup_steps=WARMUP),
            transformers.get_linear_schedule_with_warmup,
            {"num_warmup_steps": WARMUP, "num_training_steps": N},
        ),
        (
            # To zero: with a min_lr_ratio, transformers' warm-up starts from it, too.
            WarmupStableDecay(peak=PEAK, n_steps=N, warmup_steps=WARMUP, decay_steps=DECAY),
            transformers.get_wsd_schedule,
            {
                "num_warmup_steps": WARMUP,
                "num_decay_steps": DECAY,
                "num_training_steps": N,
                "decay_type": "linear",
            },
        ),
    ],
)
def test_our_rate_at_a_step_is_transformers_rate_at_the_next(
    schedule: Schedule, oracle: Callable[..., Any], arguments: dict[str, Any]
) -> None:
    theirs = rates_of(oracle, N + 1, **arguments)
    assert ours(schedule) == pytest.approx(theirs[1:], rel=1e-9, abs=1e-18)


def test_without_warmup_cosine_and_linear_equal_torchs_own_schedulers() -> None:
    cosine = rates_of(torch.optim.lr_scheduler.CosineAnnealingLR, N, T_max=N - 1, eta_min=0.1 * PEAK)
    assert ours(Cosine(peak=PEAK, n_steps=N, final_share=0.1)) == pytest.approx(cosine, rel=1e-9)
    linear = rates_of(
        torch.optim.lr_scheduler.LinearLR, N, start_factor=1.0, end_factor=0.2, total_iters=N - 1
    )
    assert ours(Linear(peak=PEAK, n_steps=N, final_share=0.2)) == pytest.approx(linear, rel=1e-9)


@pytest.mark.parametrize("schedule", ALL, ids=lambda schedule: type(schedule).__name__)
def test_the_first_step_trains_and_the_last_has_exactly_the_final_rate(schedule: Schedule) -> None:
    rates = ours(schedule)
    assert rates[0] == PEAK / WARMUP
    assert rates[WARMUP - 1] == PEAK
    assert rates[-1] == PEAK * schedule.final_share
    assert max(rates) == PEAK


@pytest.mark.parametrize("schedule", ALL, ids=lambda schedule: type(schedule).__name__)
def test_rates_climb_to_the_peak_and_never_rise_after_it(schedule: Schedule) -> None:
    rates = ours(schedule)
    assert all(a < b for a, b in itertools.pairwise(rates[:WARMUP]))
    assert all(a >= b for a, b in itertools.pairwise(rates[WARMUP - 1 :]))


def test_the_stable_phase_is_stable_and_the_decay_has_its_length() -> None:
    rates = ours(ALL[3])
    assert sum(rate < PEAK for rate in rates[WARMUP - 1 :]) == DECAY


def test_a_cosine_is_at_half_height_half_way() -> None:
    schedule = Cosine(peak=1.0, n_steps=101, final_share=0.2)
    assert schedule.rate(50) == pytest.approx(0.6)
    assert schedule.rate(25) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)


@pytest.mark.parametrize("step", [-1, N, 1.0, True, None])
def test_a_step_outside_the_run_has_no_rate(step: Any) -> None:
    with pytest.raises(ConfigError, match="step must be"):
        ALL[1].rate(step)


def test_a_schedule_refuses_phases_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="warmup_steps=10"):
        Cosine(peak=1.0, n_steps=10, warmup_steps=10)
    with pytest.raises(ConfigError, match="overlap"):
        WarmupStableDecay(peak=1.0, n_steps=10, warmup_steps=6, decay_steps=5)
    with pytest.raises(ConfigError, match="peak"):
        Linear(peak=math.nan, n_steps=10)


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "wsd"])
def test_a_configs_rate_is_its_schedules(name: Any) -> None:
    config = TrainConfig(n_tokens=N * 8, batch_size=2, seq_len=4, schedule=name, learning_rate=PEAK)
    assert config.n_steps == N
    assert learning_rate(config, 0) == PEAK / config.warmup
    assert learning_rate(config, N - 1) == PEAK * config.final_share
