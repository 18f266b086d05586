"""A run's settings have one table: it makes the flags, checks a TOML file's keys, and fills the defaults.

A settings file says what the flags say, in three places:

    corpus = "python"          # what to train on, and where to
    out = "runs/first"

    [model]                    # the fields of DecoderConfig
    n_layers = 4

    [train]                    # the fields of TrainConfig
    n_tokens = 2_000_000

Flags override the file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from scalelab.cli.parser import count, did_you_mean, one_of, real_number, seed_number, whole_number
from scalelab.core.artifacts import read_toml
from scalelab.core.config import (
    DecoderConfig,
    FeedForward,
    ModelConfig,
    Norm,
    NormPosition,
    Positions,
    config_from_dict,
)
from scalelab.core.errors import ConfigError

Table = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing that can be set.

    Attributes:
        name: its key in the TOML file, and the field it fills.
        read: makes a value of a flag's text, refusing with argparse.ArgumentTypeError; None: a yes or no.
        help: what it is, with its default.
        flag: the flag's name where it is not `--` and the name with dashes; "" where only a file can hold it.
        none: the word that stands for None, which TOML lacks; "" where None cannot be asked for.
    """

    name: str
    read: Callable[[str], Any] | None
    help: str
    flag: str | None = None
    none: str = ""

    @property
    def option(self) -> str:
        """The flag, or "" where there is none."""
        return f"--{self.name.replace('_', '-')}" if self.flag is None else self.flag

    @property
    def metavar(self) -> str:
        """What stands for the value in a help text."""
        return {whole_number: "N", count: "N", seed_number: "N", real_number: "X"}.get(self.read, "NAME")  # type: ignore[arg-type]

    def from_text(self, text: str) -> Any:
        """The value that a flag's text means."""
        assert self.read is not None
        return None if self.none and text == self.none else self.read(text)

    def from_toml(self, value: Any) -> Any:
        """The value that a file's means: 2e6 for a whole number, and the word for None."""
        if self.none and value == self.none:
            return None
        if self.read in (whole_number, count) and isinstance(value, float) and value.is_integer():
            return int(value)
        return value


