"""What a run tells while it goes: the line on the screen, and figures to loggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scalelab.core.config import ModelConfig
from scalelab.train.config import TrainConfig
from scalelab.train.evaluate import Evaluation
from scalelab.train.history import History
from scalelab.train.loggers import Logger
from scalelab.train.progress import Meter, Silent, evaluation_line, make_display, progress_line
from scalelab.train.throughput import Peak, utilisation


class Reporter:
    """Turns steps into a progress line and log entries.

    Args:
        model_config: for the FLOPs of a token.
        config: the run's.
        loggers: where entries go.
        progress: whether to show the line.
    """

    def __init__(
        self, model_config: ModelConfig, config: TrainConfig, *, loggers: Sequence[Logger], progress: bool
    ) -> None:
        self._model_config = model_config
        self._config = config
        self._loggers = tuple(loggers)
        self._display = make_display(progress)
        self._meter = Meter()
        self._stretch_rate = 0.0  # tokens per second from one evaluation to the next
        self._peak: Peak | None = None
        self._shows = not isinstance(self._display, Silent)
        self.wants_peak = self._shows or bool(self._loggers)

    def start(
        self, *, run_id: str, settings: Mapping[str, Any], step: int, precision: str, peak: Peak | None
    ) -> None:
        """A stretch of training begins after `step` finished steps."""
        self._peak = peak
        if peak is not None:
            self._display.show(f"{precision} · MFU is against {peak.describe()}", final=True)
        for logger in self._loggers:
            logger.start(run_id, settings, step)
        self._meter.skip()

    def count(self, n_tokens: int) -> None:
        """Tokens were trained on."""
        self._meter.add(n_tokens)

    def due(self) -> bool:
        """Whether the line on the screen is old."""
        return self._shows and self._meter.due()

    def progress(self, history: History, *, log: bool) -> None:
        """Show where the run is; also tell the loggers if `log`."""
        if log and self._loggers:
            self._log(len(history), self._figures(history))
        if self.due():
            self._meter.read()
            self._display.show(self._line(history), final=False)

    def before_evaluation(self) -> None:
        """Training stops for a while: its rate is read now, or it would count the time until it goes on."""
        self._stretch_rate = self._meter.stretch()

    def evaluation(self, history: History, found: Evaluation) -> None:
        """A held-out loss is known: show it on a line that stays."""
        rate = self._stretch_rate
        line = evaluation_line(
            self._where(history),
            loss_nats=found.loss_nats,
            bits_per_byte=found.bits_per_byte,
            tokens_per_s=rate,
            mfu=self._mfu_text(rate),
        )
        self._display.show(line, final=True)
        self._log(
            len(history),
            {"held_out/loss_nats": found.loss_nats, "held_out/bits_per_byte": found.bits_per_byte},
        )
        self._meter.skip()

    def pause(self) -> None:
        """What took place since the last step was no training."""
        self._meter.skip()

    def close(self) -> None:
        """The stretch is over."""
        for logger in self._loggers:
            logger.close()

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        for logger in self._loggers:
            logger.log(step, values)

    def _figures(self, history: History) -> dict[str, float]:
        last, rate = history[-1], self._meter.so_far()
        figures = {
            "train/loss_nats": last.loss_nats,
            "train/learning_rate": last.learning_rate,
            "train/grad_norm": last.grad_norm,
            "train/tokens": float(last.tokens),
            "train/tokens_per_s": rate,
        }
        share = self._utilisation(rate)
        return figures if share is None else {**figures, "train/mfu": share}

    def _line(self, history: History) -> str:
        rate = self._meter.tokens_per_s
        left = (self._config.n_steps - len(history)) * self._config.batch_tokens
        return progress_line(
            self._where(history),
            loss_nats=history.recent_loss(),
            tokens_per_s=rate,
            left_s=left / rate if rate else 0.0,
            mfu=self._mfu_text(rate),
        )

    def _where(self, history: History) -> str:
        return f"step {len(history):,}/{self._config.n_steps:,}"

    def _mfu_text(self, tokens_per_s: float) -> str:
        share = self._utilisation(tokens_per_s)
        return "" if share is None else f"MFU {100 * share:.0f} %"

    def _utilisation(self, tokens_per_s: float) -> float | None:
        if self._peak is None:
            return None
        return utilisation(tokens_per_s, self._model_config, self._config.seq_len, self._peak)
