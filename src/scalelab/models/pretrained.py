"""A trained model as a folder that `transformers` reads too: config, weights, tokenizer, model card.

    config.json          their config, with ours, the card and the files' checksums under the key "scalelab"
    model.safetensors    weights under their names, in fp16: half the size; both sides compute in fp32
    tokenizer.json       (with tokenizer_config.json and special_tokens_map.json) see tokenizer_files.py
    README.md            the model card, for people

`AutoModel...from_pretrained(folder)` and `AutoTokenizer.from_pretrained(folder)` give the same outputs and
the same ids as `load_pretrained(folder)`, which needs no `transformers`.
Taught in book/transformers/architectures.md.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from scalelab.core.artifacts import atomic_folder, sha256_of_file
from scalelab.core.config import (
    DecoderConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    config_from_dict,
    config_to_dict,
)
from scalelab.core.errors import ConfigError, WeightsError
from scalelab.models.tokenizer_files import (
    SETTINGS,
    SPECIALS,
    SPELLINGS,
    TOKENIZER,
    description_of,
    tokenizer_files,
)
from scalelab.models.weights import FORMATS, check_ours, format_for, make_model, written_weights
from scalelab.models.weights_roformer import ANGLES

if TYPE_CHECKING:
    from torch import Tensor

    from scalelab.models.weights import Config, Model

FORMAT = "scalelab-model-1"
CONFIG, WEIGHTS, GENERATION, CARD = "config.json", "model.safetensors", "generation_config.json", "README.md"
WAY_OUT = "make the model again with `scalelab pretrain`, or install the package again"
TASKS = {"decoder": "text-generation", "encoder": "fill-mask", "encoder-decoder": "text2text-generation"}
NAMES = {CONFIG, WEIGHTS, GENERATION, CARD, TOKENIZER, SETTINGS, SPECIALS}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrained:
    """What a model folder holds.

    Attributes:
        model: on the CPU, in fp32 and evaluation mode.
        tokenizer: the library `tokenizers`' description of the vocabulary, without special tokens.
        special: special ids by name: end_of_text, pad, cls, sep, mask.
        card: where the model comes from: text, budget, losses, versions.
    """

    model: Model
    tokenizer: str
    special: Mapping[str, int]
    card: Mapping[str, Any]


def save_pretrained(
    model: Model, tokenizer: str, special: Mapping[str, int], folder: Path, card: Mapping[str, Any]
) -> None:
    """Write a model folder, atomically; one that this function wrote before is replaced whole.

    Args:
        model: of a shape that a class of `transformers` has. Its weights are rounded to fp16.
        tokenizer: the library `tokenizers`' description of the vocabulary, without special tokens.
        special: ids beyond it, by name; the model's table must reach to the last of them.
        folder: see `check_free`.
        card: JSON values. "title", "about" (a paragraph) and "licences" (names to lists) have their places in
            the model card; the rest is a table.

    Raises:
        WeightsError: no class of `transformers` holds this model, a weight is too large for fp16, special ids
            that do not fit, a card that is no JSON, a folder that holds something else, a disk that refuses.
    """
    from safetensors.torch import save

    check_ours(model)
    folder = Path(folder)
    check_free(folder)
    card = _as_json(card)
    config = model.config
    form = format_for(config)
    copies = set(form.tied(config))
    tensors = {n: _rounded(n, t) for n, t in written_weights(form, model).items() if n not in copies}
    seq_len = None if isinstance(config, EncoderDecoderConfig) else config.seq_len
    texts = tokenizer_files(tokenizer, special, kind=_kind(config), seq_len=seq_len)
    if description_of(texts[TOKENIZER]) != tokenizer:
        raise WeightsError("the tokenizer's description is not what the library's to_str() writes")
    if max(special.values(), default=0) >= config.vocab_size:
        raise WeightsError(f"special ids {dict(special)} reach beyond the model's {config.vocab_size} tokens")
    texts[CARD] = _readme(config, card)
    if not isinstance(config, EncoderConfig):
        texts[GENERATION] = json.dumps(_special_ids(config, special), indent=1)
    try:
        with atomic_folder(folder) as new:
            for name, text in texts.items():
                (new / name).write_text(text, encoding="utf-8")
            (new / WEIGHTS).write_bytes(save(tensors, {"format": "pt"}))
            files = {name: sha256_of_file(new / name) for name in (WEIGHTS, TOKENIZER)}
            content = _config_content(config, special, card, files)
            (new / CONFIG).write_text(json.dumps(content, indent=1), encoding="utf-8")
    except OSError as error:
        way_out = "is the disk full?" if error.errno == errno.ENOSPC else "name another folder"
        raise WeightsError(f"cannot write {folder}: {error}; {way_out}") from None


def check_free(folder: Path) -> None:
    """Refuse a place that holds anything but a model folder of ours, which may be replaced, or nothing.

    Raises:
        WeightsError: a file, a folder with other files in it or that cannot be read, or the folder that the
            program runs in.
    """
    folder = Path(folder)
    if not folder.is_dir():
        if folder.exists() or folder.is_symlink():
            raise WeightsError(f"{folder} is there already, and is no folder: name another one, or remove it")
        return
    if folder.samefile(Path()):
        raise WeightsError(f"{folder} is the folder this program runs in: name one inside it")
    try:
        found = {file.name for file in folder.iterdir()}
    except OSError as error:
        raise WeightsError(f"cannot look into {folder}: {error}; name another folder") from None
    others = sorted(found - NAMES)
    if others:
        raise WeightsError(
            f"{folder} is there already, and holds {others[0]}, which would be lost: name another folder, or "
            "remove it"
        )
    if found:
        try:
            ours = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["scalelab"]["format"] == FORMAT
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            ours = False
        if not ours:
            raise WeightsError(
                f"{folder} is there already, and its {CONFIG} is none of {FORMAT}: name another folder, or "
                "remove it"
            )


def load_pretrained(folder: Path) -> Pretrained:
    """The model that `save_pretrained` wrote, every checksum verified.

    Raises:
        WeightsError: the folder or one of its files is missing or damaged; the message names the file and
            the way out.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    ours = _read_ours(folder)
    for name, expected in ours["files"].items():
        _check_file(folder / name, expected)
    try:
        config = config_from_dict(ours["config"])
        if not isinstance(config, DecoderConfig | EncoderConfig | EncoderDecoderConfig):
            raise ConfigError(f"a {type(config).__name__} describes no model of this package")
        form = format_for(config)
        theirs = load_file(folder / WEIGHTS)
        model = make_model(config, device="meta")
        weights = {name: t.float().contiguous() for name, t in form.read_weights(theirs, config).items()}
        model.load_state_dict(weights, assign=True)
        text = (folder / TOKENIZER).read_text(encoding="utf-8")
    except (ConfigError, SafetensorError, KeyError, RuntimeError, OSError) as error:
        raise WeightsError(
            f"{folder} does not hold the model that its {CONFIG} describes ({error}); {WAY_OUT}"
        ) from None
    return Pretrained(
        model=model.eval(), tokenizer=description_of(text), special=ours["special"], card=ours["card"]
    )


