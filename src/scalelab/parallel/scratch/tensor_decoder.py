"""A whole decoder cut over ranks: the function of `scalelab.models.Decoder`, with narrower blocks.

Parameters have the names that they have in one process. `cut` takes a rank's part of each and `join` puts
them together again, so that a model can be loaded from a single-process one, saved as one, and compared with
one.

Condition of equality: blocks are pre-norm, one half after the other; heads divide by the number of ranks; no
dropout (ranks would have to draw the same masks), no ALiBi (its slopes are numbered over all heads). F, V and
T need not divide.
Source: Shoeybi et al. 2019, arXiv:1909.08053; Korthikanti et al. 2022, arXiv:2205.05198. Taught in
book/parallelism/tensor-parallel.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scalelab.core.checks import check_choice
from scalelab.core.config import DecoderConfig
from scalelab.core.errors import DataError, ParallelError, WeightsError
from scalelab.models.attention import Sight
from scalelab.models.building import check_tokens
from scalelab.models.loss import IGNORE_INDEX, REDUCTIONS, Reduction
from scalelab.models.norms import make_norm
from scalelab.models.positions import rope_tables, sinusoidal_waves
from scalelab.parallel.scratch.collectives import all_to_all
from scalelab.parallel.scratch.group import Group
from scalelab.parallel.scratch.sequence_parallel import SequenceBorders, own_tokens, sum_whole_gradients
from scalelab.parallel.scratch.tensor_parallel import (
    Borders,
    ParallelAttention,
    ParallelFeedForward,
    ParallelSwiGLU,
    TensorBorders,
    check_heads,
    share,
)
from scalelab.parallel.scratch.vocabulary import first_row, look_up, vocabulary_loss

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# --- which part of each parameter a rank has --------------------------------------------------------------

BY_VOCABULARY = ("token_embedding.weight", "head.weight")
BY_HEADS = ("qkv.weight", "qkv.bias")
BY_ROWS = ("up.weight", "up.bias", "gate.weight", "gate.bias")
BY_COLUMNS = ("out.weight", "down.weight")


def places(name: str, config: DecoderConfig, rank: int, size: int) -> tuple[int, Tensor] | None:
    """The dimension along which a parameter is cut and a rank's places along it; None: every rank has it
    whole.

    Args:
        name: as `Decoder.named_parameters` gives it.
    """
    if name.endswith(BY_HEADS):
        n_q, n_kv, width = config.n_heads, config.kv_heads, config.head_width
        rows = torch.arange((n_q + 2 * n_kv) * width).view(-1, width)  # a row a head
        q, k, v = rows.split_with_sizes(
            (n_q, n_kv, n_kv)
        )  # cut each by itself: a rank has whole heads of all three
        return 0, torch.cat([part.tensor_split(size)[rank] for part in (q, k, v)]).flatten()
    if name.endswith(BY_VOCABULARY):
        return 0, torch.arange(config.vocab_size).tensor_split(size)[rank]
    if name.endswith(BY_ROWS):
        return 0, torch.arange(config.ff_width).tensor_split(size)[rank]
    if name.endswith(BY_COLUMNS):
        is_attention = name.endswith("out.weight")
        width = config.n_heads * config.head_width if is_attention else config.ff_width
        return 1, torch.arange(width).tensor_split(size)[rank]
    return None


def cut(weights: Mapping[str, Tensor], config: DecoderConfig, rank: int, size: int) -> dict[str, Tensor]:
    """A rank's part of each tensor of a whole model, by the same names."""
    parts = {}
    for name, whole in weights.items():
        place = places(name, config, rank, size)
        parts[name] = (
            whole.clone() if place is None else whole.index_select(place[0], place[1].to(whole.device))
        )
    return parts


def join(parts: Sequence[Mapping[str, Tensor]], config: DecoderConfig) -> dict[str, Tensor]:
    """The whole tensors, from all ranks' parts in order of rank: `cut` backwards."""
    size, whole = len(parts), {}
    for name, first in parts[0].items():
        found = [places(name, config, rank, size) for rank in range(size)]
        pieces = [(place, part[name]) for place, part in zip(found, parts, strict=True) if place is not None]
        if not pieces:
            whole[name] = first.clone()
            continue
        shape, dim = list(first.shape), pieces[0][0][0]
        shape[dim] = sum(len(index) for (_, index), _ in pieces)
        whole[name] = first.new_empty(shape)
        for (_, index), part in pieces:
            whole[name].index_copy_(dim, index.to(first.device), part)
    return whole


