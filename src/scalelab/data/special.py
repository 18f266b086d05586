"""Ids that stand for no text: padding, [CLS], [SEP], [MASK] and the sentinels of span corruption.

A tokenizer of ours spells text and knows one id more, `end_of_text`, its last. What the objectives of an
encoder need is numbered on from there, so every id of the tokenizer keeps its meaning:

    0 ... V-2   text        V-1   end_of_text        V   pad    V+1  cls    V+2  sep    V+3  mask
    V+4 ...     sentinels, in the order in which they are used

Source: Devlin et al. 2019, arXiv:1810.04805 ([CLS], [SEP], [MASK]); Raffel et al. 2020, arXiv:1910.10683
(sentinels). Taught in book/transformers/architectures.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from scalelab.core.checks import check_count
from scalelab.core.errors import ConfigError
from scalelab.data.tokenization import Tokenizer

N_SPECIAL = 4  # pad, cls, sep and mask: what stands for no text, beside sentinels


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The special ids that follow a tokenizer's own; made by `special_tokens`.

    Attributes:
        pad: fills rows up to a common length; equals the tokenizer's vocab_size.
        cls: opens an encoder's input. sep: closes a part of it, and a target of span corruption.
        mask: stands where a token was hidden.
        sentinels: one for each hidden span of a window, first span first. T5's released vocabulary counts
            its own downwards from its last id; ours count upwards. Their order in the text is the same.

    Raises:
        ConfigError: the ids are not consecutive whole numbers after at least one id of text and
            `end_of_text`.
    """

    pad: int
    cls: int
    sep: int
    mask: int
    sentinels: tuple[int, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        ids = (self.pad, self.cls, self.sep, self.mask, *self.sentinels)
        for name, token in zip(("pad", "cls", "sep", "mask"), ids, strict=False):
            check_count(name, token)
        if self.pad < 2 or ids != tuple(range(self.pad, self.pad + len(ids))):
            raise ConfigError(
                f"special ids must follow each other after the tokenizer's own, at least two; got pad="
                f"{self.pad}, cls={self.cls}, sep={self.sep}, mask={self.mask}, sentinels={self.sentinels}; "
                "make them with special_tokens(tokenizer)"
            )

    @property
    def vocab_size(self) -> int:
        """All ids together: the tokenizer's and these. What a model's embedding table needs."""
        return self.pad + N_SPECIAL + len(self.sentinels)

    @property
    def end_of_text(self) -> int:
        """The tokenizer's last id, which parts documents."""
        return self.pad - 1

    @property
    def n_ordinary(self) -> int:
        """Ids 0 ... n_ordinary-1 spell text: the tokenizer's without `end_of_text`."""
        return self.pad - 1


def special_tokens(tokenizer: Tokenizer, n_sentinels: int = 0) -> SpecialTokens:
    """The special ids that belong to a tokenizer.

    Args:
        n_sentinels: how many spans a window can have hidden; `objectives.span_lengths` says how many that is.

    Raises:
        ConfigError: n_sentinels is not a whole number of at least 0.
    """
    check_count("n_sentinels", n_sentinels)
    first = tokenizer.vocab_size
    sentinels = tuple(range(first + N_SPECIAL, first + N_SPECIAL + n_sentinels))
    return SpecialTokens(first, first + 1, first + 2, first + 3, sentinels)
