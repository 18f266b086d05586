"""The recorded study behind "the same run in two processes" of book/transformers/training.md.

Run it again, alone on two cores without a GPU (some five minutes):

    .venv/dev/bin/python studies/transformers/engine.py

It starts the real commands under torchrun, in one process and in two, and writes what they printed and what
was measured to src/scalelab/lab/records/transformers/engine/. Timings take turns, and how busy the machine
was is written beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import scalelab
from scalelab.core.artifacts import write_atomic
from scalelab.core.config import DecoderConfig
from scalelab.core.records import read_records
from scalelab.data import corpus, encode_corpus, train_bpe
from scalelab.models import Decoder
from scalelab.parallel.engine.launch import read_launch
from scalelab.parallel.engine.layout import parse_layout
from scalelab.parallel.engine.processes import World, joined
from scalelab.train import SingleProcess, Strategy, TrainConfig, Trainer, load_checkpoint

OUT = Path(scalelab.__file__).parent / "lab" / "records" / "transformers" / "engine"
COMMAND = "python studies/transformers/engine.py"
MODEL = DecoderConfig(
    n_layers=3, d_model=96, n_heads=3, vocab_size=1024, seq_len=128, positions="rope", feed_forward="gelu"
)
FLAGS = (
    "--d-model 96 --n-layers 3 --n-heads 3 --positions rope --feed-forward gelu --vocab-size 1024 "
    "--batch-size 8 --learning-rate 4e-3 --eval-tokens 16384"
)
TRAIN = f"--corpus python {FLAGS}"
EQUAL_STEPS = 20
TIMED_TOKENS, ROUNDS = 102_400, 3
SHOWN_TOKENS, STOP_AFTER = 409_600, 200  # tokens of the run that is shown; steps before Ctrl-C
LAYOUTS = {"one": None, "ddp": "ddp", "fsdp": "fsdp"}


class InDouble(Decoder):
    """The lab's model in fp64, loss and all: in fp32 two orders of adding differ in the seventh digit."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config, seed=0)
        self.double()

    def loss(self, tokens: Any, targets: Any, reduction: Any = "mean", ignore_index: int = -100) -> Any:
        logits = self(tokens).flatten(0, 1)
        return F.cross_entropy(logits, targets.flatten(), reduction=reduction, ignore_index=ignore_index)


# --- what each process does -------------------------------------------------------------------------------


def work(layout: str | None, out: Path) -> None:
    """Train, alone or as one of several processes; rank 0 writes what came of it."""
    launch = read_launch(os.environ)
    if launch is None or layout is None:
        measured(SingleProcess("cpu"), out)
        return
    with joined(launch) as world:
        measured(strategy_of(world, layout), out)
    sys.stdout.flush()
    os._exit(0)  # as the command does: threads of the group may still be at work


def strategy_of(world: World, layout: str) -> Strategy:
    return world.strategy(parse_layout(layout, world.launch.n_processes), torch.device("cpu"))


def measured(strategy: Strategy, out: Path) -> None:
    """Losses in fp64, and the bytes of AdamW's averages that each process holds of the model in fp32."""
    text = corpus("python")
    data = encode_corpus(text, train_bpe(text, MODEL.vocab_size))

    def trainer(model: Decoder, n_steps: int) -> Trainer:
        config = TrainConfig(
            n_tokens=n_steps * 8 * 128, batch_size=8, learning_rate=4e-3, n_evals=1, eval_tokens=1024
        )
        return Trainer(model, data, config, strategy=strategy, progress=False)

    double = trainer(InDouble(MODEL), EQUAL_STEPS)
    double.run()
    single = trainer(Decoder(MODEL, seed=0), 1)
    single.run()
    held = [
        getattr(value, "_local_tensor", value)
        for state in single.optimizer.state.values()
        for name, value in state.items()
        if name != "step"
    ]
    sizes = strategy.gather(sum(tensor.numel() * tensor.element_size() for tensor in held))
    if strategy.rank == 0:
        losses = double.history.loss_nats
        out.write_text(json.dumps({"losses": losses, "optimizer_bytes_by_process": sizes}))


# --- what starts them -------------------------------------------------------------------------------------


def program(layout: str | None, words: Sequence[str]) -> list[str]:
    """The words that start a program in one process, or in two by torchrun."""
    if layout is None:
        return [sys.executable, *words]
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *words]


def environment(threads: int) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": str(threads)}


