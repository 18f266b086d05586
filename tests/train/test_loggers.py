from __future__ import annotations

import importlib.util
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from scalelab.core.config import DecoderConfig
from scalelab.core.errors import ConfigError
from scalelab.data import TokenData
from scalelab.train import JsonlLogger, TensorBoardLogger, Trainer, WandbLogger

NAMES = {
    "train/loss_nats",
    "train/learning_rate",
    "train/grad_norm",
    "train/tokens",
    "train/tokens_per_s",
    "train/mfu",
    "held_out/loss_nats",
    "held_out/bits_per_byte",
}


def scalars(folder: Path, name: str) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    assert set(events.Tags()["scalars"]) == NAMES
    return {event.step: event.value for event in events.Scalars(name)}


def test_tensorboard_reads_back_what_was_logged(
    small: DecoderConfig, chain: TokenData, settings: Any, tmp_path: Path
) -> None:
    config = settings(12, log_every=4)
    trainer = Trainer(small, chain, config, loggers=[TensorBoardLogger(tmp_path)], progress=False)
    trainer.run()
    losses = scalars(tmp_path, "train/loss_nats")
    assert losses == pytest.approx({step: trainer.history.loss_nats[step - 1] for step in (4, 8, 12)})
    held_out = scalars(tmp_path, "held_out/loss_nats")
    assert held_out == pytest.approx({tokens // 256: loss for tokens, loss in trainer.history.curve})
    assert scalars(tmp_path, "train/tokens")[12] == 12 * 256


def test_a_run_begun_anew_shows_nothing_of_what_a_kill_left_before_the_first_checkpoint(
    tmp_path: Path,
) -> None:
    for figures in ({4: 1.0, 8: 2.0}, {4: 3.0}):
        logger = TensorBoardLogger(tmp_path)
        logger.start("run", {}, 0)
        for step, value in figures.items():
            logger.log(step, dict.fromkeys(NAMES, value))
        logger.close()
    assert scalars(tmp_path, "train/loss_nats") == {4: 3.0}


def test_wandb_that_cannot_begin_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")

    def refuse(**settings: Any) -> None:
        raise wandb.Error("no account")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ConfigError, match=r"no account; run .*WANDB_MODE=offline"):
        WandbLogger("project", folder=tmp_path).start("run", {}, 0)


@pytest.mark.parametrize("kind", ["jsonl", "tensorboard"])
def test_a_run_that_goes_on_from_a_checkpoint_shows_each_step_once(
    kind: str, small: DecoderConfig, chain: TokenData, settings: Any, tmp_path: Path
) -> None:
    def logger() -> Any:
        return JsonlLogger(tmp_path / "log.jsonl") if kind == "jsonl" else TensorBoardLogger(tmp_path / "tb")

    config = settings(12, log_every=2, checkpoint_every=5)
    trainer = Trainer(small, chain, config, run_dir=tmp_path / "run", loggers=[logger()], progress=False)
    trainer.run(until_tokens=8 * 256)  # logged to step 8; the checkpoint is at 5
    Trainer.resume(tmp_path / "run", chain, loggers=[logger()], progress=False).run()
    if kind == "jsonl":
        lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        steps = [line["step"] for line in lines if "train/loss_nats" in line]
    else:
        steps = list(scalars(tmp_path / "tb", "train/loss_nats"))
    assert steps == [2, 4, 6, 8, 10, 12]


def test_json_lines_are_json_even_where_a_figure_is_not_a_number(tmp_path: Path) -> None:
    logger = JsonlLogger(tmp_path / "log.jsonl")
    logger.start("run", {}, 0)
    logger.log(1, {"train/grad_norm": math.nan, "train/loss_nats": 1.5})
    logger.close()
    line = (tmp_path / "log.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 1, "train/grad_norm": None, "train/loss_nats": 1.5,
    }  # fmt: skip


def test_a_line_that_a_kill_cut_off_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text('{"step": 1, "a": 1}\n{"step": 2, "a')
    logger = JsonlLogger(file)
    logger.start("run", {}, 5)
    logger.log(6, {"a": 2.0})
    logger.close()
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 6]


def test_wandb_offline_writes_a_run_with_the_figures(
    small: DecoderConfig, chain: TokenData, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    logger = WandbLogger("scalelab-test", mode="offline", folder=tmp_path)
    trainer = Trainer(small, chain, settings(4, log_every=2), loggers=[logger], progress=False)
    trainer.run()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = file.read_bytes()
    for name in (*NAMES, trainer.run_id):
        assert name.encode() in content


def take_wandb_id(folder: Path) -> str:
    """The id of the one offline run below a folder, whose files are then removed."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    shutil.rmtree(folder / "wandb")
    return file.stem.removeprefix("run-")


def test_wandb_run_begun_anew_is_another_and_one_that_goes_on_is_the_same(
    small: DecoderConfig, chain: TokenData, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = settings(6, log_every=2, checkpoint_every=3)

    def logger(name: str) -> WandbLogger:
        return WandbLogger("scalelab-test", mode="offline", folder=tmp_path / name)

    ids = []
    for name in ("first", "second"):  # two runs of the same settings
        trainer = Trainer(
            small, chain, config, run_dir=tmp_path / name / "run", loggers=[logger(name)], progress=False
        )
        trainer.run(until_tokens=4 * 256)
        ids.append(take_wandb_id(tmp_path / name))
    Trainer.resume(tmp_path / "first" / "run", chain, loggers=[logger("first")], progress=False).run()
    first, second = ids
    assert take_wandb_id(tmp_path / "first") == first != second


def test_wandb_ids_outlive_the_logger_and_runs_that_share_a_folder_keep_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    ids: list[str] = []

    class Run:
        def finish(self) -> None:
            pass

    monkeypatch.setattr(wandb, "init", lambda **given: ids.append(given["id"]) or Run())
    for run_id, step in (("a", 0), ("b", 0), ("a", 5), ("b", 5), ("a", 0), ("c", 5), ("c", 7)):
        logger = WandbLogger("project", folder=tmp_path)
        logger.start(run_id, {}, step)
        logger.close()
    a, b, a_on, b_on, anew, c, c_on = ids
    assert (a, b, c) == (a_on, b_on, c_on)
    assert len({a, b, c, anew}) == 4
    without_folder = WandbLogger("project")
    for step in (0, 5, 0):
        without_folder.start("a", {}, step)
    first, on, again = ids[7:]
    assert first == on != again


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_logger_whose_package_is_missing_says_how_to_get_it(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"pip install {package}"):
        TensorBoardLogger(tmp_path) if package == "tensorboard" else WandbLogger("project")
