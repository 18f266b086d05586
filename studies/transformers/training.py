"""The recorded study behind book/transformers/training.md: what a two-minute lab is too short for.

Run it again, alone on two cores without a GPU (half an hour or so; it goes on where it was stopped):

    .venv/dev/bin/python studies/transformers/training.py

It writes, under src/scalelab/lab/records/transformers/training/, a JSONL file of records for each arm, the
measurements that are no runs, and where all of it was made.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import lzma
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import scalelab
from scalelab.core.artifacts import write_atomic
from scalelab.core.config import DecoderConfig
from scalelab.core.records import append_records, read_records
from scalelab.data import (
    Batches,
    TokenData,
    Tokenizer,
    compressed_bits_per_byte,
    corpus,
    encode_corpus,
    train_bpe,
)
from scalelab.lab.measure import matmul_flops_per_s, peak_bytes
from scalelab.models import Decoder, generate
from scalelab.train import TrainConfig, Trainer

OUT = Path(scalelab.__file__).parent / "lab" / "records" / "transformers" / "training"
COMMAND = "python studies/transformers/training.py"
SAMPLES = "samples.json"
SEEDS = (0, 1, 2)
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
WIDTHS = (64, 96, 128, 192, 256, 384, 512)

LAB_MODEL = DecoderConfig(
    n_layers=3, d_model=96, n_heads=3, vocab_size=1024, seq_len=128, positions="rope", feed_forward="gelu"
)
LAB_RUN = TrainConfig(
    n_tokens=1_400_000,
    batch_size=8,
    seq_len=128,
    learning_rate=4e-3,
    min_lr_fraction=0.05,
    eval_tokens=65_536,
)
PROMPT = "def "
SAMPLED_AT = (0, 11_264, 88_064, LAB_RUN.n_tokens)
LARGER_MODEL = dataclasses.replace(
    LAB_MODEL, n_layers=6, d_model=256, n_heads=4, n_kv_heads=None, d_head=None, d_ff=None, seq_len=256
)
LARGER_RUN = TrainConfig(
    n_tokens=3_300_000, batch_size=8, seq_len=256, learning_rate=2e-3, min_lr_fraction=0.05,
    precision="auto", eval_tokens=65_536,
)  # fmt: skip


def arms() -> Iterator[tuple[str, DecoderConfig, TrainConfig]]:
    """File name, model and settings of every run, the short ones first."""
    short = dataclasses.replace(LAB_RUN, n_tokens=300_000, n_evals=1, warmup_steps=None)
    for rate in RATES:
        for seed in SEEDS:
            yield "rates", LAB_MODEL, dataclasses.replace(short, learning_rate=rate, seed=seed)
    middle = dataclasses.replace(LAB_RUN, n_tokens=600_000, n_evals=1, warmup_steps=None)
    for name in ("constant", "cosine", "linear", "wsd"):
        for seed in SEEDS:
            lowest = {"constant": 1.0, "cosine": 0.05}.get(name, 0.0)
            yield (
                f"schedule-{name}",
                LAB_MODEL,
                dataclasses.replace(middle, schedule=name, min_lr_fraction=lowest, seed=seed),
            )
    for seed in SEEDS:
        yield "minute", LAB_MODEL, dataclasses.replace(LAB_RUN, seed=seed)
        table = dataclasses.replace(LAB_MODEL, positions="learned")
        yield "minute-table", table, dataclasses.replace(LAB_RUN, seed=seed)
    yield "larger", LARGER_MODEL, LARGER_RUN


def run_missing(data: TokenData) -> None:
    """Train what is not in the records yet."""
    for name, model, settings in arms():
        path = OUT / f"{name}.jsonl"
        known = {record.run_id for record in read_records(path)} if path.exists() else set()
        trainer = Trainer(model, data, settings, progress=False)
        if trainer.run_id in known:
            continue
        record = trainer.run()
        append_records(path, [record])
        print(
            f"{name}: rate {record.learning_rate:g}, seed {record.seed}: "
            f"{record.bits_per_byte:.3f} bits per byte, {record.seconds:.0f} s"
        )


def compressors(text: Any) -> dict[str, float]:
    """Bits per byte of the held-out text; "primed": what it adds after the training text."""
    train, held_out = ("".join(d.text for d in part).encode() for part in (text.train, text.held_out))
    settings = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 26}]

    def size(content: bytes) -> int:
        return len(lzma.compress(content, format=lzma.FORMAT_RAW, filters=settings))

    return {
        "gzip": compressed_bits_per_byte(text.held_out, "gzip"),
        "xz": compressed_bits_per_byte(text.held_out, "xz"),
        "xz primed": 8 * (size(train + held_out) - size(train)) / len(held_out),
    }


def gradient_sizes(data: TokenData) -> dict[str, Any]:
    """Powers of two between which the absolute gradients lie, early and at the end of a short run."""
    settings = dataclasses.replace(LAB_RUN, n_tokens=300_000, n_evals=1, warmup_steps=None)
    trainer = Trainer(LAB_MODEL, data, settings, progress=False)
    found: dict[str, Any] = {"bin_edges_log2": list(range(-50, 11))}
    for tokens in (10_240, 300_000):
        trainer.run(until_tokens=tokens)
        inputs, targets = (torch.from_numpy(part) for part in trainer.batches.next())
        trainer.model.zero_grad()
        trainer.model.loss(inputs, targets).backward()  # type: ignore[operator]
        sizes = torch.cat([p.grad.abs().flatten() for p in trainer.model.parameters()])
        logs = torch.log2(sizes[sizes > 0]).numpy()
        found[f"after {trainer.tokens} tokens"] = {
            "counts": np.histogram(logs, bins=found["bin_edges_log2"])[0].tolist(),
            "zero": int((sizes == 0).sum()),
            "total": int(sizes.numel()),
        }
        trainer.model.zero_grad()
    return found


def speed_by_width(data: TokenData, rounds: int = 7) -> list[dict[str, float]]:
    """Tokens/s of training steps in fp32 and bf16, in turns, the best of each, since machines are shared."""
    rows = []
    for width in WIDTHS:
        config = DecoderConfig(
            n_layers=3,
            d_model=width,
            n_heads=width // 32,
            vocab_size=1024,
            seq_len=128,
            positions="rope",
            feed_forward="gelu",
        )
        model = Decoder(config, seed=0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        batch = Batches(data.train, batch_size=8, seq_len=128, seed=0).next()
        inputs, targets = (torch.from_numpy(part) for part in batch)
        best = {"fp32": float("inf"), "bf16": float("inf")}
        for _ in range(rounds):
            for precision in best:
                for _ in range(3):
                    begin = time.perf_counter()
                    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                        loss = model.loss(inputs, targets)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    best[precision] = min(best[precision], time.perf_counter() - begin)
        rows.append({"d_model": width, **{f"{p}_tokens_per_s": inputs.numel() / s for p, s in best.items()}})
        print(rows[-1])
    return rows


def peak_of_a_step(data: TokenData) -> int:
    """Bytes of tensors at the worst moment of the lab's first two steps, weights and optimiser included."""
    batch = Batches(data.train, batch_size=LAB_RUN.batch_size, seq_len=LAB_RUN.seq_len, seed=0).next()
    inputs, targets = (torch.from_numpy(part) for part in batch)

    def two_steps() -> None:
        model = Decoder(LAB_MODEL, seed=0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        for _ in range(2):
            optimizer.zero_grad()
            model.loss(inputs, targets).backward()
            optimizer.step()

    return peak_bytes(two_steps)


def samples(data: TokenData, tokenizer: Tokenizer) -> dict[str, Any]:
    """What the lab's model writes at stages of its run, one draw each, and its held-out loss there."""
    trainer = Trainer(LAB_MODEL, data, LAB_RUN, progress=False)
    prompt = torch.from_numpy(tokenizer.encode(PROMPT))[None].long()
    stages = []
    for n_tokens in SAMPLED_AT:
        if n_tokens:
            trainer.run(until_tokens=n_tokens)
        ids = generate(trainer.model, prompt, max_new_tokens=160, temperature=0.7, top_k=40, seed=0)
        found = trainer.evaluate()
        stages.append(
            {
                "n_tokens": trainer.tokens,
                "bits_per_byte": found.bits_per_byte,
                "text": tokenizer.decode(ids[0].tolist()),
            }
        )
        print(stages[-1])
    return {"run_id": trainer.run_id, "prompt": PROMPT, "temperature": 0.7, "top_k": 40, "stages": stages}


def machine() -> str:
    """What matters of it: cores, vector units, and whether it multiplies bf16 matrices in hardware."""
    units = ", AMX" if torch.cpu._is_amx_tile_supported() else ""
    return f"{torch.get_num_threads()} cores, {torch.backends.cpu.get_cpu_capability()}{units}, no GPU"


def main() -> None:
    """Run what is missing; with --measure also measure anew what is no run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--measure", action="store_true", help="measure again what has been measured")
    again = parser.parse_args().measure
    text = corpus("python")
    tokenizer = train_bpe(text, LAB_MODEL.vocab_size)
    data = encode_corpus(text, tokenizer)
    OUT.mkdir(parents=True, exist_ok=True)
    measurements = OUT / "measurements.json"
    if again or not measurements.exists():
        values = {
            "compressors_bits_per_byte": compressors(text),
            "matmul_flops_per_s": {
                "fp32": matmul_flops_per_s(seconds=3.0),
                "bf16": matmul_flops_per_s(dtype=torch.bfloat16, seconds=3.0),
            },
            "peak_bytes": peak_of_a_step(data),
            "speed_by_width": speed_by_width(data),
            "gradients": gradient_sizes(data),
        }
        write_atomic(measurements, (json.dumps(values, indent=1) + "\n").encode())
    if again or not (OUT / SAMPLES).exists():
        write_atomic(OUT / SAMPLES, (json.dumps(samples(data, tokenizer), indent=1) + "\n").encode())
    run_missing(data)
    provenance = {
        "command": COMMAND,
        "machine": machine(),
        "python": platform.python_version(),
        "versions": {
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "scalelab": scalelab.__version__,
        },
        "text": text.describe(),
        "date": time.strftime("%Y-%m-%d"),
    }
    write_atomic(OUT / "provenance.json", (json.dumps(provenance, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
