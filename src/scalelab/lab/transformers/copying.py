"""A task that only positions solve: at each place, say which symbol stood one place before.

Every sequence is a shuffle of the same symbols, so each occurs once and nothing but order is to be known.
What a model without some of that knowledge can reach at best is a number, not a guess: `best_accuracy`.
Taught in book/transformers/attention.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import nn

from scalelab.core.checks import check_choice, check_positive, check_positive_int
from scalelab.core.errors import ConfigError
from scalelab.lab.checks.answers import one_thread
from scalelab.models.loss import IGNORE_INDEX

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

Positions = Literal["none", "sinusoidal", "learned", "rope", "alibi"]
POSITIONS: tuple[Positions, ...] = ("none", "sinusoidal", "learned", "rope", "alibi")


@dataclass(frozen=True, kw_only=True, slots=True)
class CopierConfig:
    """A small model for the task.

    Attributes:
        positions: how it is told where a symbol stands. is_causal: whether places see later ones.
        n_symbols: how many symbols there are; a sequence holds each once, so it is the length too.
        n_layers, n_heads, d_model: as everywhere; K = d_model / n_heads.
        is_scaled: whether scores are divided by √K.
        init_std: size of the initial matrices; None makes it 1/√rows, so that a normed stream gives queries
            and keys of spread 1. (GPT-2 has 0.02, whatever the width.)
    """

    positions: Positions
    is_causal: bool = False
    n_symbols: int = 16
    n_layers: int = 2
    n_heads: int = 2
    d_model: int = 32
    is_scaled: bool = True
    init_std: float | None = None

    def __post_init__(self) -> None:
        check_choice("positions", self.positions, POSITIONS)
        for name in ("n_symbols", "n_layers", "n_heads", "d_model"):
            check_positive_int(name, getattr(self, name))
        if self.init_std is not None:
            check_positive("init_std", self.init_std)
        if self.n_symbols < 2:
            raise ConfigError(
                f"n_symbols must be at least 2, or nothing has a neighbour; got {self.n_symbols}"
            )
        if self.d_model % (2 * self.n_heads):
            raise ConfigError(
                f"d_model={self.d_model} must split into n_heads={self.n_heads} heads of even width"
            )


class Copier(nn.Module):
    """Attention and a small feed-forward part, twice; positions, mask and depth as its config says.

    Raises:
        ConfigError: by way of the config.
    """

    def __init__(self, config: CopierConfig, *, seed: int) -> None:
        super().__init__()
        self.config = config
        width, generator = config.d_model, torch.Generator().manual_seed(seed)

        def matrix(rows: int, columns: int) -> nn.Parameter:
            std = 1 / math.sqrt(rows) if config.init_std is None else config.init_std
            return nn.Parameter(torch.randn(rows, columns, generator=generator) * std)

        self.symbols = nn.Parameter(torch.randn(config.n_symbols, width, generator=generator))
        if config.positions == "learned":
            self.table = nn.Parameter(torch.randn(config.n_symbols, width, generator=generator))
        layers = range(config.n_layers)
        self.qkv = nn.ParameterList(matrix(width, 3 * width) for _ in layers)
        self.out = nn.ParameterList(matrix(width, width) for _ in layers)
        self.up = nn.ParameterList(matrix(width, 2 * width) for _ in layers)
        self.down = nn.ParameterList(matrix(2 * width, width) for _ in layers)
        self.head = matrix(width, config.n_symbols)

    def forward(self, symbols: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Logits of the symbol one place before each."""
        config, time = self.config, symbols.shape[1]
        x = self.symbols[symbols]  # [B, T, D]
        if config.positions == "learned":
            x = x + self.table[:time]
        elif config.positions == "sinusoidal":
            x = x + sinusoids(time, config.d_model).to(x)
        for qkv, out, up, down in zip(self.qkv, self.out, self.up, self.down, strict=True):
            x = x + self._attend(F.layer_norm(x, (config.d_model,)) @ qkv) @ out
            x = x + F.gelu(F.layer_norm(x, (config.d_model,)) @ up) @ down
        return F.layer_norm(x, (config.d_model,)) @ self.head

    def _attend(self, qkv: Float[Tensor, "B T 3*D"]) -> Float[Tensor, "B T D"]:
        config = self.config
        batch, time, _ = qkv.shape
        heads = qkv.view(batch, time, 3, config.n_heads, config.d_model // config.n_heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each [B, H, T, K]
        if config.positions == "rope":
            q, k = turn(q), turn(k)
        bias = torch.zeros(config.n_heads, time, time, device=qkv.device)
        if config.positions == "alibi":
            bias = distance_penalty(config.n_heads, time).to(qkv)
        if config.is_causal:
            bias = bias.masked_fill(torch.ones_like(bias, dtype=torch.bool).triu(1), -math.inf)
        scale = q.shape[-1] ** -0.5 if config.is_scaled else 1.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)  # [B, H, T, K]
        return mixed.transpose(1, 2).reshape(batch, time, config.d_model)


