"""A small decoder and batches of a synthetic language: what ranks train together within seconds.

Rows have targets at some places only, another number in each: a mean of the ranks' means would be wrong.
Taught in book/parallelism/sharding.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scalelab.core.config import DecoderConfig
from scalelab.data.markov import N_SYMBOLS, MarkovSource
from scalelab.models import Decoder
from scalelab.models.loss import IGNORE_INDEX

SEQ_LEN = 32
CONFIG = DecoderConfig(n_layers=4, d_model=64, n_heads=4, vocab_size=N_SYMBOLS, seq_len=SEQ_LEN)


def small_model(seed: int = 0, *, dtype: torch.dtype = torch.float32) -> Decoder:
    """A decoder of 0.2 million parameters: four blocks, and tables that input and head share."""
    return Decoder(CONFIG, seed=seed).to(dtype)


def markov_batches(n_batches: int, n_rows: int = 10, *, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Tokens and what follows each, both [B, T]; the later half of every second row has no targets."""
    drawn = MarkovSource(seed).sample(n_batches * n_rows * (SEQ_LEN + 1), seed=seed)
    rows = torch.from_numpy(drawn.astype("int64")).view(n_batches, n_rows, SEQ_LEN + 1)
    batches = []
    for batch in rows:
        tokens, targets = batch[:, :-1].clone(), batch[:, 1:].clone()
        targets[1::2, SEQ_LEN // 2 :] = IGNORE_INDEX
        batches.append((tokens, targets))
    return batches
