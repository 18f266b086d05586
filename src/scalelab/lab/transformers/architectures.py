"""The three architectures at one size, and the same questions put to each of them in its own way.

A decoder, an encoder and an encoder–decoder that share everything but their shape: vocabulary, width, heads,
rotary positions, pre-norm, feed-forward, and as many blocks in all. What each is asked (a hidden token, the
next token) is written in the form in which it was trained.
Taught in book/transformers/architectures.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from scalelab.core.checks import check_choice, check_heads_divide, check_positive, check_positive_int
from scalelab.core.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from scalelab.core.errors import ConfigError, DataError
from scalelab.cost import flops
from scalelab.data.objectives import SpanObjective
from scalelab.data.special import N_SPECIAL, SpecialTokens
from scalelab.models import Decoder, Encoder, EncoderDecoder
from scalelab.models.initialisation import initialise_by_fan_in

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

KINDS = ("decoder", "encoder", "encoder-decoder")
MIN_CONTEXT = 2  # tokens on either side of a hidden one
SPAN = 3  # tokens of a hidden span, on average
Config = DecoderConfig | EncoderConfig | EncoderDecoderConfig
Model = Decoder | Encoder | EncoderDecoder
Ids64 = npt.NDArray[np.int64]


def kin(
    kind: str,
    *,
    n_layers: int,
    d_model: int,
    n_heads: int,
    vocab_size: int,
    seq_len: int,
    sentences: bool = False,
) -> Config:
    """The config of one architecture; those of one size differ in nothing but what makes the architecture.

    Args:
        kind: "decoder", "encoder" or "encoder-decoder".
        n_layers: blocks in all. An encoder–decoder has half of them in each stack; the writing half also has
            cross-attention, so it has more parameters.
        vocab_size: ids of the tokenizer. Special ids and sentinels for `seq_len` are added, for all alike.
        seq_len: the longest input, tokens.
        sentences: whether an encoder has the head for next-sentence prediction.

    Raises:
        ConfigError: an unknown kind, an odd n_layers for an encoder–decoder, or a size the config refuses.
    """
    check_choice("kind", kind, KINDS)
    counts = {"n_layers": n_layers, "d_model": d_model, "n_heads": n_heads, "vocab_size": vocab_size}
    for name, count in counts.items():
        check_positive_int(name, count)
    check_heads_divide(d_model, n_heads)  # here, for all alike: T5's heads may have any width
    size: dict[str, Any] = {
        "d_model": d_model,
        "n_heads": n_heads,
        "d_ff": 4 * d_model,
        "vocab_size": vocab_size + N_SPECIAL + n_sentinels(seq_len),
        "norm": "layernorm",
        "norm_eps": 1e-5,
        "norm_position": "pre",
        "positions": "rope",
        "feed_forward": "gelu",
    }
    if kind == "decoder":
        return DecoderConfig(n_layers=n_layers, seq_len=seq_len, **size)
    if kind == "encoder":
        size |= {"mlm_head": True, "pooler": sentences, "nsp_head": sentences}
        return EncoderConfig(n_layers=n_layers, seq_len=seq_len, **size)
    if n_layers % 2:
        raise ConfigError(f"n_layers={n_layers} blocks cannot be shared by two stacks: take an even number")
    return EncoderDecoderConfig(
        n_layers=n_layers // 2,
        d_head=d_model // n_heads,
        attention_bias=True,
        feed_forward_bias=True,
        scale_head=False,
        scale_scores=True,
        pad_id=vocab_size,
        **size,
    )


def make(config: Config, *, seed: int) -> Model:
    """The model of a config; all three kinds begin alike, with weights of 1/√inputs and tables of 1/√D.

    From BERT's and GPT-2's 0.02 an encoder this narrow has learnt no more than token frequencies when an
    encoder–decoder, which begins like this anyway, has long been reading.
    """
    if isinstance(config, EncoderDecoderConfig):
        return EncoderDecoder(config, seed=seed)
    model = Decoder(config, seed=seed) if isinstance(config, DecoderConfig) else Encoder(config, seed=seed)
    initialise_by_fan_in(model, config.d_model**-0.5, torch.Generator().manual_seed(seed))
    return model


def specials(vocab_size: int, seq_len: int) -> SpecialTokens:
    """The special ids that `kin` leaves room for, after a tokenizer's own `vocab_size`."""
    first = vocab_size
    sentinels = range(first + N_SPECIAL, first + N_SPECIAL + n_sentinels(seq_len))
    return SpecialTokens(first, first + 1, first + 2, first + 3, tuple(sentinels))