def equality() -> dict[str, Any]:
    """Each layout against one process."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, layout in LAYOUTS.items():
            out = Path(folder) / f"{name}.json"
            words = [__file__, "--work", str(out), *(["--layout", layout] if layout else [])]
            subprocess.run(program(layout, words), check=True, env=environment(1))
            found[name] = json.loads(out.read_text())
    alone = found["one"]["losses"]
    return {
        "steps": EQUAL_STEPS,
        "first_loss_nats": alone[0],
        "last_loss_nats": alone[-1],
        "largest_difference_nats": {
            name: max(abs(a - b) for a, b in zip(run["losses"], alone, strict=True))
            for name, run in found.items()
            if name != "one"
        },
        "optimizer_bytes_by_process": {
            name: run["optimizer_bytes_by_process"] for name, run in found.items()
        },
    }


def speeds() -> dict[str, Any]:
    """Tokens/s of the same training by two threads of one process and by two processes of one thread."""
    rates: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    loads = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(ROUNDS):
            for name, layout in LAYOUTS.items():
                loads.append(os.getloadavg()[0])
                out = Path(folder) / f"{name}-{number}"
                words = ["-m", "scalelab", "train", *TRAIN.split(), "--tokens", str(TIMED_TOKENS)]
                words += ["--n-evals", "1", "--quiet", "--out", str(out)]
                words += ["--parallel", layout] if layout else []
                subprocess.run(
                    program(layout, words), check=True, env=environment(1 if layout else 2),
                    stdout=subprocess.DEVNULL,
                )  # fmt: skip
                (record,) = read_records(out / "record.jsonl")
                rates[name].append(record.n_tokens / record.seconds)
                print(name, f"{rates[name][-1]:,.0f} tokens/s, load {loads[-1]:.1f}", flush=True)
    return {
        "tokens": TIMED_TOKENS,
        "threads": {"one": 2, "ddp": 1, "fsdp": 1},
        "tokens_per_s": rates,
        "load_before_each": loads,
    }


def session() -> list[dict[str, str]]:
    """A run in two processes, stopped by Ctrl-C, gone on with in one: commands, and what scalelab printed."""
    train = f"{TRAIN} --tokens {SHOWN_TOKENS}"
    first = f"torchrun --nproc-per-node 2 -m scalelab train {train} --parallel ddp --out runs/in-two"
    second = "scalelab train --out runs/in-two --resume"
    with tempfile.TemporaryDirectory() as folder:
        words = ["-m", *first.partition("-m ")[2].split()]
        started = subprocess.Popen(
            program("ddp", words), cwd=folder, env=environment(1), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        checkpoints = Path(folder) / "runs" / "in-two" / "checkpoints"
        while not any(int(entry.name[-9:]) >= STOP_AFTER for entry in checkpoints.glob("step-*")):
            assert started.poll() is None, started.communicate()[0]
            time.sleep(0.05)
        started.send_signal(signal.SIGINT)
        stopped, _ = started.communicate(timeout=60)
        resumed = subprocess.run(
            program(None, ["-m", *second.split()]), cwd=folder, env=environment(2), text=True, check=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ).stdout  # fmt: skip
        assert load_checkpoint(checkpoints.parent).step * 8 * 128 == SHOWN_TOKENS
    return [
        {"command": first, "printed": ours(stopped), "then": "Ctrl-C"},
        {"command": second, "printed": ours(resumed), "then": ""},
    ]


def ours(text: str) -> str:
    """What scalelab printed, without torchrun's own report of the signal."""
    ends = r"[\d.]+ [kM] parameters|held-out loss|\d.* tokens/s on|run, checkpoints|text from"
    own = re.compile(rf"scalelab: |step |fp32 |{ends}")
    return "\n".join(line for line in text.splitlines() if own.match(line))


def machine() -> str:
    """What matters of it: cores, vector units, and whether it multiplies bf16 matrices in hardware."""
    units = ", AMX" if torch.cpu._is_amx_tile_supported() else ""
    return f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}{units}, no GPU"


PARTS = {"equality": equality, "session": session, "speeds": speeds}


def main() -> None:
    """Measure all of it or some parts anew, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", help=f"what to measure, the rest is kept: {', '.join(PARTS)}")
    parser.add_argument("--work", type=Path, help="(a process of the study) where to write")
    parser.add_argument("--layout", help="(a process of the study) how it trains with the others")
    args = parser.parse_args()
    if args.work:
        work(args.layout, args.work)
        return
    kept = OUT / "measurements.json"
    measurements = json.loads(kept.read_text()) if kept.exists() and args.parts else {}
    for name in args.parts or PARTS:
        measurements[name] = PARTS[name]()
    provenance = {
        "command": COMMAND,
        "machine": machine(),
        "python": platform.python_version(),
        "versions": {"torch": str(torch.__version__), "scalelab": scalelab.__version__},
        "text": corpus("python").describe(),
        "date": time.strftime("%Y-%m-%d"),
    }
    for name, values in (("measurements", measurements), ("provenance", provenance)):
        write_atomic(OUT / f"{name}.json", (json.dumps(values, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