def sinusoids(seq_len: int, width: int) -> Float[Tensor, "T D"]:
    """Sines in the first half of the columns and cosines in the second, wavelengths from 2π to 20,000π.

    Differs: the paper interleaves them; the order of columns is of no consequence to a model that learns.
    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5.
    """
    angles = torch.outer(torch.arange(seq_len).float(), 10_000.0 ** (-torch.arange(0, width, 2) / width))
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def turn(x: Float[Tensor, "B H T K"]) -> Float[Tensor, "B H T K"]:
    """Rotary positions: number i and number i + K/2 turn by t · 10000^(-2i/K).

    Source: Su et al. 2021, arXiv:2104.09864, eq. 34 (pairs of halves, as `transformers` has them).
    """
    time, width = x.shape[-2:]
    angles = torch.outer(
        torch.arange(time).float(), 10_000.0 ** (-torch.arange(0, width, 2) / width)
    ).to(x)  # fmt: skip
    cos, sin = angles.cos(), angles.sin()  # [T, K/2]
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def distance_penalty(n_heads: int, seq_len: int) -> Float[Tensor, "H T T"]:
    """ALiBi without its mask: -2^(-8h/H) · |i - j| for heads h = 1 … H.

    Source: Press et al. 2021, arXiv:2108.12409, section 3 (causal there; symmetric here where unmasked).
    """
    slopes = 2.0 ** (-8 * torch.arange(1, n_heads + 1) / n_heads)
    places = torch.arange(seq_len)
    return -slopes[:, None, None] * (places[:, None] - places[None, :]).abs()


def draw_shuffles(
    n_sequences: int, n_symbols: int, generator: torch.Generator
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Shuffles of all symbols, and at each place the symbol one place before (at the first: no target)."""
    symbols = torch.rand(n_sequences, n_symbols, generator=generator).argsort(dim=1)
    targets = symbols.roll(1, dims=1)
    targets[:, 0] = IGNORE_INDEX
    return symbols, targets


def train_copier(
    model: Copier, *, n_steps: int, seed: int, batch_size: int = 64, learning_rate: float = 3e-3
) -> list[tuple[int, float]]:
    """Train on fresh shuffles; on one thread, since a second would only wait for tensors so small.

    Returns:
        (steps done, accuracy on 512 fresh shuffles) at powers of two and at the end.

    Raises:
        ConfigError: no step, or no sequence in a batch.
    """
    check_positive_int("n_steps", n_steps)
    check_positive_int("batch_size", batch_size)
    device = model.symbols.device
    drawn = torch.Generator().manual_seed(seed + 1_000_003)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, betas=(0.9, 0.95))
    curve = []
    with one_thread():
        for step in range(1, n_steps + 1):
            # A straight line to a tenth: the last steps settle.
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - 0.9 * (step - 1) / n_steps)
            shuffles = draw_shuffles(batch_size, model.config.n_symbols, drawn)
            symbols, targets = (part.to(device) for part in shuffles)
            logits = model(symbols).flatten(0, 1)  # [B·T, V]
            loss = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE_INDEX)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if step == n_steps or step & (step - 1) == 0:
                curve.append((step, accuracy(model, seed=seed)))
    return curve


def best_accuracy(config: CopierConfig) -> float:
    """The most that any weights can reach, where what the model is not told sets a limit; else 1.

    Unmasked and without positions, an output depends on the symbol and on the set of the others, of which
    each is equally likely to stand before it: 1/(n-1). Distances without direction cannot tell before from
    after: of two places mirrored at the middle one is wrong, and only the last place has no "after". One
    causal layer without positions sees the set of what came before, t symbols at place t: the mean of 1/t.
    """
    n = config.n_symbols
    if config.positions == "none" and not config.is_causal:
        return 1 / (n - 1)
    if config.positions == "none" and config.n_layers == 1:
        return sum(1 / place for place in range(1, n)) / (n - 1)
    if config.positions == "alibi" and not config.is_causal:
        return n / 2 / (n - 1)
    return 1.0


@torch.no_grad()
def accuracy(model: Copier, *, seed: int, n_sequences: int = 512) -> float:
    """The share of places (without the first) at which the model's best guess is right, on fresh shuffles."""
    drawn = torch.Generator().manual_seed(seed + 2_000_003)
    symbols, targets = draw_shuffles(n_sequences, model.config.n_symbols, drawn)
    symbols, targets = symbols.to(model.symbols.device), targets.to(model.symbols.device)
    right = model(symbols).argmax(-1) == targets
    return float(right[:, 1:].float().mean())
