"""The recorded study behind book/parallelism/pipeline.md: four schedules traced on four real processes.

Run it again, on two cores without a GPU (about two minutes; seconds mean something only where nothing else
runs):

    .venv/dev/bin/python studies/parallelism/pipeline.py --measure

A decoder of 8 layers reads Python source; every pass computes and is then padded, forward to 40 ms, backward
to twice that (a chunk of an interleaved schedule to half). Each schedule is run on the beat, five times at
4, 8 and 16 micro-batches; and at 8 with padding from each pass's own start, where delays add up. It writes
src/scalelab/lab/records/parallelism/pipeline/: traces.json (the spans of a step at 8 micro-batches of each
schedule, shares of all steps, bytes held and sent, unpadded seconds of each kind of pass, how far gradients
are from one process's) and provenance.json.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import pickle
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

import scalelab
from scalelab.core.artifacts import write_atomic
from scalelab.core.config import DecoderConfig
from scalelab.cost import bubble_fraction
from scalelab.models import Decoder, loss_nats
from scalelab.parallel.scratch.group import Group
from scalelab.parallel.scratch.held import HoldingTrace
from scalelab.parallel.scratch.pipeline import Pipeline
from scalelab.parallel.scratch.schedules import make_schedule
from scalelab.parallel.scratch.torch_group import TorchGroup
from scalelab.parallel.scratch.trace import Span, bubble, kept_the_beat, shares

STUDY = "parallelism/pipeline"
OUT = Path(scalelab.__file__).parent / "lab" / "records" / STUDY
COMMAND = "python studies/parallelism/pipeline.py --measure"
N_RANKS, MICRO_BATCHES, DRAWN, ROWS = 4, (4, 8, 16), 8, 2
WAYS = (("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("zero-bubble", 1))
BEAT_S, N_STEPS = 0.04, 5
BEATS = {"F": 1, "B": 2, "I": 1, "W": 1}
CONFIG = DecoderConfig(n_layers=8, d_model=64, n_heads=4, vocab_size=256, seq_len=32)


def make_batch(n_rows: int) -> tuple[Tensor, Tensor]:
    """Bytes of a module of the standard library, and what follows each."""
    text = torch.tensor(list(Path(ast.__file__).read_bytes()[:40_000]))
    rows = torch.stack([text[997 * i : 997 * i + CONFIG.seq_len + 1] for i in range(n_rows)])
    return rows[:, :-1], rows[:, 1:]


def steps(group: Group, name: str, v: int, m: int) -> dict[str, Any]:
    """A schedule's steps on this rank: as fast as they go, on the beat, and padded without one."""
    pipeline = Pipeline(Decoder(CONFIG, seed=0), group, v=v)
    schedule, (tokens, targets) = make_schedule(name, group.size, m, v=v), make_batch(ROWS * m)
    beat_s = BEAT_S / v
    lasts = {kind: n * beat_s for kind, n in BEATS.items()}
    kinds: list[dict[str, Any]] = [{}, {}]  # the first one warms up
    kinds += [{"lasts": lasts, "beat_s": beat_s}] * N_STEPS
    kinds += [{"lasts": lasts}] * N_STEPS * (m == DRAWN)
    traces = []
    for pads in kinds:
        traces.append(HoldingTrace(group.rank, pipeline.parameters(), **pads))
        pipeline.zero_grad()
        group.barrier()
        traces[-1].wait_for_beat()
        with group.counted() as sent:
            pipeline.step(tokens, targets, schedule, m, trace=traces[-1])
    return {
        "traces": [trace.spans for trace in traces[1:]],
        "most_bytes": traces[-1].most_bytes,
        "pass_bytes": traces[-1].pass_bytes[0, 0],
        "sent_bytes": sent.traffic.n_bytes,
        "gradients": {name: p.grad for name, p in pipeline.parameters_by_name().items()},
    }


def work(rank: int, folder: str) -> None:
    """What each process does; it leaves what it found in the folder."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=N_RANKS)
    group = TorchGroup()
    found = {(name, m): steps(group, name, v, m) for name, v in WAYS for m in MICRO_BATCHES}
    Path(folder, str(rank)).write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


def alone(m: int) -> dict[str, Tensor]:
    """Gradients of one process."""
    model = Decoder(CONFIG, seed=0)
    tokens, targets = make_batch(ROWS * m)
    loss_nats(model(tokens), targets).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def account(found: list[dict[str, Any]], name: str, v: int, m: int) -> dict[str, Any]:
    """One schedule's row of the record, from what each rank found."""
    traces: list[list[Span]] = [
        [span for own in found for span in own["traces"][k]] for k in range(len(found[0]["traces"]))
    ]
    fast, on_beat, free = traces[0], traces[1 : 1 + N_STEPS], traces[1 + N_STEPS :]
    beat_s = BEAT_S / v
    lasts: Any = {kind: n * beat_s for kind, n in BEATS.items()}
    row: dict[str, Any] = {
        "schedule": name,
        "v": v,
        "micro_batches": m,
        "beat_s": beat_s,
        "formula": bubble_fraction(N_RANKS, m, v=v) if name != "zero-bubble" else 3 / (3 * m + 3),
        "on_beat": [[round(share, 5) for share in shares(step)] for step in on_beat],
        "kept_the_beat": [kept_the_beat(step, lasts, beat_s) for step in on_beat],
        "free": [[round(share, 5) for share in shares(step)] for step in free],
        "unpadded_s": {
            kind: round(statistics.median(s.seconds for s in fast if s.operation.kind == kind), 6)
            for kind in sorted({span.operation.kind for span in fast})
        },
        "pass_bytes": [own["pass_bytes"] for own in found],
        "most_bytes": [own["most_bytes"] for own in found],
        "sent_bytes": [own["sent_bytes"] for own in found],
    }
    joined = {key: value for own in found for key, value in own["gradients"].items()}
    right = alone(m)
    row["off_by"] = max(float((joined[key] - right[key]).norm() / right[key].norm()) for key in right)
    if m == DRAWN:
        kept = [step for step in on_beat if kept_the_beat(step, lasts, beat_s)] or on_beat
        middle = sorted(kept, key=bubble)[len(kept) // 2]
        begun = min(span.start_s for span in middle)
        row["spans"] = [
            [s.rank, *s.operation, round(s.start_s - begun, 5), round(s.end_s - begun, 5)] for s in middle
        ]
    return row


def main() -> None:
    """Trace, and keep it if asked to."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--measure", action="store_true", help="write the record")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (folder,), nprocs=N_RANKS)
        by_rank = [pickle.loads(Path(folder, str(rank)).read_bytes()) for rank in range(N_RANKS)]
    rows = [
        account([found[name, m] for found in by_rank], name, v, m) for name, v in WAYS for m in MICRO_BATCHES
    ]
    for row in rows:
        print({key: value for key, value in row.items() if key != "spans"})
    if options.measure:
        provenance = {
            "command": COMMAND,
            "n_ranks": N_RANKS,
            "backend": "gloo",
            "n_cores": os.cpu_count(),
            "processor": platform.machine(),
            "torch": torch.__version__,
            "load_before": load,
            "imposed": "forward 1 beat, backward 2, I and W 1 each; what a pass computes lies inside of that",
        }
        write_atomic(OUT / "traces.json", (json.dumps({"runs": rows}) + "\n").encode())
        write_atomic(OUT / "provenance.json", (json.dumps(provenance, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
