"""`scalelab train`: from flags or a TOML file to a trained model, its record, and text from it.

Progress goes to standard error, the summary to standard output. A run that was killed goes on
with `--resume`. Under torchrun, `--parallel` says how its processes train one model together.
Taught in book/transformers/training.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.cli.attached import attach_to_launcher
from scalelab.cli.parser import Command, Parser, one_of, whole_number
from scalelab.cli.run_folder import (
    LOGGERS,
    TOKENIZER_FILE,
    RunSettings,
    fill_in,
    read_run_settings,
    refuse_changes,
    refuse_existing,
    write_settings,
)
from scalelab.cli.settings import (
    MODEL_SETTINGS,
    RUN_SETTINGS,
    TABLES,
    TRAIN_SETTINGS,
    Table,
    add_flags,
    decoder_config,
    given_flags,
    read_settings,
)
from scalelab.core.artifacts import user_path
from scalelab.core.config import DecoderConfig
from scalelab.core.errors import ConfigError, TrainingError
from scalelab.core.units import format_bytes, format_count, format_seconds
from scalelab.parallel.engine.launch import TIMEOUT_S, Launch, read_launch
from scalelab.parallel.engine.layout import AXES, ORDERS, Layout, Order, parse_layout, processes_of

if TYPE_CHECKING:
    import torch

    from scalelab.core.records import RunRecord
    from scalelab.data import Corpus, Tokenizer
    from scalelab.parallel.engine.processes import World
    from scalelab.train import Logger, Strategy, TrainConfig, Trainer

METRICS_FILE, TENSORBOARD_FOLDER, WANDB_FOLDER = "metrics.jsonl", "tensorboard", "wandb"
CHECKPOINTS_PER_RUN = 10
ONE_PROCESS = Layout()


def run(argv: Sequence[str]) -> int:
    """Train a model, or go on with a run, and say what came of it and where it lies.

    Raises:
        ConfigError, DataError, DataFileError, TrainingError, CheckpointError: whatever cannot be used;
            these come before the folder is made, but for what a logger refuses.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with how to go on.
    """
    launch = read_launch(os.environ)
    if launch is None or launch.n_processes == 1:
        return _train(argv, launch, None)
    attach_to_launcher()
    from scalelab.cli.launched import run_together

    run_together(launch, lambda world: _train(argv, world.launch, world), timeout=_timeout(argv))


def _train(argv: Sequence[str], launch: Launch | None, world: World | None) -> int:
    args = _parser().parse(argv)
    strategy = _strategy(args, argv, launch, world)
    asked = _asked(args)
    out = _out(asked)
    settings = strategy.decide(lambda: _settings(args, asked, out))
    trainer = _prepare(settings, out, args, strategy, launch)
    try:
        record = trainer.run()
    except KeyboardInterrupt as stop:
        on = shlex.join(["scalelab", "train", "--out", str(out), "--resume"])
        if strategy.n_processes > 1:
            again = ["--out", str(out), "--resume", "--parallel", args.parallel]
            on += f", in one process; or {_torchrun(strategy.n_processes, again)}"
        raise type(stop)(f"{str(stop) or 'interrupted'}; go on with: {on}") from None
    if args.json:
        print(json.dumps({"out": str(out), "record": json.loads(record.to_json())}, indent=1))
    else:
        print(summary(record, out))
    return 0


def _timeout(argv: Sequence[str]) -> timedelta:
    """How long processes wait for each other, read before they meet; mistakes are told after that."""
    known = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    known.add_argument("--timeout", type=whole_number, default=TIMEOUT_S)
    try:
        return timedelta(seconds=known.parse_known_args(argv)[0].timeout)
    except argparse.ArgumentError:
        return timedelta(seconds=TIMEOUT_S)


def _strategy(
    args: argparse.Namespace, argv: Sequence[str], launch: Launch | None, world: World | None
) -> Strategy:
    """How this process trains: alone, or as one of those that torchrun started.

    Raises:
        ConfigError: the flags and the number of processes do not fit each other.
        TrainingError: no such device here.
    """
    text, n_processes = args.parallel, 1 if launch is None else launch.n_processes
    if launch is None and text is not None and processes_of(text) > 1:
        start = _torchrun(processes_of(text), argv)
        raise ConfigError(f"--parallel {text} is for several processes, and this is one: {start}")
    if text is None and n_processes > 1:
        raise ConfigError(
            f"{n_processes} processes were started, and nothing says how they train together: "
            "--parallel ddp (each holds the whole model) or --parallel fsdp (each holds a part), or counts "
            f"of processes by {', '.join(AXES)}"
        )
    layout = None if text is None else parse_layout(text, n_processes)
    if world is None or layout is None:
        from scalelab.train import SingleProcess

        return SingleProcess(args.device)
    from scalelab.parallel.engine.processes import device_of

    return world.strategy(layout, device_of(world.launch, args.device), order=args.pipeline)


def _torchrun(n_processes: int, argv: Sequence[str]) -> str:
    """The command that trains in so many processes."""
    return shlex.join(["torchrun", "--nproc-per-node", str(n_processes), "-m", "scalelab", "train", *argv])


def _settings(args: argparse.Namespace, asked: Mapping[str, Table], out: Path) -> RunSettings:
    """The run's settings: those it was started with, or those asked for."""
    if args.resume:
        settings = read_run_settings(out)
        refuse_changes(settings, asked)
    else:
        settings = fill_in(asked)
        refuse_existing(out)
    return dataclasses.replace(settings, loggers=_wanted_loggers(args, settings.loggers))


