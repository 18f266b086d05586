"""Training a tiny decoder on `markov` until it is as good as asked: the steps it takes at a batch size.

The learning rate is constant after a short warm-up, since a schedule with an end would have to know the
steps that are asked for. The loss is judged against the language's own probabilities, not against symbols
drawn from them, so that it has no noise but the model's. No symbol is seen twice.
Source: McCandlish et al. 2018, arXiv:1812.06162, section 2.
Taught in book/parallelism/data-parallel.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import time
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

import scalelab
from scalelab.core.config import DecoderConfig, config_to_dict
from scalelab.core.errors import LabError
from scalelab.core.records import RunRecord
from scalelab.cost import flops, params
from scalelab.data.markov import N_SYMBOLS, MarkovSource
from scalelab.lab.checks.answers import one_thread
from scalelab.lab.parallelism.recorded_batches import LOWEST_EXCESS, smoothed
from scalelab.models import Decoder
from scalelab.train.record import commit

SEQ_LEN = 32
MODEL = DecoderConfig(
    n_layers=2, d_model=64, n_heads=4, vocab_size=N_SYMBOLS, seq_len=SEQ_LEN, norm="rmsnorm",
    positions="rope", attention_bias=False, feed_forward_bias=False,
)  # fmt: skip
WARMUP_STEPS = 10
BETAS = (0.9, 0.99)
N_TRAIN = 4_000_000
N_HELD_OUT = 4_096
EVALS_PER_E = 25  # held-out losses while the steps grow by a factor e
BYTES_PER_SYMBOL = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRun:
    """One run of the study.

    Attributes:
        batch_size: sequences of 32 symbols a step. learning_rate: after the warm-up. seed: of the weights and
            of the order of the text.
    """

    batch_size: int
    learning_rate: float
    seed: int = 0

    @property
    def run_id(self) -> str:
        """A name that the same settings always have; where a run ends is not among them."""
        settings = [
            dataclasses.asdict(self),
            config_to_dict(MODEL),
            WARMUP_STEPS,
            BETAS,
            N_TRAIN,
            EVALS_PER_E,
        ]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return f"critical-batch-{self.batch_size}-{digest[:12]}"


def train_until(run: BatchRun, *, excess: float = LOWEST_EXCESS, max_tokens: int | None = None) -> RunRecord:
    """Train until the held-out loss is so little above the language's entropy.

    Args:
        excess: nats per symbol above what no model can go below.
        max_tokens: where to give up; None: at the end of the text, four million symbols.

    Returns:
        Its record; `curve` holds the held-out losses on the way.

    Raises:
        LabError: the tokens are not enough for the warm-up.
    """
    with one_thread():
        return _train(run, excess, N_TRAIN if max_tokens is None else min(max_tokens, N_TRAIN))


def _train(run: BatchRun, excess: float, max_tokens: int) -> RunRecord:
    text, (held_out, following), floor = _train_text(), *_held_out()
    model = Decoder(MODEL, seed=run.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=BETAS, weight_decay=0.0, fused=True)
    order = torch.from_numpy(np.random.default_rng([run.seed, 7]).permutation(len(text)))
    n_steps = max_tokens // (run.batch_size * SEQ_LEN)
    if n_steps <= WARMUP_STEPS:
        raise LabError(
            f"{max_tokens:,} tokens are {n_steps} steps of {run.batch_size} sequences of {SEQ_LEN}: it takes "
            f"more than the {WARMUP_STEPS} of the warm-up"
        )
    curve: list[tuple[int, float]] = []
    next_eval, begin = float(WARMUP_STEPS), time.perf_counter()
    for step in range(1, n_steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate * min(1.0, step / WARMUP_STEPS)
        rows = text[order[(step - 1) * run.batch_size : step * run.batch_size]]  # [B, T + 1]
        optimizer.zero_grad()
        model.loss(rows[:, :-1], rows[:, 1:]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step >= next_eval:
            next_eval = max(step + 1.0, step * np.exp(1 / EVALS_PER_E))
            with torch.inference_mode():
                loss = -(following * model(held_out).log_softmax(-1)).sum(-1).mean().item()
            curve.append((step * run.batch_size * SEQ_LEN, loss))
            if _is_there(curve, floor + excess, floor):
                break
    return _record(run, curve, step * run.batch_size * SEQ_LEN, time.perf_counter() - begin)


def _is_there(curve: list[tuple[int, float]], loss: float, floor: float) -> bool:
    means = smoothed([value for _, value in curve], floor)
    return len(means) > 0 and means[-1] <= np.log(loss - floor)


@lru_cache(maxsize=1)
def _train_text() -> Tensor:
    """Windows [R, T + 1] of the language, each beginning with the last symbol of the one before."""
    symbols = torch.from_numpy(MarkovSource().sample(N_TRAIN + 1, seed=0).astype(np.int64))
    return symbols.unfold(0, SEQ_LEN + 1, SEQ_LEN)


@lru_cache(maxsize=1)
def _held_out() -> tuple[tuple[Tensor, Tensor], float]:
    """Symbols [R, T] with the true probabilities [R, T, V] of what follows each; and their entropy, nats."""
    source = MarkovSource()
    symbols = source.sample(N_HELD_OUT, seed=1).astype(np.int64).reshape(-1, SEQ_LEN)
    following = source.transitions[symbols]
    floor = float(-(following * np.log(following)).sum(-1).mean())
    return (torch.from_numpy(symbols), torch.from_numpy(following).float()), floor


def exact_loss() -> float:
    """What no model can go below on the held-out symbols, nats each: the entropy of what follows them."""
    return _held_out()[1]


def _record(run: BatchRun, curve: list[tuple[int, float]], n_tokens: int, seconds: float) -> RunRecord:
    counts = params(MODEL)
    return RunRecord(
        run_id=run.run_id,
        config=config_to_dict(MODEL),
        corpus="markov:seed=0",
        tokenizer="symbols",
        n_params=counts.total,
        n_params_matmul=counts.matmul,
        n_params_non_embedding=counts.non_embedding,
        n_tokens=n_tokens,
        n_tokens_unique=n_tokens,
        epochs=1.0,
        flops=float(flops(MODEL, batch_size=1, seq_len=SEQ_LEN, training=True).total * (n_tokens // SEQ_LEN)),
        loss_nats=curve[-1][1],
        bits_per_byte=curve[-1][1] / np.log(2) / BYTES_PER_SYMBOL,
        curve=tuple(curve),
        learning_rate=run.learning_rate,
        batch_tokens=run.batch_size * SEQ_LEN,
        seed=run.seed,
        seconds=seconds,
        device="cpu, 1 thread, fp32",
        versions={
            "scalelab": scalelab.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        commit=commit(),
    )