def _kind(config: Config) -> str:
    return str(config_to_dict(config)["kind"])


def _rounded(name: str, tensor: Tensor) -> Tensor:
    if name.endswith(ANGLES):  # computed, not learnt, and rounded they would turn everything a little wrongly
        return tensor.detach().cpu().float().contiguous()
    small = tensor.detach().cpu().half().contiguous()
    if not bool(torch.isfinite(small).all()):
        raise WeightsError(
            f"{name} reaches {float(tensor.abs().max()):.3g}, beyond fp16's 65,504, or is not finite: "
            "train it again with a lower learning rate"
        )
    return small


def _special_ids(config: Config, special: Mapping[str, int]) -> dict[str, int]:
    """What their configs call our special ids."""
    roles = {"pad_token_id": "pad"}
    if isinstance(config, DecoderConfig):
        roles |= {"bos_token_id": "end_of_text", "eos_token_id": "end_of_text"}
    ids = {role: special[name] for role, name in roles.items() if name in special}
    if isinstance(config, EncoderDecoderConfig):
        ids |= {"pad_token_id": config.pad_id, "decoder_start_token_id": config.pad_id}
        ids |= {"eos_token_id": special["sep"]} if "sep" in special else {}
    return ids


def _config_content(
    config: Config, special: Mapping[str, int], card: Mapping[str, Any], files: Mapping[str, str]
) -> dict[str, Any]:
    """Their config with ours inside."""
    form = format_for(config)
    ours: dict[str, Any] = {
        "format": FORMAT,
        "config": config_to_dict(config),
        "special": dict(special),
        "card": dict(card),
        "files": dict(files),
    }
    return {
        "architectures": [form.class_name(config)],
        "model_type": next(name for name, known in FORMATS.items() if known is form),
        "dtype": "float32",
        **form.write_config(config),
        **_special_ids(config, special),
        "scalelab": ours | {"sha256": _digest(ours)},
    }


