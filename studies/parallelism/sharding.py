"""The recorded study behind book/parallelism/sharding.md: what ranks hold and send, what recomputation costs.

Run it again, on one core without a GPU (about a minute):

    .venv/dev/bin/python studies/parallelism/sharding.py

Counts are the same on any machine. Seconds are this machine's, of one thread's own processor time, so that
other programs disturb them little; only their ratios are meant.

It writes, under src/scalelab/lab/records/parallelism/sharding/:
states.json (bytes held and sent, by ranks, stage, precision and rank), kept.json (what a layer keeps for
backward, tensor by tensor), recompute.json (FLOPs and seconds of a step with and without recomputation) and
provenance.json.
"""

from __future__ import annotations

import json
import platform
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import scalelab
from scalelab.core.artifacts import write_atomic
from scalelab.lab.parallelism.gpt_layer import GPTLayer
from scalelab.lab.parallelism.small_model import markov_batches, small_model
from scalelab.parallel.scratch.bytes_held import kept_for_backward, storage_bytes
from scalelab.parallel.scratch.checkpointing import recompute
from scalelab.parallel.scratch.fully_sharded import FullySharded
from scalelab.parallel.scratch.group import Group
from scalelab.parallel.scratch.threads import run_threads
from scalelab.parallel.scratch.zero import ZeroOne, ZeroTwo

OUT = Path(scalelab.__file__).parent / "lab" / "records" / "parallelism" / "sharding"
COMMAND = "python studies/parallelism/sharding.py"
STAGES: dict[int, Any] = {1: ZeroOne, 2: ZeroTwo, 3: FullySharded}
RANKS = (1, 2, 3, 4, 8)
WAYS = ("none", "selective", "full")
LENGTHS = (32, 64, 128, 256, 512)
LAYER = {"batch_size": 2, "d_model": 64, "n_heads": 8}
SHAPES = (  # of the timed steps: attention's core is a large share of the first, a small one of the last
    {"seq_len": 256, "batch_size": 2, "d_model": 128, "n_heads": 8},
    {"seq_len": 128, "batch_size": 2, "d_model": 256, "n_heads": 4},
    {"seq_len": 64, "batch_size": 4, "d_model": 256, "n_heads": 4},
    {"seq_len": 64, "batch_size": 4, "d_model": 512, "n_heads": 4},
)
N_LAYERS, TRIES = 3, 12


def keep(name: str, values: Any) -> None:
    """Write one file of the record whole, or not at all."""
    OUT.mkdir(parents=True, exist_ok=True)
    write_atomic(OUT / f"{name}.json", (json.dumps(values, indent=1) + "\n").encode())


def states_on(group: Group, stage: int, mixed: bool) -> dict[str, Any]:
    """What a rank holds when the second step's backward ends, and sends in that step."""
    more = {"keeps_root": False} if stage == 3 else {}
    zero = STAGES[stage](small_model(), group, mixed=mixed, **more)
    held, n_sent = zero.held(), 0
    for tokens, targets in markov_batches(2):
        n_targets = int((targets != -100).sum())
        mine = [part.tensor_split(group.size)[group.rank] for part in (tokens, targets)]
        with group.counted() as sent:
            logits = zero.model(mine[0]).flatten(0, 1)
            (F.cross_entropy(logits, mine[1].flatten(), reduction="sum") / n_targets).backward()
            held = zero.held()
            zero.step()
        n_sent = sent.traffic.n_bytes
    return {
        "weights_bytes": held.weights_bytes,
        "gradients_bytes": held.gradients_bytes,
        "optimizer_bytes": held.optimizer_bytes,
        "sent_bytes": n_sent,
        "units": [unit.n for unit in zero.units],
    }


def states() -> None:
    """Every stage on several numbers of ranks, in both precisions."""
    rows = []
    for size, stage, mixed in product(RANKS, STAGES, (False, True)):
        for rank, found in enumerate(run_threads(size, states_on, stage, mixed)):
            place = {"ranks": size, "rank": rank, "stage": stage, "precision": "mixed" if mixed else "fp32"}
            rows.append(place | found)
    keep("states", {"runs": rows})


def make_layer(how: str, d_model: int, n_heads: int) -> GPTLayer:
    layer = GPTLayer(d_model, n_heads)
    if how != "none":
        recompute(layer.core if how == "selective" else layer)
    return layer


def kept() -> None:
    """What one layer in bf16 keeps, over sequence lengths."""
    rows = []
    for how, length in product(WAYS, LENGTHS):
        layer = make_layer(how, LAYER["d_model"], LAYER["n_heads"]).bfloat16()
        x = torch.randn(LAYER["batch_size"], length, LAYER["d_model"], dtype=torch.bfloat16)
        with kept_for_backward(layer.parameters()) as found:
            layer(x.requires_grad_())
        tensors = [
            {
                "shape": list(t.shape),
                "dtype": str(t.dtype).removeprefix("torch."),
                "n_bytes": storage_bytes([t]),
            }
            for t in found.tensors
        ]
        rows.append({"recompute": how, "seq_len": length, **LAYER, "tensors": tensors})
    keep("kept", {"runs": rows})


def recomputed() -> None:
    """FLOPs and seconds of forward and backward of a few layers in fp32, dropout on."""
    rows = []
    for shape in SHAPES:
        steps, best, flops = {}, dict.fromkeys(WAYS, float("inf")), {}
        for how in WAYS:
            torch.manual_seed(0)
            layers = torch.nn.Sequential(
                *(make_layer(how, shape["d_model"], shape["n_heads"]) for _ in range(N_LAYERS))
            )
            x = torch.randn(shape["batch_size"], shape["seq_len"], shape["d_model"], requires_grad=True)
            steps[how] = lambda layers=layers, x=x: layers(x).sum().backward()
            with FlopCounterMode(display=False) as counter:
                steps[how]()
            flops[how] = counter.get_total_flops()
        for _ in range(TRIES):  # in turns, so that what disturbs one disturbs all
            for how, step in steps.items():
                begin = time.process_time()
                step()
                best[how] = min(best[how], time.process_time() - begin)
        rows += [
            {"recompute": how, **shape, "n_layers": N_LAYERS, "flops": flops[how], "seconds": best[how]}
            for how in WAYS
        ]
    keep("recompute", {"runs": rows})


def main() -> None:
    """All of it."""
    torch.set_num_threads(1)
    states()
    kept()
    recomputed()
    provenance = {
        "command": COMMAND,
        "machine": f"CPU ({torch.backends.cpu.get_cpu_capability()}), one thread, no GPU",
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
