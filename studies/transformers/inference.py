"""The recorded study behind book/transformers/inference.md: what the lab shows once, over seeds or alone.

Run it again, on two cores without a GPU (about ten minutes; it goes on where it was stopped):

    .venv/dev/bin/python studies/transformers/inference.py

Seconds mean something only where nothing else runs. When the machine is quiet (about three minutes):

    .venv/dev/bin/python studies/transformers/inference.py --only timings --measure

It writes, under src/scalelab/lab/records/transformers/inference/:
texts.json (what five ways of writing give, by the model's own account), drafts.json (how many drafts are
kept, and what a pass yields), tries.json (valid Python in k tries), timings.json (this machine's roofline, a
model's passes below it, the cache, `transformers` on the same weights) and provenance.json.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import scalelab
from scalelab.core.artifacts import write_atomic
from scalelab.core.config import DecoderConfig
from scalelab.cost import decode_pass, params, prefill_pass
from scalelab.lab import base
from scalelab.lab.transformers.drafting import cut_draft, python_tokens, train_draft
from scalelab.lab.transformers.roofline import measure_roofline, pass_seconds
from scalelab.models import Decoder, beam_search, generate, speculative_generate
from scalelab.models.speculative import acceptance_rate, expected_tokens_per_pass

OUT = Path(scalelab.__file__).parent / "lab" / "records" / "transformers" / "inference"
COMMAND = "python studies/transformers/inference.py"
SEEDS = (0, 1, 2)
N_HELD_OUT = 120_000
N_WINDOWS, N_PROMPT, N_MORE = 32, 32, 64
DRAFT_TOKENS = (130_000, 500_000)
N_DRAFTS = (1, 2, 4, 8)
HEADS = (
    "def mean(values):", "def is_empty(text):", "def add(self, name, value):",
    "def load(path, encoding=None):", "class Point:", "def main():", "for line in lines:",
    "def close(self):", "while True:", "if not name:", "def __init__(self, size):",
    "class Node(Base):", "with open(path) as file:", "def test_sum(self):",
    "def walk(node, depth=0):", "@property\ndef name(self):",
)  # fmt: skip
N_SAMPLES = 64
TRIES = (1, 2, 4, 8, 16, 32)
WIDE = DecoderConfig(
    n_layers=6, d_model=1024, n_heads=16, d_ff=2816, vocab_size=2048, seq_len=512, norm="rmsnorm",
    positions="rope", feed_forward="swiglu", attention_bias=False, feed_forward_bias=False,
)  # fmt: skip
CONTEXT, BATCHES = 128, (1, 2, 4, 8, 16, 32, 64)
PEER_BATCHES, PEER_NEW = (1, 8), 128


def keep(name: str, values: Any) -> None:
    """Write one file of the record whole, or not at all."""
    write_atomic(OUT / f"{name}.json", (json.dumps(values, indent=1) + "\n").encode())


def kept_runs(name: str) -> list[dict[str, Any]]:
    """The rows of a file so far."""
    path = OUT / f"{name}.json"
    return list(json.loads(path.read_text(encoding="utf-8"))["runs"]) if path.exists() else []


def windows(tokens: np.ndarray, seed: int, length: int, n: int = N_WINDOWS) -> torch.Tensor:
    """[n, length] tokens of held-out text, from places drawn by `seed`."""
    draw = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(tokens) - length, (n,), generator=draw)
    return torch.stack([torch.as_tensor(tokens[s : s + length]) for s in starts])


def repeated(text: list[int], n: int = 4) -> float:
    """Share of n-grams that have occurred before in the same text."""
    grams = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
    return 1 - len(set(grams)) / len(grams)


def texts() -> None:
    """Five ways of writing beside what people wrote, and how many tokens are open."""
    rows = kept_runs("texts")
    found = base("decoder")
    held_out = python_tokens(found.tokenizer, N_HELD_OUT, held_out=True)
    ways: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
        "everything": lambda ids, seed: generate(found.model, ids, max_new_tokens=N_MORE, seed=seed),
        "top-p 0.9": lambda ids, seed: generate(
            found.model, ids, max_new_tokens=N_MORE, seed=seed, top_p=0.9
        ),
        "greedy": lambda ids, seed: generate(found.model, ids, max_new_tokens=N_MORE, temperature=0),
        "beam search, 4": lambda ids, seed: beam_search(
            found.model, ids, n_beams=4, max_new_tokens=N_MORE
        ).tokens[:, 0],
        "beam search, 16": lambda ids, seed: beam_search(
            found.model, ids, n_beams=16, max_new_tokens=N_MORE
        ).tokens[:, 0],
    }
    for seed in SEEDS:
        if any(row["seed"] == seed for row in rows):
            continue
        real = windows(held_out, seed, N_PROMPT + N_MORE)
        written = {"people": real} | {name: way(real[:, :N_PROMPT], seed) for name, way in ways.items()}
        row: dict[str, Any] = {"seed": seed, "n_texts": N_WINDOWS, "n_new": N_MORE, "ways": {}}
        with torch.inference_mode():
            for name, ids in written.items():
                log_p = found.model(ids[:, :-1]).log_softmax(-1)
                own = log_p.gather(-1, ids[:, 1:, None])[:, N_PROMPT - 1 :, 0]
                row["ways"][name] = {
                    "nats_a_token": own.mean().item(),
                    "repeated": statistics.mean(repeated(text[N_PROMPT:].tolist()) for text in ids),
                }
                if name == "people":
                    falling = log_p.exp().sort(dim=-1, descending=True).values
                    open_ = ((falling.cumsum(-1) - falling) < 0.9).sum(-1).flatten().float()
        row["nucleus"] = {
            "median": open_.median().item(),
            "mean": open_.mean().item(),
            "at_most_2": (open_ <= 2).float().mean().item(),
            "at_least_100": (open_ >= 100).float().mean().item(),
        }
        rows.append(row)
        keep("texts", {"runs": rows})
        print(row)


def drafts() -> None:
    """Drafts of two qualities: the share kept against Σ min(p, q), tokens a pass against the formula."""
    rows = kept_runs("drafts")
    found = base("decoder")
    held_out = python_tokens(found.tokenizer, N_HELD_OUT, held_out=True)
    for n_tokens in DRAFT_TOKENS:
        for seed in SEEDS:
            wanted = [
                n for n in N_DRAFTS
                if not any((r["seed"], r["n_tokens"], r["n_draft"]) == (seed, n_tokens, n) for r in rows)
            ]  # fmt: skip
            if not wanted:
                continue
            draft = train_draft(cut_draft(found.model), python_tokens(found.tokenizer, n_tokens), seed=seed)
            prompts = windows(held_out, 100 + seed, N_PROMPT, n=16)
            for n_draft in wanted:
                rows.append(speculate(found.model, draft, prompts, n_draft, seed) | {"n_tokens": n_tokens})
                keep("drafts", {"runs": rows})
                print(rows[-1])


def speculate(
    target: Decoder, draft: Decoder, prompts: torch.Tensor, n_draft: int, seed: int
) -> dict[str, Any]:
    """One row of drafts.json: texts written one at a time, so that rows do not wait for each other."""
    runs = [
        speculative_generate(
            target, draft, prompt[None], n_draft=n_draft, max_new_tokens=64, seed=1000 * seed + number
        )
        for number, prompt in enumerate(prompts)
    ]
    judged, accepted = sum(run.n_judged for run in runs), sum(run.n_accepted for run in runs)
    kept = accepted / judged
    with torch.inference_mode():
        ids = torch.cat([run.tokens for run in runs])
        p, q = (model(ids).softmax(-1)[:, prompts.shape[1] - 1 : -1] for model in (target, draft))
        overlap = acceptance_rate(p, q)  # [B, T]: every place of the texts that were written
    # Passes of the target that judged drafts: the one over the prompt judges none.
    per_pass = sum(run.n_written for run in runs) / sum(run.n_target_passes for run in runs)
    return {
        "seed": seed,
        "n_draft": n_draft,
        "n_judged": judged,
        "acceptance": kept,
        "standard_error": math.sqrt(kept * (1 - kept) / judged),
        "overlap": overlap.mean().item(),
        "tokens_per_pass": per_pass,
        "formula": expected_tokens_per_pass(kept, n_draft),
    }


def is_python(text: str, n_head_lines: int) -> bool:
    """Whether the block that the first lines open is valid, up to where it ends."""
    lines = text.split("\n")[:-1]  # the last line may be cut off
    if len(lines) < n_head_lines:
        return False
    head, rest = lines[:n_head_lines], lines[n_head_lines:]
    ends = [i for i, line in enumerate(rest) if line.strip() and not line.startswith((" ", "\t"))]
    try:
        ast.parse("\n".join(head + rest[: ends[0] if ends else len(rest)]))
    except (SyntaxError, ValueError):
        return False
    return True


def at_least_one(n: int, c: int, k: int) -> float:
    """1 - C(n-c, k) / C(n, k): Chen et al. 2021, arXiv:2107.03374, eq. 1."""
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def tries() -> None:
    """Of k continuations of a head, how often at least one is valid Python."""
    rows = kept_runs("tries")
    found = base("decoder")
    for seed in SEEDS:
        if any(row["seed"] == seed for row in rows):
            continue
        right = []
        for number, head in enumerate(HEADS):
            ids = torch.as_tensor(found.tokenizer.encode(head)).long().repeat(N_SAMPLES, 1)
            ids = generate(found.model, ids, max_new_tokens=48, top_p=0.95, seed=1000 * seed + number)
            written = [found.tokenizer.decode([int(t) for t in row]) for row in ids]
            right.append(sum(is_python(text, head.count("\n") + 1) for text in written))
        at_least = [statistics.mean(at_least_one(N_SAMPLES, c, k) for c in right) for k in TRIES]
        rows.append(
            {
                "seed": seed,
                "heads": list(HEADS),
                "n_samples": N_SAMPLES,
                "n_right": right,
                "tries": list(TRIES),
                "at_least_one": at_least,
                "if_alike": [1 - (1 - at_least[0]) ** k for k in TRIES],
            }
        )
        keep("tries", {"runs": rows})
        print(rows[-1]["n_right"], rows[-1]["at_least_one"])


def timings(seconds: float) -> None:
    """Everything that is counted in seconds: to be measured where nothing else runs."""
    torch.manual_seed(0)
    large = Decoder(WIDE, seed=0).eval()
    n_bytes = 4 * params(WIDE).total
    roof = measure_roofline(n_bytes=n_bytes, seconds=4 * seconds)
    passes = [
        one_pass(large, f"prefill, {n}", n_texts=1, n_new=n, seconds=seconds) for n in (8, 32, 128, 512)
    ] + [
        one_pass(large, f"decode, batch {n}", n_texts=n, n_new=1, seconds=seconds) for n in BATCHES
    ]  # fmt: skip
    keep(
        "timings",
        {
            "n_threads": torch.get_num_threads(),
            "load_before": os.getloadavg()[0],
            "n_params": params(WIDE).total,
            "n_bytes": n_bytes,
            "context": CONTEXT,
            "peak_flops_per_s": roof.peak_flops_per_s,
            "bandwidth_bytes_per_s": roof.bandwidth_bytes_per_s,
            "passes": passes,
            "drafting": drafting_seconds(seconds),
            "cache": cache_speed(),
            "peers": [peer(n) for n in PEER_BATCHES],
        },
    )


def one_pass(model: Decoder, name: str, *, n_texts: int, n_new: int, seconds: float) -> dict[str, Any]:
    """What a pass takes beside what it computes and moves."""
    n_kept = CONTEXT - 1 if n_new == 1 else 0
    if n_kept:
        bill = decode_pass(WIDE, batch_size=n_texts, context_len=CONTEXT, bytes_per_number=4)
    else:
        bill = prefill_pass(WIDE, batch_size=n_texts, seq_len=n_new, bytes_per_number=4)
    taken = pass_seconds(model, batch_size=n_texts, n_new=n_new, n_kept=n_kept, seconds=seconds)
    print(f"{name}: {taken * 1e3:.1f} ms, {bill.flops.total / taken / 1e9:.1f} GFLOP/s")
    return {
        "name": name,
        "n_texts": n_texts,
        "n_new": n_new,
        "seconds": taken,
        "flops": bill.flops.total,
        "intensity": bill.intensity,
    }


def drafting_seconds(seconds: float) -> dict[str, float]:
    """Seconds of the base decoder's steps and of its one-layer draft's, batch 1."""
    model = base("decoder").model
    draft = cut_draft(model)
    found = {f"target, {n}": pass_seconds(model, batch_size=1, n_new=n, n_kept=64, seconds=seconds)
             for n in (1, 2, 3, 5, 9)}  # fmt: skip
    return found | {"draft, 1": pass_seconds(draft, batch_size=1, n_new=1, n_kept=64, seconds=seconds)}


def cache_speed(n_rounds: int = 3) -> list[dict[str, Any]]:
    """Seconds with and without a cache, in turns; the ratio of each round, and their range."""
    model = base("decoder").model
    rows = []
    for n_texts in (1, 8):
        ids = torch.arange(n_texts * N_PROMPT).view(n_texts, N_PROMPT)
        ratios, rates = [], []
        for _ in range(n_rounds):
            seconds = {}
            for use_cache in (True, False):
                begin = time.perf_counter()
                generate(model, ids, max_new_tokens=PEER_NEW, temperature=0, use_cache=use_cache)
                seconds[use_cache] = time.perf_counter() - begin
            ratios.append(seconds[False] / seconds[True])
            rates.append(n_texts * PEER_NEW / seconds[True])
        rows.append(
            {
                "batch_size": n_texts,
                "ratio": statistics.median(ratios),
                "interval": [min(ratios), max(ratios)],
                "tokens_per_s": statistics.median(rates),
            }
        )
        print(rows[-1])
    return rows


def peer(n_texts: int, n_rounds: int = 9) -> dict[str, Any]:
    """Our greedy generation over `transformers`' on the same weights, in turns, the same tokens."""
    from scalelab.models import to_transformers

    model = base("decoder").model
    theirs = to_transformers(model).eval()
    ids = torch.arange(n_texts * N_PROMPT).view(n_texts, N_PROMPT)
    settings = {"max_new_tokens": PEER_NEW, "min_new_tokens": PEER_NEW, "do_sample": False, "pad_token_id": 0}
    ours_rates, ratios = [], []
    for number in range(n_rounds + 1):
        begin = time.perf_counter()
        ours = generate(model, ids, max_new_tokens=PEER_NEW, temperature=0)
        middle = time.perf_counter()
        other = theirs.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        end = time.perf_counter()
        if not torch.equal(ours, other):
            raise SystemExit("the same weights wrote other tokens: the comparison means nothing")
        if number:  # the first round warms both up
            ratios.append((end - middle) / (middle - begin))
            ours_rates.append(n_texts * PEER_NEW / (middle - begin))
    ratios.sort()
    row = {
        "batch_size": n_texts,
        "n_rounds": n_rounds,
        "ours_tokens_per_s": statistics.median(ours_rates),
        "ratio": statistics.median(ratios),
        "interval": [ratios[1], ratios[-2]],  # 96 % for the median of nine rounds
    }
    print(row)
    return row


def main() -> None:
    """Run what is missing; with --measure also measure anew what is counted in seconds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parts = ("texts", "drafts", "tries", "timings")
    parser.add_argument("--only", choices=parts, action="append", help="this part alone; may be repeated")
    parser.add_argument("--measure", action="store_true", help="measure seconds again that were measured")
    parser.add_argument("--seconds", type=float, default=2.0, help="to try each pass for (2)")
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    for name, part in (("texts", texts), ("drafts", drafts), ("tries", tries)):
        if name in (options.only or parts):
            part()
    if "timings" in (options.only or parts) and (options.measure or not (OUT / "timings.json").exists()):
        timings(options.seconds)
    provenance = {
        "command": COMMAND,
        "machine": f"CPU ({torch.backends.cpu.get_cpu_capability()}), no GPU",
        "python": platform.python_version(),
        "versions": {
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "scalelab": scalelab.__version__,
        },
        "date": time.strftime("%Y-%m-%d"),
    }
    keep("provenance", provenance)


if __name__ == "__main__":
    main()
