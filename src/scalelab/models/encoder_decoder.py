"""An encoder–decoder: one stack reads the whole source, another writes the target and looks at the source.

By default it is T5: RMSNorm before each part, no biases, relative positions, one table of tokens for both
stacks and the head.
Source: Raffel et al. 2019, arXiv:1910.10683, section 2.1; Vaswani et al. 2017, arXiv:1706.03762.
Taught in book/transformers/architectures.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from scalelab.core.config import EncoderDecoderConfig
from scalelab.core.errors import ConfigError, DataError
from scalelab.models.attention import Sight
from scalelab.models.block import Block, final_norm
from scalelab.models.building import check_tokens, look_up, materialise
from scalelab.models.cache import Cache
from scalelab.models.initialisation import initialise_by_fan_in
from scalelab.models.loss import IGNORE_INDEX, Reduction, loss_nats
from scalelab.models.masks import as_numbers, check_padding, token_positions, visible
from scalelab.models.positions import RelativePositions, rope_tables, sinusoidal_positions
from scalelab.models.source import Source

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


class Stack(nn.Module):
    """The blocks of one side, with their positions and the norm at the end.

    Args:
        writes: whether this is the side that writes: it sees what came before, and the source.
    """

    def __init__(self, config: EncoderDecoderConfig, *, writes: bool) -> None:
        super().__init__()
        self.config = config
        self.writes = writes
        if config.positions == "relative":
            self.relative_positions = RelativePositions(
                config.n_position_buckets, config.max_distance, config.n_heads, both_ways=not writes
            )
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, cross=writes) for _ in range(config.n_layers))
        self.final_norm = final_norm(config)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        padding: Bool[Tensor, "B S"] | None,
        *,
        source: Source | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Run embedded tokens through the blocks.

        Args:
            padding: True for tokens, of all of them, kept ones included.
            source: what the writing side reads. cache: its own earlier tokens.
        """
        n_kept = 0 if cache is None else cache.length
        positions = token_positions(x.shape[1], n_kept, None, x.device)
        if self.config.positions == "sinusoidal":
            waves = sinusoidal_positions(n_kept + x.shape[1], self.config.d_model, x.device)
            x = x * math.sqrt(self.config.d_model) + waves[positions].to(x.dtype)
        x = self.dropout(x)
        sight = self._sight(positions, n_kept, padding)
        for layer, block in enumerate(self.blocks):
            x = block(x, sight, None if cache is None else cache.layers[layer], source)
        return self.dropout(self.final_norm(x))  # type: ignore[no-any-return]

    def _sight(self, positions: Int[Tensor, " T"], n_kept: int, padding: Bool[Tensor, "B S"] | None) -> Sight:
        n_new, device = len(positions), positions.device
        n_keys = n_kept + n_new
        rotation = rope_tables(self.config, positions) if self.config.positions == "rope" else None
        if self.config.positions == "relative":
            added = self.relative_positions(positions, torch.arange(n_keys, device=device))
            seen = visible(n_new, n_keys, causal=self.writes, padding=padding, device=device)
            return Sight(causal=False, mask=as_numbers(seen, added))
        if padding is None and (n_kept == 0 or n_new == 1):
            return Sight(causal=self.writes and n_kept == 0, rotation=rotation)
        mask = visible(n_new, n_keys, causal=self.writes, padding=padding, device=device)
        return Sight(causal=False, mask=mask, rotation=rotation)


