"""Beam search: keep the few likeliest beginnings at each step, instead of the single likeliest.

A beam is a beginning with its score, the sum of the log-probabilities of its tokens. All beams are extended
by all tokens, and the best of these go on; those that end are set aside, their score divided by a power of
their length.
Source: Sutskever et al. 2014, arXiv:1409.3215, section 3.2; Wu et al. 2016, arXiv:1609.08144, section 7
(length). Taught in book/transformers/inference.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from scalelab.core.checks import check_positive_int, is_number
from scalelab.core.errors import ConfigError
from scalelab.models.prefix import check_ending, filling, generating, open_prefix
from scalelab.models.sampling import check_finite

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from scalelab.models.decoder import Decoder
    from scalelab.models.encoder_decoder import EncoderDecoder

EarlyStopping = bool | Literal["never"]
# The score of what may not be chosen, as in `transformers`. Not -inf: with fewer extensions than beams some
# of it must be taken after all, and is extended further. What comes of that is no text, and not handed out.
NEVER = -1.0e9
MAX_PENALTY = 10.0  # n to this power, for thousands of tokens, is still a number in fp32


@dataclass(frozen=True, slots=True, eq=False)  # tensors do not say whether they are equal
class Beams:
    """What a beam search found.

    Attributes:
        tokens: [B, N, T], int64, best first: of a decoder with the prompt, of an encoder–decoder without the
            start token. Shorter ones are filled up at the end.
        scores: [B, N]: sum of the log-probabilities of the written tokens, nats, over their number to the
            power `length_penalty`.
    """

    tokens: Int[Tensor, "B N T"]
    scores: Float[Tensor, "B N"]


@dataclass(frozen=True, slots=True)
class _Rules:
    """Settings of a search that do not change while it runs."""

    n_beams: int
    max_new_tokens: int
    length_penalty: float
    early_stopping: EarlyStopping
    end_id: int | None

    def __post_init__(self) -> None:
        check_positive_int("n_beams", self.n_beams)
        check_positive_int("max_new_tokens", self.max_new_tokens)
        if not (is_number(self.length_penalty) and abs(self.length_penalty) <= MAX_PENALTY):
            raise ConfigError(
                f"length_penalty must lie in [-{MAX_PENALTY:g}, {MAX_PENALTY:g}], got {self.length_penalty!r}"
            )
        if self.early_stopping is not True and self.early_stopping not in (False, "never"):
            raise ConfigError(f"early_stopping must be True, False or 'never', got {self.early_stopping!r}")


def beam_search(
    model: Decoder | EncoderDecoder,
    prompt_ids: Int[Tensor, "B T0"],
    *,
    n_beams: int,
    max_new_tokens: int,
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
    end_id: int | None = None,
    pad_id: int | None = None,
    n_return: int = 1,
    padding: Bool[Tensor, "B T0"] | None = None,
) -> Beams:
    """The likeliest texts that a search of this width finds: not always the likeliest there are.

    The rules are those of `transformers` 5, whose tokens and scores these are:

    - End. A text that writes `end_id`, or reaches `max_new_tokens`, is finished. At each step the 2·n_beams
      best extensions are looked at, so that n_beams unfinished ones remain even where the best all end;
      an ending counts only if it is among the n_beams best of these.
    - Length. A finished text's score is divided by n^length_penalty, n being the tokens it wrote, the end
      token included and the prompt not. Scores are negative, so a larger penalty prefers longer texts.
    - Stopping. A row stops when its best beam could no longer beat the worst of its n_beams finished texts.
      How far the beam could get is guessed: False takes its score at its present length, which may stop too
      early where length_penalty > 0; "never" takes its score at the full length there, and is never wrong.
      With True a row also takes no more texts once it has n_beams finished ones.
    - Ties. Equal scores go in the order of `torch.topk`, which promises none.

    Args:
        model: what writes. prompt_ids: prompts, or sources; see `generate`.
        n_beams: beginnings kept at each step; 1 is greedy. n_return: how many of them to give back.
        max_new_tokens, length_penalty, early_stopping, end_id: see above. None: no token ends a text.
        pad_id: what shorter texts are filled up with; None: as in `generate`.
        padding: True for tokens, False for filling; of prompts on the left. None: all are tokens.

    Raises:
        DataError: prompts or padding that cannot be used.
        ConfigError: a setting out of its range, a model that does not write, or an n_return of more texts
            than this search found, which with few tokens can be fewer than n_beams.
        WeightsError: logits that are not finite.

    Differs: `transformers` fills up with the end token where pad_id is 0, whatever was asked for.
    """
    rules = _Rules(n_beams, max_new_tokens, length_penalty, early_stopping, end_id)
    check_positive_int("n_return", n_return)
    if n_return > n_beams:
        raise ConfigError(f"n_return={n_return} is more than n_beams={n_beams}: only so many are found")
    with generating(model):
        prefix = open_prefix(model, prompt_ids, padding, max_new_tokens=max_new_tokens)
        check_ending(end_id, pad_id, model.config.vocab_size)
        batch, device = prompt_ids.shape[0], prompt_ids.device
        search = _Search(rules, batch, filling(model, end_id, pad_id), device)
        before = prefix.written  # [B, T0] prompts, or nothing
        logits = prefix.logits()  # the prompt is read once for all its beams
        prefix.select(torch.arange(batch, device=device).repeat_interleave(n_beams))
        logits = logits.repeat_interleave(n_beams, dim=0)  # [B·N, V]
        while True:
            check_finite(logits.max(dim=-1).values)
            parents = search.extend(logits.float().log_softmax(dim=-1))
            if search.is_over:
                break
            prefix.select(parents)
            prefix.append(search.newest)
            logits = prefix.logits()
        tokens, scores = search.result(n_return)
        prompts = before[:, None].expand(-1, n_return, -1)
        tokens = torch.cat((prompts, tokens), dim=-1)
    return Beams(tokens.clone(), scores.clone())


class _Search:
    """Beams that go on, and texts that are finished, for each row of a batch."""

    def __init__(self, rules: _Rules, batch: int, pad_id: int, device: torch.device) -> None:
        self.rules = rules
        self.length = 0
        self.is_over = False
        shape = (batch, rules.n_beams)
        self._running = torch.full((*shape, rules.max_new_tokens), pad_id, device=device)  # [B, N, n]
        self._finished = self._running.clone()
        # One beam at first: all are the same prompt, and would all find the same best tokens.
        self._running_scores = torch.full(shape, NEVER, device=device)
        self._running_scores[:, 0] = 0.0
        self._scores = torch.full(shape, NEVER, device=device)
        self._lengths = torch.zeros(shape, dtype=torch.int64, device=device)
        self._is_finished = torch.zeros(shape, dtype=torch.bool, device=device)
        self._may_improve = torch.ones((batch, 1), dtype=torch.bool, device=device)

    @property
    def newest(self) -> Int[Tensor, " B*N"]:
        """The last token of each running beam."""
        return self._running[:, :, self.length - 1].flatten()

    def extend(self, log_probabilities: Float[Tensor, "B*N V"]) -> Int[Tensor, " B*N"]:
        """One step; for each beam that goes on, which of the B·N it extends."""
        batch, n_beams = self._scores.shape
        vocab_size = log_probabilities.shape[-1]
        sums = log_probabilities.view(batch, n_beams, vocab_size) + self._running_scores[:, :, None]
        n_looked_at = min(2 * n_beams, n_beams * vocab_size)  # fewer where there is but one token
        sums, places = sums.flatten(1).topk(n_looked_at, dim=-1)  # [B, 2N] each
        parents = places // vocab_size
        texts = _take(self._running, parents)  # [B, 2N, n]
        texts[:, :, self.length] = places % vocab_size
        self.length += 1
        ends = torch.full_like(parents, self.length == self.rules.max_new_tokens, dtype=torch.bool)
        if self.rules.end_id is not None:
            ends |= texts[:, :, self.length - 1] == self.rules.end_id

        running = sums + ends * NEVER
        chosen = running.topk(n_beams, dim=-1).indices  # [B, N]
        self._running, self._running_scores = _take(texts, chosen), running.gather(1, chosen)
        self._finish(texts, sums, ends)
        self._may_improve &= self._could_improve()
        has_open_row = not (self.rules.early_stopping is True and bool(self._is_finished.all()))
        self.is_over = not (bool(self._may_improve.any()) and has_open_row and not bool(ends.all()))
        first = torch.arange(batch, device=parents.device)[:, None] * n_beams
        return (parents.gather(1, chosen) + first).flatten()

    def result(self, n_return: int) -> tuple[Int[Tensor, "B N n"], Float[Tensor, "B N"]]:
        """The best finished texts, as long as the longest of them, and their scores.

        Raises:
            ConfigError: a row does not have so many.
        """
        lengths, scores = self._lengths[:, :n_return], self._scores[:, :n_return]
        sums = scores.double() * lengths.clamp(min=1).double() ** self.rules.length_penalty
        # Less is no sum of log-probabilities; but -inf is one, of a text that the model rules out.
        n_found = int(((sums > NEVER / 2) | sums.isinf()).sum(dim=1).min())
        if n_found < n_return:
            raise ConfigError(
                f"n_return={n_return} texts, and the search found only {n_found}: ask for no more, or let it "
                "write more tokens"
            )
        return self._finished[:, :n_return, : int(lengths.max())], scores

    def _finish(
        self, texts: Int[Tensor, "B 2N n"], sums: Float[Tensor, "B 2N"], ends: Bool[Tensor, "B 2N"]
    ) -> None:
        """Set aside the texts that ended, where they beat those that are there."""
        n_beams = self.rules.n_beams
        ends = ends.clone()
        ends[:, n_beams:] = False
        scores = sums / float(self.length**self.rules.length_penalty)
        if self.rules.early_stopping is True:
            scores = scores + self._is_finished.all(dim=-1, keepdim=True) * NEVER
        scores = scores + ~self._may_improve * NEVER
        scores = scores + ~ends * NEVER
        scores = torch.cat((self._scores, scores), dim=1)  # [B, 3N]: those that are there first
        chosen = scores.topk(n_beams, dim=-1).indices
        self._scores = scores.gather(1, chosen)
        self._finished = _take(torch.cat((self._finished, texts), dim=1), chosen)
        self._is_finished = torch.cat((self._is_finished, ends), dim=1).gather(1, chosen)
        lengths = torch.cat((self._lengths, torch.full_like(ends, self.length, dtype=torch.int64)), dim=1)
        self._lengths = lengths.gather(1, chosen)

    def _could_improve(self) -> Bool[Tensor, "B 1"]:
        """Whether a row's best beam may still beat the worst of its finished texts, by the rule's guess."""
        penalty = self.rules.length_penalty
        at_full = self.rules.early_stopping == "never" and penalty > 0
        length = self.rules.max_new_tokens if at_full else self.length
        best = self._running_scores[:, :1] / float(length**penalty)  # [B, 1]
        worst = self._scores.min(dim=1, keepdim=True).values.where(self._is_finished, NEVER)  # [B, N]
        return (best > worst).any(dim=-1, keepdim=True)


def _take(texts: Int[Tensor, "B M n"], chosen: Int[Tensor, "B N"]) -> Int[Tensor, "B N n"]:
    return texts.gather(1, chosen[:, :, None].expand(-1, -1, texts.shape[-1]))
