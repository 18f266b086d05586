"""What the processes of a pool can be asked to do; `alone` does the same in this process, as an oracle."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import runpy
import signal
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from scalelab.core.config import DecoderConfig
from scalelab.core.errors import CheckpointError, ConfigError
from scalelab.data import TokenData
from scalelab.models import Decoder
from scalelab.parallel.engine.composed import Composed
from scalelab.parallel.engine.layout import Order, parse_layout
from scalelab.parallel.engine.processes import make_strategy
from scalelab.train import SingleProcess, Strategy, TrainConfig, Trainer, evaluate, load_checkpoint
from scalelab.train.gradients import accumulate_gradients
from scalelab.train.optimizer import make_optimizer
from scalelab.train.precision import make_scaler
from scalelab.train.state import parameter_of

planted = runpy.run_path(str(Path(__file__).with_name("faults.py")))["planted"]

CPU = torch.device("cpu")
VOCAB, SEQ_LEN, BATCH = 64, 32, 8
MODEL = DecoderConfig(n_layers=2, d_model=32, n_heads=2, vocab_size=VOCAB, seq_len=SEQ_LEN)


MODEL_FIELDS = {field.name for field in dataclasses.fields(DecoderConfig)} - {"seq_len"}


class InDouble(Decoder):
    """A decoder in fp64 throughout."""

    def __init__(self, config: DecoderConfig, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self.double()


class WithTiedHead(Decoder):
    """The head under a name of its own, as many models have it."""

    def __init__(self, config: DecoderConfig, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self.output = torch.nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.output.weight = self.token_embedding.weight

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.output(hidden)


KINDS = {"plain": Decoder, "double": InDouble, "tied": WithTiedHead}


def chain(change: int = 0) -> TokenData:
    """A random first-order chain over 64 symbols; `change` alters one of them."""
    rng = np.random.default_rng(0)
    cumulative = rng.dirichlet(np.full(VOCAB, 0.05), size=VOCAB).cumsum(axis=1)
    tokens = np.zeros(12_000, dtype=np.uint16)
    for place, draw in enumerate(rng.random(len(tokens) - 1)):
        tokens[place + 1] = min(VOCAB - 1, np.searchsorted(cumulative[tokens[place]], draw))
    tokens[100] = (tokens[100] + change) % VOCAB
    return TokenData(
        name="chain",
        tokenizer_name="symbols",
        train=tokens[:-2_000],
        held_out=tokens[-2_000:],
        vocab_size=VOCAB,
        end_of_text=0,
        bytes_per_token=np.ones(VOCAB, dtype=np.int64),
    )


def settings(n_steps: int, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "batch_size": BATCH, "seq_len": SEQ_LEN, "learning_rate": 3e-3, "n_evals": 2, "eval_tokens": 512,
    }  # fmt: skip
    values |= changes
    return TrainConfig(n_tokens=n_steps * values["batch_size"] * values["seq_len"], **values)


def strategy_of(group: dist.ProcessGroup | None, layout: str, order: Order = "1f1b") -> Strategy:
    if group is None:
        return SingleProcess("cpu")
    return make_strategy(parse_layout(layout, group.size()), group, CPU, order=order)


def batch(masked: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    inputs, targets = (rng.integers(0, VOCAB, (BATCH, SEQ_LEN)) for _ in range(2))
    if masked:
        targets[: BATCH // 2, 3:] = -100  # the first half counts far less than the second
    return inputs, targets


def whole(tensor: Any) -> torch.Tensor:
    full: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().clone()


def gradients(
    group: dist.ProcessGroup | None, *, layout: str, kind: str = "plain", pieces: int = 1,
    masked: bool = False, clip: float | None = None, seed_of_rank: bool = False, fault: str | None = None,
    order: Order = "1f1b", precision: Any = "fp32", **changes: Any,
) -> tuple[float, dict[str, torch.Tensor], float | None]:  # fmt: skip
    """The loss, every gradient, and the norm that clipping found; with a fault in the engine, if named."""
    with planted(fault):
        strategy = strategy_of(group, layout, order)
        seed = 3 + (strategy.rank if seed_of_rank else 0)
        model = strategy.place(KINDS[kind](dataclasses.replace(MODEL, **changes), seed=seed))
        loss = accumulate_gradients(
            strategy.loss_function(model), *batch(masked), pieces=pieces, precision=precision,
            scaler=make_scaler("fp32", CPU), strategy=strategy,
        )  # fmt: skip
        norm = None if clip is None else float(strategy.clip(model, clip))
        return float(loss), gathered_gradients(strategy, model), norm


def gathered_gradients(strategy: Strategy, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every gradient, whole and by its name in one process; where layers are dealt out, on rank 0 alone."""
    if not isinstance(strategy, Composed):
        return {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    state = {p: {"grad": p.grad} for p in model.parameters() if p.grad is not None}
    found = strategy.optimizer_state(model, SimpleNamespace(state=state))
    return {parameter_of(key): value.clone() for key, value in found.items()}


class Collectives(TorchDispatchMode):
    """Counts what torch sends through process groups."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.counts[func.__name__.split(".")[0].strip("_")] += 1
        return func(*args, **(kwargs or {}))


def communication(group: dist.ProcessGroup, *, layout: str, pieces: int) -> dict[str, int]:
    """How many collectives of each kind a batch takes."""
    strategy = strategy_of(group, layout)
    model = strategy.place(Decoder(MODEL, seed=3))
    loss = strategy.loss_function(model)
    inputs, targets = batch()
    counts: dict[str, int] = {}
    for _ in range(2):  # the first time, DDP still arranges its buckets
        with Collectives() as counted:
            accumulate_gradients(
                loss, inputs, targets, pieces=pieces, precision="fp32", scaler=make_scaler("fp32", CPU),
                strategy=strategy,
            )  # fmt: skip
        counts = dict(counted.counts)
        model.zero_grad()
    return counts


def training(
    group: dist.ProcessGroup | None, *, layout: str, n_steps: int = 6, kind: str = "plain",
    dropout: float = 0.0, run_dir: str | None = None, resume: bool = False, until: int | None = None,
    save: bool = False, interrupt: dict[int, int] | None = None, change: dict[int, int] | None = None,
    **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """A run, or a part of one, and what came of it.

    Args:
        until: steps after which it stops. save: and keeps a checkpoint there.
        interrupt: rank → the step in which it gets Ctrl-C, twice, as from a terminal and from torchrun.
        change: rank → what makes its text another one.
    """
    strategy = strategy_of(group, layout)
    of_model = {name: changes.pop(name) for name in MODEL_FIELDS & changes.keys()}
    config = dataclasses.replace(MODEL, dropout=dropout, **of_model)
    data = chain((change or {}).get(strategy.rank, 0))
    out: dict[str, Any] = {"warnings": [], "stopped": None, "error": None}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trainer = Trainer(
                KINDS[kind](config, seed=5), data, settings(n_steps, **changes), run_dir=run_dir,
                strategy=strategy, progress=False,
                checkpoint=load_checkpoint(Path(run_dir)) if resume and run_dir else None,
            )  # fmt: skip
            with interrupted((interrupt or {}).get(strategy.rank)):
                record = trainer.run(until_tokens=until and until * trainer.config.batch_tokens)
            out["record"] = dataclasses.asdict(record)
            if save:
                trainer.save()
        except KeyboardInterrupt as stop:
            out["stopped"] = str(stop)
        except Exception as error:
            out["error"] = f"{type(error).__name__}: {error}"
            return out
    weights, aliases = strategy.weights(trainer.model)
    state = strategy.optimizer_state(trainer.model, trainer.optimizer)
    local = [
        getattr(value, "_local_tensor", value)
        for s in trainer.optimizer.state.values()
        for value in s.values()
    ]
    return out | {
        "warnings": [str(item.message) for item in caught if item.category is UserWarning],
        "steps": trainer.step_count,
        "losses": trainer.history.loss_nats,
        "norms": trainer.history.grad_norm,
        "curve": trainer.history.curve,
        "weights": {name: value.clone() for name, value in weights.items()},
        "aliases": aliases,
        "optimizer": {name: value.clone() for name, value in state.items()},
        "random": trainer.random.state()["cpu"],
        "optimizer_bytes": sum(value.numel() * value.element_size() for value in local if value.ndim),
        "compiled": trainer.compiled,
        "precision": trainer.precision.precision,
    }


@contextlib.contextmanager
def interrupted(step: int | None) -> Iterator[None]:
    """Ctrl-C in one step of the run in the block, and its echo."""
    advance = Trainer._advance

    def and_then(self: Trainer) -> None:
        advance(self)
        if self.step_count == step:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    Trainer._advance = and_then
    try:
        yield
    finally:
        Trainer._advance = advance


def evaluation(
    group: dist.ProcessGroup | None, *, layout: str, max_tokens: int | None, batch_size: int
) -> Any:
    strategy = strategy_of(group, layout)
    model = strategy.place(InDouble(MODEL, seed=2))
    found = evaluate(
        model, chain(), seq_len=SEQ_LEN, max_tokens=max_tokens, batch_size=batch_size, strategy=strategy
    )
    return dataclasses.asdict(found)


def together(group: dist.ProcessGroup, *, layout: str) -> dict[str, Any]:
    """What processes decide together, asked for with values that differ by rank."""
    strategy = strategy_of(group, layout)
    rank = strategy.rank

    def fails() -> None:
        raise CheckpointError(f"the disk of {rank} is full")

    def fails_oddly() -> None:
        raise type("Odd", (Exception,), {})("of a kind that cannot travel")

    told = []
    for action in (fails, fails_oddly):
        try:
            strategy.decide(action)
        except Exception as error:
            told.append((type(error).__name__, str(error)))
    return {
        "agreed": strategy.agree(rank == 1, False, rank == 0),
        "decided": strategy.decide(lambda: f"by {rank}"),
        "errors": told,
        "gathered": strategy.gather({"rank": rank}),
        "total": float(strategy.total(torch.tensor(1.0 + rank))),
        "rows": strategy.share(np.arange(8)[:, None]).ravel().tolist(),
    }


def overflow(group: dist.ProcessGroup, *, layout: str, clip: bool) -> dict[str, Any]:
    """A step of loss scaling in which one number of one process's gradients is infinite; then a sound one."""
    strategy = strategy_of(group, layout)
    model = strategy.place(Decoder(MODEL, seed=3))
    optimizer = make_optimizer(model, settings(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    loss = strategy.loss_function(model)
    before = {name: whole(value) for name, value in model.named_parameters()}
    changed, scales = [], []
    for broken in (True, False):
        overflows = broken and strategy.n_parts == 1 and strategy.rank == 1
        weight = model.token_embedding.weight
        # With DDP in its own gradient, before that is added to the others'.
        hook = weight.register_hook(lambda grad: torch.full_like(grad, torch.inf)) if overflows else None
        accumulate_gradients(loss, *batch(), pieces=2, precision="fp32", scaler=scaler, strategy=strategy)
        if hook is not None:
            hook.remove()
        if broken and strategy.n_parts > 1 and strategy.rank == 1:  # in the part that it alone holds
            grad: Any = model.token_embedding.weight.grad
            getattr(grad, "_local_tensor", grad)[0, 0] = torch.inf
        if clip:
            scaler.unscale_(optimizer)
            strategy.clip(model, 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        changed.append(any(not torch.equal(whole(p), before[n]) for n, p in model.named_parameters()))
        scales.append(scaler.get_scale())
    return {"changed": changed, "scales": scales}


def precision_by_trial(group: dist.ProcessGroup, *, layout: str, run_dir: str) -> Any:
    """Each process's clock would choose otherwise."""
    import scalelab.train.precision as module

    measured, fastest = [], module._fastest_step
    rank = group.rank()

    def timed(step: Any, candidates: Any, device: Any) -> dict[str, float]:
        measured.append(rank)
        return {"fp32": 1.0, "bf16": 0.5 if rank == 0 else 2.0}

    module._fastest_step = timed
    try:
        found = training(group, layout=layout, n_steps=2, precision="auto", run_dir=run_dir)
    finally:
        module._fastest_step = fastest
    return found["precision"], found["error"], measured


def write_fails(group: dist.ProcessGroup, *, layout: str, run_dir: str) -> Any:
    """The disk refuses rank 0's first checkpoint."""
    from scalelab.train import CheckpointFolder

    save = CheckpointFolder.save

    def refused(self: CheckpointFolder, checkpoint: Any) -> Path:
        raise CheckpointError("cannot write: is the disk full?")

    CheckpointFolder.save = refused
    try:
        return training(group, layout=layout, run_dir=run_dir, checkpoint_every=2)["error"]
    finally:
        CheckpointFolder.save = save


def logger_refuses(group: dist.ProcessGroup, *, layout: str) -> Any:
    """Rank 0's logger cannot begin."""

    class Refuses:
        def start(self, run_id: str, settings: Any, step: int) -> None:
            raise ConfigError("no account there")

        def log(self, step: int, values: Any) -> None:
            raise AssertionError

        def close(self) -> None:
            pass

    strategy = strategy_of(group, layout)
    trainer = Trainer(
        Decoder(MODEL, seed=5), chain(), settings(2), strategy=strategy, loggers=[Refuses()], progress=False
    )
    try:
        trainer.run()
    except ConfigError as error:
        return str(error)


def among_some(group: dist.ProcessGroup, *, ranks: list[int]) -> Any:
    """DDP among some of the processes: what they decide, and their loss."""
    some = dist.new_group(ranks)
    if dist.get_rank() not in ranks:
        return None
    strategy = strategy_of(some, "ddp")
    model = strategy.place(KINDS["double"](MODEL, seed=3 + strategy.rank))
    loss = accumulate_gradients(
        strategy.loss_function(model), *batch(), pieces=1, precision="fp32",
        scaler=make_scaler("fp32", CPU), strategy=strategy,
    )  # fmt: skip
    return strategy.decide(lambda: f"by {strategy.rank} of {ranks}"), float(loss)


def sharded_among_some(group: dist.ProcessGroup, *, ranks: list[int]) -> Any:
    """What FSDP among some of the processes says."""
    some = dist.new_group(ranks)
    if dist.get_rank() in ranks:
        try:
            strategy_of(some, "fsdp")
        except AssertionError as error:
            return str(error)
    return None
