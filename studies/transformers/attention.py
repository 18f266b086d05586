"""The recorded study behind book/transformers/attention.md: what the lab shows once, over seeds.

Run it again, alone on two cores without a GPU (about four minutes; it goes on where it was stopped):

    .venv/dev/bin/python studies/transformers/attention.py

It writes, under src/scalelab/lab/records/transformers/attention/:
copying.json (the task that only positions solve: every way of telling positions, five seeds each),
scaling.json (a small language model with and without 1/√K, from two sizes of initial weights, five seeds
each), memory.json (bytes held by plain and by tiled attention), maps.json (what the heads of the base
decoder look at) and provenance.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import scalelab
from scalelab.core.artifacts import write_atomic
from scalelab.data import Batches, TokenData, corpus, encode_corpus, train_bpe
from scalelab.lab.measure import peak_bytes
from scalelab.lab.transformers.copying import Copier, CopierConfig, best_accuracy, train_copier
from scalelab.models.tiled import tiled_attention

OUT = Path(scalelab.__file__).parent / "lab" / "records" / "transformers" / "attention"
COMMAND = "python studies/transformers/attention.py"
SEEDS = (0, 1, 2, 3, 4)
COPY_STEPS = 500
VOCAB_SIZE = 512
LANGUAGE = CopierConfig(positions="rope", is_causal=True, n_symbols=VOCAB_SIZE, d_model=64, n_heads=1)
LANGUAGE_BATCH, LANGUAGE_LENGTH, LANGUAGE_STEPS, LANGUAGE_RATE = 16, 64, 400, 4e-3
INIT_STDS = (None, 0.02)  # None: 1/√rows
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
WIDTH, TILE = 64, 128
# countOf of CPython's operator.py, without its docstring.
FUNCTION = """\
def countOf(a, b):
    count = 0
    for i in a:
        if i is b or i == b:
            count += 1
    return count
