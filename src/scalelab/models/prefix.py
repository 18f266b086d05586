"""Texts that grow token by token, and what a model says comes next: what every way of generating shares.

A prefix knows which of its tokens the model has read. With a cache, asking for the next token reads only
those that are new; without one, it reads everything again (but never a source).
Taught in book/transformers/inference.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from scalelab.core.checks import check_bool, check_positive_int
from scalelab.core.errors import ConfigError, DataError
from scalelab.models.building import evaluating
from scalelab.models.decoder import Decoder
from scalelab.models.encoder_decoder import EncoderDecoder
from scalelab.models.masks import check_padding

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


class Prefix(Protocol):
    """A batch of growing texts. `logits` is asked once between two calls of `append`."""

    @property
    def written(self) -> Int[Tensor, "B T"]:
        """What there is so far: of a decoder prompts and continuations, else what the target holds."""

    def logits(self) -> Float[Tensor, "B V"]:
        """Unnormalised log-probabilities of each text's next token."""

    def append(self, tokens: Int[Tensor, " B"]) -> None:
        """One more token for each text."""

    def select(self, rows: Int[Tensor, " N"]) -> None:
        """Go on with these texts, in this order; one may be taken more than once."""


class DecoderPrefix:
    """Prompts that a decoder continues.

    Beyond `seq_len` tokens the model reads the last `seq_len` of them, all again for each new token: they
    have all moved to other places, and what was kept of them no longer holds.

    Args:
        prompt_ids: [B, T0]. padding: True for tokens, False for filling on the left; None: all are tokens.
        max_new_tokens: how many there may be after the prompt.
        use_cache: keep keys and values.
    """

    def __init__(
        self,
        model: Decoder,
        prompt_ids: Int[Tensor, "B T0"],
        padding: Bool[Tensor, "B T0"] | None,
        *,
        max_new_tokens: int,
        use_cache: bool,
    ) -> None:
        batch, n_prompt = prompt_ids.shape
        total = n_prompt + max_new_tokens
        self._model = model
        self._tokens = prompt_ids.new_empty((batch, total), dtype=torch.int64)
        self._tokens[:, :n_prompt] = prompt_ids
        self._padding = None
        if padding is not None and not bool(padding.all()):
            self._padding = padding.new_ones((batch, total))
            self._padding[:, :n_prompt] = padding
        self.length = n_prompt
        # The last token is never read, so it needs no room.
        room = min(total - 1, model.config.seq_len)
        self._cache = model.make_cache(batch, max(room, 1)) if use_cache else None

    @property
    def written(self) -> Int[Tensor, "B T"]:
        """Prompts and continuations."""
        return self._tokens[:, : self.length]

    def logits(self) -> Float[Tensor, "B V"]:
        """Unnormalised log-probabilities of each text's next token."""
        return self._model.logits(self._read()[:, -1])  # only the last token's head is needed

    def last_logits(self, n_last: int) -> Float[Tensor, "B n V"]:
        """Those after each of the last `n_last` tokens, which must be among the unread ones."""
        return self._model.logits(self._read()[:, -n_last:])

    def append(self, tokens: Int[Tensor, " B"]) -> None:
        """One more token for each text."""
        self._tokens[:, self.length] = tokens
        self.length += 1

    def rewrite(self, begin: int, tokens: Int[Tensor, "B n"]) -> None:
        """Go back to the first `begin` tokens and go on with these.

        All but the last of them count as read as far as any were: they must be the ones that stood there,
        but for rows whose text has ended.
        """
        self.length = begin + tokens.shape[1]
        self._tokens[:, begin : self.length] = tokens
        if self._cache is not None:
            self._cache.crop(min(self._cache.length, self.length - 1))

    def select(self, rows: Int[Tensor, " N"]) -> None:
        """Go on with these texts."""
        self._tokens = self._tokens[rows]
        if self._padding is not None:
            self._padding = self._padding[rows]
        if self._cache is not None:
            self._cache.select(rows)

    def _read(self) -> Float[Tensor, "B n D"]:
        begin = max(0, self.length - self._model.config.seq_len)
        if begin > 0:
            self._cache = None
        first = begin if self._cache is None else self._cache.length
        padding = None if self._padding is None else self._padding[:, begin : self.length]
        return self._model.hidden(self._tokens[:, first : self.length], padding=padding, cache=self._cache)


