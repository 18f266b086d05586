"""One table makes the flags, checks the file and fills the defaults: it must fit the configs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import pytest

from scalelab.cli.parser import Parser
from scalelab.cli.settings import (
    MODEL_DEFAULTS,
    MODEL_SETTINGS,
    RUN_DEFAULTS,
    RUN_SETTINGS,
    TABLES,
    TRAIN_DEFAULTS,
    TRAIN_SETTINGS,
    Setting,
    add_flags,
    decoder_config,
    given_flags,
    read_settings,
)
from scalelab.core.config import DecoderConfig
from scalelab.train.config import PrecisionChoice, ScheduleName, TrainConfig


def parse(words: str, settings: tuple[Setting, ...]) -> dict[str, Any]:
    parser = Parser("prog", "what", "none")
    add_flags(parser, "all", settings)
    return given_flags(parser.parse(words.split()), settings)


def test_every_field_of_both_configs_can_be_set() -> None:
    assert {s.name for s in MODEL_SETTINGS} == {f.name for f in dataclasses.fields(DecoderConfig)} - {
        "vocab_size"
    }
    assert {s.name for s in TRAIN_SETTINGS} == {f.name for f in dataclasses.fields(TrainConfig)} - {
        "seq_len",  # the model's
        "objective",  # `scalelab train` trains decoders
    }


def test_words_offered_are_those_the_config_takes() -> None:
    named = {setting.name: setting for setting in TRAIN_SETTINGS}
    for name, choices in (("schedule", get_args(ScheduleName)), ("precision", get_args(PrecisionChoice))):
        for choice in choices:
            assert named[name].from_text(choice) == choice
            assert choice in named[name].help


@pytest.mark.parametrize(
    ("cls", "settings", "own"),
    [(DecoderConfig, MODEL_SETTINGS, MODEL_DEFAULTS), (TrainConfig, TRAIN_SETTINGS, TRAIN_DEFAULTS),
     (None, RUN_SETTINGS, RUN_DEFAULTS)],
)  # fmt: skip
def test_documented_defaults_equal_the_code_s(
    cls: Any, settings: tuple[Setting, ...], own: dict[str, Any]
) -> None:
    fields = {} if cls is None else {f.name: f.default for f in dataclasses.fields(cls)}
    defaults = {**fields, **own}
    checked = 0
    for setting in settings:
        default = defaults.get(setting.name)
        if default is None or default is dataclasses.MISSING:
            continue
        shown = {True: "yes", False: "no"}[default] if isinstance(default, bool) else default
        shown = ",".join(map(str, shown)) if isinstance(shown, tuple) else shown
        assert setting.help.endswith(f"({shown})"), (setting.name, default)
        checked += 1
    assert checked >= 3


def test_flags_and_a_file_give_the_same_values(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        "[model]\nn_layers = 3\nnorm = 'rmsnorm'\ntie_embeddings = false\ndropout = 0.1\n"
        "[train]\nn_tokens = 2e6\nclip_norm = 'none'\n"
        "betas = [0.8, 0.9]\neval_tokens = 'all'\ncompile = true\n"
    )
    tables = read_settings(file, TABLES)
    model = parse("--n-layers 3 --norm rmsnorm --no-tie-embeddings --dropout 0.1", MODEL_SETTINGS)
    train = parse("--tokens 2M --clip-norm none --betas 0.8,0.9 --eval-tokens all --compile", TRAIN_SETTINGS)
    assert tables["model"] == model
    assert TrainConfig(**tables["train"]) == TrainConfig(**train)


def test_what_is_not_given_is_not_there() -> None:
    assert parse("", MODEL_SETTINGS + TRAIN_SETTINGS) == {}


def test_model_settings_make_the_decoder_they_describe() -> None:
    config = decoder_config({"d_model": 64, "rope_scaling": None, "positions": "rope"}, 300)
    assert config == DecoderConfig(
        n_layers=4, d_model=64, n_heads=4, vocab_size=300, seq_len=128, positions="rope"
    )