def n_sentinels(seq_len: int) -> int:
    """Spans that a window for this input length has hidden."""
    objective = SpanObjective(SpecialTokens(2, 3, 4, 5))
    return objective.lengths(objective.window_length(seq_len)).spans


def step_flops(config: Config, *, batch_size: int, seq_len: int) -> int:
    """Training FLOPs of one step of pretraining, exactly; an encoder–decoder writes what its spans need."""
    target_len = None
    if isinstance(config, EncoderDecoderConfig):
        objective = SpanObjective(SpecialTokens(2, 3, 4, 5))
        window = objective.window_length(seq_len)
        seq_len, target_len = objective.lengths(window).inputs, objective.lengths(window).targets
    found = flops(config, batch_size=batch_size, seq_len=seq_len, target_len=target_len, training=True)
    return found.total


def steps_for(config: Config, budget_flops: float, *, batch_size: int, seq_len: int) -> int:
    """Whole steps nearest to a budget of training FLOPs.

    Raises:
        ConfigError: the budget is not positive, or pays for no step.
    """
    check_positive("budget_flops", budget_flops)
    n_steps = round(budget_flops / step_flops(config, batch_size=batch_size, seq_len=seq_len))
    if n_steps < 1:
        raise ConfigError(f"budget_flops={budget_flops:g} pays for no step of this model: raise it")
    return n_steps


@dataclasses.dataclass(frozen=True, slots=True)
class Answers:
    """What a model made of hidden tokens.

    Attributes:
        accuracy: share whose likeliest token is the hidden one.
        nats: mean of minus the logarithm of the hidden token's probability; None where an answer is a choice
            among candidates and has no probability for all tokens.
    """

    accuracy: float
    nats: float | None = None


def draw_places(windows: Ids64, special: SpecialTokens, *, seed: int) -> Ids64:
    """For each window a place in its middle half that holds text, [B].

    Raises:
        DataError: windows too short, or a window without text there.
    """
    length = windows.shape[1]
    first, last = length // 4, length - length // 4
    if first < MIN_CONTEXT:
        raise DataError(f"windows of {length} tokens are too short to hide one in their middle half")
    draws = np.random.default_rng(seed).random((len(windows), last - first))
    draws[windows[:, first:last] >= special.n_ordinary] = -1
    if (draws.max(axis=1) < 0).any():
        raise DataError("a window has no text in its middle half")
    places: Ids64 = draws.argmax(axis=1) + first
    return places


@torch.no_grad()
def log_probabilities(
    model: Model, windows: Int[Tensor, "B W"], places: Int[Tensor, " B"], special: SpecialTokens
) -> Float[Tensor, "B V"]:
    """Logarithms of the probabilities of what stands at each row's place, from what the model can see.

    A decoder sees what is to the left. An encoder gets the whole window with [MASK] at the place. An
    encoder–decoder gets it with a sentinel there, one of as many as in training, and is asked for the first
    token of what it hides.

    Raises:
        DataError: as `other_spans`.
    """
    rows = torch.arange(len(windows), device=windows.device)
    if isinstance(model, Decoder):
        logits = model.logits(model.hidden(windows)[rows, places - 1])
    elif isinstance(model, Encoder):
        hidden = model.hidden(framed(windows, places, special.mask, special))
        logits = model.logits(hidden[rows, places + 1])  # [CLS] moves all by one
    else:
        source = model.read(spanned(windows, places, special))
        logits = model.logits(model.write(opening(windows, places, special), source)[:, -1])
    return logits.log_softmax(-1)