def _as_json(card: Mapping[str, Any]) -> dict[str, Any]:
    """The card as it is read back, of which the checksum is taken: names are text, tuples are lists."""
    try:
        return dict(json.loads(json.dumps(dict(card))))
    except (TypeError, ValueError, RecursionError) as error:
        raise WeightsError(f"the card must hold JSON values only ({error}): numbers, text, lists") from None


def _digest(ours: Mapping[str, Any]) -> str:
    """Checksum of our part of a config, whatever the order of its keys."""
    values = {name: value for name, value in ours.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode("utf-8")).hexdigest()


def _read_ours(folder: Path) -> dict[str, Any]:
    """Our part of a folder's config, with its checksum verified."""
    file = folder / CONFIG
    if not folder.is_dir():
        raise WeightsError(f"there is no model folder at {folder}; {WAY_OUT}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        ours = content.get("scalelab") if isinstance(content, dict) else None
        if not isinstance(ours, dict) or ours.get("format") != FORMAT:
            raise WeightsError(
                f"{file} is no config of {FORMAT}: read other folders with from_transformers, or {WAY_OUT}"
            )
        if ours.get("sha256") != _digest(ours):
            raise ValueError('its part "scalelab" differs from its checksum')
    except FileNotFoundError:
        raise WeightsError(f"{folder} holds no {CONFIG}; {WAY_OUT}") from None
    except WeightsError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{file} is damaged ({error}); {WAY_OUT}") from None
    return ours


def _check_file(file: Path, expected: str) -> None:
    if not file.is_file():
        raise WeightsError(f"{file.parent} holds no {file.name}; {WAY_OUT}")
    found = sha256_of_file(file)
    if found != expected:
        raise WeightsError(
            f"{file} is damaged: its sha256 starts {found[:12]}, {CONFIG} says {expected[:12]}; {WAY_OUT}"
        )


def _readme(config: Config, card: Mapping[str, Any]) -> str:
    """The model card, with the front matter that model hubs read."""
    form = format_for(config)
    named = form.class_name(config)  # not an Auto class: that would draw heads which the model does not have
    arguments = "".join(f", {name}={value!r}" for name, value in form.class_arguments(config).items())
    front = ["---", "license: apache-2.0", "library_name: transformers", f"pipeline_tag: {_task(config)}",
             "tags: [scalelab]", "---"]  # fmt: skip
    plain = {k: v for k, v in card.items() if k not in ("title", "about", "licences")}
    rows = [f"| {_escaped(name)} | {_escaped(_cell(value))} |" for name, value in plain.items()]
    shape = [f"| {name} | {value} |" for name, value in config_to_dict(config).items() if value is not None]
    licences = card.get("licences") or {}
    return "\n".join([
        *front, "",
        f"# {card.get('title', 'A model of the course scalelab')}", "",
        f"In `transformers` it is a `{named}`. Weights are stored in fp16 and "
        "computed with in fp32; the losses below were measured before that rounding.", "",
        "```python", f"from transformers import {named}, AutoTokenizer", "",
        f"model = {named}.from_pretrained(folder{arguments})",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "```", "",
        *([str(card["about"]), ""] if "about" in card else []),
        "## Where it comes from", "", "| | |", "|---|---|", *rows, "",
        *(["Licences of the text:", "", *(f"- {name}: {_listed(of)}" for name, of in licences.items()), ""]
          if licences else []),
        "## Shape", "", "| | |", "|---|---|", *shape, "",
        "Special tokens: " + ", ".join(f"`{spelling}`" for spelling in SPELLINGS.values())
        + ". A text that spells one of them is read as the token, unless the tokenizer is called with "
        "`split_special_tokens=True`.", "",
    ])  # fmt: skip


def _task(config: Config) -> str:
    """What a hub offers to do with the model; an encoder without its head fills in nothing."""
    if isinstance(config, EncoderConfig) and not config.mlm_head:
        return "feature-extraction"
    return TASKS[_kind(config)]


def _listed(names: Any) -> str:
    return ", ".join(map(str, names)) if isinstance(names, list) else str(names)


def _escaped(text: str) -> str:
    """Text that stays within its cell of a table."""
    return " ".join(text.replace("|", "\\|").split())


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
