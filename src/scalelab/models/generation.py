"""Writing text: ask for the next token's probabilities, draw one, append it, ask again.

The prompt is read at once (prefill); then each token is read alone, beside the kept keys and values of those
before it (decode). How a token is drawn is in sampling.py, what is read and kept in prefix.py and cache.py.
Taught in book/transformers/inference.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scalelab.core.checks import check_seed
from scalelab.models.prefix import check_ending, filling, generating, open_prefix
from scalelab.models.sampling import Sampler

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor

    from scalelab.models.decoder import Decoder
    from scalelab.models.encoder_decoder import EncoderDecoder


def generate(
    model: Decoder | EncoderDecoder,
    prompt_ids: Int[Tensor, "B T0"],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    padding: Bool[Tensor, "B T0"] | None = None,
    end_id: int | None = None,
    pad_id: int | None = None,
    use_cache: bool = True,
) -> Int[Tensor, "B T"]:
    """Let a decoder continue each prompt, or an encoder–decoder write each source's target.

    Where prompt and continuation together exceed a decoder's `seq_len`, it reads the last `seq_len`
    tokens, from there on anew for each token, which is slow. The model is put in evaluation mode while this
    runs, and each of its modules back into the mode it was in.

    Args:
        model: what writes.
        prompt_ids: at least one token a row, on the model's device: prompts, or sources.
        max_new_tokens: tokens to write, or fewer where every row ends before.
        temperature, top_k, top_p: how a token is drawn, in this order; see `Sampler`. Temperature 0 takes
            the likeliest.
        seed: of the draws, which do not touch torch's global random state, and are the same with and
            without a cache.
        padding: True for tokens, False for filling; of prompts on the left. None: all are tokens, in the
            source of an encoder–decoder `pad_id` too, which only its `loss` takes for filling unasked.
        end_id: a row that writes this token has ended. In a prompt it ends nothing. None: nothing does.
        pad_id: what rows that have ended are filled with; None: `end_id`, or an encoder–decoder's pad_id.
        use_cache: keep keys and values of what was read. False reads everything again for each token; but an
            encoder–decoder's encoder runs once, and its output is kept either way.

    Returns:
        [B, T], int64: a decoder's prompts with their continuations, or targets without the start token.

    Raises:
        DataError: prompts or padding that cannot be used.
        ConfigError: a setting out of its range, or a model that does not write.
        WeightsError: logits that are not finite.
    """
    sampler = Sampler(temperature=temperature, top_k=top_k, top_p=top_p)
    check_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    with generating(model):
        prefix = open_prefix(model, prompt_ids, padding, max_new_tokens=max_new_tokens, use_cache=use_cache)
        sampler.check_vocabulary(model.config.vocab_size)
        check_ending(end_id, pad_id, model.config.vocab_size)
        pad_id = filling(model, end_id, pad_id)
        is_open = torch.ones(prompt_ids.shape[0], dtype=torch.bool, device=prompt_ids.device)
        for _ in range(max_new_tokens):
            following = sampler.draw(prefix.logits(), generator)  # [B]
            if end_id is None:
                prefix.append(following)
                continue
            prefix.append(following.where(is_open, pad_id))
            is_open &= following != end_id
            if not bool(is_open.any()):
                break
    return prefix.written.clone()  # a copy made out here may be trained on