def framed(
    windows: Int[Tensor, "B W"], places: Int[Tensor, " B"], hidden_by: int, special: SpecialTokens
) -> Int[Tensor, "B W+2"]:
    """[CLS] window [SEP], with one token of each window replaced."""
    masked = windows.scatter(1, places[:, None], hidden_by)
    ends = masked.new_ones(len(masked), 1)
    return torch.cat((ends * special.cls, masked, ends * special.sep), dim=1)


def spanned(
    windows: Int[Tensor, "B W"], places: Int[Tensor, " B"], special: SpecialTokens
) -> Int[Tensor, "B S"]:
    """A source as in training, with as many spans hidden; one of them is the one token of each window.

    Raises:
        DataError: as `other_spans`.
    """
    before, after = other_spans(windows.shape[1], places, special)
    ends = windows.new_ones(len(windows), 1)
    masked = windows.scatter(1, places[:, None], special.sentinels[len(before)])
    parts, at = [], 0
    for sentinel, (first, stop) in zip(special.sentinels, before, strict=False):
        parts += [masked[:, at:first], ends * sentinel]
        at = stop
    if after:
        parts += [masked[:, at : after[0][0]], ends * special.sentinels[len(before) + 1]]
    else:
        parts.append(masked[:, at:])
    return torch.cat((*parts, ends * special.sep), dim=1)


def opening(
    windows: Int[Tensor, "B W"], places: Int[Tensor, " B"], special: SpecialTokens
) -> Int[Tensor, "B N"]:
    """What the writing side has read before it tells the token: all that comes before it in a target.

    Raises:
        DataError: as `other_spans`.
    """
    before, _ = other_spans(windows.shape[1], places, special)
    ends = windows.new_ones(len(windows), 1)
    parts = [ends * special.pad]
    for sentinel, (first, stop) in zip(special.sentinels, before, strict=False):
        parts += [ends * sentinel, windows[:, first:stop]]
    return torch.cat((*parts, ends * special.sentinels[len(before)]), dim=1)


Spans = tuple[tuple[int, int], ...]


