"""Tiny decoders on `markov` text that is read more than once: all of it, or only what was to be held out.

The text is cut into documents of 33 symbols, of which a model is asked 32. Since the language is known, so
is the least mean loss that anyone can expect on any of them: what lies below it was not foretold but
remembered. Taught in book/scaling-laws/capability.md.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from scalelab.core.checks import check_positive_int
from scalelab.core.config import DecoderConfig
from scalelab.core.errors import ConfigError
from scalelab.core.seeding import derive_seed
from scalelab.data.documents import Document
from scalelab.data.markov import N_SYMBOLS, MarkovSource, symbols_to_text
from scalelab.lab.checks.answers import one_thread
from scalelab.models import Decoder

Ints = npt.NDArray[np.int64]
DOCUMENT = 33  # symbols; the first is given, 32 are asked
ASKED = DOCUMENT - 1
BATCH = 16
HELD_OUT_DRAW = 999  # training texts are the draws 0, 1, 2 …
RATE, RATE_WIDTH = 1e-2, 16
WARMUP_STEPS, DECAY_FRACTION = 20, 0.3
N_MARKS = 10  # held-out losses on the way


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRun:
    """One model trained on documents, and its losses on several sets of them.

    Attributes:
        width: d_model. n_params: all parameters. n_tokens: symbols asked in training, repeats counted.
        losses: mean loss on each set at the end, nats a symbol. curve: the same on the way, with tokens
            first: one row [tokens, loss, loss …] a mark, in the order of `losses`. seconds: wall time.
    """

    width: int
    n_params: int
    n_tokens: int
    seed: int
    seconds: float
    losses: dict[str, float]
    curve: list[list[float]]

    def as_dict(self) -> dict[str, Any]:
        """As the record keeps it."""
        return dataclasses.asdict(self)


@lru_cache(maxsize=1)
def language() -> MarkovSource:
    """The language of `markov`."""
    return MarkovSource(0)


@lru_cache(maxsize=8)
def draw_documents(n: int, draw: int) -> Ints:
    """Documents [n, 33] of the language; fewer of the same draw are its first ones."""
    check_positive_int("n", n)
    symbols = language().sample(n * DOCUMENT, seed=1000 + draw).astype(np.int64)
    return symbols.reshape(n, DOCUMENT)


def split_held_out(n_leaked: int = 128, n_clean: int = 512) -> tuple[Ints, Ints]:
    """Held-out documents: those that may leak, and those that never do."""
    documents = draw_documents(n_leaked + n_clean, HELD_OUT_DRAW)
    return documents[:n_leaked], documents[n_leaked:]


def exact_loss(documents: Ints) -> float:
    """The mean loss of the true language on these documents, nats a symbol."""
    return float(language().exact_loss_nats(documents))


def as_text(documents: Ints, name: str) -> list[Document]:
    """The same as documents of characters, as the package's search for overlaps takes them."""
    return [Document(f"{name}/{i}", symbols_to_text(row)) for i, row in enumerate(documents)]


def tiny_decoder(width: int, *, seed: int, n_layers: int = 2) -> Decoder:
    """A decoder of two layers over the 128 symbols."""
    config = DecoderConfig(
        n_layers=n_layers, d_model=width, n_heads=2, vocab_size=N_SYMBOLS, seq_len=ASKED, norm="rmsnorm",
        positions="rope", feed_forward="gelu", attention_bias=False, feed_forward_bias=False,
    )  # fmt: skip
    return Decoder(config, seed=seed)


@torch.no_grad()
def losses_of(model: Decoder, documents: Ints) -> npt.NDArray[np.float64]:
    """The model's loss on each asked symbol, [n, 32], nats."""
    device = next(model.parameters()).device
    found = []
    for first in range(0, len(documents), 256):
        part = torch.from_numpy(documents[first : first + 256]).to(device)
        found.append(model.loss(part[:, :-1], part[:, 1:], reduction="none").cpu().double().numpy())
    return np.concatenate(found)


def train_on_documents(
    width: int,
    documents: Ints,
    n_steps: int,
    *,
    seed: int,
    judged: Mapping[str, Ints],
    n_marks: int = N_MARKS,
    weight_decay: float = 0.0,
    device: torch.device | str = "cpu",
) -> tuple[TextRun, Decoder]:
    """Read documents over and over, 16 a step, in a new order each time, and judge on the way.

    Args:
        documents: [n, 33]. judged: sets of documents by name. n_marks: how often they are judged.

    Raises:
        ConfigError: no document, or no step.
    """
    check_positive_int("n_steps", n_steps)
    if not len(documents):
        raise ConfigError("there are no documents to read")
    model = tiny_decoder(width, seed=derive_seed(seed, "weights")).to(device)
    batches = _batches(documents, n_steps, np.random.default_rng(derive_seed(seed, "order")))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
    )
    peak = RATE * (RATE_WIDTH / width) ** 0.5
    marks = set(np.linspace(0, n_steps, n_marks + 1).round().astype(int).tolist())
    began, curve = time.perf_counter(), []
    with one_thread():
        for step, batch in enumerate(batches, start=1):
            left = (n_steps - step + 1) / (DECAY_FRACTION * n_steps)
            optimizer.param_groups[0]["lr"] = peak * min(1.0, step / WARMUP_STEPS, left)
            rows = torch.from_numpy(batch).to(device)
            loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step in marks:
                means = [float(losses_of(model, rows_).mean()) for rows_ in judged.values()]
                curve.append([step * BATCH * ASKED, *(round(mean, 5) for mean in means)])
    run = TextRun(
        width=width,
        n_params=sum(part.numel() for part in model.parameters()),
        n_tokens=n_steps * BATCH * ASKED,
        seed=seed,
        seconds=round(time.perf_counter() - began, 2),
        losses=dict(zip(judged, curve[-1][1:], strict=True)),
        curve=curve,
    )
    return run, model


def leak(fresh: Ints, held_out: Ints, times: int) -> Ints:
    """Training documents as many as the fresh ones, of which some are held-out ones, each `times` times.

    Raises:
        ConfigError: no room for so many.
    """
    n = times * len(held_out)
    if times < 0 or n > len(fresh):
        raise ConfigError(f"{times} times {len(held_out)} documents do not fit into {len(fresh)}")
    return np.concatenate([np.tile(held_out, (times, 1)), fresh[: len(fresh) - n]])


def respelled(documents: Ints, every: int, rng: np.random.Generator) -> Ints:
    """A copy with one symbol in every `every` drawn anew, so that no long stretch stays as it was."""
    changed = documents.copy()
    changed[:, every - 1 :: every] = rng.integers(0, N_SYMBOLS, changed[:, every - 1 :: every].shape)
    return changed


def _batches(documents: Ints, n_steps: int, rng: np.random.Generator) -> Sequence[Ints]:
    """Batches [16, 33], every document once before any comes again."""
    passes = -(-n_steps * BATCH // len(documents))
    order = np.concatenate([rng.permutation(len(documents)) for _ in range(passes)])[: n_steps * BATCH]
    return [documents[rows] for rows in order.reshape(n_steps, BATCH)]