# --- the model --------------------------------------------------------------------------------------------


class ParallelBlock(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)); norms and sums on what stream a rank has."""

    def __init__(self, config: DecoderConfig, group: Group) -> None:
        super().__init__()
        make_feed_forward = ParallelSwiGLU if config.feed_forward == "swiglu" else ParallelFeedForward
        self.attention_norm = make_norm(config)
        self.attention = ParallelAttention(config, group)
        self.feed_forward_norm = make_norm(config)
        self.feed_forward = make_feed_forward(config, group)

    def forward(self, x: Float[Tensor, "B t D"], sight: Sight, borders: Borders) -> Float[Tensor, "B t D"]:
        x = x + self.attention(self.attention_norm(x), sight, borders)
        return x + self.feed_forward(self.feed_forward_norm(x), borders)  # type: ignore[no-any-return]


class ParallelDecoder(nn.Module):
    """This rank's part of a decoder.

    Args:
        config: of the whole model.
        group: the ranks that share it; each calls everything here together with the others.
        weights: of the whole model by name, as its `state_dict()` has them.
        sequence_parallel: whether the stream between cut regions is cut along time.
        keeps_own: as `SequenceBorders`.

    Raises:
        ParallelError: ranks that do not divide the heads, more ranks than rows of the vocabulary or than
            numbers in the feed-forward, or a part that is not cut here.
        WeightsError: weights of another model.
    """

    def __init__(
        self,
        config: DecoderConfig,
        group: Group,
        weights: Mapping[str, Tensor],
        *,
        sequence_parallel: bool = False,
        keeps_own: bool = True,
    ) -> None:
        super().__init__()
        check_cut(config, group.size)
        self.config, self.group = config, group
        self.sequence_parallel, self.keeps_own = sequence_parallel, keeps_own
        self.first = first_row(config.vocab_size, group)
        with torch.device("meta"):
            n_rows = share(config.vocab_size, group)
            self.token_embedding = nn.Embedding(n_rows, config.d_model)
            if config.positions == "learned":
                self.position_embedding = nn.Embedding(config.seq_len, config.d_model)
            self.blocks = nn.ModuleList(ParallelBlock(config, group) for _ in range(config.n_layers))
            self.final_norm = make_norm(config)
            if not config.tie_embeddings:
                self.head = nn.Linear(config.d_model, n_rows, bias=False)
        parts = cut(weights, config, group.rank, group.size)
        try:
            self.load_state_dict(parts, assign=True)
        except RuntimeError as error:
            raise WeightsError(f"these are not the weights of this model: {error}") from error
        self.requires_grad_()

    def loss(
        self,
        tokens: Int[Tensor, "B T"],
        targets: Int[Tensor, "B T"],
        reduction: Reduction = "mean",
        ignore_index: int = IGNORE_INDEX,
    ) -> Float[Tensor, ""] | Float[Tensor, "B T"]:
        """Cross-entropy in nats per token, the same on every rank; as `Decoder.loss`.

        Raises:
            ConfigError: another reduction.
            DataError: tokens or targets that the model cannot read.
        """
        check_choice("reduction", reduction, REDUCTIONS)
        vocab = self.config.vocab_size
        if targets.shape != tokens.shape or targets.is_floating_point():
            raise DataError(
                f"targets must be whole numbers of the tokens' shape {tuple(tokens.shape)}, got "
                f"{targets.dtype} of {tuple(targets.shape)}"
            )
        if not bool(((targets == ignore_index) | ((targets >= 0) & (targets < vocab))).all()):
            raise DataError(f"targets must lie in [0, {vocab}), or be {ignore_index} where none counts")
        (logits,) = self._logits(tokens)
        losses = vocabulary_loss(logits, targets, self.first, self.group, ignore_index)
        if reduction == "none":
            return losses
        total = losses.sum()
        return total if reduction == "sum" else total / (targets != ignore_index).sum()

    def finish_gradients(self) -> None:
        """After the last backward pass of a step: what no rank has seen whole is summed.

        Without sequence parallelism there is nothing to do: each rank has seen all tokens.
        """
        if self.sequence_parallel:
            sum_whole_gradients(self.whole_parameters().values(), self.group)

    def whole_parameters(self) -> dict[str, nn.Parameter]:
        """Those that are not cut."""
        named = self.named_parameters()
        return {name: p for name, p in named if places(name, self.config, 0, self.group.size) is None}

    def whole_weights(self) -> dict[str, Tensor]:
        """The weights of the whole model, on every rank."""
        return self._joined({name: p.detach() for name, p in self.named_parameters()})

    def whole_gradients(self) -> dict[str, Tensor]:
        """The gradients of the whole model, on every rank; after `finish_gradients`."""
        return self._joined({name: p.grad for name, p in self.named_parameters() if p.grad is not None})

    def _logits(self, tokens: Int[Tensor, "B T"]) -> tuple[Float[Tensor, "B T v"], ...]:
        """Of all tokens, for this rank's share of the vocabulary."""
        check_tokens(tokens, self.config.seq_len, self.config.seq_len)
        vocab = self.config.vocab_size
        if not bool(((tokens >= 0) & (tokens < vocab)).all()):  # no rank has such a row: it would be zeros
            raise DataError(
                f"token ids must lie in [0, {vocab}), the vocabulary; these reach from {int(tokens.min())} "
                f"to {int(tokens.max())}"
            )
        n_tokens = tokens.shape[1]
        if self.sequence_parallel and n_tokens < self.group.size:
            raise ParallelError(f"{n_tokens} tokens cannot be cut over {self.group.size} ranks")
        borders: Borders = TensorBorders(self.group)
        if self.sequence_parallel:
            borders = SequenceBorders(self.group, n_tokens, keeps_own=self.keeps_own)
        positions = torch.arange(n_tokens, device=tokens.device)
        x = self._embed(tokens, positions, borders)
        rotation = rope_tables(self.config, positions) if self.config.positions == "rope" else None
        for layer, block in enumerate(self.blocks):
            turned = rotation if self.config.uses_rope(layer) else None
            x = block(x, Sight(causal=True, rotation=turned), borders)
        table = self.token_embedding if self.config.tie_embeddings else self.head
        return borders.enter(self.final_norm(x), (table.weight, None))

    def _embed(
        self, tokens: Int[Tensor, "B T"], positions: Int[Tensor, " T"], borders: Borders
    ) -> Float[Tensor, "B t D"]:
        x = look_up(tokens, self.token_embedding.weight, self.first, borders)
        if self.config.positions == "learned":
            added = self.position_embedding.weight[: len(positions)]
        elif self.config.positions == "sinusoidal":
            x = x * math.sqrt(self.config.d_model)
            added = sinusoidal_waves(positions, self.config.d_model).to(x.dtype)
        else:
            return x
        # The table is whole on every rank; of the stream each may have its own tokens only.
        return x + (own_tokens(added[None], self.group) if self.sequence_parallel else added)

    def _joined(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All ranks' parts put together: pieces of unequal sizes, each sent to every rank."""
        all_parts: list[dict[str, Tensor]] = [{} for _ in range(self.group.size)]
        for name, part in parts.items():
            shapes = [self._shape(name, part, rank) for rank in range(self.group.size)]
            flat = part.flatten()
            come = all_to_all([flat] * self.group.size, self.group, sizes=[math.prod(s) for s in shapes])
            for rank, (piece, shape) in enumerate(zip(come, shapes, strict=True)):
                all_parts[rank][name] = piece.view(shape)
        return join(all_parts, self.config)

    def _shape(self, name: str, part: Tensor, rank: int) -> list[int]:
        shape, place = list(part.shape), places(name, self.config, rank, self.group.size)
        if place is not None:
            shape[place[0]] = len(place[1])
        return shape


def check_cut(config: DecoderConfig, size: int) -> None:
    """Refuse what cannot be cut over so many ranks, or is not cut here.

    Raises:
        ParallelError: naming it.
    """
    check_heads(config, size)
    for name in ("vocab_size", "d_ff"):
        if getattr(config, name) < size:
            raise ParallelError(f"{name}={getattr(config, name)} is less than a row for each of {size} ranks")
    refused = {
        "norm_position": config.norm_position == "post",
        "parallel_residual": config.parallel_residual,
        "dropout": config.dropout > 0,
        "positions": config.positions == "alibi",
    }
    for name, is_so in refused.items():
        if is_so:
            raise ParallelError(
                f"{name}={getattr(config, name)!r} is not cut here: see the module's docstring"
            )
