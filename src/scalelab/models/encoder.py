"""An encoder: every token sees every other, so that each comes out as itself in its context.

By default it is BERT: post-norm, learned positions, a table of segments, a pooler on the first token, and
where the config asks for it a head that says which token was hidden.
Source: Devlin et al. 2018, arXiv:1810.04805, section 3. Taught in book/transformers/architectures.md.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from scalelab.core.config import EncoderConfig
from scalelab.core.errors import ConfigError, DataError
from scalelab.models.attention import Sight
from scalelab.models.block import Block, final_norm
from scalelab.models.building import check_tokens, look_up, materialise
from scalelab.models.feed_forward import bend
from scalelab.models.initialisation import initialise
from scalelab.models.loss import IGNORE_INDEX, Reduction, loss_nats
from scalelab.models.masks import check_padding, token_positions, visible
from scalelab.models.norms import make_norm
from scalelab.models.positions import rope_tables, sinusoidal_positions

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


class MaskedHead(nn.Module):
    """Which token was hidden: a dense layer, bent, a norm, then the input table and a bias a token.

    It bends as the feed-forward does, and by GELU where that is gated.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.activation = "gelu" if config.feed_forward == "swiglu" else config.feed_forward
        self.dense = nn.Linear(config.d_model, config.d_model)
        self.norm = make_norm(config)
        self.bias = nn.Parameter(torch.empty(config.vocab_size))

    def forward(self, x: Float[Tensor, "*batch D"], table: Float[Tensor, "V D"]) -> Float[Tensor, "*batch V"]:
        return F.linear(self.norm(bend(self.dense(x), self.activation)), table, self.bias)


