"""Times behind book/parallelism/data-parallel.md: all-reduces on four processes, gradients sent three ways.

Seconds mean something only where nothing else runs. When the machine is quiet (about a minute):

    .venv/dev/bin/python studies/parallelism/data_parallel_times.py --measure

It writes times.json under src/scalelab/lab/records/parallelism/data-parallel/: medians of all-reduces of 256
bytes to 16 MB, ours and torch's, by four processes on gloo with one thread each, the slowest rank's; and the
seconds of a step whose gradients are sent a parameter at a time, in buckets after backward, and during it.
Without --measure it prints them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import scalelab
from scalelab.core.artifacts import write_atomic
from scalelab.core.config import DecoderConfig
from scalelab.lab.parallelism.recorded_batches import STUDY
from scalelab.models import Decoder
from scalelab.parallel.scratch.collectives import ALL_REDUCE
from scalelab.parallel.scratch.data_parallel import Overlapped, reduce_bucketed, reduce_each
from scalelab.parallel.scratch.group import Group
from scalelab.parallel.scratch.torch_group import TorchGroup

OUT = Path(scalelab.__file__).parent / "lab" / "records" / STUDY / "times.json"
COMMAND = "python studies/parallelism/data_parallel_times.py --measure"
N_RANKS, N_ROUNDS, N_STEPS = 4, 15, 7
SIZES = [4**k for k in range(3, 12)]  # numbers of four bytes: 256 bytes to 16 MB
MODEL = DecoderConfig(n_layers=6, d_model=192, n_heads=6, vocab_size=128, seq_len=128)
BUCKET_BYTES = 1_500_000
WAYS = ("each", "after", "overlapped")


def all_reduces(group: Group) -> dict[str, list[float]]:
    """Seconds of each way, by size."""
    ways: dict[str, Callable[[torch.Tensor], Any]] = {
        name: lambda tensor, method=method: method(tensor, group) for name, method in ALL_REDUCE.items()
    }
    ways["torch"] = dist.all_reduce
    found: dict[str, list[float]] = {name: [] for name in ways}
    for n in SIZES:
        taken: dict[str, list[float]] = {name: [] for name in ways}
        tensor = torch.zeros(n)
        for _ in range(N_ROUNDS):  # in turns, so that a disturbance meets all of them
            for name, way in ways.items():
                group.barrier()
                begin = time.perf_counter()
                way(tensor)
                taken[name].append(time.perf_counter() - begin)
        for name, seconds in taken.items():
            found[name].append(statistics.median(seconds))
    return found


def steps(group: Group) -> dict[str, float]:
    """Seconds of forward, backward and what is sent, by way; the median of some steps."""
    model = Decoder(MODEL, seed=0)
    overlapped = Overlapped(model, group, bucket_bytes=BUCKET_BYTES)
    batch = torch.randint(128, (4, 129), generator=torch.Generator().manual_seed(group.rank))
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(N_STEPS * len(WAYS)):
        way = WAYS[number % len(WAYS)]
        model.zero_grad()
        group.barrier()
        begin = time.perf_counter()
        with overlapped.micro_batch(last=way == "overlapped"):
            loss = model.loss(batch[:, :-1], batch[:, 1:], reduction="sum") / (N_RANKS * 4 * 128)
            loss.backward()  # type: ignore[no-untyped-call]
        if way == "after":
            reduce_bucketed(overlapped.buckets, group)
        elif way == "each":
            reduce_each(model, group)
        taken[way].append(time.perf_counter() - begin)
    return {way: statistics.median(seconds[1:]) for way, seconds in taken.items()}


def work(rank: int, folder: str) -> None:
    """What each process does; it leaves its times in the folder."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=N_RANKS)
    group = TorchGroup()
    found = {"all_reduces": all_reduces(group), "steps": steps(group)}
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def main() -> None:
    """Measure, and keep it if asked to."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--measure", action="store_true", help="write the record")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (folder,), nprocs=N_RANKS)
        by_rank = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(N_RANKS)]
    seconds = {
        name: [max(times) for times in zip(*(found["all_reduces"][name] for found in by_rank), strict=True)]
        for name in by_rank[0]["all_reduces"]
    }
    values = {
        "command": COMMAND,
        "n_ranks": N_RANKS,
        "n_cores": os.cpu_count(),
        "processor": platform.machine(),
        "torch": torch.__version__,
        "load_before": load,
        "n_bytes": [4 * n for n in SIZES],
        "seconds": seconds,
        "step_seconds": {way: max(found["steps"][way] for found in by_rank) for way in WAYS},
    }
    print(json.dumps(values, indent=1))
    if options.measure:
        write_atomic(OUT, (json.dumps(values, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