"""
MAP_WINDOWS, MAP_LENGTH = 64, 128


def copying_arms() -> Iterator[CopierConfig]:
    """What is compared: each way of telling positions unmasked, and what a causal mask tells by itself."""
    yield CopierConfig(positions="none", n_layers=1)
    for positions in ("none", "sinusoidal", "learned", "rope", "alibi"):
        yield CopierConfig(positions=positions)
    yield CopierConfig(positions="none", is_causal=True, n_layers=1)
    yield CopierConfig(positions="none", is_causal=True)
    yield CopierConfig(positions="alibi", is_causal=True)
    yield CopierConfig(positions="rope", is_scaled=False)


def keep(name: str, values: Any) -> None:
    """Write one file of the record whole, or not at all."""
    indent = None if name == "maps" else 1  # a map's thousands of numbers would take a line each
    write_atomic(OUT / f"{name}.json", (json.dumps(values, indent=indent) + "\n").encode())


def kept(name: str) -> list[dict[str, Any]]:
    """The rows of a file so far."""
    path = OUT / f"{name}.json"
    return list(json.loads(path.read_text(encoding="utf-8"))["runs"]) if path.exists() else []


def copying() -> None:
    """Train every arm with every seed that is not in the record yet."""
    rows = kept("copying")
    for config in copying_arms():
        for seed in SEEDS:
            key = {**dataclasses.asdict(config), "seed": seed, "n_steps": COPY_STEPS}
            if any(all(row[name] == value for name, value in key.items()) for row in rows):
                continue
            begin = time.perf_counter()
            model = Copier(config, seed=seed)
            curve = train_copier(model, n_steps=COPY_STEPS, seed=seed)
            rows.append(
                {
                    **key,
                    "accuracy": curve[-1][1],
                    "best_accuracy": best_accuracy(config),
                    "curve": curve,
                    "seconds": round(time.perf_counter() - begin, 2),
                }
            )
            keep("copying", {"runs": rows})
            print(
                {name: rows[-1][name] for name in ("positions", "is_causal", "n_layers", "seed", "accuracy")}
            )


def language_loss(model: Copier, tokens: np.ndarray) -> torch.Tensor:
    """Held-out or training loss of one batch, nats per token; tokens [B, T + 1]."""
    ids = torch.from_numpy(tokens.astype(np.int64))
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def train_language(config: CopierConfig, data: TokenData, seed: int) -> dict[str, Any]:
    """A small language model, and its loss on held-out text."""
    model = Copier(config, seed=seed)
    batches = Batches(data.train, batch_size=LANGUAGE_BATCH, seq_len=LANGUAGE_LENGTH, seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=LANGUAGE_RATE, betas=(0.9, 0.95))
    begin = time.perf_counter()
    for step in range(LANGUAGE_STEPS):
        optimizer.param_groups[0]["lr"] = LANGUAGE_RATE * min(
            (step + 1) / 20, 1 - 0.9 * step / LANGUAGE_STEPS
        )
        inputs, targets = batches.next()
        loss = language_loss(model, np.concatenate([inputs, targets[:, -1:]], axis=1))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    length = LANGUAGE_LENGTH + 1
    held_out = data.held_out[: len(data.held_out) // length * length].reshape(-1, length)[:1024]
    with torch.no_grad():
        losses = [float(language_loss(model, part)) for part in np.array_split(held_out, 8)]
    return {
        "seed": seed,
        "is_scaled": config.is_scaled,
        "init_std": config.init_std,
        "d_head": config.d_model // config.n_heads,
        "n_tokens": LANGUAGE_STEPS * LANGUAGE_BATCH * LANGUAGE_LENGTH,
        "loss_nats": float(np.mean(losses)),
        "seconds": round(time.perf_counter() - begin, 2),
    }


def scaling() -> None:
    """The same language model with and without the division by √K, from matrices of either size."""
    rows = kept("scaling")
    known = [(row["init_std"], row["is_scaled"], row["seed"]) for row in rows]
    wanted = itertools.product(INIT_STDS, (True, False), SEEDS)
    missing = [key for key in wanted if key not in known]
    if not missing:
        return
    text = corpus("python")
    data = encode_corpus(text, train_bpe(text, VOCAB_SIZE))
    for init_std, is_scaled, seed in missing:
        config = dataclasses.replace(LANGUAGE, init_std=init_std, is_scaled=is_scaled)
        rows.append(train_language(config, data, seed))
        keep("scaling", {"runs": rows})
        print(rows[-1])


def memory() -> None:
    """Bytes that one head holds at most, plain and in tiles."""
    rows = []
    for length in LENGTHS:
        generator = torch.Generator().manual_seed(length)
        q, k, v = (torch.randn(length, WIDTH, generator=generator) for _ in range(3))
        rows.append(
            {
                "n_places": length,
                "d_head": WIDTH,
                "tile": TILE,
                "plain_bytes": peak_bytes(lambda q=q, k=k, v=v: (q @ k.T / WIDTH**0.5).softmax(-1) @ v),
                "tiled_bytes": peak_bytes(
                    lambda q=q, k=k, v=v: tiled_attention(q, k, v, q_tile=TILE, k_tile=TILE)
                ),
            }
        )
    keep("memory", {"runs": rows})


def head_scores(
    weights: torch.Tensor, tokens: torch.Tensor, starts_line: torch.Tensor
) -> dict[str, dict[str, Any]]:
    """How much each head looks at certain places; weights [L, B, H, T, T], tokens and starts_line [B, T].

    Returns:
        For each kind of place "share", [L][H]: the mean weight over the queries that have such a place, and
        "alike": what it would be if each query looked alike at all it may see. "previous": one before;
        "first": the first; "self"; "same": earlier places that hold the query's own token; "after same": the
        places after those, where a head that continues a repetition looks; "line start": the token that
        begins the query's line.
    """
    time_ = tokens.shape[1]
    places = torch.arange(time_)
    same = (tokens[:, :, None] == tokens[:, None, :]).tril(-1)  # [B, T, T]: an earlier equal token
    after = torch.zeros_like(same)
    after[:, :, 1:] = same[:, :, :-1]
    after = after.tril(-1)
    began = torch.where(starts_line, places, -1).cummax(1).values.roll(1, 1)  # the last start before t
    began[:, 0] = -1
    first = torch.zeros_like(same)
    first[:, 1:, 0] = True
    kinds = {
        "previous": (places[:, None] - places[None, :] == 1).expand_as(same),
        "first": first,
        "self": torch.eye(time_, dtype=torch.bool).expand_as(same),
        "same": same,
        "after same": after,
        "line start": began[:, :, None] == places,
    }
    alike = (1.0 / (places + 1))[None, :, None].expand(*same.shape).tril()

    def mean_over_queries(seen: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        looked = (seen * where[None, :, None]).sum(-1)  # [L, B, H, T]
        return looked.sum((1, 3)) / where.any(-1).sum()

    found = {}
    for name, where in kinds.items():
        share = mean_over_queries(weights, where)
        base = mean_over_queries(alike[None, :, None], where)
        found[name] = {"share": rounded(share), "alike": round(float(base), 4)}
    return found


def rounded(values: torch.Tensor) -> list[list[float]]:
    """A table [L][H] of four decimals."""
    return [[round(float(value), 4) for value in row] for row in values]


def maps() -> None:
    """Attention of the base decoder: on one function whole, and by kind of place over held-out code."""
    from scalelab.lab import base
    from scalelab.models import attention_maps

    found = base("decoder")
    ids = torch.as_tensor(found.tokenizer.encode(FUNCTION)).long()
    text = "".join(document.text for document in corpus("python").held_out)[: 8 * MAP_WINDOWS * MAP_LENGTH]
    windows = torch.as_tensor(found.tokenizer.encode(text)).long()[: MAP_WINDOWS * MAP_LENGTH]
    windows = windows.view(MAP_WINDOWS, MAP_LENGTH)
    texts = [found.tokenizer.decode([int(token)]) for token in windows.flatten()]
    starts_line = torch.tensor([part.startswith("\n") for part in texts]).view_as(windows)
    on_function = attention_maps(found.model, ids[None])[:, 0]  # [L, H, T, T]
    on_text = attention_maps(found.model, windows)  # [L, B, H, T, T]
    last = on_text[..., -1, :].clamp_min(1e-12)
    breadth = (-(last * last.log()).sum(-1)).exp().mean(1)  # [L, H]: keys looked at from the last place
    keep(
        "maps",
        {
            "function": FUNCTION,
            "tokens": [found.tokenizer.decode([int(token)]) for token in ids],
            "thousandths": (on_function * 1000).round().int().tolist(),
            "n_windows": MAP_WINDOWS,
            "n_places": MAP_LENGTH,
            "kinds": head_scores(on_text, windows, starts_line),
            "breadth": rounded(breadth),
        },
    )


def main() -> None:
    """Run what is missing; with --measure also measure anew what is no run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--measure", action="store_true", help="measure again what has been measured")
    parser.add_argument("--without-maps", action="store_true", help="leave out what needs the base decoder")
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    copying()
    scaling()
    if options.measure or not (OUT / "memory.json").exists():
        memory()
    if not options.without_maps and (options.measure or not (OUT / "maps.json").exists()):
        maps()
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
