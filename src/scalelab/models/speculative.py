"""Speculative decoding: a small model drafts several tokens, the large one judges them all in one pass.

Decoding one token at a time leaves a machine waiting for weights; reading a few tokens at once costs the
target little more time than reading one. A draft token x is kept with probability min(1, p(x)/q(x)); the
first that is not is replaced by one drawn from what the draft gave too little, max(0, p - q) normalised.
What is written is then distributed exactly as if the target alone had written it.
Source: Leviathan et al. 2023, arXiv:2211.17192, section 2 and appendix A.1; Chen et al. 2023,
arXiv:2302.01318, algorithm 2. Taught in book/transformers/inference.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from scalelab.core.checks import check_positive_int, check_seed, is_number
from scalelab.core.errors import ConfigError, DataError
from scalelab.models.decoder import Decoder
from scalelab.models.masks import check_padding
from scalelab.models.prefix import DecoderPrefix, check_ending, check_left, check_prompt, filling, generating
from scalelab.models.sampling import Sampler, draw_from

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)  # tensors do not say whether they are equal
class Speculation:
    """What was written, and what it took.

    Attributes:
        tokens: [B, T], int64: the prompts with their continuations.
        n_drafted: tokens the draft proposed for rows that had not ended.
        n_judged: those that the target came to judge: in each row, up to the first that was refused.
        n_accepted: those that were kept.
        n_target_passes: forward passes of the target, the one over the prompt included.
        n_written: tokens written, over all rows, until each ended.
    """

    tokens: Int[Tensor, "B T"]
    n_drafted: int
    n_judged: int
    n_accepted: int
    n_target_passes: int
    n_written: int

    @property
    def acceptance(self) -> float:
        """Share of the judged drafts that were kept: the mean Σ min(p, q). NaN where none was judged."""
        return self.n_accepted / self.n_judged if self.n_judged else float("nan")


def acceptance_rate(p: Float[Tensor, "*batch V"], q: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch"]:
    """Σ min(p, q): how likely a token drawn from q is kept by a target that wants p.

    Source: Leviathan et al. 2023, section 3.2 (theorem 3.5).
    """
    return torch.minimum(p, q).sum(dim=-1)


def expected_tokens_per_pass(acceptance: float, n_draft: int) -> float:
    """(1 - α^(γ+1)) / (1 - α): tokens that one pass of the target yields on average, γ of them drafted.

    Assumes that each draft token is accepted with the same probability α, whatever came before. Where α
    varies from place to place, so does the yield, and the mean over places is another.

    Source: Leviathan et al. 2023, eq. 1.

    Raises:
        ConfigError: an acceptance outside [0, 1], or a number of drafts that is not a positive whole number.
    """
    check_positive_int("n_draft", n_draft)
    if not (is_number(acceptance) and 0 <= acceptance <= 1):
        raise ConfigError(f"acceptance must lie in [0, 1], got {acceptance!r}")
    return sum(acceptance**kept for kept in range(n_draft + 1))  # the same, and right at α = 1


def speculative_generate(
    target: Decoder,
    draft: Decoder,
    prompt_ids: Int[Tensor, "B T0"],
    *,
    n_draft: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    padding: Bool[Tensor, "B T0"] | None = None,
    end_id: int | None = None,
    pad_id: int | None = None,
) -> Speculation:
    """Continue prompts as `generate(target, ...)` would, with fewer passes of the target.

    The texts follow the target's distribution, tempered and cut as the settings say; the draws are others
    than `generate`'s for the same seed. At temperature 0 the tokens are the target's greedy ones (up to
    near-ties, which several tokens read at once may round the other way).

    Rows of a batch go on in step, by as many tokens as the row that accepted fewest. Where they stop depends
    on what has been accepted, not on what follows, so the distribution stays exact; but a large batch gains
    little.

    Args:
        target: whose text is wanted. draft: a cheaper model of the same vocabulary and device.
        n_draft: tokens drafted for each pass of the target (γ).
        max_new_tokens, temperature, top_k, top_p, seed, padding, end_id, pad_id: as in `generate`.

    Raises:
        DataError: prompts or padding that cannot be used, or texts longer than a model's `seq_len`.
        ConfigError: a setting out of its range, or models that do not fit each other.
        WeightsError: logits that are not finite.
    """
    sampler = Sampler(temperature=temperature, top_k=top_k, top_p=top_p)
    check_positive_int("n_draft", n_draft)
    check_positive_int("max_new_tokens", max_new_tokens)
    check_seed(seed)
    _check_models(target, draft)
    sampler.check_vocabulary(target.config.vocab_size)
    check_ending(end_id, pad_id, target.config.vocab_size)
    check_prompt(prompt_ids, target)
    check_padding(padding, *prompt_ids.shape, device=prompt_ids.device)
    check_left(padding)
    _check_room(target, draft, prompt_ids.shape[1] + max_new_tokens)
    with generating(target, draft):
        run = _Run(target, draft, prompt_ids, padding, sampler, seed, max_new_tokens)
        ending = (end_id, filling(target, end_id, pad_id))
        while run.n_left > 0 and bool(run.is_open.any()):
            # A pass writes one token more than it keeps, so the last place needs no draft.
            run.step(min(n_draft, run.n_left - 1), *ending)
    return run.result()


def is_accepted(
    p: Float[Tensor, "B n V"],
    q: Float[Tensor, "B n V"],
    drafts: Int[Tensor, "B n"],
    generator: torch.Generator,
) -> Bool[Tensor, "B n"]:
    """Whether each draft would be kept, were all before it: with probability min(1, p(x)/q(x))."""
    p_of, q_of = (d.gather(-1, drafts[..., None]).squeeze(-1) for d in (p, q))  # [B, n] each
    return torch.rand(drafts.shape, generator=generator) * q_of < p_of


def residual(p: Float[Tensor, "B V"], q: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
    """What replaces a refused draft is drawn from this: max(0, p - q), over its sum.

    After the last draft there is nothing to refuse: with q = 0 it is p.
    """
    rest = (p - q).clamp(min=0)
    total = rest.sum(dim=-1, keepdim=True)
    # p = q up to rounding: refused by a hair's breadth, and p is what is left to say.
    return torch.where(total > 0, rest / total, p)


class _Run:
    """A generation under way: the same texts as target and draft have read them, and the counts."""

    def __init__(
        self,
        target: Decoder,
        draft: Decoder,
        prompt_ids: Int[Tensor, "B T0"],
        padding: Bool[Tensor, "B T0"] | None,
        sampler: Sampler,
        seed: int,
        max_new_tokens: int,
    ) -> None:
        self._target, self._draft = (
            DecoderPrefix(model, prompt_ids, padding, max_new_tokens=max_new_tokens, use_cache=True)
            for model in (target, draft)
        )
        self._sampler = sampler
        self._generator = torch.Generator().manual_seed(seed)
        self._vocab_size = target.config.vocab_size
        self.is_open = torch.ones(prompt_ids.shape[0], dtype=torch.bool)
        self.n_left = max_new_tokens
        self._n_drafted = self._n_judged = self._n_accepted = self._n_passes = self._n_written = 0

    def step(self, n_draft: int, end_id: int | None, pad_id: int) -> None:
        """Draft, judge, keep what is accepted, and write one token more."""
        begin = self._target.length
        drafts, q = self._propose(n_draft)  # [B, n], [B, n+1, V]
        p = self._judge(drafts)  # [B, n+1, V]
        kept = is_accepted(p[:, :-1], q[:, :-1], drafts, self._generator).long()
        n_kept = kept.cumprod(dim=1).sum(dim=1)  # [B]: until the first refusal
        n = int(n_kept[self.is_open].min())  # in step: rows that kept more have their next token already
        replaced = draw_from(residual(p[:, n], q[:, n]), self._generator)
        nexts = drafts[:, n].where(n_kept > n, replaced) if n < n_draft else replaced
        written = torch.cat((drafts[:, :n], nexts[:, None]), dim=1)  # [B, n+1]
        was_open, n_written = self.is_open, torch.zeros_like(n_kept)
        columns = []
        for column in written.unbind(dim=1):
            n_written += self.is_open
            columns.append(column.where(self.is_open, pad_id))
            if end_id is not None:
                self.is_open = self.is_open & (column != end_id)
                if not bool(self.is_open.any()):
                    break
        for prefix in (self._target, self._draft):
            prefix.rewrite(begin, torch.stack(columns, dim=1))
        self.n_left -= len(columns)
        self._n_passes += 1
        self._n_drafted += n_draft * int(was_open.sum())
        self._n_judged += int(n_written.clamp(max=n_draft).sum())
        self._n_accepted += int(torch.minimum(n_kept, n_written).sum())
        self._n_written += int(n_written.sum())

    def result(self) -> Speculation:
        """What has been written."""
        return Speculation(
            tokens=self._target.written.clone(),
            n_drafted=self._n_drafted,
            n_judged=self._n_judged,
            n_accepted=self._n_accepted,
            n_target_passes=self._n_passes,
            n_written=self._n_written,
        )

    def _propose(self, n_draft: int) -> tuple[Int[Tensor, "B n"], Float[Tensor, "B n+1 V"]]:
        """Draft tokens, appended to the draft's texts, and what each was drawn from; last, nothing."""
        batch = len(self.is_open)
        drafts, asked = torch.empty((batch, n_draft), dtype=torch.int64), []
        for place in range(n_draft):
            asked.append(self._sampler.probabilities(self._draft.logits()))  # [B, V]
            drafts[:, place] = draw_from(asked[-1], self._generator)
            self._draft.append(drafts[:, place])
        return drafts, torch.stack([*asked, torch.zeros(batch, self._vocab_size)], dim=1)

    def _judge(self, drafts: Int[Tensor, "B n"]) -> Float[Tensor, "B n+1 V"]:
        """What the target wants at each draft's place and after the last, in one pass."""
        for column in drafts.unbind(dim=1):
            self._target.append(column)
        logits = self._target.last_logits(drafts.shape[1] + 1)  # [B, n+1, V]
        return self._sampler.probabilities(logits.flatten(0, 1)).view(logits.shape)


def _check_models(target: Decoder, draft: Decoder) -> None:
    for name, model in (("target", target), ("draft", draft)):
        if not isinstance(model, Decoder):
            raise ConfigError(f"{name} must be a Decoder, got {type(model).__name__}")
    sizes = target.config.vocab_size, draft.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"the target's vocabulary has {sizes[0]} tokens, the draft's {sizes[1]}: "
            "both must be trained with the same tokenizer"
        )
    devices = [model.token_embedding.weight.device for model in (target, draft)]
    if devices[0] != devices[1]:
        raise ConfigError(f"the target is on {devices[0]}, the draft on {devices[1]}: move one of them")


def _check_room(target: Decoder, draft: Decoder, n_tokens: int) -> None:
    seq_len = min(target.config.seq_len, draft.config.seq_len)
    if n_tokens - 1 > seq_len:  # the last token is never read
        raise DataError(
            f"prompt and continuation reach {n_tokens} tokens, more than the seq_len={seq_len} of the target "
            "or the draft: shorten them; generate(target, ...) can go on beyond it"
        )
