"""A draft for speculative decoding: the base model's first layer under its own head, trained in seconds.

It shares the target's tokenizer, since two models must mean the same by a token before one can judge the
other's; and its table of tokens, so that little is left to learn. Its text is the standard library's source
of the running interpreter.
Source: Leviathan et al. 2023, arXiv:2211.17192, section 4. Taught in book/transformers/inference.md.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch

from scalelab.core.checks import check_positive_int
from scalelab.core.errors import ConfigError, DataError
from scalelab.data import Batches, corpus
from scalelab.data.tokenization import BpeTokenizer
from scalelab.models import Decoder

BATCH_SIZE, SEQ_LEN, PEAK_RATE, WARMUP_STEPS = 16, 64, 2e-3, 20


def cut_draft(target: Decoder, n_layers: int = 1) -> Decoder:
    """The target's first layers under its own head: a draft that already knows what each token is like.

    What it says is of little use until `train_draft` has taught the head to read so early a layer.

    Raises:
        ConfigError: more layers than the target has, or none.
    """
    check_positive_int("n_layers", n_layers)
    if n_layers > target.config.n_layers:
        raise ConfigError(f"n_layers={n_layers} is more than the target's {target.config.n_layers}")
    draft = Decoder(dataclasses.replace(target.config, n_layers=n_layers), device="meta")
    names = draft.state_dict().keys()
    kept = {name: value.clone() for name, value in target.state_dict().items() if name in names}
    draft.load_state_dict(kept, assign=True)
    return draft.eval()


def python_tokens(tokenizer: BpeTokenizer, n_tokens: int, *, held_out: bool = False) -> np.ndarray:
    """The first `n_tokens` tokens of the standard library's source; files follow each other.

    Raises:
        DataError: there are not so many.
    """
    text = corpus("python")
    parts: list[np.ndarray] = []
    found = 0
    for document in text.held_out if held_out else text.train:
        ids = np.asarray(tokenizer.encode(document.text))
        parts += [ids, np.array([tokenizer.end_of_text])]
        found += len(ids) + 1
        if found >= n_tokens:
            return np.concatenate(parts)[:n_tokens].astype(np.int64)
    raise DataError(f"asked for {n_tokens:,} tokens; the standard library's source has {found:,}")


def train_draft(draft: Decoder, tokens: np.ndarray, *, seed: int) -> Decoder:
    """Train a draft once over `tokens`, in place; it comes back in evaluation mode.

    Args:
        draft: what is trained. tokens: [n], ids of the text. seed: of the order.

    Raises:
        DataError: too few tokens for a step.
    """
    n_steps = len(tokens) // (BATCH_SIZE * SEQ_LEN)
    if n_steps < 1:
        raise DataError(f"a step takes {BATCH_SIZE * SEQ_LEN} tokens, got {len(tokens)}")
    device = draft.token_embedding.weight.device
    draft.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(draft.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    batches = Batches(tokens, batch_size=BATCH_SIZE, seq_len=SEQ_LEN, seed=seed)
    for step in range(n_steps):
        falling = 0.5 * (1 + math.cos(math.pi * step / n_steps))
        optimizer.param_groups[0]["lr"] = PEAK_RATE * min((step + 1) / WARMUP_STEPS, 0.05 + 0.95 * falling)
        inputs, targets = (torch.as_tensor(part).to(device) for part in batches.next())
        optimizer.zero_grad()
        draft.loss(inputs, targets).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(draft.parameters(), 1.0)
        optimizer.step()
    return draft.eval()
