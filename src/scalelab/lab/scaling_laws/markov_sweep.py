"""Tiny decoders on a language whose entropy is known, trained while one waits, family by family.

What studies/scaling-laws/markov.toml records over seeds, this repeats for the sizes, budgets and seeds asked
for. Taught in book/scaling-laws/power-laws.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from scalelab.core.errors import LabError
from scalelab.core.records import RunRecord
from scalelab.data import TokenData, held_out_windows
from scalelab.data.markov import MarkovSource
from scalelab.lab.checks.answers import one_thread
from scalelab.sweeps import Sweep, families, load_text, sweep_from_dict, train_family
from scalelab.sweeps.trunk import Failed, Finished
from scalelab.train.record import data_identity, run_identity

SEQ_LEN, EVAL_TOKENS = 32, 32_768
RATE = {"rate": 2e-2, "n_params": 3e3, "exponent": -0.2}


def train_on_markov(
    widths: Sequence[int], tokens: Sequence[int], seeds: Sequence[int], *, device: str | None = None
) -> list[RunRecord]:
    """Train a decoder of one layer for each width, count of tokens and seed; those of one trunk share it.

    Args:
        widths: d_model of each. tokens: budgets, in whole steps of 512. seeds: of weights and data order.
        device: None: the first GPU if there is one.

    Returns:
        Their records, by width, seed and tokens.

    Raises:
        LabError: a run failed. ConfigError: a width, budget or seed that cannot be used.
    """
    sweep = sweep_from_dict(_settings(widths, tokens, seeds))
    data = _text()
    identity = data_identity(data)
    cells = sweep.cells(vocab_size=data.vocab_size, n_tokens_there=len(data.train))
    ids = [run_identity(cell.model, cell.train, identity) for cell in cells]
    records = []
    with one_thread():  # of such small tensors, a second thread only waits for the first
        for family in families(cells, ids):
            for event in train_family(family, data, device=device):
                if isinstance(event, Failed):
                    raise LabError(f"a run of {family.n_params} parameters failed: {event.reason}")
                if isinstance(event, Finished):
                    records.append(event.record)
    return sorted(records, key=lambda run: (run.config["d_model"], run.seed, run.n_tokens))


def exact_loss() -> float:
    """The true language's loss on the very tokens that all these runs are judged by, nats per token."""
    inputs, targets = held_out_windows(_text().held_out, SEQ_LEN, EVAL_TOKENS)
    # A chain of first order: what comes next depends on the token before, which every window holds.
    pairs = np.stack([np.asarray(inputs, dtype=np.int64), np.asarray(targets, dtype=np.int64)], axis=-1)
    return float(MarkovSource().exact_loss_nats(pairs))


def _settings(widths: Sequence[int], tokens: Sequence[int], seeds: Sequence[int]) -> dict[str, Any]:
    """The sweep of studies/scaling-laws/markov.toml, for other sizes, budgets and seeds; a test compares."""
    return {
        "corpus": "markov",
        "tokenizer": "symbols",
        "vocab_size": 128,
        "model": {
            "seq_len": SEQ_LEN, "norm": "rmsnorm", "positions": "rope", "feed_forward": "gelu",
            "attention_bias": False, "feed_forward_bias": False,
        },
        "shapes": {f"d{width}": {"n_layers": 1, "d_model": width, "n_heads": 1} for width in widths},
        "train": {
            "batch_size": 16, "betas": [0.9, 0.99], "warmup_steps": 16, "eval_tokens": EVAL_TOKENS,
            "n_evals": 1,
        },
        "grid": [
            {"name": "live", "tokens": list(tokens), "seeds": list(seeds), "learning_rate": dict(RATE)}
        ],
    }  # fmt: skip


@lru_cache(maxsize=1)
def _text() -> TokenData:
    sweep: Sweep = sweep_from_dict(_settings([8], [51_200], [0]))
    return load_text(sweep.text)
