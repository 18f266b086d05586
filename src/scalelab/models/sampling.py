"""From logits to a token: temperature, top-k and top-p, in this order, then one draw.

Temperature divides the logits: below 1 the likely becomes likelier, at 0 only the likeliest is left. Top-k
keeps the k likeliest tokens, however likely they are. Top-p (nucleus sampling) keeps the fewest tokens that
together have the mass p: few where the model is sure, many where it is not.
Source: Fan et al. 2018, arXiv:1805.04833, section 5.4 (top-k); Holtzman et al. 2019, arXiv:1904.09751,
section 3.1 (top-p). Taught in book/transformers/inference.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from scalelab.core.checks import check_positive_int, is_number
from scalelab.core.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

FP32 = torch.finfo(torch.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """How the next token is drawn; the order and the sets that are kept are those of `transformers`' warpers.

    Attributes:
        temperature: at least 0; 0 takes the likeliest token (the lowest id among equals).
        top_k: keep this many likeliest tokens, and whatever is as likely as the last of them; None: all.
        top_p: keep the smallest set of likeliest tokens with at least this mass, in (0, 1], of what top-k
            left, and never less than one token; None or 1: all.

    Raises:
        ConfigError: a setting out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not (is_number(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature must be a finite number of at least 0, got {self.temperature!r}")
        if self.top_k is not None:
            check_positive_int("top_k", self.top_k)
        if self.top_p is not None and not (is_number(self.top_p) and 0 < self.top_p <= 1):
            raise ConfigError(
                f"top_p must lie in (0, 1], got {self.top_p!r}; for the likeliest token alone, temperature=0"
            )

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise ConfigError where more tokens are to be kept than there are."""
        if self.top_k is not None and self.top_k > vocab_size:
            raise ConfigError(f"top_k={self.top_k} is more than the vocabulary's {vocab_size} tokens")

    def warp(self, logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """Logits whose softmax is drawn from: tempered, -inf for tokens that are left out. fp32, on the CPU.

        Each row's largest is 0. At temperature 0 all but one are left out.

        Raises:
            WeightsError: a row without a largest finite logit.
        """
        best, first = logits.max(dim=-1, keepdim=True)  # both [B, 1]
        check_finite(best)
        # Less the maximum, so that a tiny temperature cannot overflow; widened first, since a difference of
        # two numbers of 16 bits is seldom one of them.
        wide = torch.promote_types(logits.dtype, torch.float32)
        scores = (logits.to(wide) - best.to(wide)).float().cpu()  # [B, V]
        if self.temperature == 0:
            return torch.full_like(scores, -torch.inf).scatter_(-1, first.cpu(), 0.0)
        # What fp32 would round to 0 or to infinity is as good as its smallest and largest number.
        scores = scores / min(max(self.temperature, FP32.tiny), FP32.max)
        if self.top_k is not None and self.top_k < scores.shape[-1]:
            least = scores.topk(self.top_k, dim=-1).values[:, -1:]  # [B, 1]
            scores = scores.masked_fill(scores < least, -torch.inf)
        if self.top_p is not None and self.top_p < 1:
            scores = _nucleus(scores, self.top_p)
        return scores

    def probabilities(self, logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """What `draw` draws from: fp32, on the CPU, each row summing to one."""
        return self.warp(logits).softmax(dim=-1)

    def draw(self, logits: Float[Tensor, "B V"], generator: torch.Generator) -> Int[Tensor, " B"]:
        """One token a row.

        Args:
            generator: on the CPU, where the draw happens: the same draws on every device.

        Raises:
            WeightsError: a row without a largest finite logit.
        """
        if self.temperature == 0:
            best, ids = logits.max(dim=-1)  # of equals, the first
            check_finite(best)
            return ids
        return draw_from(self.probabilities(logits), generator).to(logits.device)


def draw_from(probabilities: Float[Tensor, "B V"], generator: torch.Generator) -> Int[Tensor, " B"]:
    """One index a row, in proportion to the row's numbers."""
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)


def check_finite(best: Float[Tensor, "*batch"]) -> None:
    """Refuse rows by their largest logit, which is NaN where any is.

    Raises:
        WeightsError: naming what it is.
    """
    if math.isfinite(float(best.sum())):  # one number to wait for, not a row
        return
    wrong = best[~best.isfinite()]
    if wrong.numel():
        raise WeightsError(
            f"the largest logit of a row is {float(wrong[0])}: the weights hold numbers that are not finite "
            "(training diverged, or the file is damaged), or they overflow in this precision"
        )


def _nucleus(scores: Float[Tensor, "B V"], top_p: float) -> Float[Tensor, "B V"]:
    """Leave out the tail: the unlikeliest tokens whose mass together is at most 1 - p.

    Summed from the small end, where fp32 is exact enough to tell tokens of 1e-9 apart.
    """
    rising, ids = scores.sort(dim=-1)  # both [B, V]
    is_tail = rising.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    is_tail[:, -1] = False  # the likeliest always stays
    return scores.masked_fill(torch.empty_like(is_tail).scatter_(-1, ids, is_tail), -torch.inf)