def two_numbers(text: str) -> tuple[float, float]:
    """Two numbers with a comma between.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    parts = text.split(",")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(
            f"must be two numbers with a comma between, as 0.9,0.95; got {text!r}"
        )
    return real_number(parts[0]), real_number(parts[1])


RUN_SETTINGS = (
    Setting(
        "corpus", str, "python, docs, markov, packages, a set of `scalelab data list`, or a path (python)"
    ),
    Setting("tokenizer", one_of("bpe", "bytes", "symbols"), "bpe, bytes, or markov's own symbols (bpe)"),
    Setting("vocab_size", whole_number, "size of the vocabulary that bpe learns from the corpus (512)"),
    Setting("max_bytes", whole_number, "use about so many bytes of training text (all)", none="all"),
    Setting("out", str, "the folder to make for the run"),
)
RUN_DEFAULTS: Mapping[str, Any] = {
    "corpus": "python",
    "tokenizer": "bpe",
    "vocab_size": 512,
    "max_bytes": None,
}

MODEL_SETTINGS = (
    Setting("n_layers", whole_number, "layers (4)"),
    Setting("d_model", whole_number, "width (128)"),
    Setting("n_heads", whole_number, "attention heads (4)"),
    Setting("seq_len", whole_number, "longest context, tokens, and the length trained on (128)"),
    Setting("n_kv_heads", whole_number, "key/value heads, for grouped-query attention (as n_heads)"),
    Setting("d_head", whole_number, "width of a head (d_model / n_heads)"),
    Setting("d_ff", whole_number, "width inside the feed-forward (4 d_model; swiglu: 8/3 d_model)"),
    Setting("norm", one_of(*get_args(Norm)), f"{', '.join(get_args(Norm))} (layernorm)"),
    Setting("norm_eps", real_number, "added under the norm's root (1e-05)"),
    Setting(
        "norm_position",
        one_of(*get_args(NormPosition)),
        "pre: before each part; post: after (pre)",
    ),
    Setting("positions", one_of(*get_args(Positions)), f"{', '.join(get_args(Positions))} (learned)"),
    Setting("rope_theta", real_number, "base of the rotary frequencies (10000.0)"),
    Setting("rope_fraction", real_number, "share of each head that turns (1.0)"),
    Setting("rope_scaling", str, "", flag=""),  # a table of four numbers
    Setting(
        "rope_skip_every", whole_number, "every so many layers one without positions (never)", none="never"
    ),
    Setting(
        "feed_forward", one_of(*get_args(FeedForward)), f"{', '.join(get_args(FeedForward))} (gelu_tanh)"
    ),
    Setting("attention_bias", None, "biases in attention (yes)"),
    Setting("feed_forward_bias", None, "biases in the feed-forward (yes)"),
    Setting("norm_bias", None, "biases in LayerNorm (yes)"),
    Setting("tie_embeddings", None, "the head multiplies by the input table (yes)"),
    Setting("parallel_residual", None, "attention and feed-forward read the same input (no)"),
    Setting("dropout", real_number, "probability of dropout while training (0.0)"),
)
MODEL_DEFAULTS: Mapping[str, Any] = {"n_layers": 4, "d_model": 128, "n_heads": 4, "seq_len": 128}

# The fields of TrainConfig, but for seq_len, which the model gives, and the objective, of which a decoder has
# one. They stand here once more because `scalelab train --help` must not import torch; a test holds names and
# defaults against the class.
TRAIN_SETTINGS = (
    Setting("n_tokens", whole_number, "tokens to train on, as 2e6 or 2M (2000000)", flag="--tokens"),
    Setting("batch_size", whole_number, "sequences of a step (32)"),
    Setting("learning_rate", real_number, "the peak (0.001)"),
    Setting(
        "schedule", one_of("constant", "cosine", "linear", "wsd"), "constant, cosine, linear, wsd (cosine)"
    ),
    Setting("warmup_steps", count, "steps until the peak (a twentieth of the run)"),
    Setting("min_lr_fraction", real_number, "the last rate over the peak (cosine 0.1, linear and wsd 0)"),
    Setting("decay_fraction", real_number, "share of the run that wsd decays over (0.2)"),
    Setting("weight_decay", real_number, "AdamW's, on matrices (0.1)"),
    Setting("betas", two_numbers, "AdamW's (0.9,0.95)"),
    Setting("eps", real_number, "AdamW's (1e-08)"),
    Setting("clip_norm", real_number, "largest norm of a gradient, or none (1.0)", none="none"),
    Setting("accumulate", whole_number, "micro-batches that a step is cut into (1)"),
    Setting(
        "precision", one_of("fp32", "bf16", "fp16", "auto"), "fp32, bf16, fp16, or auto: a short trial (fp32)"
    ),
    Setting("compile", None, "run the model through torch.compile (no)"),
    Setting("deterministic", None, "on a GPU, kernels that repeat bit for bit (yes)"),
    Setting("seed", seed_number, "of weights, data order and dropout (0)"),
    Setting("n_evals", whole_number, "held-out evaluations, log-spaced (8)"),
    Setting("eval_tokens", whole_number, "held-out tokens each reads, or all (65536)", none="all"),
    Setting("checkpoint_every", whole_number, "steps between checkpoints (a tenth of the run)"),
    Setting("keep_checkpoints", whole_number, "checkpoints that stay (2)"),
    Setting("log_every", whole_number, "steps between entries in the logs (10)"),
)
TRAIN_DEFAULTS: Mapping[str, Any] = {"n_tokens": 2_000_000}

TABLES: Mapping[str, tuple[Setting, ...]] = {
    "": RUN_SETTINGS,
    "model": MODEL_SETTINGS,
    "train": TRAIN_SETTINGS,
}


def add_flags(parser: argparse.ArgumentParser, title: str, settings: Sequence[Setting]) -> None:
    """Give the parser a flag for each setting; what is not given leaves no trace in the parsed arguments."""
    group = parser.add_argument_group(title)
    for setting in settings:
        if not setting.option:
            continue
        common: dict[str, Any] = {
            "dest": setting.name,
            "default": argparse.SUPPRESS,
            "help": setting.help.replace("%", "%%"),
        }
        if setting.read is None:
            group.add_argument(setting.option, action=argparse.BooleanOptionalAction, **common)
        else:
            group.add_argument(setting.option, type=setting.from_text, metavar=setting.metavar, **common)


def given_flags(args: argparse.Namespace, settings: Sequence[Setting]) -> Table:
    """The settings that were given as flags."""
    return {s.name: getattr(args, s.name) for s in settings if hasattr(args, s.name)}


def read_settings(path: Path, tables: Mapping[str, Sequence[Setting]]) -> dict[str, Table]:
    """A settings file as its tables, "" for what stands above the first; each is there, if only empty.

    Raises:
        ConfigError: no such file, no TOML, or a table or key that is not in `tables`.
    """
    content = read_toml(path)
    top: Table = {}
    found: dict[str, Table] = {name: {} for name in tables}
    for key, value in content.items():
        if isinstance(value, Mapping) and key in tables:
            found[key] = {
                name: _value(path, f"[{key}] {name}", value[name], tables[key], name) for name in value
            }
        elif isinstance(value, Mapping):
            names = [f"[{name}]" for name in tables if name]
            raise ConfigError(
                f"{path}: unknown table [{key}]{did_you_mean(f'[{key}]', names)}; known: {', '.join(names)}"
            )
        elif key in tables:
            raise ConfigError(f"{path}: {key} must be a table [{key}], got {value!r}")
        else:
            top[key] = _value(path, key, value, tables.get("", ()), key)
    found[""] = top
    return found


def _value(path: Path, place: str, value: Any, settings: Sequence[Setting], name: str) -> Any:
    """A value as its setting wants it; whether it is in range is for the config to say."""
    by_name = {setting.name: setting for setting in settings}
    if name not in by_name:
        raise ConfigError(
            f"{path}: unknown key {place}{did_you_mean(name, by_name)}; known: {', '.join(by_name)}"
        )
    setting = by_name[name]
    meant = setting.from_toml(value)
    if setting in RUN_SETTINGS and meant is not None:
        _check_run_value(path, setting, meant)
    return meant


def _check_run_value(path: Path, setting: Setting, value: Any) -> None:
    """The run's own settings belong to no config that would check them."""
    is_count = setting.read is whole_number
    if not isinstance(value, int if is_count else str) or isinstance(value, bool):
        wanted = "a whole number of at least 1" if is_count else "a text in quotes"
        raise ConfigError(f"{path}: {setting.name} must be {wanted}, got {value!r}")
    try:
        setting.from_text(str(value))
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"{path}: {setting.name} {error}") from None


def decoder_config(model: Mapping[str, Any], vocab_size: int) -> DecoderConfig:
    """The decoder that the settings of [model] describe, defaults filled in.

    Raises:
        ConfigError: a value the config refuses.
    """
    config: ModelConfig = config_from_dict({**MODEL_DEFAULTS, **model, "vocab_size": vocab_size})
    assert isinstance(config, DecoderConfig)  # "kind" is no setting
    return config
