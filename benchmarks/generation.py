"""Greedy generation, tokens per second: our `generate` against transformers' on the same weights, on CPU.

Both run a Llama and continue the same prompts with a KV cache, and must write the same tokens before
anything is measured. Each lives in a process of its own, as a user's would; they take turns, round by round,
so that whatever else the machine does falls on both, and ratios are taken within a round. Ours without a
cache takes part to show what the cache is worth.

Run: python benchmarks/generation.py [--rounds 12] [--out benchmarks/results/generation.json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import transformers
from throughput import describe_machine, spread

from scalelab.core.artifacts import write_atomic
from scalelab.models import from_transformers, generate

RESULTS = Path(__file__).parent / "results" / "generation.json"
OURS, OURS_UNCACHED, THEIRS = "ours", "ours, no cache", "transformers"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Who writes, and how much; the model is of the base decoder's shape."""

    batch_size: int
    n_layers: int = 4
    d_model: int = 192
    n_heads: int = 6
    d_ff: int = 512
    vocab_size: int = 2048
    prompt_tokens: int = 32
    new_tokens: int = 128


SHAPES = {"batch 1": Shape(batch_size=1), "batch 8": Shape(batch_size=8)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=12, help="turns of each contender")
    parser.add_argument("--repeats", type=int, default=3, help="generations in a turn; the fastest counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    results = {
        name: measure(SHAPES[name], options.rounds, options.repeats, options.threads)
        for name in options.shapes
    }
    settings = {"rounds": options.rounds, "repeats": options.repeats, "threads": options.threads}
    report = {"machine": describe_machine(), "settings": settings, "results": results}
    write_atomic(options.out, (json.dumps(report, indent=1) + "\n").encode())
    print(f"written: {options.out.name}")


def measure(shape: Shape, rounds: int, repeats: int, n_threads: int) -> dict[str, object]:
    """New tokens per second of every contender, and ratios within rounds."""
    workers = {name: Worker(name, shape, n_threads) for name in (OURS, OURS_UNCACHED, THEIRS)}
    try:
        texts = {name: worker.text() for name, worker in workers.items()}
        for name, text in texts.items():
            assert torch.equal(text, texts[THEIRS]), f"{name} writes something else"
        durations_s: dict[str, list[float]] = {name: [] for name in workers}
        for number in range(rounds):
            # Forwards and backwards in turn, so that no contender always follows the same one.
            for name in list(workers) if number % 2 == 0 else reversed(workers):
                durations_s[name].append(workers[name].fastest_s(repeats))
    finally:
        for worker in workers.values():
            worker.stop()
    written = shape.batch_size * shape.new_tokens
    speeds = {
        name: {"tokens_per_s": written / statistics.median(times), **spread(times, "generation_s")}
        for name, times in durations_s.items()
    }
    ratios = {}
    for ours, theirs in ((OURS, THEIRS), (OURS, OURS_UNCACHED)):
        pairs = zip(durations_s[ours], durations_s[theirs], strict=True)
        ratios[f"{ours} / {theirs}"] = spread([b / a for a, b in pairs], "ratio")
    print_table(shape, speeds, ratios)
    return {"shape": asdict(shape), "speeds": speeds, "ratios": ratios}


class Worker:
    """A contender in its own process; it idles unless asked to write."""

    def __init__(self, name: str, shape: Shape, n_threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, shape, n_threads), daemon=True)
        self._process.start()
        theirs.close()

    def text(self) -> torch.Tensor:
        """What it writes; this also warms it up. Call it once, first."""
        return torch.tensor(self._pipe.recv())

    def fastest_s(self, repeats: int) -> float:
        """Wall time of the fastest of so many generations."""
        self._pipe.send(repeats)
        return self._pipe.recv()

    def stop(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def serve(pipe: Connection, name: str, shape: Shape, n_threads: int) -> None:
    """Write as often as the parent asks, until it hangs up."""
    torch.set_num_threads(n_threads)
    transformers.logging.set_verbosity_error()
    write = contender(name, shape)
    pipe.send(write().tolist())
    while True:
        try:
            repeats = pipe.recv()
        except EOFError:
            return
        durations_s = []
        for _ in range(repeats):
            begin = time.perf_counter()
            write()
            durations_s.append(time.perf_counter() - begin)
        pipe.send(min(durations_s))


def contender(name: str, shape: Shape) -> Callable[[], torch.Tensor]:
    """A function that continues the prompts; all contenders have the same weights and prompts."""
    theirs = build_theirs(shape)
    generator = torch.Generator().manual_seed(0)
    size = (shape.batch_size, shape.prompt_tokens)
    prompts = torch.randint(shape.vocab_size, size, generator=generator)
    if name == THEIRS:
        mask = torch.ones_like(prompts)
        return lambda: theirs.generate(
            prompts, attention_mask=mask, max_new_tokens=shape.new_tokens, do_sample=False, use_cache=True
        )
    ours = from_transformers(theirs)
    return lambda: generate(
        ours, prompts, max_new_tokens=shape.new_tokens, temperature=0, use_cache=name == OURS
    )


def build_theirs(shape: Shape) -> transformers.LlamaForCausalLM:
    """A Llama of this shape, weights drawn from a fixed seed; no token ends a text."""
    config = transformers.LlamaConfig(
        num_hidden_layers=shape.n_layers,
        hidden_size=shape.d_model,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_heads,
        intermediate_size=shape.d_ff,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.prompt_tokens + shape.new_tokens,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


def print_table(
    shape: Shape, speeds: dict[str, dict[str, float]], ratios: dict[str, dict[str, float]]
) -> None:
    print(
        f"\n{shape.n_layers} layers, d {shape.d_model}, vocabulary {shape.vocab_size}, batch "
        f"{shape.batch_size}, {shape.prompt_tokens} tokens + {shape.new_tokens} new"
    )
    for name, row in speeds.items():
        print(f"  {name:24s} {row['tokens_per_s']:10,.0f} tokens/s")
    for name, row in ratios.items():
        print(
            f"  {name:32s} {row['ratio_median']:.2f}  "
            f"[{row['ratio_quartile_1']:.2f}, {row['ratio_quartile_3']:.2f}]"
        )


if __name__ == "__main__":
    main()
