"""Training tokens per second of our Decoder against transformers' GPT2LMHeadModel, on this machine's CPU.

Both start from the same weights (their losses are compared first), see the same batch, and step with the
same fused AdamW; dropout is 0, and theirs uses torch's fused attention. Each lives in a process of its own,
as a user's would, so that none inherits the memory another has warmed up. They take turns, round by round,
so that whatever else the machine does falls on all; ratios are taken within a round.

`transformers` is measured with both of its ways to compute GPT-2's GELU: "gelu_new", its default, which
writes the formula out in eight steps, and "gelu_pytorch_tanh", the fused kernel that ours calls.

Run: python benchmarks/throughput.py [--rounds 12] [--out benchmarks/results/throughput.json]
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import transformers

from scalelab.core.artifacts import write_atomic
from scalelab.models import from_transformers

RESULTS = Path(__file__).parent / "results" / "throughput.json"
OURS, OURS_BF16 = "ours, fp32", "ours, bf16 autocast"
FUSED, DEFAULT = "transformers, fp32, gelu_pytorch_tanh", "transformers, fp32, gelu_new"

Step = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is trained, on how much at a time."""

    n_layers: int
    d_model: int
    n_heads: int
    seq_len: int
    batch_size: int
    vocab_size: int = 1024  # the lab's

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.seq_len


SHAPES = {
    "small": Shape(n_layers=4, d_model=128, n_heads=4, seq_len=128, batch_size=32),
    "large": Shape(n_layers=6, d_model=384, n_heads=6, seq_len=256, batch_size=8),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=12, help="turns of each contender")
    parser.add_argument("--seconds", type=float, default=1.5, help="length of a turn, about")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    results = {
        name: measure(SHAPES[name], options.rounds, options.seconds, options.threads)
        for name in options.shapes
    }
    settings = {"rounds": options.rounds, "seconds_per_turn": options.seconds, "threads": options.threads}
    report = {"machine": describe_machine(), "settings": settings, "results": results}
    write_atomic(options.out, (json.dumps(report, indent=1) + "\n").encode())
    print(f"written: {options.out.name}")


def measure(shape: Shape, rounds: int, turn_s: float, n_threads: int) -> dict[str, object]:
    """Tokens per second of every contender, and ratios within rounds."""
    workers = {name: Worker(name, shape, n_threads) for name in (OURS, OURS_BF16, FUSED, DEFAULT)}
    try:
        losses = {name: worker.first_loss() for name, worker in workers.items()}
        for name, loss in losses.items():
            assert abs(loss - losses[FUSED]) < (2e-2 if name == OURS_BF16 else 1e-4), losses
        for worker in workers.values():  # warm up: memory, thread pools
            worker.seconds_per_step(2)
        repeats = max(1, round(turn_s / workers[FUSED].seconds_per_step(1)))
        durations_s: dict[str, list[float]] = {name: [] for name in workers}
        for number in range(rounds):
            # Forwards and backwards in turn, so that no contender always follows the same one.
            for name in list(workers) if number % 2 == 0 else reversed(workers):
                durations_s[name].append(workers[name].seconds_per_step(repeats))
    finally:
        for worker in workers.values():
            worker.stop()
    speeds = {
        name: {"tokens_per_s": shape.tokens_per_step / statistics.median(times), **spread(times, "step_s")}
        for name, times in durations_s.items()
    }
    ratios = {}
    for ours, theirs in ((OURS, FUSED), (OURS, DEFAULT), (OURS_BF16, FUSED), (OURS_BF16, DEFAULT)):
        pairs = zip(durations_s[ours], durations_s[theirs], strict=True)
        ratios[f"{ours} / {theirs}"] = spread([b / a for a, b in pairs], "ratio")
    print_table(shape, speeds, ratios)
    return {"shape": asdict(shape), "steps_per_turn": repeats, "speeds": speeds, "ratios": ratios}


