"""Bad model, training and TOML settings: each is refused by one of our errors that names the value."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scalelab.cli.settings import TABLES, decoder_config, read_settings
from scalelab.core.config import (
    DecoderConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    RopeScaling,
    VisionConfig,
    config_from_dict,
)
from scalelab.core.presets import preset
from scalelab.train.config import TrainConfig, train_config_from_dict
from scalelab.train.schedule import learning_rate

GOOD_MODEL: dict[str, Any] = {"n_layers": 2, "d_model": 16, "n_heads": 2, "vocab_size": 64, "seq_len": 32}
ROPE = {"positions": "rope"}

# kind → (what differs from a good model, what the message must name)
MODEL_CASES: dict[str, tuple[dict[str, Any], str]] = {
    "no layers": ({"n_layers": 0}, "n_layers"),
    "negative width": ({"d_model": -16}, "-16"),
    "fractional layers": ({"n_layers": 1.5}, "1.5"),
    "layers that are a whole float": ({"n_layers": 2.0}, "2.0"),
    "layers that are true": ({"n_layers": True}, "True"),
    "layers that are a text": ({"n_layers": "2"}, "'2'"),
    "layers that are a list": ({"n_layers": [2]}, "[2]"),
    "layers that are None": ({"n_layers": None}, "None"),
    "width that is nan": ({"d_model": math.nan}, "nan"),
    "width that is infinite": ({"d_model": math.inf}, "inf"),
    "no heads": ({"n_heads": 0}, "n_heads"),
    "heads that do not divide the width": ({"n_heads": 3}, "n_heads=3"),
    "no vocabulary": ({"vocab_size": 0}, "vocab_size"),
    "negative context": ({"seq_len": -1}, "-1"),
    "key/value heads that do not divide the heads": ({"n_heads": 4, "n_kv_heads": 3}, "n_kv_heads=3"),
    "more key/value heads than heads": ({"n_kv_heads": 4}, "n_kv_heads=4"),
    "no key/value heads": ({"n_kv_heads": 0}, "n_kv_heads"),
    "heads of no width": ({"d_head": 0}, "d_head"),
    "feed-forward of negative width": ({"d_ff": -1}, "-1"),
    "unknown norm": ({"norm": "batchnorm"}, "batchnorm"),
    "norm in capitals": ({"norm": "RMSNorm"}, "RMSNorm"),
    "norm that is no text": ({"norm": 1}, "norm"),
    "norm_eps of zero": ({"norm_eps": 0.0}, "norm_eps"),
    "norm_eps that is nan": ({"norm_eps": math.nan}, "nan"),
    "unknown positions": ({"positions": "xpos"}, "xpos"),
    "unknown feed-forward": ({"feed_forward": "silu"}, "silu"),
    "bias given as text": ({"attention_bias": "yes"}, "'yes'"),
    "bias given as a number": ({"feed_forward_bias": 1}, "feed_forward_bias"),
    "norm bias that is None": ({"norm_bias": None}, "norm_bias"),
    "tying given as text": ({"tie_embeddings": "false"}, "'false'"),
    "parallel residual given as a number": ({"parallel_residual": 0}, "parallel_residual"),
    "dropout of one": ({"dropout": 1.0}, "1.0"),
    "negative dropout": ({"dropout": -0.1}, "-0.1"),
    "dropout in per cent": ({"dropout": 10}, "10"),
    "dropout that is nan": ({"dropout": math.nan}, "nan"),
    "dropout given as text": ({"dropout": "0.1"}, "'0.1'"),
    "rotary base of zero": ({**ROPE, "rope_theta": 0}, "rope_theta"),
    "infinite rotary base": ({**ROPE, "rope_theta": math.inf}, "inf"),
    "rotary share above one": ({**ROPE, "rope_fraction": 1.5}, "1.5"),
    "rotary share of zero": ({**ROPE, "rope_fraction": 0.0}, "rope_fraction"),
    "rotary width that is odd": ({**ROPE, "d_head": 7}, "d_head=7"),
    "rotary width below two": ({**ROPE, "rope_fraction": 0.1}, "rope_fraction=0.1"),
    "rotary layers skipped every zero": ({**ROPE, "rope_skip_every": 0}, "rope_skip_every"),
    "rotary scaling that is a number": ({**ROPE, "rope_scaling": 8.0}, "8.0"),
    "unknown setting": ({"n_layer": 2}, "n_layer"),
    "unknown kind of model": ({"kind": "mamba"}, "mamba"),
    "kind that is no text": ({"kind": 3}, "3"),
}

GOOD_SCALING: dict[str, Any] = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_seq_len": 64,
}  # fmt: skip
SCALING_CASES: dict[str, tuple[dict[str, Any], str]] = {
    "scaling by zero": ({"factor": 0}, "factor"),
    "scaling by text": ({"factor": "8"}, "'8'"),
    "scaling bands the wrong way round": ({"high_freq_factor": 0.5}, "high_freq_factor=0.5"),
    "scaling band that is text": ({"high_freq_factor": "4"}, "'4'"),
    "scaling from a fractional context": ({"original_seq_len": 64.5}, "64.5"),
    "scaling with an unknown field": ({"factr": 8.0}, "factr"),
}

# kind → (the call, what the message must name)
OTHER_MODEL_CASES: dict[str, tuple[Callable[[], object], str]] = {
    "model that is no mapping": (lambda: config_from_dict([("n_layers", 2)]), "n_layers"),  # type: ignore[arg-type]
    "model that is empty": (lambda: config_from_dict({}), "n_layers"),
    "encoder whose heads do not divide": (
        lambda: EncoderConfig(n_layers=1, d_model=16, n_heads=3, d_ff=64, vocab_size=9), "n_heads=3",
    ),
    "encoder whose pooler is text": (
        lambda: EncoderConfig(n_layers=1, d_model=16, n_heads=2, d_ff=64, vocab_size=9, pooler="no"),  # type: ignore[arg-type]
        "'no'",
    ),
    "encoder–decoder without heads": (
        lambda: EncoderDecoderConfig(n_layers=1, d_model=16, n_heads=0, d_head=8, d_ff=64, vocab_size=9),
        "n_heads",
    ),
    "image that patches do not divide": (
        lambda: VisionConfig(n_layers=1, d_model=16, n_heads=2, d_ff=64, patch_size=15), "patch_size=15",
    ),
    "preset that is misspelt": (lambda: preset("gtp2"), "gpt2"),
    "preset that does not exist": (lambda: preset("claude"), "'claude'"),
    "preset that is no text": (lambda: preset(2), "2"),  # type: ignore[arg-type]
}  # fmt: skip

GOOD_TRAINING: dict[str, Any] = {"n_tokens": 10_000, "batch_size": 4, "seq_len": 32}
TRAIN_CASES: dict[str, tuple[dict[str, Any], str]] = {
    "no budget": ({"n_tokens": 0}, "n_tokens"),
    "budget given as a float": ({"n_tokens": 2e6}, "2000000.0"),
    "budget below one step": ({"n_tokens": 100}, "n_tokens=100"),
    "no sequences in a batch": ({"batch_size": 0}, "batch_size"),
    "negative training length": ({"seq_len": -8}, "-8"),
    "learning rate of zero": ({"learning_rate": 0}, "learning_rate"),
    "negative learning rate": ({"learning_rate": -1e-3}, "-0.001"),
    "learning rate that is nan": ({"learning_rate": math.nan}, "nan"),
    "learning rate that is text": ({"learning_rate": "1e-3"}, "'1e-3'"),
    "learning rate too large for a float": ({"learning_rate": 10**400}, "learning_rate"),
    "last rate above the peak": ({"min_lr_fraction": 1.5}, "1.5"),
    "last rate under a constant schedule": ({"schedule": "constant", "min_lr_fraction": 0.1}, "0.1"),
    "unknown schedule": ({"schedule": "cosin"}, "cosin"),
    "warm-up as long as the run": ({"warmup_steps": 78}, "warmup_steps=78"),
    "negative warm-up": ({"warmup_steps": -1}, "-1"),
    "warm-up as a share": ({"warmup_steps": 0.1}, "0.1"),
    "decay of no length": ({"schedule": "wsd", "decay_fraction": 0}, "decay_fraction"),
    "decay longer than the run": ({"schedule": "wsd", "decay_fraction": 1.1}, "1.1"),
    "decay that overlaps warm-up": (
        {"schedule": "wsd", "warmup_steps": 50, "decay_fraction": 0.9}, "decay_fraction=0.9",
    ),
    "negative weight decay": ({"weight_decay": -0.1}, "-0.1"),
    "infinite weight decay": ({"weight_decay": math.inf}, "inf"),
    "one beta": ({"betas": (0.9,)}, "(0.9,)"),
    "beta of one": ({"betas": (0.9, 1.0)}, "betas[1]"),
    "betas that are a number": ({"betas": 0.9}, "0.9"),
    "betas that are text": ({"betas": "ab"}, "'ab'"),
    "eps of zero": ({"eps": 0.0}, "eps"),
    "clipping at zero": ({"clip_norm": 0.0}, "clip_norm"),
    "clipping at text": ({"clip_norm": "none"}, "'none'"),
    "no micro-batches": ({"accumulate": 0}, "accumulate"),
    "more micro-batches than sequences": ({"accumulate": 8}, "accumulate=8"),
    "unknown precision": ({"precision": "fp8"}, "fp8"),
    "precision as torch writes it": ({"precision": "bfloat16"}, "bfloat16"),
    "compiling given as text": ({"compile": "yes"}, "'yes'"),
    "determinism given as a number": ({"deterministic": 1}, "deterministic"),
    "negative seed": ({"seed": -1}, "-1"),
    "seed that is a float": ({"seed": 0.5}, "0.5"),
    "seed too large for a generator": ({"seed": 2**63}, str(2**63)),
    "no evaluations": ({"n_evals": 0}, "n_evals"),
    "evaluation on no tokens": ({"eval_tokens": 0}, "eval_tokens"),
    "checkpoints every zero steps": ({"checkpoint_every": 0}, "checkpoint_every"),
    "no checkpoints kept": ({"keep_checkpoints": 0}, "keep_checkpoints"),
    "log that never comes": ({"log_every": 0}, "log_every"),
    "unknown training setting": ({"learning_rte": 1e-3}, "learning_rte"),
}  # fmt: skip
OTHER_TRAIN_CASES: dict[str, tuple[Callable[[], object], str]] = {
    "training without a budget": (lambda: train_config_from_dict({}), "n_tokens"),
    "training settings that are a list": (lambda: train_config_from_dict([1]), "[1]"),  # type: ignore[arg-type]
    "rate before the first step": (lambda: learning_rate(TrainConfig(**GOOD_TRAINING), -1), "-1"),
    "rate after the last step": (lambda: learning_rate(TrainConfig(**GOOD_TRAINING), 78), "78"),
    "rate between two steps": (lambda: learning_rate(TrainConfig(**GOOD_TRAINING), 0.5), "0.5"),  # type: ignore[arg-type]
}

# kind → (the text of the file, what the message must name)
TOML_CASES: dict[str, tuple[str, str]] = {
    "TOML that is not TOML": ("n_layers: 4", "line 1"),
    "TOML table that is not closed": ("[model\nn_layers = 4", "line 1"),
    "TOML key given twice": ("[model]\nn_layers = 4\nn_layers = 5", "overwrite"),
    "TOML text without quotes": ("corpus = python", "line 1"),
    "TOML table that is misspelt": ("[modle]\nn_layers = 4", "[model]"),
    "TOML table that is a number": ("model = 4", "[model]"),
    "TOML key that is misspelt": ("[model]\nn_layer = 4", "n_layers"),
    "TOML key that stands in the wrong table": ("[train]\nd_model = 16", "d_model"),
    "TOML model key at the top": ("d_model = 16", "d_model"),
    "TOML corpus that is a number": ("corpus = 3", "corpus"),
    "TOML vocabulary that is text": ("vocab_size = '512'", "'512'"),
    "TOML vocabulary of zero": ("vocab_size = 0", "0"),
    "TOML tokenizer that is unknown": ("tokenizer = 'bep'", "bpe"),
    "TOML layers that are text": ("[model]\nn_layers = 'four'", "'four'"),
    "TOML layers with a fraction": ("[model]\nn_layers = 4.5", "4.5"),
    "TOML date as a width": ("[model]\nd_model = 2026-11-01", "2026"),
    "TOML dropout that is nan": ("[model]\ndropout = nan", "nan"),
    "TOML list as the norm": ("[model]\nnorm = ['rmsnorm']", "rmsnorm"),
    "TOML rotary scaling that lacks its factor": (
        "[model]\npositions = 'rope'\n[model.rope_scaling]\nlow_freq_factor = 1", "factor",
    ),
    "TOML rotary scaling that is a list": ("[model]\npositions = 'rope'\nrope_scaling = [8]", "[8]"),
}  # fmt: skip


def named(cases: dict[str, Any]) -> Any:
    """One test a case, called by its kind."""
    return pytest.mark.parametrize("case", cases.values(), ids=cases.keys())


@named(MODEL_CASES)
def test_bad_model_is_refused(case: tuple[dict[str, Any], str], refuses: Any) -> None:
    change, says = case
    config_from_dict(GOOD_MODEL)
    refuses(lambda: config_from_dict({**GOOD_MODEL, **change}), says)


@named(SCALING_CASES)
def test_bad_rotary_scaling_is_refused(case: tuple[dict[str, Any], str], refuses: Any) -> None:
    change, says = case
    good = {**GOOD_MODEL, **ROPE, "rope_scaling": GOOD_SCALING}
    config_from_dict(good)
    refuses(lambda: config_from_dict({**good, "rope_scaling": {**GOOD_SCALING, **change}}), says)


@named(OTHER_MODEL_CASES)
def test_bad_config_is_refused(case: tuple[Callable[[], object], str], refuses: Any) -> None:
    refuses(*case)


@named(TRAIN_CASES)
def test_bad_training_is_refused(case: tuple[dict[str, Any], str], refuses: Any) -> None:
    change, says = case
    train_config_from_dict(GOOD_TRAINING)
    refuses(lambda: train_config_from_dict({**GOOD_TRAINING, **change}), says)


@named(OTHER_TRAIN_CASES)
def test_bad_use_of_training_settings_is_refused(
    case: tuple[Callable[[], object], str], refuses: Any
) -> None:
    refuses(*case)


@named(TOML_CASES)
def test_bad_toml_is_refused(case: tuple[str, str], tmp_path: Path, refuses: Any) -> None:
    text, says = case
    file = tmp_path / "run.toml"
    file.write_text(text, encoding="utf-8")
    refuses(lambda: decoder_config(read_settings(file, TABLES)["model"], 64), says)


def test_toml_that_is_missing_is_refused(tmp_path: Path, refuses: Any) -> None:
    refuses(lambda: read_settings(tmp_path / "absent.toml", TABLES), "absent.toml")


def test_toml_that_is_binary_is_refused(tmp_path: Path, refuses: Any) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(b"\xff\xfe\x00corpus")
    refuses(lambda: read_settings(file, TABLES), "run.toml")


def test_toml_that_is_a_folder_is_refused(tmp_path: Path, refuses: Any) -> None:
    folder = tmp_path / "run.toml"
    folder.mkdir()
    refuses(lambda: read_settings(folder, TABLES), "run.toml")


def test_rope_scaling_of_another_type_is_refused(refuses: Any) -> None:
    refuses(lambda: DecoderConfig(**GOOD_MODEL, **ROPE, rope_scaling={"factor": 8.0}), "factor")
    RopeScaling(**GOOD_SCALING)
