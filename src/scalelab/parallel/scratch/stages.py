"""A model cut into stages: each a run of layers, the first with the tables, the last with the head.

Parameters keep the names they have in the whole model. Where the head is tied to the input table, first and
last stage each have a copy of it, and its gradient is the sum of theirs.
Source: Huang et al. 2018, arXiv:1811.06965, section 2.1. Taught in book/parallelism/pipeline.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from scalelab.core.errors import ParallelError
from scalelab.models import Decoder
from scalelab.models.attention import Sight
from scalelab.models.positions import rope_tables

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


def layers_of(n_layers: int, stage: int, n_stages: int) -> range:
    """A stage's layers; as equal as can be, the first ones have one more.

    Raises:
        ParallelError: fewer layers than stages.
    """
    if n_layers < n_stages:
        raise ParallelError(f"{n_layers} layers cannot be cut into {n_stages} stages: each needs one")
    size, longer = divmod(n_layers, n_stages)
    start = stage * size + min(stage, longer)
    return range(start, start + size + (stage < longer))


class Stage(nn.Module):
    """One stage of a decoder; its modules are the model's own, not copies.

    Args:
        model: the whole decoder. stage: which part, from 0. n_stages: of how many.

    Attributes:
        is_first: reads tokens, where others read a stream. is_last: gives logits, where others give a stream.

    Raises:
        ParallelError: fewer layers than stages; positions other than learned, rope or none.
    """

    def __init__(self, model: Decoder, stage: int, n_stages: int) -> None:
        super().__init__()
        config = model.config
        if config.positions not in ("learned", "rope", "none"):
            raise ParallelError(f"stages are written for learned positions or rope, not {config.positions!r}")
        self.config = config
        self.is_first, self.is_last = stage == 0, stage == n_stages - 1
        self.layers = layers_of(config.n_layers, stage, n_stages)
        self.blocks = nn.ModuleDict({str(layer): model.blocks[layer] for layer in self.layers})
        if self.is_first or (self.is_last and config.tie_embeddings):
            self.token_embedding = model.token_embedding
        if self.is_first and config.positions == "learned":
            self.position_embedding = model.position_embedding
        self.dropout = model.dropout
        if self.is_last:
            self.final_norm = model.final_norm
            if not config.tie_embeddings:
                self.head = model.head

    def forward(
        self, x: Int[Tensor, "B T"] | Float[Tensor, "B T D"]
    ) -> Float[Tensor, "B T D"] | Float[Tensor, "B T V"]:
        """Tokens, or the stream, as the stage before gives it; the stream, or logits, after this stage."""
        if self.is_first:
            tokens = x
            x = self.token_embedding(tokens)  # [B, T, D]
            if self.config.positions == "learned":
                x = x + self.position_embedding.weight[: tokens.shape[1]]
            x = self.dropout(x)
        places = torch.arange(x.shape[1], device=x.device)
        plain = Sight(causal=True)
        turned = plain
        if self.config.positions == "rope":
            turned = Sight(causal=True, rotation=rope_tables(self.config, places))
        for layer in self.layers:
            x = self.blocks[str(layer)](x, turned if self.config.uses_rope(layer) else plain)
        if self.is_last:
            table = self.token_embedding if self.config.tie_embeddings else self.head
            x = F.linear(self.final_norm(x), table.weight)  # [B, T, V]
        return x
