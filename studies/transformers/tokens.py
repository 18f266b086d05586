"""The recorded study behind book/transformers/tokens.md: vocabulary sizes, and marks on the way down.

Run it again, on two cores without a GPU (it goes on where it was stopped; `--runs 1` does one run):

    .venv/dev/bin/python studies/transformers/tokens.py

It trains small decoders at equal training FLOPs over vocabulary sizes, each at two learning rates or more and
three seeds; for the smaller sizes further rates, one seed each, show that the best is not outside. A narrower
model, at a fifth of the FLOPs and one size, is the cell that the lab repeats. It writes, under
src/scalelab/lab/records/transformers/tokens/, a JSONL file of records for each model width, the measurements
that are no runs (`--measure` makes only these), and where all of it was made.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokens_marks as parts
import torch

import scalelab
from scalelab.core.artifacts import write_atomic
from scalelab.core.config import DecoderConfig
from scalelab.core.records import RunRecord, append_records, read_records
from scalelab.cost import flops
from scalelab.data import Corpus, TokenData, corpus, encode_corpus
from scalelab.train import TrainConfig, Trainer

OUT = Path(scalelab.__file__).parent / "lab" / "records" / "transformers" / "tokens"
COMMAND = "python studies/transformers/tokens.py"
VOCAB_SIZES = (257, 512, 1024, 2048, 4096, 8192)
SEEDS = (0, 1, 2)
SEQ_LEN, BATCH_SIZE = 128, 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """Models of one width, each trained for the same FLOPs.

    Attributes:
        name: of the file of records. d_model: width. flops: of one run's training, evaluation not counted.
        rates: vocabulary size → peak learning rates, each with every seed.
        outer_rates: the same, tried with the first seed only.
    """

    name: str
    d_model: int
    flops: float
    rates: Mapping[int, tuple[float, ...]]
    outer_rates: Mapping[int, tuple[float, ...]]


# A wide table wants a lower rate: at 8e-3 and 2,048 ids the seeds already fall apart.
TUNED = dict.fromkeys((257, 512, 1024), (0.008, 0.004)) | {
    2048: (8e-3, 4e-3, 2e-3),
    4096: (4e-3, 2e-3),
    8192: (4e-3, 2e-3),
}
OUTER = dict.fromkeys((257, 512, 1024), (0.002, 0.016))
ARMS = (
    Arm(name="vocabulary", d_model=64, flops=1e12, rates=TUNED, outer_rates=OUTER),
    Arm(
        name="vocabulary-narrow",
        d_model=32,
        flops=2e11,
        rates={1024: (4e-3,)},
        outer_rates={},
    ),
)


def model_of(arm: Arm, vocab_size: int) -> DecoderConfig:
    """Two layers whatever the vocabulary: only the tied table grows."""
    return DecoderConfig(
        n_layers=2,
        d_model=arm.d_model,
        n_heads=2,
        vocab_size=vocab_size,
        seq_len=SEQ_LEN,
        positions="rope",
        feed_forward="gelu",
    )


def settings_of(arm: Arm, model: DecoderConfig, rate: float, seed: int) -> TrainConfig:
    """As many whole steps as the arm's FLOPs pay for; every run is read on the whole held-out text."""
    a_step = flops(model, batch_size=BATCH_SIZE, seq_len=SEQ_LEN, training=True).total
    n_steps = int(arm.flops // a_step)
    return TrainConfig(
        n_tokens=n_steps * BATCH_SIZE * SEQ_LEN,
        batch_size=BATCH_SIZE,
        seq_len=SEQ_LEN,
        learning_rate=rate,
        min_lr_fraction=0.05,
        seed=seed,
        n_evals=1,
        eval_tokens=None,
    )


def wanted() -> Iterator[tuple[Arm, int, float, int]]:
    """Arm, vocabulary size, learning rate and seed of every run."""
    for arm in ARMS:
        for vocab_size, rates in arm.rates.items():
            for rate, seed in itertools.product(rates, SEEDS):
                yield arm, vocab_size, rate, seed
    for arm in ARMS:
        for vocab_size, rates in arm.outer_rates.items():
            for rate in rates:
                yield arm, vocab_size, rate, SEEDS[0]


def run_missing(text: Corpus, max_runs: int | None) -> int:
    """Train what is not in the records yet, at most so many runs; how many were trained."""
    n_done = 0
    for arm, vocab_size, rate, seed in wanted():
        path = OUT / f"{arm.name}.jsonl"
        known = read_records(path) if path.exists() else []
        if (vocab_size, rate, seed) in {(r.config["vocab_size"], r.learning_rate, r.seed) for r in known}:
            continue
        if n_done == max_runs:
            break
        data = encode_corpus(text, parts.tokenizer_of(text, vocab_size))
        append_records(path, [run(arm, data, rate, seed)])
        n_done += 1
    return n_done


def run(arm: Arm, data: TokenData, rate: float, seed: int) -> RunRecord:
    """One run, told in a line."""
    model = model_of(arm, data.vocab_size)
    record = Trainer(model, data, settings_of(arm, model, rate, seed), progress=False).run()
    print(
        f"{arm.name}: V {data.vocab_size}, rate {rate:g}, seed {seed}: {record.loss_nats:.3f} nats/token, "
        f"{record.bits_per_byte:.3f} bits per byte, {record.n_tokens:,} tokens, {record.seconds:.0f} s",
        flush=True,
    )
    return record


def measure_missing(text: Corpus, names: Sequence[str]) -> None:
    """Measure what `measurements.json` lacks, and the named parts again; each is kept at once."""
    path = OUT / "measurements.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    measure: dict[str, Callable[[], Any]] = {
        "marks": lambda: parts.marks(text),
        "distinct_5_grams": lambda: parts.table_sizes(text),
        "samples": lambda: parts.samples(text),
        "vocabularies": lambda: parts.vocabularies(text, VOCAB_SIZES),
        "words": lambda: parts.words(text),
        "leak": lambda: parts.leak(text),
        "cuts": lambda: parts.cuts(text),
        "base": lambda: parts.base_mark(text),
    }
    for name, part in measure.items():
        if name in names or name not in found:
            found[name] = part()
            write_atomic(path, (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
            print(f"measured: {name}", flush=True)


def machine() -> str:
    """What matters of it."""
    units = ", AMX" if torch.cpu._is_amx_tile_supported() else ""
    return f"{torch.get_num_threads()} cores, {torch.backends.cpu.get_cpu_capability()}{units}, no GPU"


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=None, help="stop after so many runs")
    parser.add_argument(
        "--measure", nargs="*", default=None, metavar="PART", help="measure only, these again"
    )
    chosen = parser.parse_args()
    text = corpus("python")
    OUT.mkdir(parents=True, exist_ok=True)
    n_done = 0 if chosen.measure is not None else run_missing(text, chosen.runs)
    if chosen.runs is None:
        measure_missing(text, chosen.measure or ())
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
    if chosen.runs is not None:
        print(f"{n_done} runs done")


if __name__ == "__main__":
    main()
