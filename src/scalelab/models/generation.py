"""Writing text: ask for the next token's probabilities, draw one, append it, ask again.

Temperature divides the logits first: below 1 the likely becomes likelier, at 0 only the likeliest is
left. `top_k` allows the k likeliest tokens alone.
Source: Fan et al. 2018, arXiv:1805.04833, section 5.4 (top-k). Taught in book/transformers/training.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scalelab.core.checks import check_count, check_positive_int, is_number
from scalelab.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from scalelab.models.decoder import Decoder


@torch.no_grad()
def generate(
    model: Decoder,
    prompt_ids: Int[Tensor, "B T0"],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> Int[Tensor, "B T0+n"]:
    """Continue each prompt by `max_new_tokens` tokens.

    The model reads at most its last `seq_len` tokens, each step anew. It is put in evaluation mode
    while this runs, and back into the mode it was in.

    Args:
        model: the decoder.
        prompt_ids: at least one token a row, on the model's device.
        temperature: at least 0; 0 takes the likeliest token (the lowest id among equals).
        top_k: draw from this many likeliest tokens; None: from all.
        seed: of the draws, which do not touch torch's global random state.

    Returns:
        The prompts with their continuations, int64.

    Raises:
        DataError: the prompts are empty, not [B, T0] integers, or hold ids outside the vocabulary.
        ConfigError: a setting out of its range.
    """
    vocab_size = model.config.vocab_size
    _check_settings(max_new_tokens, temperature, top_k, vocab_size)
    check_count("seed", seed)
    _check_prompt(prompt_ids, vocab_size)
    generator = torch.Generator().manual_seed(seed)
    tokens = prompt_ids.long()
    was_training = model.training
    model.eval()
    try:
        for _ in range(max_new_tokens):
            last = model.hidden(tokens[:, -model.config.seq_len :])[:, -1]  # [B, D]: only its head is needed
            following = pick(model.logits(last), temperature, top_k, generator)  # [B]
            tokens = torch.cat((tokens, following[:, None]), dim=1)
    finally:
        model.train(was_training)
    return tokens


def pick(
    logits: Float[Tensor, "B V"], temperature: float, top_k: int | None, generator: torch.Generator
) -> Int[Tensor, " B"]:
    """One token a row: the likeliest at temperature 0, else drawn from the tempered distribution.

    Args:
        generator: on the CPU, where the draw happens: the same draws on every device.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    # Less the maximum, so that a tiny temperature cannot overflow.
    scores = (logits - logits.amax(dim=-1, keepdim=True)).float().cpu() / temperature  # [B, V]
    if top_k is not None and top_k < scores.shape[-1]:
        best, ids = scores.topk(top_k, dim=-1)  # both [B, k]
        drawn = torch.multinomial(best.softmax(dim=-1), 1, generator=generator)  # [B, 1]
        return ids.gather(-1, drawn).squeeze(-1).to(logits.device)
    return torch.multinomial(scores.softmax(dim=-1), 1, generator=generator).squeeze(-1).to(logits.device)


def _check_settings(max_new_tokens: int, temperature: float, top_k: int | None, vocab_size: int) -> None:
    check_positive_int("max_new_tokens", max_new_tokens)
    if not (is_number(temperature) and temperature >= 0):
        raise ConfigError(f"temperature must be a finite number of at least 0, got {temperature!r}")
    if top_k is not None:
        check_positive_int("top_k", top_k)
        if top_k > vocab_size:
            raise ConfigError(f"top_k={top_k} is more than the vocabulary's {vocab_size} tokens")


def _check_prompt(prompt_ids: Int[Tensor, "B T0"], vocab_size: int) -> None:
    if not isinstance(prompt_ids, torch.Tensor) or prompt_ids.dtype not in (torch.int64, torch.int32):
        found = prompt_ids.dtype if isinstance(prompt_ids, torch.Tensor) else type(prompt_ids).__name__
        raise DataError(f"prompt_ids must be a tensor of int64 or int32, got {found}")
    if prompt_ids.ndim != 2 or prompt_ids.numel() == 0:
        raise DataError(
            f"prompt_ids must have the shape [batch, time] with at least one token a row, "
            f"got {tuple(prompt_ids.shape)}; to start from nothing, give the end-of-text token"
        )
    low, high = int(prompt_ids.min()), int(prompt_ids.max())
    if low < 0 or high >= vocab_size:  # asked on any device: here, unlike in training, it is asked once
        raise DataError(f"prompt ids must lie in [0, {vocab_size}), these reach from {low} to {high}")