def summary(record: RunRecord, out: Path) -> str:
    """What was trained, what it reached, and where things are."""
    rate = record.n_tokens / record.seconds if record.seconds > 0 else 0.0
    lines = [
        f"{format_count(record.n_params)} parameters, {format_count(record.n_tokens)} tokens of "
        f"{record.corpus} ({record.epochs:.2f} epochs) cut by {record.tokenizer}, {record.flops:.3g} FLOPs",
        f"held-out loss {record.loss_nats:.4f} nats per token, {record.bits_per_byte:.4f} bits per byte",
        f"{format_seconds(record.seconds)}, {format_count(rate)} tokens/s on {record.device}",
        f"run, checkpoints and record: {out}",
        f'text from it: scalelab generate {out} --prompt "..."',
    ]
    return "\n".join(lines)


def _asked(args: argparse.Namespace) -> dict[str, Table]:
    """What the file says, overridden by what the flags say."""
    tables = read_settings(Path(args.config), TABLES) if args.config else {name: {} for name in TABLES}
    return {name: {**tables[name], **given_flags(args, settings)} for name, settings in TABLES.items()}


def _out(asked: Mapping[str, Table]) -> Path:
    if not asked[""].get("out"):
        raise ConfigError("where to? Give the folder to make for the run: --out runs/NAME")
    return user_path(asked[""]["out"])


def _prepare(
    settings: RunSettings, out: Path, args: argparse.Namespace, strategy: Strategy, launch: Launch | None
) -> Trainer:
    """A trainer at the run's newest checkpoint or its beginning; the folder has what `--resume` needs."""
    _configs(settings, vocab_size=settings.top["vocab_size"])  # refuse these before any text is read
    from scalelab.data import corpus, encode_corpus, load_tokenizer
    from scalelab.train import CheckpointFolder, Trainer, load_checkpoint
    from scalelab.train.checkpoint import FOLDER
    from scalelab.train.strategy import rank_0_first

    top, kept = settings.top, out / TOKENIZER_FILE
    text = rank_0_first(strategy, lambda: corpus(top["corpus"], max_bytes=top["max_bytes"]))
    tokenizer = strategy.decide(
        lambda: load_tokenizer(kept) if args.resume else _make_tokenizer(settings, text)
    )
    model, training = _configs(settings, vocab_size=tokenizer.vocab_size)
    layout = parse_layout(strategy.layout, strategy.n_processes) if strategy.layout else ONE_PROCESS
    _check_memory(model, training, strategy, launch, layout, args.pipeline)
    data = rank_0_first(strategy, lambda: encode_corpus(text, tokenizer))
    loggers: list[Logger] = []
    strategy.decide(lambda: loggers.extend(_loggers(settings, out)))  # rank 0's alone, and so are its errors
    begun = args.resume and strategy.decide(CheckpointFolder(out / FOLDER).steps)
    trainer = Trainer(
        model,
        data,
        training,
        run_dir=out,
        strategy=strategy,
        loggers=loggers,
        progress=not args.quiet,
        checkpoint=load_checkpoint(out) if begun else None,
    )

    def keep() -> None:
        if not args.resume:
            tokenizer.save(kept)
        write_settings(out, settings)  # last, so that whoever finds it finds a whole run

    strategy.decide(keep)
    return trainer


