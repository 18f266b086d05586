"""A byte-level BPE vocabulary as `transformers` reads it: tokenizer.json and its two small companions.

What our tokenizer knows is the library `tokenizers`' own description. To it are added the ids that spell no
text (their names in square brackets, as BERT's), and for an encoder the frame [CLS] ... [SEP] around its
input. All of that is JSON: neither `tokenizers` nor `transformers` is needed, and taking it off gives back
the same text.

Differs: in ours, a text that spells "[MASK]" is text like any other. `transformers` sees the special token in
it, unless it is called with `split_special_tokens=True`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from scalelab.core.errors import WeightsError

# The names we give special ids, and how they are spelt.
SPELLINGS = {
    "end_of_text": "<|endoftext|>",
    "pad": "[PAD]",
    "cls": "[CLS]",
    "sep": "[SEP]",
    "mask": "[MASK]",
}
TOKENIZER, SETTINGS, SPECIALS = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"


def tokenizer_files(
    description: str, special: Mapping[str, int], *, kind: str, seq_len: int | None
) -> dict[str, str]:
    """The contents of the three files, by their names.

    Args:
        description: what the library's `Tokenizer.to_str` wrote, without special tokens.
        special: ids by the names in SPELLINGS, each beyond those of the text.
        kind: of the model, as in its config: "decoder", "encoder", "encoder-decoder".
        seq_len: the longest input; None: there is none.

    Raises:
        WeightsError: the description is not one, or holds special tokens or (for an encoder) a post-processor
            already; the ids do not follow each other behind the vocabulary.
    """
    whole = _parse(description)
    n_text = len(whole["model"]["vocab"])
    ordered = sorted(special, key=special.__getitem__)
    if set(special) - set(SPELLINGS) or [special[n] for n in ordered] != list(
        range(n_text, n_text + len(special))
    ):
        raise WeightsError(
            f"special tokens must be of {', '.join(SPELLINGS)}, with ids one after the other from {n_text}, "
            f"which is how many spell text; got {dict(special)}"
        )
    whole["added_tokens"] = [_added(SPELLINGS[name], special[name]) for name in ordered]
    if kind == "encoder" and {"cls", "sep"} <= set(special):
        if whole.get("post_processor") is not None:
            raise WeightsError(
                "the tokenizer's description has a post-processor already, and an encoder's input needs the "
                "place for [CLS] and [SEP]: set tokenizer.post_processor = None"
            )
        whole["post_processor"] = _frame(special)
    names = _roles(special, kind)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "padding_side": "left" if kind == "decoder" else "right",
        "model_input_names": ["input_ids", *(["token_type_ids"] if kind == "encoder" else []),
                              "attention_mask"],
        **({} if seq_len is None else {"model_max_length": seq_len}),
        **names,
    }  # fmt: skip
    return {
        TOKENIZER: json.dumps(whole, ensure_ascii=False, separators=(",", ":")),
        SETTINGS: json.dumps(settings, indent=1),
        SPECIALS: json.dumps(names, indent=1),
    }


def description_of(text: str) -> str:
    """The description that `tokenizer_files` was given, byte for byte, from its tokenizer.json.

    Raises:
        WeightsError: the text is not such a file.
    """
    whole = _parse(text, added=True)
    whole["added_tokens"] = []
    if (whole.get("post_processor") or {}).get("type") == "TemplateProcessing":
        whole["post_processor"] = None
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":"))


def _parse(text: str, *, added: bool = False) -> dict[str, Any]:
    try:
        whole = json.loads(text)
        is_bpe = isinstance(whole["model"]["vocab"], dict) and whole["model"]["type"] == "BPE"
        if not is_bpe or (whole["added_tokens"] and not added):
            raise ValueError("not a BPE vocabulary without special tokens")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError(f"the tokenizer's description cannot be used: {error!r}") from None
    return whole  # type: ignore[no-any-return]


def _added(spelling: str, token: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token, "content": spelling, **flags}


def _frame(special: Mapping[str, int]) -> dict[str, Any]:
    """[CLS] A [SEP], and for two parts [CLS] A [SEP] B [SEP] with B as the second segment."""

    def mark(name: str, part: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": SPELLINGS[name], "type_id": part}}

    def text(name: str, part: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": part}}

    single = [mark("cls", 0), text("A", 0), mark("sep", 0)]
    spelled = {
        SPELLINGS[name]: {"id": SPELLINGS[name], "ids": [special[name]], "tokens": [SPELLINGS[name]]}
        for name in ("cls", "sep")
    }
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, text("B", 1), mark("sep", 1)],
        "special_tokens": spelled,
    }


def _roles(special: Mapping[str, int], kind: str) -> dict[str, str]:
    """Which token `transformers` takes for which role."""
    roles = {"pad_token": "pad"}
    if kind == "decoder":
        roles |= {"bos_token": "end_of_text", "eos_token": "end_of_text"}
    else:
        roles |= {"cls_token": "cls", "sep_token": "sep", "mask_token": "mask"}
        roles |= {"eos_token": "sep"} if kind == "encoder-decoder" else {}
    return {role: SPELLINGS[name] for role, name in roles.items() if name in special}