class TargetPrefix:
    """Targets that an encoder–decoder writes, each for its source, from the start token (`pad_id`) on.

    Args:
        source: [B, S]. padding: True where the source has a token; None: everywhere.
        max_new_tokens: how many the target may have.
        use_cache: keep keys and values, of the target and of the source; without it they are computed again
            for each token. The encoder runs once either way.
    """

    def __init__(
        self,
        model: EncoderDecoder,
        source: Int[Tensor, "B S"],
        padding: Bool[Tensor, "B S"] | None,
        *,
        max_new_tokens: int,
        use_cache: bool,
    ) -> None:
        self._model = model
        self._source = model.read(source, padding=padding, keep=use_cache)
        batch = source.shape[0]
        self._tokens = source.new_full((batch, 1 + max_new_tokens), model.config.pad_id, dtype=torch.int64)
        self.length = 1
        self._cache = model.make_cache(batch, max_new_tokens) if use_cache else None

    @property
    def written(self) -> Int[Tensor, "B T"]:
        """The targets, without the start token."""
        return self._tokens[:, 1 : self.length]

    def logits(self) -> Float[Tensor, "B V"]:
        """Unnormalised log-probabilities of each target's next token."""
        first = 0 if self._cache is None else self._cache.length
        hidden = self._model.write(self._tokens[:, first : self.length], self._source, cache=self._cache)
        return self._model.logits(hidden[:, -1])

    def append(self, tokens: Int[Tensor, " B"]) -> None:
        """One more token for each target."""
        self._tokens[:, self.length] = tokens
        self.length += 1

    def select(self, rows: Int[Tensor, " N"]) -> None:
        """Go on with these targets."""
        self._tokens = self._tokens[rows]
        self._source = self._source.rows(rows)
        if self._cache is not None:
            self._cache.select(rows)


def open_prefix(
    model: Decoder | EncoderDecoder,
    prompt_ids: Int[Tensor, "B T0"],
    padding: Bool[Tensor, "B T0"] | None,
    *,
    max_new_tokens: int,
    use_cache: bool = True,
) -> Prefix:
    """What the model is to continue, checked.

    Raises:
        DataError: prompts that are empty, of another type or shape, elsewhere than the model, or hold ids
            outside the vocabulary; padding of another type or shape, or (for a decoder) not on the left.
        ConfigError: a model that does not write, or a setting out of its range.
    """
    if not isinstance(model, Decoder | EncoderDecoder):
        inside = ": give the module inside it, model._orig_mod" if hasattr(model, "_orig_mod") else ""
        raise ConfigError(
            f"text is written by a Decoder or an EncoderDecoder, got {type(model).__name__}{inside}"
        )
    check_positive_int("max_new_tokens", max_new_tokens)
    check_bool("use_cache", use_cache)
    check_prompt(prompt_ids, model)
    check_padding(padding, *prompt_ids.shape, device=prompt_ids.device)
    if isinstance(model, EncoderDecoder):
        return TargetPrefix(model, prompt_ids, padding, max_new_tokens=max_new_tokens, use_cache=use_cache)
    check_left(padding)
    return DecoderPrefix(model, prompt_ids, padding, max_new_tokens=max_new_tokens, use_cache=use_cache)


@contextlib.contextmanager
def generating(*models: nn.Module) -> Iterator[None]:
    """Without dropout and without gradients; every module's mode as before afterwards."""
    with evaluating(*models), torch.inference_mode():
        yield


def check_prompt(prompt_ids: Int[Tensor, "B T0"], model: Decoder | EncoderDecoder) -> None:
    """Refuse prompts that cannot be continued.

    Raises:
        DataError: naming what was found and what is needed.
    """
    if not isinstance(prompt_ids, torch.Tensor) or prompt_ids.dtype not in (torch.int64, torch.int32):
        found = prompt_ids.dtype if isinstance(prompt_ids, torch.Tensor) else type(prompt_ids).__name__
        raise DataError(f"prompt_ids must be a tensor of int64 or int32, got {found}")
    if prompt_ids.ndim != 2 or prompt_ids.numel() == 0:
        raise DataError(
            f"prompt_ids must have the shape [batch, time] with at least one token a row, "
            f"got {tuple(prompt_ids.shape)}; to start from nothing, give the end-of-text token"
        )
    device = model.token_embedding.weight.device
    if prompt_ids.device != device:
        raise DataError(f"prompt_ids are on {prompt_ids.device}, the model on {device}: move one of them")
    low, high = int(prompt_ids.min()), int(prompt_ids.max())
    vocab_size = model.config.vocab_size
    if low < 0 or high >= vocab_size:  # asked on any device: here, unlike in training, it is asked once
        raise DataError(f"prompt ids must lie in [0, {vocab_size}), these reach from {low} to {high}")


def check_left(padding: Bool[Tensor, "B T0"] | None) -> None:
    """Refuse filling behind a token: what is generated would not follow the prompt.

    Raises:
        DataError: naming the first such row.
    """
    if padding is None:
        return
    gaps = (padding[:, :-1] & ~padding[:, 1:]).any(dim=1)
    if bool(gaps.any()):
        row = int(gaps.nonzero()[0, 0])
        raise DataError(
            f"row {row} of padding has filling behind a token: fill prompts up on the left, "
            "so that each ends where its continuation begins"
        )


def check_ending(end_id: int | None, pad_id: int | None, vocab_size: int) -> None:
    """Refuse ids that are no tokens of the vocabulary.

    Raises:
        ConfigError: naming the setting.
    """
    for name, value in (("end_id", end_id), ("pad_id", pad_id)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab_size:
            raise ConfigError(
                f"{name} must be a token of the vocabulary, in [0, {vocab_size}), or None; got {value!r}"
            )


def filling(model: Decoder | EncoderDecoder, end_id: int | None, pad_id: int | None) -> int:
    """What fills a text that has ended: `pad_id`, or an encoder–decoder's own, or the end token again."""
    if pad_id is not None:
        return pad_id
    if isinstance(model, EncoderDecoder):
        return model.config.pad_id
    return 0 if end_id is None else end_id