def other_spans(length: int, places: Int[Tensor, " B"], special: SpecialTokens) -> tuple[Spans, Spans]:
    """The spans that are not asked for, (first, last + 1) each: those before the token, and one behind it.

    A source in training always has as many spans as sentinels, of three tokens on average, and ends with one.
    What stands before the token is told by then, so nothing is lost by it. Of the one behind, at the window's
    end, three tokens are lost; a question for the last token has none.

    Raises:
        DataError: places among the last tokens and others in one batch.
    """
    n_others = len(special.sentinels) - 1
    last = bool((places == length - 1).all())
    if not last and int(places.max()) >= length - SPAN - 1:
        raise DataError(
            f"a place at {int(places.max())} of {length} is too near the end: ask for the last alone"
        )
    after = ((length - SPAN, length),) if n_others and not last else ()
    starts = range(1, length // 4 - SPAN, 2 * SPAN)
    return tuple((start, start + SPAN) for start in starts[: n_others - len(after)]), after


def ask(
    model: Model, windows: Ids64, places: Ids64, special: SpecialTokens, *, batch_size: int = 64
) -> Answers:
    """Ask for the token at one place of each window.

    Args:
        windows: [B, W] text. places: [B]; W-1 in each row is the question for the next token.
    """
    right, nats = 0, 0.0
    with evaluating(model):
        for chosen, place in batches(model, windows, places, batch_size):
            found = log_probabilities(model, chosen, place, special)
            truth = chosen.gather(1, place[:, None])
            right += int((found.argmax(-1, keepdim=True) == truth).sum())
            nats -= float(found.gather(1, truth).sum())
    return Answers(right / len(windows), nats / len(windows))


@torch.no_grad()
def ask_by_whole_text(
    decoder: Decoder, windows: Ids64, places: Ids64, special: SpecialTokens, *, n_candidates: int = 16
) -> Answers:
    """A decoder's best: of its likeliest candidates, the one with which the *whole window* is likeliest.

    By Bayes' rule P(x | left, right) is proportional to P(x | left) · P(right | left, x), and a decoder knows
    both factors; the second takes a pass over the text for each candidate.
    """
    right = 0
    with evaluating(decoder):
        for chosen, place in batches(decoder, windows, places, 8):
            first = log_probabilities(decoder, chosen, place, special)
            candidates = first.topk(n_candidates, dim=-1).indices  # [B, C]
            texts = chosen[:, None].repeat(1, n_candidates, 1)  # [B, C, W]
            index = place[:, None, None].expand(-1, n_candidates, 1)
            texts.scatter_(2, index, candidates[..., None])
            flat = texts.flatten(0, 1)
            losses = decoder.loss(flat[:, :-1], flat[:, 1:], reduction="none")
            total = losses.sum(-1).view(candidates.shape)  # what is left of the place costs all the same
            best = candidates.gather(1, total.argmin(-1, keepdim=True))
            right += int((best == chosen.gather(1, place[:, None])).sum())
    return Answers(right / len(windows))


@torch.no_grad()
def ask_for_one_token(
    model: EncoderDecoder, windows: Ids64, places: Ids64, special: SpecialTokens, *, n_candidates: int = 16
) -> Answers:
    """As `ask`, but the encoder–decoder is told that the span has one token: its end must follow."""
    right = 0
    with evaluating(model):
        for chosen, place in batches(model, windows, places, 32):
            n = len(chosen)
            source = model.read(spanned(chosen, place, special))
            first = model.logits(model.write(opening(chosen, place, special), source)[:, -1]).log_softmax(-1)
            values, candidates = first.topk(n_candidates, dim=-1)  # [B, C]
            rows = torch.arange(n, device=chosen.device).repeat_interleave(n_candidates)
            written = opening(chosen, place, special)[rows]
            written = torch.cat((written, candidates.reshape(-1, 1)), dim=1)
            before, after = other_spans(chosen.shape[1], place, special)
            end = special.sentinels[len(before) + 1] if after else special.sep
            ends = model.logits(model.write(written, source.rows(rows))[:, -1]).log_softmax(-1)
            total = values + ends[:, end].view(candidates.shape)
            best = candidates.gather(1, total.argmax(-1, keepdim=True))
            right += int((best == chosen.gather(1, place[:, None])).sum())
    return Answers(right / len(windows))


def batches(
    model: nn.Module, windows: Ids64, places: Ids64, batch_size: int
) -> Iterator[tuple[Int[Tensor, "B W"], Int[Tensor, " B"]]]:
    """Rows and places as tensors on the model's device, a few at a time.

    Raises:
        DataError: not one place for each window, or none at all.
    """
    if windows.ndim != 2 or places.shape != (len(windows),) or not len(windows):
        raise DataError(f"windows of shape {windows.shape} need one place each, got {places.shape}")
    device = next(model.parameters()).device
    for start in range(0, len(windows), batch_size):
        rows = slice(start, start + batch_size)
        yield (
            torch.from_numpy(np.ascontiguousarray(windows[rows], dtype=np.int64)).to(device),
            torch.from_numpy(np.ascontiguousarray(places[rows], dtype=np.int64)).to(device),
        )


class evaluating:
    """Evaluation mode without gradients inside a `with`; the mode as before afterwards."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.was_training = model.training
        self.no_grad = torch.no_grad()

    def __enter__(self) -> None:
        self.model.eval()
        self.no_grad.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.no_grad.__exit__(*error)
        self.model.train(self.was_training)
