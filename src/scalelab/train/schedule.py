"""The learning rate is a pure function of the step: nothing to store, nothing to get out of step.

All schedules share one warm-up. Step 0 trains at peak/warmup_steps, not at zero, which would waste it; step
warmup_steps - 1 is at the peak; the last step is at exactly the final rate.

Differs: `transformers` and most code count so that step 0 has rate zero and the final rate belongs to the
step after the last. Ours at step s is theirs at step s + 1.

Sources: cosine: Loshchilov & Hutter 2016, arXiv:1608.03983; warm-up–stable–decay: Hu et al. 2024,
arXiv:2404.06395, and Hägele et al. 2024, arXiv:2405.18392. Taught in book/transformers/training.md.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from scalelab.core.checks import check_count, check_positive, check_positive_int, is_number
from scalelab.core.errors import ConfigError
from scalelab.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule(ABC):
    """A learning rate for each step from 0 to n_steps - 1.

    Attributes:
        peak: the largest rate.
        n_steps: steps of the run.
        warmup_steps: steps of the climb, fewer than n_steps; 0 and 1 both start at the peak.
        final_share: the last step's rate over the peak.

    Raises:
        ConfigError: a value out of range.
    """

    peak: float
    n_steps: int
    warmup_steps: int = 0
    final_share: float = 0.0

    def __post_init__(self) -> None:
        check_positive("peak", self.peak)
        check_positive_int("n_steps", self.n_steps)
        check_count("warmup_steps", self.warmup_steps)
        if self.warmup_steps >= max(self.n_steps, 2):
            raise ConfigError(
                f"warmup_steps={self.warmup_steps} leaves nothing of n_steps={self.n_steps}: make it smaller"
            )
        if not (is_number(self.final_share) and 0 <= self.final_share <= 1):
            raise ConfigError(f"final_share must lie in [0, 1], got {self.final_share!r}")

    def rate(self, step: int) -> float:
        """The rate of one step, counted from 0.

        Raises:
            ConfigError: a step before the first or after the last.
        """
        if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < self.n_steps:
            raise ConfigError(f"step must be a whole number from 0 to {self.n_steps - 1}, got {step!r}")
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        return self.peak * self._share(step)

    @abstractmethod
    def _share(self, step: int) -> float:
        """The rate over the peak, after warm-up."""

    def _between(self, step: int, start: int) -> float:
        """How far `step` is on the way from step `start` (0) to the last step (1)."""
        return (step - start) / max(self.n_steps - 1 - start, 1)

    @property
    def _top(self) -> int:
        """The step at which warm-up reaches the peak."""
        return max(self.warmup_steps - 1, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant(Schedule):
    """The peak, until the end."""

    final_share: float = 1.0

    def _share(self, step: int) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cosine(Schedule):
    """Half a cosine wave from the peak to the final rate."""

    def _share(self, step: int) -> float:
        # f + (1 - f) (1 + cos πx) / 2, with x from 0 at the peak to 1 at the last step
        wave = (1 + math.cos(math.pi * self._between(step, self._top))) / 2
        return self.final_share + (1 - self.final_share) * wave


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear(Schedule):
    """A straight line from the peak to the final rate."""

    def _share(self, step: int) -> float:
        # 1 - (1 - f) x, written so that x = 1 gives f to the last bit
        fallen = self._between(step, self._top)
        return (1 - fallen) + self.final_share * fallen


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmupStableDecay(Schedule):
    """The peak until the last `decay_steps` steps, then a straight line to the final rate.

    A run can be stopped at any time by starting the decay, so one stable phase serves many budgets.

    Attributes:
        decay_steps: steps below the peak, the last of them at the final rate.
    """

    decay_steps: int

    def __post_init__(self) -> None:
        Schedule.__post_init__(self)
        check_positive_int("decay_steps", self.decay_steps)
        if self.warmup_steps + self.decay_steps > max(self.n_steps, 2):
            raise ConfigError(
                f"warmup_steps={self.warmup_steps} and decay_steps={self.decay_steps} overlap in "
                f"n_steps={self.n_steps}: make one of them smaller"
            )

    def _share(self, step: int) -> float:
        last_stable = self.n_steps - 1 - self.decay_steps
        fallen = max(0.0, (step - last_stable) / self.decay_steps)
        return (1 - fallen) + self.final_share * fallen


def make_schedule(config: TrainConfig) -> Schedule:
    """The schedule that a training config describes."""
    shape = {
        "peak": config.learning_rate,
        "n_steps": config.n_steps,
        "warmup_steps": config.warmup,
        "final_share": config.final_share,
    }
    match config.schedule:
        case "constant":
            return Constant(**shape)  # type: ignore[arg-type]
        case "cosine":
            return Cosine(**shape)  # type: ignore[arg-type]
        case "linear":
            return Linear(**shape)  # type: ignore[arg-type]
        case "wsd":
            return WarmupStableDecay(**shape, decay_steps=config.decay_steps)  # type: ignore[arg-type]


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate at which a run trains its step, counted from 0.

    Raises:
        ConfigError: a step before the first or after the last.
    """
    return make_schedule(config).rate(step)
