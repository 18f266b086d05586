"""What a run leaves behind: one line that says what was trained, on what, where, and what it reached."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import scalelab
from scalelab.core.config import ModelConfig, config_to_dict
from scalelab.core.records import RunRecord, append_records, read_records
from scalelab.cost import flops, params
from scalelab.data import TokenData
from scalelab.train.config import TrainConfig, train_config_to_dict
from scalelab.train.evaluate import Evaluation
from scalelab.train.history import History
from scalelab.train.strategy import Strategy


def data_identity(data: TokenData) -> dict[str, Any]:
    """Which tokens a run reads; two texts of the same name but other content differ in the sha256."""
    return {
        "corpus": data.name,
        "tokenizer": data.tokenizer_name,
        "n_tokens": len(data.train),
        "sha256": data.fingerprint,
    }


def run_identity(model_config: ModelConfig, train_config: TrainConfig, data: Mapping[str, Any]) -> str:
    """A name that the same run always has, and no other: its corpus and a hash of all its settings."""
    settings = [config_to_dict(model_config), train_config_to_dict(train_config), dict(data)]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    corpus = "".join(letter if letter.isalnum() else "-" for letter in str(data["corpus"]).lower())
    return f"{corpus.strip('-')[:40] or 'run'}-{digest[:12]}"


def make_record(
    *,
    run_id: str,
    model_config: ModelConfig,
    train_config: TrainConfig,
    data: Mapping[str, Any],
    n_tokens_unique: int,
    history: History,
    evaluation: Evaluation,
    seconds: float,
    environment: Mapping[str, Any],
    target_len: int | None = None,
) -> RunRecord:
    """The record of a run as far as its history goes.

    Args:
        target_len: tokens an encoder–decoder writes for each sequence it reads; its FLOPs depend on them.
    """
    counts = params(model_config)
    n_steps = len(history)
    n_tokens = n_steps * train_config.batch_tokens
    a_step = flops(
        model_config,
        batch_size=train_config.batch_size,
        seq_len=train_config.seq_len,
        training=True,
        target_len=target_len,
    )
    return RunRecord(
        run_id=run_id,
        config=config_to_dict(model_config),
        corpus=data["corpus"],
        tokenizer=data["tokenizer"],
        n_params=counts.total,
        n_params_matmul=counts.matmul,
        n_params_non_embedding=counts.non_embedding,
        n_tokens=n_tokens,
        n_tokens_unique=n_tokens_unique,
        epochs=n_tokens / n_tokens_unique,
        flops=float(a_step.total * n_steps),
        loss_nats=evaluation.loss_nats,
        bits_per_byte=evaluation.bits_per_byte,
        curve=tuple(history.curve),
        learning_rate=train_config.learning_rate,
        batch_tokens=train_config.batch_tokens,
        seed=train_config.seed,
        seconds=seconds,
        device=f"{environment['device']}, {environment['threads']} threads, {environment['precision']}",
        versions=environment["versions"],
        commit=commit(),
    )


def append_once(path: Path, record: RunRecord) -> None:
    """Append a record unless the file already holds one of that run: a finished run may be resumed again."""
    known = [found.run_id for found in read_records(path)] if path.exists() else []
    if record.run_id not in known:
        append_records(path, [record])


def describe_environment(strategy: Strategy, precision: str) -> dict[str, Any]:
    """What a run's last bits depend on besides its settings.

    Several processes show in the device, as in "2 × cpu (…), dp_replicate=2"; threads are one process's.
    """
    device = strategy.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    one = f"{device.type} ({name})"
    several = f"{strategy.n_processes} × {one}, {strategy.layout}"
    return {
        "device": one if strategy.n_processes == 1 else several,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "versions": {
            "scalelab": scalelab.__version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def commit() -> str:
    """The commit of the source this package runs from, "-dirty" where it was changed since.

    The package's version where it is installed without one.
    """
    source = Path(__file__).resolve()

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=source.parent, capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", source.name)  # or it is an environment inside another repository
        return git("describe", "--always", "--abbrev=12", "--dirty", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return f"v{scalelab.__version__}"


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
