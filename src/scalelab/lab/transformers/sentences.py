"""Does next-sentence prediction help? An encoder trained on pairs of passages with it, and without.

Both arms read the same pairs with the same tokens hidden; one adds the loss of "does B follow A?". What it
costs is the pooler and a map to two numbers a pair, which is counted.
Source: Devlin et al. 2018, arXiv:1810.04805, section 3.1; Liu et al. 2019, arXiv:1907.11692, section 4.2.
Taught in book/transformers/architectures.md.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from scalelab.core.checks import check_positive_int
from scalelab.core.errors import DataError
from scalelab.data import SentencePairs
from scalelab.data.sentence_pairs import PairBatch
from scalelab.data.special import SpecialTokens
from scalelab.lab.transformers.architectures import Ids64, batches, evaluating
from scalelab.models import Encoder
from scalelab.models.loss import IGNORE_INDEX, loss_nats
from scalelab.train import TrainConfig, make_optimizer, make_schedule
from scalelab.train.optimizer import set_learning_rate

MASKED_AT_ONCE = 64  # pairs that share a draw of hidden tokens in an examination


def train_on_pairs(model: Encoder, pairs: SentencePairs, config: TrainConfig, *, with_next: bool) -> None:
    """Train an encoder on masked pairs, in place.

    Args:
        config: budget, batch, schedule and seed; its seq_len is the pairs' length.
        with_next: whether to add the loss of the pair; the model then needs its `nsp_head`.
    """
    check_positive_int("seq_len", config.seq_len)
    optimizer, schedule = make_optimizer(model, config), make_schedule(config)
    rng = np.random.default_rng(config.seed)
    order: list[int] = []
    model.train()
    for step in range(config.n_steps):
        while len(order) < config.batch_size:
            order += rng.permutation(len(pairs)).tolist()
        rows, order = order[: config.batch_size], order[config.batch_size :]
        set_learning_rate(optimizer, schedule.rate(step))
        loss = pair_losses(model, pairs, rows, rng, with_next=with_next).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()


def pair_losses(
    model: Encoder, pairs: SentencePairs, rows: list[int], rng: np.random.Generator, *, with_next: bool
) -> torch.Tensor:
    """Losses of some pairs, nats: per hidden token, and (if asked for) per pair; [1] or [2]."""
    device = next(model.parameters()).device
    batch = pairs.masked(rows, rng)
    inputs, targets, segments, padding, is_next = (torch.from_numpy(part).to(device) for part in batch)
    hidden = model.hidden(inputs, segments, padding=padding)
    losses = [loss_nats(model.logits(hidden), targets)]
    if with_next:
        losses.append(F.cross_entropy(model.follows_logits(hidden), 1 - is_next))  # 0 says "follows"
    return torch.stack(losses)


def next_accuracy(model: Encoder, pairs: SentencePairs, *, batch_size: int = 64) -> float:
    """Share of pairs, nothing hidden in them, of which the model says rightly whether B follows A."""
    device, right = next(model.parameters()).device, 0
    with evaluating(model):
        for start in range(0, len(pairs), batch_size):
            rows = slice(start, start + batch_size)
            ids, segments, padding = (
                torch.from_numpy(part[rows]).to(device) for part in (pairs.ids, pairs.segments, pairs.padding)
            )
            logits = model.follows_logits(model.hidden(ids, segments, padding=padding))
            right += int((logits.argmax(-1).cpu().numpy() == 1 - pairs.is_next[rows]).sum())
    return right / len(pairs)


def pair_states(
    model: Encoder, windows: Ids64, places: Ids64, special: SpecialTokens, *, batch_size: int = 64
) -> torch.Tensor:
    """The last stream at one place of each window, which is given as a pair, as in training.

    The first half is A, the rest is B, without its last token: the third mark takes that place. [N, D].
    """
    half, found = windows.shape[1] // 2, []
    with evaluating(model):
        for chosen, place in batches(model, windows, places, batch_size):
            ends = chosen.new_ones(len(chosen), 1)
            parts = (
                ends * special.cls,
                chosen[:, :half],
                ends * special.sep,
                chosen[:, half:-1],
                ends * special.sep,
            )
            ids = torch.cat(parts, dim=1)
            segments = torch.zeros_like(ids)
            segments[:, half + 2 :] = 1
            rows = torch.arange(len(chosen), device=ids.device)
            moved = place + 1 + (place >= half).long()  # by [CLS], and in B by the first [SEP]
            found.append(model.hidden(ids, segments)[rows, moved].float().cpu())
    return torch.cat(found)


def pair_mlm_nats(model: Encoder, pairs: SentencePairs, *, seed: int = 0, batch_size: int = 64) -> float:
    """Loss of hidden tokens of pairs, nats each; the same ones are hidden whatever the batch_size.

    Raises:
        ConfigError: batch_size is not a whole number of at least 1. DataError: there are no pairs.
    """
    check_positive_int("batch_size", batch_size)
    if not len(pairs):
        raise DataError("there are no pairs to hide tokens in")
    batch, nats = _masked(pairs, np.random.default_rng(seed)), 0.0
    device = next(model.parameters()).device
    with evaluating(model):
        for start in range(0, len(pairs), batch_size):
            inputs, targets, segments, padding, _ = (
                torch.from_numpy(part[start : start + batch_size]).to(device) for part in batch
            )
            logits = model.logits(model.hidden(inputs, segments, padding=padding))
            nats += float(loss_nats(logits, targets, "sum"))
    return nats / int((batch.targets != IGNORE_INDEX).sum())


def _masked(pairs: SentencePairs, rng: np.random.Generator) -> PairBatch:
    """All pairs with tokens hidden, in order."""
    rows = np.arange(len(pairs))
    drawn = [
        pairs.masked(rows[start : start + MASKED_AT_ONCE], rng)
        for start in range(0, len(rows), MASKED_AT_ONCE)
    ]
    return PairBatch(*(np.concatenate(part) for part in zip(*drawn, strict=True)))
