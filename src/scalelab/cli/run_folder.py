"""What `scalelab train` keeps in a run's folder beside the checkpoints, so that the folder alone is enough.

`settings.json` holds every setting and which loggers were asked for, so `--resume` needs no other flag, and
`tokenizer.json` the tokenizer, so `scalelab generate` cuts a prompt as training cut its text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scalelab.cli.settings import (
    MODEL_DEFAULTS,
    RUN_DEFAULTS,
    TABLES,
    TRAIN_DEFAULTS,
    Setting,
    Table,
)
from scalelab.core.artifacts import user_path, write_atomic
from scalelab.core.errors import CheckpointError, ConfigError

SETTINGS_FILE, TOKENIZER_FILE = "settings.json", "tokenizer.json"
FORMAT = 1
LOGGERS: Mapping[str, type] = {"tensorboard": bool, "wandb": str}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """Every setting of a run, defaults filled in.

    Attributes:
        top: corpus, tokenizer, vocab_size, max_bytes.
        model: of DecoderConfig, without vocab_size, which the tokenizer gives.
        train: of TrainConfig, without seq_len, which the model gives.
        loggers: by name, the value of the flag that asked for it: tensorboard (True), wandb (the project).
    """

    top: Mapping[str, Any]
    model: Mapping[str, Any]
    train: Mapping[str, Any]
    loggers: Mapping[str, Any] = field(default_factory=dict)


def fill_in(tables: Mapping[str, Table]) -> RunSettings:
    """The settings of flags and file, completed by the defaults of the command.

    Raises:
        ConfigError: a vocabulary's size for a tokenizer that has its own.
    """
    given = tables[""]
    top = {**RUN_DEFAULTS, **given}
    top.pop("out", None)  # the folder knows where it is, and may be moved
    top["corpus"] = _wherever(top["corpus"])
    if top["corpus"] == "markov" and "tokenizer" not in given:
        top["tokenizer"] = "symbols"
    if "vocab_size" in given and top["tokenizer"] != "bpe":
        raise ConfigError(
            f"vocab_size={given['vocab_size']} is for bpe; "
            f"the tokenizer {top['tokenizer']} has a size of its own"
        )
    return RunSettings(
        top=top, model={**MODEL_DEFAULTS, **tables["model"]}, train={**TRAIN_DEFAULTS, **tables["train"]}
    )


def write_settings(out: Path, settings: RunSettings) -> None:
    """Keep a run's settings in its folder."""
    content = {
        "format": FORMAT, "run": settings.top, "model": settings.model, "train": settings.train,
        "loggers": settings.loggers,
    }  # fmt: skip
    write_atomic(out / SETTINGS_FILE, json.dumps(content, indent=1).encode())


def read_run_settings(out: Path) -> RunSettings:
    """The settings that `write_settings` kept.

    Raises:
        CheckpointError: no run is there, or its settings are damaged or of another format.
    """
    file = out / SETTINGS_FILE
    if not out.is_dir():
        raise CheckpointError(f"there is no run at {out}: give the folder that was --out of `scalelab train`")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{out} holds no {SETTINGS_FILE}: it is no run of `scalelab train`") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else content
        raise CheckpointError(f"{file} is of format {found!r}, this version reads {FORMAT}")
    tables = {}
    for part, table in (("run", ""), ("model", "model"), ("train", "train")):
        values, known = content.get(part), {setting.name for setting in TABLES[table]}
        if not isinstance(values, dict) or not set(values) <= known:
            raise CheckpointError(f"{file} is damaged: {part!r} holds {values!r}")
        tables[part] = values
    loggers = content.get("loggers", {})
    if not (
        isinstance(loggers, dict)
        and all(name in LOGGERS and isinstance(value, LOGGERS[name]) for name, value in loggers.items())
    ):
        raise CheckpointError(f"{file} is damaged: 'loggers' holds {loggers!r}")
    return RunSettings(top=tables["run"], model=tables["model"], train=tables["train"], loggers=loggers)


def refuse_changes(kept: RunSettings, asked: Mapping[str, Table]) -> None:
    """A resumed run keeps its settings: whoever asks for others wants another run.

    Raises:
        ConfigError: a flag or file asks for a value that the run does not have.
    """
    for table, values in (("", kept.top), ("model", kept.model), ("train", kept.train)):
        options: dict[str, Setting] = {setting.name: setting for setting in TABLES[table]}
        for name, value in asked[table].items():
            wanted = list(value) if isinstance(value, tuple) else value  # as JSON keeps it
            if name == "corpus":
                wanted = _wherever(value)
            if name == "out" or (name in values and values[name] == wanted):
                continue
            had = repr(values[name]) if name in values else "its default"
            raise ConfigError(
                f"{options[name].option or name}: the run was started with {had}, not {value!r}; "
                "a resumed run keeps its settings: leave this one out, or start another run"
            )


def refuse_existing(out: Path) -> None:
    """Refuse a folder for a new run that holds anything.

    Raises:
        ConfigError: it holds a run, or other files, or is a file itself, or cannot be made.
    """
    if (out / SETTINGS_FILE).exists():
        raise ConfigError(f"{out} holds a run already: go on with it by --resume, or choose another --out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is no empty folder: choose another --out")
    above = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):  # found now, not after the text is read
        raise ConfigError(
            f"cannot make {out}: {above} is no folder that can be written; choose another --out"
        )


def _wherever(corpus: str) -> str:
    """A path made absolute, so that a run can be resumed from another folder; names stay."""
    from scalelab.data import corpus_names

    path = user_path(corpus)
    return corpus if corpus in corpus_names() or not path.exists() else str(path.resolve())
