"""A decoder: a stack of blocks that read a text's tokens and say, at each, how likely every next one is.

One class is GPT-2, Llama, GPT-NeoX and SmolLM3, by the parts its config plugs in: see norms.py,
positions.py, attention.py and feed_forward.py. Read this file from top to bottom.
Source: Radford et al. 2019 (GPT-2); Touvron et al. 2023, arXiv:2302.13971 (Llama).
Taught in book/transformers/training.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from scalelab.core.checks import check_count
from scalelab.core.config import DecoderConfig
from scalelab.core.errors import ConfigError, DataError
from scalelab.models.attention import Attention
from scalelab.models.feed_forward import make_feed_forward
from scalelab.models.initialisation import initialise
from scalelab.models.loss import IGNORE_INDEX, Reduction, loss_nats
from scalelab.models.norms import make_norm
from scalelab.models.positions import rope_tables, sinusoidal_positions

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from scalelab.models.attention import Rotation


class Block(nn.Module):
    """Attention, then feed-forward; each reads a normed copy of the stream and adds to it."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.uses_rope = config.uses_rope(layer)
        self.parallel = config.parallel_residual
        self.attention_norm = make_norm(config)
        self.attention = Attention(config)
        self.feed_forward_norm = make_norm(config)
        self.feed_forward = make_feed_forward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "B T D"], rotation: Rotation | None) -> Float[Tensor, "B T D"]:
        attended = self.attention(self.attention_norm(x), rotation if self.uses_rope else None)
        if self.parallel:  # both read the same x, so a machine may do them at once
            return x + self.dropout(attended) + self.dropout(self.feed_forward(self.feed_forward_norm(x)))  # type: ignore[no-any-return]
        x = x + self.dropout(attended)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """A causal language model.

    Args:
        config: which parts, and how large.
        seed: of the initial weights, which depend on nothing else: not on torch's global random state
            (which stays as it was), nor on the device. None draws a fresh seed from the system.
        device: where the weights live. On "meta" there are none, only shapes.

    Raises:
        ConfigError: `config` is not a DecoderConfig, or the seed is not a whole number.
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
            self.dropout = nn.Dropout(config.dropout)
            self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
            self.final_norm = make_norm(config)
            if not config.tie_embeddings:
                self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        device = torch.device("cpu" if device is None else device)
        if device.type != "meta":
            self.to_empty(device=device)
            initialise(self, config.n_layers, _seeded(seed))

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Unnormalised log-probabilities of each next token.

        Raises:
            DataError: tokens of another type or rank, none or more than `seq_len` of them, or (on the
                CPU) outside the vocabulary.
        """
        return self.logits(self.hidden(tokens))

    def hidden(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """The stream after the last block and norm: what the head reads."""
        self._check(tokens)
        time = tokens.shape[1]
        x = self._embed(tokens)  # [B, T, D]
        rotation = None
        if self.config.positions == "rope":
            rotation = rope_tables(self.config, time, tokens.device)
        for block in self.blocks:
            x = block(x, rotation)
        return self.final_norm(x)  # type: ignore[no-any-return]

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

    def _embed(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        try:
            x = self.token_embedding(tokens)  # [B, T, D]
        except IndexError:
            # The CPU's look-up checks every id anyway, so asking afterwards costs a good step nothing.
            # An accelerator could only be asked by waiting for it: there the data must be right.
            raise DataError(
                f"token ids must lie in [0, {self.config.vocab_size}), the model's vocabulary; "
                f"these reach from {int(tokens.min())} to {int(tokens.max())}"
            ) from None
        time = tokens.shape[1]
        if self.config.positions == "learned":
            x = x + self.position_embedding.weight[:time]
        elif self.config.positions == "sinusoidal":
            # The waves have size 1 and the table 0.02: the paper's √D (section 3.4) keeps words audible.
            waves = sinusoidal_positions(time, self.config.d_model, tokens.device)
            x = x * math.sqrt(self.config.d_model) + waves.to(x.dtype)
        return self.dropout(x)  # type: ignore[no-any-return]

    def _check(self, tokens: Int[Tensor, "B T"]) -> None:
        if not isinstance(tokens, torch.Tensor) or tokens.dtype not in (torch.int64, torch.int32):
            found = tokens.dtype if isinstance(tokens, torch.Tensor) else type(tokens).__name__
            raise DataError(f"tokens must be a tensor of int64 or int32, got {found}")
        if tokens.ndim != 2 or tokens.numel() == 0:
            raise DataError(
                f"tokens must have the shape [batch, time], neither of them 0, got {tuple(tokens.shape)}"
            )
        if tokens.shape[1] > self.config.seq_len:
            raise DataError(
                f"{tokens.shape[1]} tokens are more than the model's seq_len={self.config.seq_len}: "
                "cut them, or build a model with a longer seq_len"
            )


def _seeded(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    if seed is None:
        generator.seed()
        return generator
    check_count("seed", seed)
    return generator.manual_seed(seed)