class Encoder(nn.Module):
    """A bidirectional stack with BERT's input and heads.

    Args:
        config: which parts, and how large.
        seed: of the initial weights, which depend on nothing else. None draws a fresh seed.
        device: where the weights live. On "meta" there are none, only shapes.

    Raises:
        ConfigError: `config` is not an EncoderConfig, or the seed is not a whole number in [0, 2^64).
    """

    def __init__(
        self,
        config: EncoderConfig,
        *,
        seed: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(config, EncoderConfig):
            raise ConfigError(f"an Encoder is built from an EncoderConfig, got {type(config).__name__}")
        self.config = config
        with torch.device("meta"):
            self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
            if config.positions == "learned":
                self.position_embedding = nn.Embedding(config.seq_len, config.d_model)
            self.segment_embedding = nn.Embedding(config.n_segments, config.d_model)
            is_post = config.norm_position == "post"
            self.embedding_norm = make_norm(config) if is_post else nn.Identity()
            self.dropout = nn.Dropout(config.dropout)
            self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
            self.final_norm = final_norm(config)
            if config.pooler:
                self.pooler = nn.Linear(config.d_model, config.d_model)
            if config.mlm_head:
                self.mlm_head = MaskedHead(config)
            if config.nsp_head:
                self.nsp_head = nn.Linear(config.d_model, 2)
        n_additions = 1 if is_post else 2 * config.n_layers
        materialise(self, partial(initialise, self, n_additions), seed=seed, device=device)

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        segments: Int[Tensor, "B T"] | None = None,
        *,
        padding: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """At each place, unnormalised log-probabilities of the token that belongs there.

        Args:
            segments: which part of the input each token belongs to; None: all to part 0.
            padding: True for tokens, False for filling, which no token sees; None: all are tokens.

        Raises:
            ConfigError: the model has no `mlm_head`.
            DataError: tokens, segments or padding of another type or shape, more than `seq_len` of them, or
                (on the CPU) outside their tables.
        """
        return self.logits(self.hidden(tokens, segments, padding=padding))

    def hidden(
        self,
        tokens: Int[Tensor, "B T"],
        segments: Int[Tensor, "B T"] | None = None,
        *,
        padding: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Each token in its context: the stream after the last block."""
        check_tokens(tokens, self.config.seq_len, self.config.seq_len)
        check_padding(padding, *tokens.shape, device=tokens.device)
        # Filling in front takes places too, as in BERT: rows of an encoder are filled up at their end.
        positions = token_positions(tokens.shape[1], 0, None, tokens.device)
        x = self._embed(tokens, segments, positions)
        time = tokens.shape[1]
        mask = None
        if padding is not None:
            mask = visible(time, time, causal=False, padding=padding, device=tokens.device)
        rotation = rope_tables(self.config, positions) if self.config.positions == "rope" else None
        sight = Sight(causal=False, mask=mask, rotation=rotation)
        for block in self.blocks:
            x = block(x, sight)
        return self.final_norm(x)  # type: ignore[no-any-return]

    def logits(self, hidden: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch V"]:
        """The head that says which token was hidden.

        Raises:
            ConfigError: the model has no `mlm_head`.
        """
        if not self.config.mlm_head:
            raise ConfigError("this encoder has no mlm_head: set it in the config, or use hidden()")
        return self.mlm_head(hidden, self.token_embedding.weight)  # type: ignore[no-any-return]

    def pooled(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """One vector a row: tanh of a dense layer on the first token.

        Raises:
            ConfigError: the model has no pooler.
        """
        if not self.config.pooler:
            raise ConfigError("this encoder has no pooler: set it in the config")
        return torch.tanh(self.pooler(hidden[:, 0]))

    def follows_logits(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B 2"]:
        """Next-sentence prediction: scores of "the second part follows the first" (0) and "it does not" (1).

        Raises:
            ConfigError: the model has no `nsp_head`.
        """
        if not self.config.nsp_head:
            raise ConfigError("this encoder has no nsp_head: set it in the config")
        return self.nsp_head(self.pooled(hidden))  # type: ignore[no-any-return]

    def loss(
        self,
        tokens: Int[Tensor, "B T"],
        targets: Int[Tensor, "B T"],
        reduction: Reduction = "mean",
        ignore_index: int = IGNORE_INDEX,
        *,
        segments: Int[Tensor, "B T"] | None = None,
        padding: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, "B T"]:
        """Cross-entropy of the hidden tokens, in nats each.

        Args:
            tokens: with some hidden. targets: what stood there; `ignore_index` where nothing was hidden.
            segments, padding: as in `forward`. Without padding every place counts as a token, and is seen.
        """
        return loss_nats(self(tokens, segments, padding=padding), targets, reduction, ignore_index)

    def _embed(
        self, tokens: Int[Tensor, "B T"], segments: Int[Tensor, "B T"] | None, positions: Int[Tensor, " T"]
    ) -> Float[Tensor, "B T D"]:
        x = look_up(self.token_embedding, tokens)  # [B, T, D]
        if self.config.positions == "sinusoidal":
            waves = sinusoidal_positions(self.config.seq_len, self.config.d_model, tokens.device)
            x = x * math.sqrt(self.config.d_model) + waves[positions].to(x.dtype)
        elif self.config.positions == "learned":
            x = x + self.position_embedding.weight[: tokens.shape[1]]
        x = x + self._segments(tokens, segments)
        return self.dropout(self.embedding_norm(x))  # type: ignore[no-any-return]

    def _segments(
        self, tokens: Int[Tensor, "B T"], segments: Int[Tensor, "B T"] | None
    ) -> Float[Tensor, "B T D"] | Float[Tensor, " D"]:
        if segments is None:
            return self.segment_embedding.weight[0]
        check_tokens(segments, None, None, "segments")
        if segments.shape != tokens.shape:
            raise DataError(
                f"segments have the shape {tuple(segments.shape)}, tokens {tuple(tokens.shape)}: one for each"
            )
        try:
            return self.segment_embedding(segments)  # type: ignore[no-any-return]
        except IndexError:
            raise DataError(
                f"segments must lie in [0, {self.config.n_segments}); these reach from "
                f"{int(segments.min())} to {int(segments.max())}"
            ) from None