class EncoderDecoder(nn.Module):
    """A sequence-to-sequence model.

    Args:
        config: which parts, and how large.
        seed: of the initial weights, which depend on nothing else. None draws a fresh seed.
        device: where the weights live. On "meta" there are none, only shapes.

    Raises:
        ConfigError: `config` is not an EncoderDecoderConfig, or the seed is not a whole number in [0, 2^64).
    """

    def __init__(
        self,
        config: EncoderDecoderConfig,
        *,
        seed: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(config, EncoderDecoderConfig):
            raise ConfigError(
                f"an EncoderDecoder is built from an EncoderDecoderConfig, got {type(config).__name__}"
            )
        self.config = config
        with torch.device("meta"):
            self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
            self.encoder = Stack(config, writes=False)
            self.decoder = Stack(config, writes=True)
            if not config.tie_embeddings:
                self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        materialise(self, self._initialise, seed=seed, device=device)

    def forward(
        self,
        source: Int[Tensor, "B S"],
        target: Int[Tensor, "B T"],
        *,
        source_padding: Bool[Tensor, "B S"] | None = None,
        target_padding: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Unnormalised log-probabilities of each next target token.

        Args:
            source: what is read. target: what was written so far, from the start token on.
            source_padding, target_padding: True for tokens, False for filling; None: all are tokens, `pad_id`
                too (only `loss` takes it for filling unasked).

        Raises:
            DataError: tokens or padding of another type or shape, or (on the CPU) outside the vocabulary.
        """
        read = self.read(source, padding=source_padding)
        return self.logits(self.write(target, read, padding=target_padding))

    def read(
        self, source: Int[Tensor, "B S"], *, padding: Bool[Tensor, "B S"] | None = None, keep: bool = False
    ) -> Source:
        """The source as the writing side reads it.

        Args:
            keep: keep each layer's keys and values, for generating token by token.
        """
        check_tokens(source, None, None, "source")
        check_padding(padding, *source.shape, device=source.device)
        states = self.encoder(look_up(self.token_embedding, source), padding)
        return Source(states, padding, keep=keep)

    def write(
        self,
        target: Int[Tensor, "B T"],
        source: Source,
        *,
        padding: Bool[Tensor, "B S"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The writing stack's stream: what the head reads.

        Args:
            target: all tokens written so far, or with a cache the new ones. source: from `read`.
            padding: True for tokens, of kept and new ones together. cache: of the tokens before these, for
                use under torch.no_grad().

        Raises:
            DataError: as `forward`; another number of targets than sources; a cache that is full or of
                another model.
        """
        check_tokens(target, None, None, "target")
        n_kept = 0 if cache is None else cache.length
        check_padding(padding, target.shape[0], n_kept + target.shape[1], device=target.device)
        if target.shape[0] != source.states.shape[0]:
            raise DataError(f"{target.shape[0]} targets for {source.states.shape[0]} sources: one for each")
        if cache is not None:
            cache.check_layers(self.config.n_layers)
        x = look_up(self.token_embedding, target)
        return self.decoder(x, padding, source=source, cache=cache)  # type: ignore[no-any-return]

    def logits(self, hidden: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        """The head: how well each token of the vocabulary fits."""
        if self.config.scale_head:
            hidden = hidden * self.config.d_model**-0.5
        return F.linear(hidden, self.head_weight)

    def loss(
        self,
        source: Int[Tensor, "B S"],
        targets: Int[Tensor, "B T"],
        reduction: Reduction = "mean",
        ignore_index: int = IGNORE_INDEX,
    ) -> Float[Tensor, ""] | Float[Tensor, "B T"]:
        """Cross-entropy of the targets, in nats per token.

        Args:
            source: filled up with `pad_id` at the end, which nobody sees.
            targets: what is to be written, from its first token on; `ignore_index` after its end. The model
                reads them one place later, behind a start token (`pad_id`).

        Raises:
            DataError: sources or targets of another type or shape, a source that is all filling, or (on the
                CPU) tokens outside the vocabulary.
        """
        check_tokens(source, None, None, "source")
        check_tokens(targets, None, None, "targets")
        padding = source != self.config.pad_id
        shifted = self.shift(targets, ignore_index)
        logits = self(source, shifted, source_padding=None if bool(padding.all()) else padding)
        return loss_nats(logits, targets, reduction, ignore_index)

    def shift(self, targets: Int[Tensor, "B T"], ignore_index: int = IGNORE_INDEX) -> Int[Tensor, "B T"]:
        """What the writing side reads to predict the targets: the start token, then all but the last."""
        start = torch.full_like(targets[:, :1], self.config.pad_id)
        shifted = torch.cat((start, targets[:, :-1]), dim=1)
        return shifted.masked_fill(shifted == ignore_index, self.config.pad_id)

    def make_cache(self, batch_size: int, max_tokens: int) -> Cache:
        """Room for the writing side's keys and values of so many rows and tokens."""
        weight = self.token_embedding.weight
        return Cache(
            n_layers=self.config.n_layers,
            n_kv_heads=self.config.n_heads,
            d_head=self.config.d_head,
            batch_size=batch_size,
            max_tokens=max_tokens,
            dtype=weight.dtype,
            device=weight.device,
        )

    @property
    def head_weight(self) -> Float[Tensor, "V D"]:
        """The matrix of the head; with tied embeddings, the input table itself."""
        return self.token_embedding.weight if self.config.tie_embeddings else self.head.weight

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """By fan-in, as T5; a table whose head is scaled down by √D is drawn that much larger.

        Differs: an untied table and its head are drawn at 1/√D, where `transformers` draws both at 1.
        """
        c = self.config
        table_std = 1.0 if c.tie_embeddings and c.scale_head else c.d_model**-0.5
        initialise_by_fan_in(self, table_std, generator)
        if c.positions == "relative":  # added to scores of about 1, which they are to nudge, not to drown
            for stack in (self.encoder, self.decoder):
                stack.relative_positions.table.weight.mul_(c.d_model**-0.5 / table_std)
        if c.scale_scores:
            return
        # Scores that are not divided by √K want queries that are smaller by it.
        for name, parameter in self.named_parameters():
            if name.endswith(".attention.qkv.weight"):
                parameter[: c.n_heads * c.d_head].mul_(c.d_head**-0.5)
            elif name.endswith(".cross_attention.q.weight"):
                parameter.mul_(c.d_head**-0.5)
