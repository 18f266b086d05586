"""Where a run's figures go besides the screen: JSON lines, TensorBoard, Weights & Biases.

Each is imported only when it is asked for. All of them take a run that goes on from a checkpoint: what a
killed run wrote beyond it is dropped, or (W&B) kept while its repetition, the same figures, is left out. So
no step shows twice.
"""

from __future__ import annotations

import importlib.util
import json
import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from scalelab.core.artifacts import write_atomic
from scalelab.core.errors import ConfigError


class Logger(Protocol):
    """Takes named figures at steps; steps count finished ones, so the first is 1."""

    def start(self, run_id: str, settings: Mapping[str, Any], step: int) -> None:
        """A run begins, or goes on after `step` finished steps; called again, after `close`, when it does."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Figures after so many steps."""
        ...

    def close(self) -> None:
        """Everything logged is on its way to where it belongs."""
        ...


class JsonlLogger:
    """One JSON object a line: {"step": 10, "train/loss_nats": 5.1, …}; NaN and infinities become null.

    Args:
        path: the file; what it holds beyond the step at which a run goes on is dropped.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file: IO[str] | None = None

    def start(self, run_id: str, settings: Mapping[str, Any], step: int) -> None:
        kept = [line for line in self._lines() if _step_of(line) <= step] if step else []
        write_atomic(self.path, "".join(f"{line}\n" for line in kept).encode())
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        assert self._file is not None, "log before start"
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _lines(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []


class TensorBoardLogger:
    """Event files that `tensorboard --logdir FOLDER` shows.

    Args:
        folder: where they go.

    Raises:
        ConfigError: tensorboard is not installed.
    """

    def __init__(self, folder: Path | str) -> None:
        _require("tensorboard")
        self.folder = Path(folder)
        self._writer: Any = None

    def start(self, run_id: str, settings: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder), purge_step=step + 1)
        if not step:
            self._writer.add_text("settings", f"```json\n{json.dumps(settings, indent=1)}\n```")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WandbLogger:
    """A run on Weights & Biases.

    Each run from step 0 is one of its own there, even with the settings of another; its name is the run's
    identity. The id it got is kept, so that a run which goes on from a checkpoint goes on there too.

    Args:
        project: its name there.
        mode: "online", "offline" (files only, for `wandb sync` later) or "disabled"; None: as wandb is set.
        folder: where its files go, and the run's id; None: files go into the current folder, and the id
            lasts as long as this logger.

    Raises:
        ConfigError: wandb is not installed, or (when the run starts) cannot begin: no account, no network.
    """

    def __init__(
        self,
        project: str,
        *,
        mode: Literal["online", "offline", "disabled"] | None = None,
        folder: Path | str | None = None,
    ) -> None:
        _require("wandb")
        self.project = project
        self.mode = mode
        self.folder = None if folder is None else Path(folder)
        self._run: Any = None
        self._id: str | None = None

    def start(self, run_id: str, settings: Mapping[str, Any], step: int) -> None:
        import wandb

        self._settle_id(run_id, step)
        try:
            self._run = wandb.init(
                project=self.project,
                id=self._id,
                name=run_id,
                resume="allow",
                mode=self.mode,
                dir=None if self.folder is None else str(self.folder),
                config=dict(settings),
            )
        except wandb.Error as error:
            raise ConfigError(
                f"Weights & Biases does not begin: {error}; run `wandb login`, or set WANDB_MODE=offline"
            ) from None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None

    def _settle_id(self, run_id: str, step: int) -> None:
        """A fresh id for a new run: one made of its settings would join the last run that had the same."""
        if self.folder is None:
            self._id = self._id if step and self._id else secrets.token_hex(8)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self.folder / f"{run_id}.id"  # the folder may be shared by runs
        self._id = place.read_text(encoding="ascii").strip() if step and place.exists() else None
        if not self._id:
            self._id = secrets.token_hex(8)
            write_atomic(place, f"{self._id}\n".encode())


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"{package} is not installed: pip install {package}, or leave this logger out")


def _step_of(line: str) -> float:
    """The step of a logged line; a line that a kill cut off belongs to none."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
