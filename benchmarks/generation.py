"""Greedy generation, tokens per second: our `generate` against transformers' on the same weights, on CPU.

Both run a Llama and continue the same prompts with a KV cache, and must write the same tokens before
anything is measured. They take turns in processes of their own (see _turns.py). Ours without a cache takes
part to show what the cache is worth.

Run: python benchmarks/generation.py [--rounds 12] [--out benchmarks/results/generation.json]
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from _turns import Worker, print_table, ratios_of, speeds_of, take_turns, write_report

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
    write_report(options.out, settings=settings, results=results)


def measure(shape: Shape, rounds: int, repeats: int, n_threads: int) -> dict[str, object]:
    """New tokens per second of every contender, and ratios within rounds."""
    names = (OURS, OURS_UNCACHED, THEIRS)
    workers = {name: Worker(functools.partial(contender, name, shape), n_threads) for name in names}
    try:
        texts = {name: worker.first() for name, worker in workers.items()}
        for name, text in texts.items():
            assert text == texts[THEIRS], f"{name} writes something else"
        durations_s = take_turns(workers, rounds=rounds, repeats=repeats, summary=min)
    finally:
        for worker in workers.values():
            worker.stop()
    speeds = speeds_of(durations_s, shape.batch_size * shape.new_tokens, "generation")
    ratios = ratios_of(durations_s, [(OURS, THEIRS), (OURS, OURS_UNCACHED)])
    print_table(
        f"{shape.n_layers} layers, d {shape.d_model}, vocabulary {shape.vocab_size}, batch "
        f"{shape.batch_size}, {shape.prompt_tokens} tokens + {shape.new_tokens} new",
        speeds,
        ratios,
    )
    return {"shape": asdict(shape), "speeds": speeds, "ratios": ratios}


def contender(name: str, shape: Shape) -> Callable[[], list[list[int]]]:
    """A function that continues the prompts; all contenders have the same weights and prompts."""
    theirs = build_theirs(shape)
    generator = torch.Generator().manual_seed(0)
    size = (shape.batch_size, shape.prompt_tokens)
    prompts = torch.randint(shape.vocab_size, size, generator=generator)
    if name == THEIRS:
        mask = torch.ones_like(prompts)
        return lambda: theirs.generate(
            prompts, attention_mask=mask, max_new_tokens=shape.new_tokens, do_sample=False, use_cache=True
        ).tolist()
    ours = from_transformers(theirs)
    return lambda: generate(
        ours, prompts, max_new_tokens=shape.new_tokens, temperature=0, use_cache=name == OURS
    ).tolist()


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


if __name__ == "__main__":
    main()