def _configs(settings: RunSettings, vocab_size: int) -> tuple[DecoderConfig, TrainConfig]:
    from scalelab.train.config import train_config_from_dict

    model = decoder_config(settings.model, vocab_size)
    training = train_config_from_dict({**settings.train, "seq_len": model.seq_len})
    if training.checkpoint_every is None:
        every = -(-training.n_steps // CHECKPOINTS_PER_RUN)
        training = dataclasses.replace(training, checkpoint_every=every)
    return model, training


def _make_tokenizer(settings: RunSettings, text: Corpus) -> Tokenizer:
    from scalelab.data import byte_tokenizer, symbol_tokenizer, train_bpe

    match settings.top["tokenizer"]:
        case "bytes":
            return byte_tokenizer()
        case "symbols":
            return symbol_tokenizer()
        case _:
            return train_bpe(text, settings.top["vocab_size"])


def _check_memory(
    model: DecoderConfig,
    training: TrainConfig,
    strategy: Strategy,
    launch: Launch | None,
    layout: Layout = ONE_PROCESS,
    order: Order = "1f1b",
) -> None:
    """Refuse what cannot fit: an allocator's error, or the system's killing hand, would explain nothing.

    Raises:
        TrainingError: a step needs more than the machine has in all.
    """
    from scalelab.cost import memory

    share = training.batch_size // strategy.n_shares
    # 1F1B's first stage holds pp micro-batches of 1/pp of the layers: as much as one of all of them. GPipe's
    # holds all of the share's rows of 1/pp of the layers.
    pieces = layout.pp if order == "gpipe" and layout.pp > 1 else max(training.accumulate, layout.pp)
    held = memory(
        model,
        batch_size=max(1, -(-share // pieces)),  # the largest micro-batch
        seq_len=training.seq_len,
        precision="fp32" if training.precision == "auto" else training.precision,
        accumulate=2,  # so that the peak is all that is cut, and what backward starts with
    )
    copies = held.weights_bytes - held.gradients_bytes  # in 16 bits, gone when backward ends
    cut = held.weights_bytes + held.gradients_bytes + held.optimizer_bytes
    whole = (held.peak_bytes - cut) // layout.tp
    late = held.gradients_bytes if training.accumulate == 1 else 0
    needed = max(whole + (cut - late) // strategy.n_parts, (cut - copies) // strategy.n_parts)
    device, here = strategy.device, 1 if launch is None else launch.local_processes
    processes = ""
    if device.type != "cuda" and here > 1:  # they share this machine's memory
        needed, processes = needed * here, f" in its {here} processes"
    there = _device_bytes(device)
    if there is not None and needed > there:
        raise TrainingError(
            f"a step needs about {format_bytes(needed)} of memory{processes}, this {device.type} has "
            f"{format_bytes(there)}: a smaller model or --batch-size, or --accumulate, needs less "
            "(scalelab cost says how much)"
        )


def _device_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        import psutil
    except ModuleNotFoundError:
        return None
    return int(psutil.virtual_memory().total)


def _wanted_loggers(args: argparse.Namespace, kept: Mapping[str, Any]) -> dict[str, Any]:
    """What the flags ask for, else what the run had; a logger that is off is not named."""
    flags = {name: getattr(args, name) for name in LOGGERS}
    wanted = {name: kept.get(name) if flag is None else flag for name, flag in flags.items()}
    return {name: value for name, value in wanted.items() if value}


def _loggers(settings: RunSettings, out: Path) -> list[Logger]:
    from scalelab.train import JsonlLogger, TensorBoardLogger, WandbLogger

    loggers: list[Logger] = [JsonlLogger(out / METRICS_FILE)]
    if "tensorboard" in settings.loggers:
        loggers.append(TensorBoardLogger(out / TENSORBOARD_FOLDER))
    if "wandb" in settings.loggers:
        loggers.append(WandbLogger(settings.loggers["wandb"], folder=out / WANDB_FOLDER))
    return loggers


def _parser() -> Parser:
    parser = Parser(
        "scalelab train",
        "Train a language model: by flags, or by a TOML file that flags override. The file has the keys\n"
        "corpus, tokenizer, vocab_size, max_bytes and out at its top, and the tables [model] and [train],\n"
        "whose keys are the flags' names with underscores (--tokens is n_tokens). Defaults in brackets.",
        """
  scalelab train --corpus python --d-model 128 --n-layers 4 --tokens 2e6 --out runs/first
  scalelab train --config run.toml --learning-rate 3e-3 --out runs/second
  scalelab train --out runs/first --resume
  scalelab train --corpus my-texts/ --tokenizer bytes --precision auto --tensorboard --out runs/mine
  torchrun --nproc-per-node 2 -m scalelab train --tokens 2e6 --parallel ddp --out runs/in-two
""",
    )
    parser.usage = "scalelab train --out FOLDER [--config FILE] [--resume] [FLAG ...]"  # all would be a page
    parser.add_argument("--config", metavar="FILE", help="a TOML file of settings")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --out, with its settings and loggers"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 ... (the first GPU, or the CPU)")
    parser.add_argument(
        "--parallel",
        metavar="LAYOUT",
        help="under torchrun, how its processes train together: ddp (each holds the whole model), fsdp "
        "(each a part), or counts by axis, as dp_shard=2,tp=2,pp=2: copies (dp_replicate), parts of each "
        "weight (dp_shard), parts of each layer (tp), stages of layers (pp); after Ctrl-C torchrun leaves "
        "them 30 s for the step at hand and a checkpoint, then kills them",
    )
    parser.add_argument(
        "--pipeline",
        metavar="ORDER",
        default=ORDERS[0],
        type=one_of(*ORDERS),
        help="with pp: the order of micro-batches, of which there are --accumulate, or pp if that is more: "
        "1f1b (back as soon as one can) or gpipe (all forward, then all back) [1f1b]",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        default=TIMEOUT_S,
        type=whole_number,
        help="how long a process waits for another before it gives up; it must outlast rank 0's cutting of "
        f"the text into tokens [{TIMEOUT_S}]",
    )
    parser.add_argument(
        "--tensorboard",
        action=argparse.BooleanOptionalAction,
        help="write TensorBoard files into the run's folder",
    )
    parser.add_argument(
        "--wandb",
        nargs="?",
        const="scalelab",
        metavar="PROJECT",
        help="log to Weights & Biases (project scalelab); WANDB_MODE=offline keeps it on this machine",
    )
    parser.add_argument(
        "--no-wandb", action="store_const", const="", dest="wandb", help="go on without Weights & Biases"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="print the run's record as JSON")
    add_flags(parser, "what to train on, and where to", RUN_SETTINGS)
    add_flags(parser, "the model", MODEL_SETTINGS)
    add_flags(parser, "the training", TRAIN_SETTINGS)
    return parser


COMMAND = Command("train", "train a model on a text, or go on with a run", run)
