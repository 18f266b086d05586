"""A lab as its notebook holds it: device and budget, predictions, checks, measurements, report."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from scalelab.data.cache import cache_dir
from scalelab.lab import environment, plots
from scalelab.lab import predictions as guesses
from scalelab.lab import report as reports
from scalelab.lab.attempts import Attempts, Checks
from scalelab.lab.checks import exercises

if TYPE_CHECKING:
    from scalelab.lab.ranks import Ranks

T = TypeVar("T")


def start(name: str, *, seed: int = 0) -> Lab:
    """Begin a lab: choose device and budget, seed everything, and say what was chosen.

    Environment: SCALELAB_TIER (cpu, gpu) overrides the tier, SCALELAB_THREADS sets torch's threads,
    SCALELAB_STRICT=1 makes a wrong answer raise.

    Args:
        name: "part/name" of the lab. seed: of random numbers and of the variant of the checks.

    Raises:
        LabError: an unknown lab, an impossible seed, or a tier this machine does not have.
    """
    known = exercises(name)
    tier = environment.choose_tier(os.environ)
    n_threads = environment.choose_threads(os.environ)
    environment.seed_everything(seed)
    device = torch.device("cuda" if tier == "gpu" else "cpu")
    lab = Lab(name, seed=seed, tier=tier, device=device, exercise_names=tuple(known))
    threads = f"{n_threads} thread{'s' if n_threads != 1 else ''}"
    print(f"{name}: {tier} tier on {environment.device_name(device)}, {threads}, seed {seed}")
    print(" · ".join(f"{package} {version}" for package, version in environment.versions().items()))
    return lab


class Lab:
    """One sitting of one lab. Made by `start`.

    Attributes:
        name: "part/name". seed: of the variant. tier: "cpu" or "gpu". device: where to put tensors.
        check: `lab.check.<exercise>(answer)` hands back the answer when it is right, else the reference.
        plot: figures in the course's style (`scalelab.lab.plots`).
    """

    def __init__(
        self,
        name: str,
        *,
        seed: int,
        tier: environment.Tier,
        device: torch.device,
        exercise_names: tuple[str, ...],
    ) -> None:
        self.name = name
        self.seed = seed
        self.tier = tier
        self.device = device
        self.plot: ModuleType = plots
        self._attempts = {exercise: Attempts() for exercise in exercise_names}
        self._predictions: dict[str, guesses.Prediction] = {}
        self._measured: dict[str, tuple[guesses.Value, str]] = {}
        self._asked: dict[str, None] = {}  # names in the order they came up, guessed or not
        self.check = Checks(name, seed, self._attempts)
        self._ranks: Ranks | None = None

    def __repr__(self) -> str:
        return f"Lab({self.name!r}, tier={self.tier!r}, device={str(self.device)!r}, seed={self.seed})"

    def budget(self, *, cpu: T, gpu: T) -> T:
        """The one of the two that belongs to this tier: same cells, other sizes."""
        return gpu if self.tier == "gpu" else cpu

    def predict(self, name: str, guess: Any, unit: str = "", *, low: Any = None, high: Any = None) -> None:
        """Commit to a guess before the result shows.

        Args:
            name: what is guessed; `measured` under the same name answers it.
            guess: a number, a choice as text, or True or False for yes or no; None or ... while it is
                not written.
            low, high: an interval you would bet on, if you like.

        Raises:
            LabError: a guess that is no number and no text, or one outside its own interval.
        """
        prediction = guesses.make_prediction(name, guess, unit, low, high)
        self._asked[name] = None
        if prediction is None:
            print(f"{name}: no guess yet. Write one before you go on; a wild one will do.")
        elif name in self._measured:
            print(f"{name}: measured already, so this is no prediction any more and is not kept.")
        else:
            self._predictions[name] = prediction
            interval = ""
            if prediction.low is not None and prediction.high is not None:
                interval = f" ({guesses.show(prediction.low)} to {guesses.show(prediction.high)})"
            print(f"{name}: you say {guesses.show(prediction.guess, unit)}{interval}.")

    def measured(self, name: str, value: Any, unit: str = "") -> None:
        """Show a result beside its prediction.

        Raises:
            LabError: the value is neither a finite number nor a text.
        """
        result = value if isinstance(value, str) else guesses.read_number(f"the measured {name!r}", value)
        prediction = self._predictions.get(name)
        self._asked[name] = None
        self._measured[name] = (result, unit or (prediction.unit if prediction else ""))
        shown = guesses.show(*self._measured[name])
        if prediction is None:
            print(f"{name}: measured {shown} (you made no guess).")
            return
        said = guesses.show(prediction.guess, prediction.unit)
        print(f"{name}: you said {said}, measured {shown}: {guesses.compare(prediction, result)}.")

    def hidden_test(self, exercise: str, answer: Callable[..., Any] | None = None, *, seed: int = 0) -> None:
        """Test an answer on inputs the check does not show: for the hidden-test cells of a graded lab.

        Args:
            exercise: its name. answer: the function; by default the last one handed to its check.
            seed: of the class's own variant, on top of the lab's.

        Raises:
            LabError: the answer is wrong or missing; the message is the check's.
        """
        self.check.hidden_test(exercise, answer, seed=seed)

    def ranks(self, size: int = 4) -> Ranks:
        """Processes that work together, for `%%px` cells: started, joined by torch.distributed, and named.

        On each are defined `rank, size, group, device, torch, dist, np`; torch, numpy and random are seeded
        alike. With a GPU for each (gpu tier) they talk by NCCL, else on the CPU by gloo, one thread each.
        Called again it hands back the ranks that run; should one have ended, all are started anew.

        Raises:
            LabError: not a number from 1 to 16, Windows, or they do not start.
        """
        from scalelab.lab import ranks

        self._ranks = ranks.ensure(self._ranks, size, on_gpus=self.tier == "gpu", seed=self.seed)
        return self._ranks

    def show(self, figure: Any, *, alt: str) -> None:
        """Show a matplotlib figure with a text for those who do not see it.

        Args:
            alt: what the figure says, in one or two sentences ("Loss falls from 6.2 to 2.4 nats …").

        Raises:
            LabError: no alternative text, or not a matplotlib figure.
        """
        plots.show(figure, alt=alt)

    def report(self, *, export: str | Path | None = None) -> None:
        """Print what was predicted, measured, passed and met, and keep it on this machine.

        Args:
            export: also write it to this JSON file, for a teacher.

        Raises:
            LabError: the file cannot be written.
        """
        values = reports.collect(
            lab=self.name,
            seed=self.seed,
            tier=self.tier,
            device=environment.device_name(self.device),
            versions=environment.versions(),
            names=tuple(self._asked),
            predictions=self._predictions,
            measured=self._measured,
            attempts=self._attempts,
        )
        print(reports.as_text(values))
        print(reports.keep(values, cache_dir()))
        if export is not None:
            reports.export(values, Path(export))
            print(f"Exported to {Path(export).name}.")
