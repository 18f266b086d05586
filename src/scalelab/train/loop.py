"""Training: a batch, its loss, the gradient, a step; everything else is there so that it can be trusted.

Read `Trainer._advance` for the step and `Trainer.run` for what happens between steps. A run's path depends on
its settings, its data and the machine alone: not on when it was looked at, stopped or gone on with.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from scalelab.core.config import ModelConfig, config_to_dict
from scalelab.core.errors import TrainingError
from scalelab.core.records import RunRecord
from scalelab.core.seeding import deterministic_kernels
from scalelab.data import Batches, TokenData
from scalelab.train.checkpoint import (
    FOLDER,
    Checkpoint,
    CheckpointFolder,
    check_same,
    copied,
    load_checkpoint,
    warn_of_another_environment,
)
from scalelab.train.config import TrainConfig, train_config_to_dict
from scalelab.train.evaluate import Evaluation, evaluate
from scalelab.train.fit import (
    build,
    check_fits,
    check_same_everywhere,
    check_shares,
    config_of,
    last_step,
    objective_of,
    target_len,
)
from scalelab.train.gradients import accumulate_gradients
from scalelab.train.history import History, Metrics, Recent
from scalelab.train.interrupt import ECHO_S, Interruption, Stopped
from scalelab.train.loggers import Logger
from scalelab.train.optimizer import make_optimizer, set_learning_rate
from scalelab.train.precision import make_scaler
from scalelab.train.randomness import dropout_stream, resumed_stream
from scalelab.train.record import append_once, data_identity, describe_environment, make_record, run_identity
from scalelab.train.reporting import Reporter
from scalelab.train.schedule import make_schedule
from scalelab.train.settle import compiled_if, settle
from scalelab.train.state import random_tensors
from scalelab.train.strategy import SingleProcess, Strategy
from scalelab.train.throughput import Peak, find_peak

RECORD = "record.jsonl"


class Trainer:
    """One training run: a model, its data, its settings, and how far it has come.

    Args:
        model: a model's config (the model is built from it, by the run's seed), or any module with
            `.config` (a model config) and `.loss(tokens, targets, reduction="sum")`.
        data: the tokens; `train` is read once per epoch in a shuffled order, `held_out` at evaluations.
        config: how to train.
        run_dir: where checkpoints and the record go; None: nowhere.
        strategy: how the run is spread over processes; None: one, on the first GPU or else the CPU.
        loggers: where figures go besides the screen.
        progress: whether to show a line about how it goes.
        checkpoint: go on from this one; `Trainer.resume` finds it.

    Attributes:
        model, optimizer, batches, history: as they stand now.
        step_count: finished steps.
        precision: what was chosen, and the rates that decided.

    Raises:
        ConfigError: settings that do not fit model or data.
        DataError: tokens outside the model's vocabulary, or too few.
        TrainingError: the device lacks what was asked.
        CheckpointError: `run_dir` holds another run, or the checkpoint is of one.
    """

    def __init__(
        self,
        model: ModelConfig | nn.Module,
        data: TokenData,
        config: TrainConfig,
        *,
        run_dir: Path | str | None = None,
        strategy: Strategy | None = None,
        loggers: Sequence[Logger] = (),
        progress: bool = True,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        module = model if isinstance(model, nn.Module) else build(model, config.seed)
        self.strategy = strategy or SingleProcess()
        self.device = self.strategy.device
        self.model_config = config_of(module)
        check_fits(self.model_config, config, data)
        self.objective = objective_of(self.model_config, config, data)
        check_shares(config, self.strategy, resumes=checkpoint is not None)
        self.strategy.check(self.model_config, config)
        self.config = config
        self.data = data
        self.data_identity = data_identity(data)
        self.run_id = run_identity(self.model_config, config, self.data_identity)
        self.run_dir = None if run_dir is None else Path(run_dir)
        check_same_everywhere(self.strategy, self.run_id, 0 if checkpoint is None else checkpoint.step)
        if checkpoint is not None:
            check_same(checkpoint, self.model_config, config, self.data_identity)
        self._folder = None
        if self.run_dir is not None:
            self._folder = folder = CheckpointFolder(self.run_dir / FOLDER, keep=config.keep_checkpoints)
            self.strategy.decide(lambda: folder.claim(new=checkpoint is None))

        module.train()
        self.compiled, self.precision = settle(module, config, self.strategy, checkpoint)
        self.model = self.strategy.place(module)
        self._loss = compiled_if(self.compiled, self.strategy.loss_function(self.model))
        self.scaler = make_scaler(self.precision.precision, self.device)
        self.optimizer = make_optimizer(self.model, config)
        self.schedule = make_schedule(config)
        self.batches = Batches(
            data.train,
            batch_size=config.batch_size,
            seq_len=config.seq_len,
            seed=config.seed,
            objective=self.objective,
        )
        self.random = dropout_stream(config.seed, self.strategy)
        self.history = History(batch_tokens=config.batch_tokens)
        self.step_count = 0
        self._saved: int | None = None
        self._recent = Recent()
        self._evaluated: tuple[int, Evaluation] | None = None
        self._eval_steps = frozenset(config.eval_steps)
        self._seconds = 0.0
        self._session_start: float | None = None
        speaks = self.strategy.rank == 0
        self._report = Reporter(
            self.model_config, config, loggers=loggers if speaks else (), progress=progress and speaks
        )
        if checkpoint is not None:
            self._restore(checkpoint)

    @classmethod
    def resume(
        cls,
        run_dir: Path | str,
        data: TokenData,
        *,
        model: nn.Module | None = None,
        strategy: Strategy | None = None,
        loggers: Sequence[Logger] = (),
        progress: bool = True,
    ) -> Trainer:
        """A trainer that goes on where a run's newest undamaged checkpoint stands, with its settings.

        Args:
            model: needed for modules that a trainer does not build; its weights are replaced.

        Raises:
            CheckpointError: no usable checkpoint, or one of another model or other data.
        """
        checkpoint = load_checkpoint(Path(run_dir))
        return cls(
            checkpoint.model_config if model is None else model,
            data,
            checkpoint.train_config,
            run_dir=run_dir,
            strategy=strategy,
            loggers=loggers,
            progress=progress,
            checkpoint=checkpoint,
        )

    # --- what a user does ---------------------------------------------------------------------------------

    def run(self, until_tokens: int | None = None) -> RunRecord:
        """Train to the end of the budget, or until so many tokens have been trained on.

        Returns:
            The record of the run so far. That of a finished run is also appended to `run_dir/record.jsonl`.

        Raises:
            TrainingError: the loss is not finite; checkpoints from before are untouched.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once the step is finished and a checkpoint written.
        """
        self.advance(until_tokens)
        record = self.record()
        if self.step_count == self.config.n_steps and self.run_dir is not None:
            path = self.run_dir / RECORD
            self.strategy.decide(lambda: append_once(path, record))
        return record

    def advance(self, until_tokens: int | None = None) -> None:
        """Train as `run` does, without a record at the end: for training in many short stretches."""
        last, stops, due = last_step(self.config, until_tokens), False, False
        if self.config.precision == "auto" and not self.step_count:
            self.save()  # another trial might choose otherwise: this one's choice must outlive a kill
        with self._session() as interruption:
            while self.step_count < last and not stops:
                self._advance()
                self._between_steps(due)
                stops, due = self.strategy.agree(interruption.asked, self._report.due())
            self._collect()
            if (self.step_count == self.config.n_steps or stops) and self._saved != self.step_count:
                self.save()
        if stops or self.strategy.agree(interruption.asked)[0]:  # as late as while the last one was written
            if self._saved != self.step_count:
                self.save()
            raise Stopped(self._stopped())

    def step(self) -> Metrics:
        """Take one step and say what happened: for looking closely; `run` is faster and does the rest.

        Raises:
            TrainingError: the run is finished, or the loss is not finite.
        """
        if self.step_count >= self.config.n_steps:
            raise TrainingError(
                f"all {self.config.n_steps} steps of the budget of {self.config.n_tokens} tokens are taken"
            )
        self.model.train()
        start = time.perf_counter()
        self._advance()
        self._collect()
        self._seconds += time.perf_counter() - start
        return self.history[-1]

    def evaluate(self) -> Evaluation:
        """Held-out loss as the model stands, on the run's fixed evaluation tokens."""
        found = evaluate(
            self.model,
            self.data,
            seq_len=self.config.seq_len,
            max_tokens=self.config.eval_tokens,
            batch_size=self.config.batch_size,
            strategy=self.strategy,
            objective=self.objective,
        )
        self._evaluated = (self.step_count, found)
        return found

    def save(self) -> Path | None:
        """Write a checkpoint now, if the run has a folder; returns where."""
        self._collect()
        folder = self._folder
        if folder is None:
            return None
        found = self._state()
        path = self.strategy.decide(lambda: folder.save(found))
        self._saved = self.step_count
        return path

    def snapshot(self) -> Checkpoint:
        """The run as it stands, in memory: what `save` would write, and no later step changes.

        A run of other settings that would have come to the same point may go on from it, as the decays of a
        warm-up–stable–decay schedule go on from one stable phase.
        """
        self._collect()
        return copied(self._state())

    def _state(self) -> Checkpoint:
        """The run as it stands; its tensors are the run's own."""
        weights, aliases = self.strategy.weights(self.model)
        return Checkpoint(
            model_config=self.model_config,
            train_config=self.config,
            step=self.step_count,
            data=self.data_identity,
            data_state=self.batches.state(),
            precision=self.precision,
            compiled=self.compiled,
            scaler=self.scaler.state_dict(),
            seconds=self.seconds,
            environment=self._environment(),
            weights=weights,
            aliases=aliases,
            optimizer=self.strategy.optimizer_state(self.model, self.optimizer),
            random=random_tensors(self.strategy.gather(self.random.state())),
            history=self.history,
        )

    def record(self) -> RunRecord:
        """The run so far as a record; evaluates if the last evaluation is not of this step.

        Raises:
            TrainingError: no step has been taken.
        """
        if not self.step_count:
            raise TrainingError("nothing to record: no step has been taken yet")
        if self._evaluated is not None and self._evaluated[0] == self.step_count:
            found = self._evaluated[1]
        else:
            found = self.evaluate()
        return make_record(
            run_id=self.run_id,
            model_config=self.model_config,
            train_config=self.config,
            data=self.data_identity,
            n_tokens_unique=min(self.batches.n_tokens_unique, self.tokens),
            history=self.history,
            evaluation=found,
            seconds=self.seconds,
            environment=self._environment(),
            target_len=target_len(self.config, self.objective),
        )

    @property
    def tokens(self) -> int:
        """Tokens trained on."""
        return self.step_count * self.config.batch_tokens

    @property
    def seconds(self) -> float:
        """Wall time of training so far, evaluations and checkpoints included, earlier sessions too."""
        running = 0.0 if self._session_start is None else time.perf_counter() - self._session_start
        return self._seconds + running

    @cached_property
    def peak(self) -> Peak:
        """The best rate of matrix products in this run's precision, of all its processes together."""
        return find_peak(self.device, self.precision.precision).times(self.strategy.n_processes)

    # --- one step -----------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Take one optimiser step. Its loss stays on the device until `_collect` asks for it."""
        rate = self.schedule.rate(self.step_count)
        set_learning_rate(self.optimizer, rate)
        inputs, targets = self.batches.next()
        with self.random, self._kernels():
            loss = accumulate_gradients(
                self._loss,
                inputs,
                targets,
                pieces=self.config.accumulate,
                precision=self.precision.precision,
                scaler=self.scaler,
                strategy=self.strategy,
            )
        norm = None
        if self.config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)  # or the threshold would meet gradients 2^16 times too large
            norm = self.strategy.clip(self.model, self.config.clip_norm)
        self.scaler.step(self.optimizer)  # leaves the step out when fp16 gradients overflowed
        self.scaler.update()
        self.optimizer.zero_grad()
        self.step_count += 1
        self._recent.add(loss, rate, norm)
        if self.device.type != "cuda":
            self._collect()  # costs nothing where nothing runs ahead, and finds a bad loss at once

    def _collect(self) -> None:
        """Bring losses of finished steps into the history; this waits for the device.

        Raises:
            TrainingError: a loss or gradient is not finite.
        """
        self._recent.move_to(self.history, scaled=self.scaler.is_enabled())

    def _kernels(self) -> AbstractContextManager[None]:
        return deterministic_kernels(self.device) if self.config.deterministic else contextlib.nullcontext()

    # --- between steps ------------------------------------------------------------------------------------

    def _between_steps(self, due: bool) -> None:
        """Look, evaluate, save: whatever is due after this step.

        Args:
            due: the processes agreed to look. One alone need not ask; were one of several to look by its own
                clock, it alone would meet a bad loss while the others go on.
        """
        step, config = self.step_count, self.config
        self._report.count(config.batch_tokens)
        due = due or (self.strategy.n_processes == 1 and self._report.due())
        if step % config.log_every == 0 or due:
            self._collect()
            self._report.progress(self.history, log=step % config.log_every == 0)
        if step in self._eval_steps:
            self._collect()
            self._report.before_evaluation()
            found = self.evaluate()
            self.history.curve.append((self.tokens, found.loss_nats))
            self._report.evaluation(self.history, found)
        if config.checkpoint_every is not None and step % config.checkpoint_every == 0:
            self.save()
            self._report.pause()

    @contextlib.contextmanager
    def _session(self) -> Iterator[Interruption]:
        """Around a stretch of training: the clock, the loggers, Ctrl-C."""
        self.model.train()

        def begin() -> None:
            self._report.start(
                run_id=self.run_id,
                settings={
                    "model": config_to_dict(self.model_config),
                    "train": train_config_to_dict(self.config),
                    "data": self.data_identity,
                },
                step=self.step_count,
                precision=self.precision.describe(),
                peak=self.peak if self._report.wants_peak else None,
            )

        self.strategy.decide(begin)  # what a logger refuses, all are refused
        self._session_start = time.perf_counter()
        with Interruption(ECHO_S if self.strategy.n_processes > 1 else 0.0) as interruption:
            try:
                yield interruption
            except BaseException as error:
                self.strategy.announce(error)  # a logger may take its time to close
                raise
            finally:
                self._seconds, self._session_start = self.seconds, None
                self._report.close()

    def _stopped(self) -> str:
        where = f"; its checkpoint is in {self.run_dir}" if self.run_dir is not None else ""
        return f"stopped after step {self.step_count} of {self.config.n_steps}{where}"

    # --- coming and going ---------------------------------------------------------------------------------

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.strategy.load(
            self.model, self.optimizer, (checkpoint.weights, checkpoint.aliases), checkpoint.optimizer
        )
        self.batches.restore(dict(checkpoint.data_state))
        self.random = resumed_stream(
            checkpoint.random,
            seed=self.config.seed,
            strategy=self.strategy,
            step=checkpoint.step,
            dropout=getattr(self.model_config, "dropout", 0.0),
        )
        if checkpoint.scaler:
            self.scaler.load_state_dict(dict(checkpoint.scaler))
        self.history = checkpoint.history.copy()  # others may go on from it too
        self.step_count = self._saved = checkpoint.step
        self._seconds = checkpoint.seconds
        if self.strategy.rank == 0:
            warn_of_another_environment(checkpoint.environment, self._environment())

    def _environment(self) -> dict[str, Any]:
        return describe_environment(self.strategy, self.precision.precision)
