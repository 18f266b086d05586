"""The recorded study behind book/transformers/block.md: one part of a small decoder changed at a time.

Run it again, alone on two cores without a GPU (about twenty minutes; it goes on where it was stopped):

    .venv/dev/bin/python studies/transformers/block.py

Every arm has a learning rate of its own, since a changed model wants another. Three rates are tried with
the first seed, and more while the best one is the first or the last of those tried and was worth the step.
Rates that came near the best are repeated with the other seeds, and the arm is judged at the one with the
lowest mean, so that a lucky run at the edge of stability decides nothing.
It writes, under
src/scalelab/lab/records/transformers/block/, a JSONL file of records for each arm, the runs whose loss was
no longer finite (diverged.json), sizes through the depth (depth.json), the price of knowing frequencies alone
(unigram.json), and where all of it was made.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import scalelab
from scalelab.core.artifacts import write_atomic
from scalelab.core.config import DecoderConfig
from scalelab.core.errors import TrainingError
from scalelab.core.records import append_records, read_records
from scalelab.data import TokenData, corpus, encode_corpus, held_out_windows, train_bpe
from scalelab.lab.transformers.ablations import Ablation, ablated, depth_profile
from scalelab.train import TrainConfig, Trainer

OUT = Path(scalelab.__file__).parent / "lab" / "records" / "transformers" / "block"
COMMAND = "python studies/transformers/block.py"
SEEDS = (0, 1, 2)
FIRST_RATES = (3e-3, 6e-3, 1.2e-2)
DEEP_RATES = (1.5e-3, 3e-3, 6e-3)  # deeper models want lower ones
LOWEST, HIGHEST = 3e-4, 5e-2  # no rate beyond these is tried
WORTH_REPEATING = 0.15  # bits per byte from the best of the first seed
WORTH_A_STEP = 0.005  # bits per byte: with less to gain, the search for a rate ends
DEEP, VERY_DEEP = 12, 24

MODEL = DecoderConfig(
    n_layers=4, d_model=48, n_heads=2, vocab_size=512, seq_len=64, positions="rope", feed_forward="gelu"
)
RUN = TrainConfig(
    n_tokens=204_800,
    batch_size=8,
    seq_len=64,
    learning_rate=FIRST_RATES[0],
    min_lr_fraction=0.05,
    n_evals=1,
    eval_tokens=32_768,
)
NO_WARMUP: Mapping[str, Any] = {"warmup_steps": 0}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One model that is compared: what is changed in it, and in how it is trained."""

    ablation: Ablation = dataclasses.field(default_factory=Ablation)
    run: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def arms() -> dict[str, Arm]:
    """Every arm by its file's name; those of the small model first, then the deep ones."""

    def changed(**config: Any) -> Arm:
        return Arm(ablation=Ablation(config=config))

    shallow = {
        "baseline": Arm(),
        "no-residual": Arm(ablation=Ablation(residual=False)),
        "post-norm": changed(norm_position="post"),
        "no-norm": Arm(ablation=Ablation(norms=False)),
        "fan-in-start": Arm(ablation=Ablation(start="fan_in")),
        "flat-start": Arm(ablation=Ablation(start="flat")),
        "no-scale": Arm(ablation=Ablation(scale_scores=False)),
        "no-positions": changed(positions="none"),
        "learned-positions": changed(positions="learned"),
        "rmsnorm": changed(norm="rmsnorm"),
        # Three matrices of D × F and their biases, as close to two of D × 4D as whole numbers allow.
        "swiglu": changed(feed_forward="swiglu", d_ff=round(8 * MODEL.d_model / 3)),
        "relu": changed(feed_forward="relu"),
        "no-residual-fan-in": Arm(ablation=Ablation(residual=False, start="fan_in")),
        "post-norm-cold": Arm(ablation=Ablation(config={"norm_position": "post"}), run=NO_WARMUP),
        "cold": Arm(run=NO_WARMUP),
        "large-start": Arm(ablation=Ablation(start="large")),
    }
    deep = {
        "deep": changed(n_layers=DEEP),
        "deep-post-norm": changed(n_layers=DEEP, norm_position="post"),
    }
    return {**shallow, **deep}


def result(name: str, rate: float, seed: int, data: TokenData) -> float:
    """Bits per byte of one run of an arm; trained now if it is not in the record. Infinite: it diverged."""
    path, arm = OUT / f"{name}.jsonl", arms()[name]
    for record in read_records(path) if path.exists() else []:
        if record.seed == seed and record.learning_rate == rate:
            return record.bits_per_byte
    lost = {"arm": name, "learning_rate": rate, "seed": seed}
    if any(all(row[key] == value for key, value in lost.items()) for row in kept("diverged")):
        return float("inf")
    model = ablated(MODEL, arm.ablation, seed=seed)
    settings = dataclasses.replace(RUN, learning_rate=rate, seed=seed, **arm.run)
    trainer = Trainer(model, data, settings, progress=False)
    try:
        record = trainer.run()
    except TrainingError as error:
        keep("diverged", [*kept("diverged"), {**lost, "step": trainer.step_count, "why": str(error)}])
        return float("inf")
    append_records(path, [record])
    print(f"{name}: rate {rate:g}, seed {seed}: {record.bits_per_byte:.3f} bits per byte", flush=True)
    if name.startswith("deep") and seed == SEEDS[-1]:
        rows = [row for row in kept("depth") if row["arm"] != name or row["when"] != "trained"]
        keep("depth", [*rows, profile(name, "trained", seed, model, data)])
    return record.bits_per_byte