class Worker:
    """A contender in its own process; it idles unless asked for steps."""

    def __init__(self, name: str, shape: Shape, n_threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, shape, n_threads), daemon=True)
        self._process.start()
        theirs.close()

    def first_loss(self) -> float:
        """The loss of the fresh weights; call it once, first."""
        return self._pipe.recv()

    def seconds_per_step(self, repeats: int) -> float:
        """Mean wall time of a training step over `repeats` of them."""
        self._pipe.send(repeats)
        return self._pipe.recv()

    def stop(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def serve(pipe: Connection, name: str, shape: Shape, n_threads: int) -> None:
    """Take as many steps as the parent asks for, until it hangs up."""
    torch.set_num_threads(n_threads)
    transformers.logging.set_verbosity_error()
    step = contender(name, shape)
    pipe.send(step())
    while True:
        try:
            repeats = pipe.recv()
        except EOFError:
            return
        begin = time.perf_counter()
        for _ in range(repeats):
            step()
        pipe.send((time.perf_counter() - begin) / repeats)


def contender(name: str, shape: Shape) -> Step:
    """A function that takes one optimiser step and returns the loss before it."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(shape.vocab_size, (shape.batch_size, shape.seq_len + 1), generator=generator)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    theirs = build_theirs(shape, "gelu_new" if name == DEFAULT else "gelu_pytorch_tanh")
    if name in (FUSED, DEFAULT):
        # Given its targets already shifted, it computes the very same loss as ours.
        return step_of(
            theirs,
            lambda m: m(input_ids=inputs, labels=inputs, shift_labels=targets, use_cache=False).loss,
            None,
        )
    ours = from_transformers(theirs).train()
    return step_of(ours, lambda m: m.loss(inputs, targets), torch.bfloat16 if name == OURS_BF16 else None)


def build_theirs(shape: Shape, activation: str) -> transformers.GPT2LMHeadModel:
    """GPT-2 of this shape without dropout, weights drawn from a fixed seed."""
    config = transformers.GPT2Config(
        n_layer=shape.n_layers,
        n_embd=shape.d_model,
        n_head=shape.n_heads,
        n_positions=shape.seq_len,
        vocab_size=shape.vocab_size,
        activation_function=activation,
        attn_implementation="sdpa",
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config).train()


def step_of(
    model: torch.nn.Module,
    loss_of: Callable[[torch.nn.Module], torch.Tensor],
    autocast_to: torch.dtype | None,
) -> Step:
    """A training step of `model`, the same for all contenders but for the loss call and the precision."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", autocast_to, enabled=autocast_to is not None):
            loss = loss_of(model)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def spread(values: Sequence[float], name: str) -> dict[str, float]:
    """Median, quartiles and extremes."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {
        f"{name}_median": middle,
        f"{name}_quartile_1": low,
        f"{name}_quartile_3": high,
        f"{name}_min": min(values),
        f"{name}_max": max(values),
    }


def print_table(
    shape: Shape, speeds: dict[str, dict[str, float]], ratios: dict[str, dict[str, float]]
) -> None:
    print(
        f"\n{shape.n_layers} layers, d {shape.d_model}, T {shape.seq_len}, batch {shape.batch_size}, "
        f"vocabulary {shape.vocab_size}"
    )
    for name, row in speeds.items():
        print(f"  {name:40s} {row['tokens_per_s']:10,.0f} tokens/s")
    for name, row in ratios.items():
        print(
            f"  {name:62s} {row['ratio_median']:.2f}  "
            f"[{row['ratio_quartile_1']:.2f}, {row['ratio_quartile_3']:.2f}]"
        )


def describe_machine() -> dict[str, object]:
    """What the numbers were taken on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": fields.get("model name", platform.processor()),
        "cores": sum(line.startswith("processor") for line in lines) or None,
        "bf16_matrix_units": "amx_bf16" in flags,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    main()
