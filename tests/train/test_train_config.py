from __future__ import annotations

import dataclasses
import json
import math

import pytest

from scalelab.core.errors import ConfigError
from scalelab.train import TrainConfig, train_config_from_dict, train_config_to_dict

GOOD = {"n_tokens": 1_000_000, "batch_size": 8, "seq_len": 128}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_tokens", 0),
        ("n_tokens", -5),
        ("n_tokens", 1e6),
        ("n_tokens", math.nan),
        ("n_tokens", True),
        ("n_tokens", "1M"),
        ("n_tokens", None),
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("seq_len", -1),
        ("learning_rate", 0.0),
        ("learning_rate", -1e-3),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("learning_rate", "1e-3"),
        ("min_lr_fraction", -0.1),
        ("min_lr_fraction", 1.5),
        ("min_lr_fraction", math.nan),
        ("warmup_steps", -1),
        ("warmup_steps", 2.0),
        ("warmup_steps", 976),
        ("schedule", "exponential"),
        ("decay_fraction", 0.0),
        ("decay_fraction", 1.01),
        ("weight_decay", -0.1),
        ("weight_decay", math.inf),
        ("betas", (0.9,)),
        ("betas", (0.9, 1.0)),
        ("betas", (-0.1, 0.9)),
        ("betas", 0.9),
        ("eps", 0.0),
        ("clip_norm", 0.0),
        ("clip_norm", -1.0),
        ("accumulate", 0),
        ("accumulate", 9),
        ("precision", "fp8"),
        ("compile", 1),
        ("deterministic", "yes"),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 0.5),
        ("n_evals", 0),
        ("eval_tokens", 0),
        ("checkpoint_every", 0),
        ("keep_checkpoints", 0),
        ("log_every", -3),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_with_its_name_and_value(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**{**GOOD, name: value})
    shown = repr(value[0] if isinstance(value, tuple) and len(value) == 1 else value)
    assert name in str(caught.value) or "betas" in str(caught.value)
    assert shown in str(caught.value) or name == "betas"


def test_a_batch_larger_than_the_budget_is_refused() -> None:
    with pytest.raises(ConfigError, match="1024 tokens, more than the whole budget n_tokens=1000"):
        TrainConfig(n_tokens=1000, batch_size=8, seq_len=128)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="does nothing under a constant schedule"):
        TrainConfig(**GOOD, schedule="constant", min_lr_fraction=0.1)
    with pytest.raises(ConfigError, match="overlap"):
        TrainConfig(**GOOD, schedule="wsd", warmup_steps=500, decay_fraction=0.6)


def test_a_budget_buys_whole_steps_only_and_is_never_exceeded() -> None:
    config = TrainConfig(n_tokens=10_000, batch_size=8, seq_len=128)
    assert config.n_steps == 9
    assert config.n_steps * config.batch_tokens <= 10_000 < (config.n_steps + 1) * config.batch_tokens


def test_eight_evaluations_each_stand_at_twice_the_tokens_of_the_one_before() -> None:
    config = TrainConfig(n_tokens=1280 * 256, batch_size=2, seq_len=128, n_evals=8)
    assert config.eval_steps == (10, 20, 40, 80, 160, 320, 640, 1280)


@pytest.mark.parametrize("n_steps", [1, 2, 7, 100, 9_999])
@pytest.mark.parametrize("n_evals", [1, 2, 5, 30])
def test_evaluations_lie_within_the_run_and_the_last_is_at_its_end(n_steps: int, n_evals: int) -> None:
    steps = TrainConfig(n_tokens=n_steps * 8, batch_size=2, seq_len=4, n_evals=n_evals).eval_steps
    assert list(steps) == sorted(set(steps))
    assert steps[0] >= 1
    assert steps[-1] == n_steps
    assert len(steps) <= n_evals


def test_what_is_left_out_is_filled_in_by_what_the_docstring_says() -> None:
    assert TrainConfig(**GOOD).warmup_steps == TrainConfig(**GOOD).n_steps // 20
    assert TrainConfig(**GOOD, schedule="cosine").min_lr_fraction == 0.1
    assert TrainConfig(**GOOD, schedule="linear").min_lr_fraction == 0.0
    assert TrainConfig(**GOOD, schedule="wsd").min_lr_fraction == 0.0


def test_a_config_survives_json() -> None:
    config = TrainConfig(**GOOD, schedule="wsd", betas=(0.8, 0.99), clip_norm=None, precision="auto")
    assert train_config_from_dict(json.loads(json.dumps(train_config_to_dict(config)))) == config


def test_unknown_missing_and_mistyped_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="learning_rat"):
        train_config_from_dict({**GOOD, "learning_rat": 1e-3})
    with pytest.raises(ConfigError, match="n_tokens"):
        train_config_from_dict({"batch_size": 8})
    with pytest.raises(ConfigError, match="mapping"):
        train_config_from_dict([1, 2])  # type: ignore[arg-type]


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig(**GOOD).seed = 1  # type: ignore[misc]