def first_look(name: str, data: TokenData) -> dict[float, float]:
    """Bits per byte by rate with the first seed; rates are added while the best is the first or the last."""
    rates = DEEP_RATES if name.startswith("deep") else FIRST_RATES
    bits = {rate: result(name, rate, SEEDS[0], data) for rate in rates}
    while True:
        best = min(bits, key=lambda rate: bits[rate])
        further = {min(bits): best / 2, max(bits): best * 2}.get(best)
        inner = {min(bits): best * 2, max(bits): best / 2}.get(best, best)
        if further is None or not LOWEST <= further <= HIGHEST or bits[inner] - bits[best] < WORTH_A_STEP:
            return bits
        bits[further] = result(name, further, SEEDS[0], data)


def judge(name: str, data: TokenData) -> None:
    """Run an arm at every rate worth repeating with every seed, and say what came of it."""
    bits = first_look(name, data)
    near = [rate for rate in bits if bits[rate] <= min(bits.values()) + WORTH_REPEATING]
    found = {rate: [result(name, rate, seed, data) for seed in SEEDS] for rate in near}
    rate = min(found, key=lambda each: statistics.fmean(found[each]))
    shown = ", ".join(f"{value:.3f}" for value in found[rate])
    print(f"{name}: rate {rate:g}: {shown}", flush=True)


def profile(name: str, when: str, seed: int, model: Any, data: TokenData) -> dict[str, Any]:
    """Sizes through the depth on fixed held-out text."""
    windows = held_out_windows(data.held_out, RUN.seq_len, 16 * RUN.seq_len)
    tokens, targets = (torch.from_numpy(np.asarray(part, dtype=np.int64)) for part in windows)
    found = depth_profile(model, tokens, targets)
    sizes = {
        key: [float(f"{value:.4g}") for value in getattr(found, key)]
        for key in ("stream", "added", "gradient", "alike")
    }
    return {"arm": name, "when": when, "seed": seed, "loss_nats": found.loss_nats, **sizes}


def untrained(data: TokenData) -> Iterator[dict[str, Any]]:
    """The same before training, in very deep models."""
    base = dataclasses.replace(MODEL, n_layers=VERY_DEEP)
    kinds = {
        "pre-norm": Ablation(),
        "pre-norm, flat": Ablation(start="flat"),
        "pre-norm, fan-in": Ablation(start="fan_in"),
        "post-norm": Ablation(config={"norm_position": "post"}),
        "post-norm, fan-in": Ablation(config={"norm_position": "post"}, start="fan_in"),
        "no residual": Ablation(residual=False),
        "no residual, fan-in": Ablation(residual=False, start="fan_in"),
        "no norm": Ablation(norms=False),
        "no norm, fan-in": Ablation(norms=False, start="fan_in"),
    }
    for name, ablation in kinds.items():
        for seed in SEEDS:
            yield profile(name, "untrained", seed, ablated(base, ablation, seed=seed), data)


def unigram(data: TokenData) -> dict[str, float]:
    """What a model pays that knows how often each token occurs and no more, on the held-out text."""
    counts = np.bincount(data.train, minlength=MODEL.vocab_size) + 1  # one more each: none is impossible
    _, targets = held_out_windows(data.held_out, RUN.seq_len, RUN.eval_tokens)
    nats = -np.log(counts / counts.sum())[targets]
    return {"loss_nats": float(nats.mean()), "n_tokens": int(targets.size), "n_bytes": data.n_bytes(targets)}


def keep(name: str, values: Any) -> None:
    """Write one file of the record whole, or not at all."""
    write_atomic(OUT / f"{name}.json", (json.dumps(values, indent=1) + "\n").encode())


def kept(name: str) -> list[dict[str, Any]]:
    """The rows of a file so far."""
    path = OUT / f"{name}.json"
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arms", nargs="*", help="these only")
    parser.add_argument("--only-depth", action="store_true", help="measure untrained models again, no more")
    options = parser.parse_args()
    text = corpus("python")
    data = encode_corpus(text, train_bpe(text, MODEL.vocab_size))
    OUT.mkdir(parents=True, exist_ok=True)
    if options.only_depth or not any(row["when"] == "untrained" for row in kept("depth")):
        trained = [row for row in kept("depth") if row["when"] == "trained"]
        keep("depth", [*untrained(data), *trained])
        keep("unigram", unigram(data))
    names = [] if options.only_depth else options.arms or list(arms())
    for name in names:
        judge(name, data)
    provenance = {
        "command": COMMAND,
        "machine": f"CPU ({torch.backends.cpu.get_cpu_capability()}), no GPU",
        "python": platform.python_version(),
        "versions": {
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "scalelab": scalelab.__version__,
        },
        "text": text.describe(),
        "date": time.strftime("%Y-%m-%d"),
    }
    keep("provenance", provenance)


if __name__ == "__main__":
    main()
