"""Training tokens per second of our Decoder against transformers' GPT2LMHeadModel, on this machine's CPU.

Both start from the same weights (their losses are compared first), see the same batch, and step with the
same fused AdamW; dropout is 0, and theirs uses torch's fused attention. They take turns in processes of their
own (see _turns.py).

`transformers` is measured with both of its ways to compute GPT-2's GELU: "gelu_new", its default, which
writes the formula out in eight steps, and "gelu_pytorch_tanh", the fused kernel that ours calls.

Run: python benchmarks/throughput.py [--rounds 12] [--out benchmarks/results/throughput.json]
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from _turns import Worker, print_table, ratios_of, speeds_of, take_turns, write_report

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
    write_report(options.out, settings=settings, results=results)


def measure(shape: Shape, rounds: int, turn_s: float, n_threads: int) -> dict[str, object]:
    """Tokens per second of every contender, and ratios within rounds."""
    names = (OURS, OURS_BF16, FUSED, DEFAULT)
    workers = {name: Worker(functools.partial(contender, name, shape), n_threads) for name in names}
    try:
        losses = {name: worker.first() for name, worker in workers.items()}
        for name, loss in losses.items():
            assert abs(loss - losses[FUSED]) < (2e-2 if name == OURS_BF16 else 1e-4), losses
        for worker in workers.values():  # warm up: memory, thread pools
            worker.times_s(2)
        repeats = max(1, round(turn_s / workers[FUSED].times_s(1)[0]))
        durations_s = take_turns(workers, rounds=rounds, repeats=repeats, summary=statistics.fmean)
    finally:
        for worker in workers.values():
            worker.stop()
    speeds = speeds_of(durations_s, shape.tokens_per_step, "step")
    ratios = ratios_of(durations_s, [(a, b) for a in (OURS, OURS_BF16) for b in (FUSED, DEFAULT)])
    print_table(
        f"{shape.n_layers} layers, d {shape.d_model}, T {shape.seq_len}, batch {shape.batch_size}, "
        f"vocabulary {shape.vocab_size}",
        speeds,
        ratios,
    )
    return {"shape": asdict(shape), "steps_per_turn": repeats, "speeds": speeds, "ratios": ratios}


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


if __name__ == "__main__":
    main()
