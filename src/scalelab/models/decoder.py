"""A decoder: a stack of blocks that read a text's tokens and say, at each, how likely every next one is.

One class is GPT-2, Llama, GPT-NeoX and SmolLM3, by the parts its config plugs in: see norms.py,
positions.py, attention.py, feed_forward.py and block.py. Read this file from top to bottom.
Source: Radford et al. 2019 (GPT-2); Touvron et al. 2023, arXiv:2302.13971 (Llama).
Taught in book/transformers/block.md.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from scalelab.core.config import DecoderConfig
from scalelab.core.errors import ConfigError
from scalelab.models.attention import Sight
from scalelab.models.block import Block, final_norm
from scalelab.models.building import check_tokens, look_up, make_dropout, materialise
from scalelab.models.cache import Cache
from scalelab.models.initialisation import initialise
from scalelab.models.loss import IGNORE_INDEX, Reduction, loss_nats
from scalelab.models.masks import as_numbers, check_padding, token_positions, visible
from scalelab.models.positions import alibi_bias, rope_tables, sinusoidal_waves

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


class Decoder(nn.Module):
    """A causal language model.

    Args:
        config: which parts, and how large.
        seed: of the initial weights, which depend on nothing else: not on torch's global random state
            (which stays as it was), nor on the device. None draws a fresh seed from the system.
        device: where the weights live. On "meta" there are none, only shapes.

    Raises:
        ConfigError: `config` is not a DecoderConfig, or the seed is not a whole number in [0, 2^64).
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        seed: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(config, DecoderConfig):
            raise ConfigError(f"a Decoder is built from a DecoderConfig, got {type(config).__name__}")
        self.config = config
        # First shapes alone: torch's own initialisation would cost time and move the global random state.
        with torch.device("meta"):
            self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
            if config.positions == "learned":
                self.position_embedding = nn.Embedding(config.seq_len, config.d_model)
            self.dropout = make_dropout(config.dropout)
            self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
            self.final_norm = final_norm(config)
            if not config.tie_embeddings:
                self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        is_post = config.norm_position == "post"
        n_additions = 1 if is_post else 2 * config.n_layers
        materialise(self, partial(initialise, self, n_additions), seed=seed, device=device)

    def forward(
        self, tokens: Int[Tensor, "B T"], *, padding: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T V"]:
        """Unnormalised log-probabilities of each next token.

        Args:
            padding: True for tokens, False for filling, which no token sees; None: all are tokens.

        Raises:
            DataError: tokens of another type or rank, none or more than `seq_len` of them, or (on the
                CPU) outside the vocabulary; padding of another type or shape.
        """
        return self.logits(self.hidden(tokens, padding=padding))

    def hidden(
        self,
        tokens: Int[Tensor, "B T"],
        *,
        padding: Bool[Tensor, "B S"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The stream after the last block and norm: what the head reads.

        Args:
            tokens: all of them, or with a cache the new ones.
            padding: True for tokens, False for filling; with a cache, of kept and new ones together.
            cache: keys and values of the tokens before these; those of the new ones are added to it. For use
                under torch.no_grad().

        Raises:
            DataError: as `forward`; a cache that is full or of another model.
        """
        n_kept = 0 if cache is None else cache.length
        if cache is not None:
            cache.check_layers(self.config.n_layers)
        check_tokens(tokens, self.config.seq_len - n_kept, self.config.seq_len)
        check_padding(padding, tokens.shape[0], n_kept + tokens.shape[1], device=tokens.device)
        positions = token_positions(tokens.shape[1], n_kept, padding, tokens.device)
        x = self.embed(tokens, positions, n_kept)  # [B, T, D]
        sights = self.sights(positions, n_kept, padding)
        for layer, block in enumerate(self.blocks):
            x = block(x, sights[layer]) if cache is None else block(x, sights[layer], cache.layers[layer])
        return self.final_norm(x)  # type: ignore[no-any-return]

    def make_cache(self, batch_size: int, max_tokens: int) -> Cache:
        """Room for the keys and values of so many rows and tokens.

        Raises:
            ConfigError: a size that is not a positive whole number.
        """
        weight = self.token_embedding.weight
        return Cache(
            n_layers=self.config.n_layers,
            n_kv_heads=self.config.kv_heads,
            d_head=self.config.head_width,
            batch_size=batch_size,
            max_tokens=max_tokens,
            dtype=weight.dtype,
            device=weight.device,
        )

    def logits(self, hidden: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        """The head: how well each token of the vocabulary fits."""
        return F.linear(hidden, self.head_weight)

    def loss(
        self,
        tokens: Int[Tensor, "B T"],
        targets: Int[Tensor, "B T"],
        reduction: Reduction = "mean",
        ignore_index: int = IGNORE_INDEX,
    ) -> Float[Tensor, ""] | Float[Tensor, "B T"]:
        """Cross-entropy of `targets` (the tokens, one place later) in nats per token; see `loss_nats`."""
        return loss_nats(self(tokens), targets, reduction, ignore_index)

    @property
    def head_weight(self) -> Float[Tensor, "V D"]:
        """The matrix of the head; with tied embeddings, the input table itself."""
        return self.token_embedding.weight if self.config.tie_embeddings else self.head.weight

    def embed(
        self, tokens: Int[Tensor, "B T"], positions: Int[Tensor, "*B T"], n_kept: int = 0
    ) -> Float[Tensor, "B T D"]:
        """The stream before the first block: what each token is, and where it stands."""
        x = look_up(self.token_embedding, tokens)  # [B, T, D]
        if self.config.positions == "learned":
            table = self.position_embedding.weight
            # Where all rows agree, places are side by side: a part of the table, and nothing to look up.
            agree = positions.ndim == 1
            x = x + (table[n_kept : n_kept + tokens.shape[1]] if agree else table[positions])
        elif self.config.positions == "sinusoidal":
            # The waves have size 1 and the table 0.02: the paper's √D (section 3.4) keeps words audible.
            waves = sinusoidal_waves(positions, self.config.d_model)
            x = x * math.sqrt(self.config.d_model) + waves.to(x.dtype)
        return self.dropout(x)  # type: ignore[no-any-return]

    def sights(
        self,
        positions: Int[Tensor, "*B T"],
        n_kept: int = 0,
        padding: Bool[Tensor, "B S"] | None = None,
    ) -> list[Sight]:
        """What each layer's new tokens may see, and which rotations it turns queries and keys by."""
        plain = self._sight(positions, n_kept, padding)
        turned = plain
        if self.config.positions == "rope":
            turned = Sight(plain.causal, plain.mask, rope_tables(self.config, positions))
        layers = range(self.config.n_layers)
        return [turned if self.config.uses_rope(layer) else plain for layer in layers]

    def _sight(
        self, positions: Int[Tensor, "*B T"], n_kept: int, padding: Bool[Tensor, "B S"] | None
    ) -> Sight:
        """What each new token may see; a mask is built only where "what came before" does not say it all."""
        n_new = positions.shape[-1]
        n_keys, device = n_kept + n_new, positions.device
        if self.config.positions != "alibi":
            if padding is None and n_kept == 0:
                return Sight(causal=True)
            if padding is None and n_new == 1:
                return Sight(causal=False)  # the newest token sees all
            return Sight(False, visible(n_new, n_keys, causal=True, padding=padding, device=device))
        seen = visible(n_new, n_keys, causal=True, padding=padding, device=device)
        keys = token_positions(n_keys, 0, padding, device)
        return Sight(False, as_numbers(seen, alibi_bias(self.config.n_heads, positions, keys)))
