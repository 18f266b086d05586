"""The course's base models: a small decoder and a small encoder, pretrained on `packages`, that ship with it.

    base = scalelab.lab.base("decoder")
    base.model, base.tokenizer, base.special, base.card

Each is a folder as `transformers` lays it out (models/pretrained.py), so `from_pretrained(base_folder(name))`
reads what `base` reads. `scalelab pretrain` makes them again.
Taught in book/transformers/architectures.md and book/transformers/inference.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, overload

from torch import nn

from scalelab.core.errors import ConfigError, DataError, LabError, WeightsError
from scalelab.core.records import RunRecord
from scalelab.data.packages import pinned_wheels
from scalelab.data.special import SpecialTokens, special_tokens
from scalelab.data.tokenization import BpeTokenizer
from scalelab.models import Decoder, Encoder, EncoderDecoder
from scalelab.models.pretrained import load_pretrained, save_pretrained

NAMES = ("decoder", "encoder")
ABOUT = (
    "A small model to learn from. What it writes or fills in is not to be relied on: it has seen little, "
    "and the names, comments and habits of a few projects come back again and again."
)
Model = Decoder | Encoder | EncoderDecoder
M = TypeVar("M", bound=Model, covariant=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseModel(Generic[M]):
    """A trained model with what belongs to it.

    Attributes:
        model: on the CPU, in fp32 and evaluation mode.
        tokenizer: its text's ids, `end_of_text` last. special: the ids behind them.
        card: corpus, tokens, steps, loss_nats, bits_per_byte, n_params, seconds, device, versions, commit,
            licences.
    """

    model: M
    tokenizer: BpeTokenizer
    special: SpecialTokens
    card: Mapping[str, Any]


@overload
def base(name: Literal["decoder"]) -> BaseModel[Decoder]: ...
@overload
def base(name: Literal["encoder"]) -> BaseModel[Encoder]: ...
@overload
def base(name: str) -> BaseModel[Model]: ...
def base(name: str) -> BaseModel[Model]:
    """A base model with its tokenizer, in evaluation mode on the CPU.

    Args:
        name: "decoder" or "encoder".

    Raises:
        LabError: there is no base model of that name.
        WeightsError: its files are missing or damaged.
    """
    return read_model_folder(base_folder(name))


def base_folder(name: str) -> Path:
    """The folder of a base model, fit for `transformers`' `from_pretrained`.

    Raises:
        LabError: there is no base model of that name.
    """
    if name not in NAMES:
        raise LabError(f"no base model {name!r}; there are {', '.join(NAMES)}")
    return Path(str(resources.files("scalelab.lab"))) / "base_models" / name


def read_model_folder(folder: Path) -> BaseModel[Model]:
    """The model in a folder that `scalelab pretrain` wrote.

    Raises:
        WeightsError: a file is missing or damaged; the message names it.
    """
    found = load_pretrained(folder)
    try:
        tokenizer = BpeTokenizer(found.tokenizer)
        special = special_tokens(tokenizer)
    except (ConfigError, DataError) as error:
        raise WeightsError(f"the tokenizer in {folder} cannot be used: {error}") from None
    if _named(special) != dict(found.special):
        raise WeightsError(
            f"the special ids of {folder} do not follow its tokenizer's: {dict(found.special)}"
        )
    return BaseModel(model=found.model, tokenizer=tokenizer, special=special, card=found.card)


def write_base_model(model: nn.Module, tokenizer: BpeTokenizer, record: RunRecord, folder: Path) -> None:
    """Write a trained model, its tokenizer and the card of its run.

    Args:
        model: as the run left it. A pooler that no objective trained is left out: it would be noise.
        record: of the run.

    Raises:
        WeightsError: no class of `transformers` holds such a model, or its files cannot be written.
    """
    if not isinstance(model, Model):
        raise WeightsError(
            f"a base model is a Decoder, an Encoder or an EncoderDecoder, got {type(model).__name__}"
        )
    save_pretrained(
        without_untrained_pooler(model),
        tokenizer.description,
        _named(special_tokens(tokenizer)),
        folder,
        card_of(record),
    )


def card_of(record: RunRecord) -> dict[str, Any]:
    """What a model card says of a run; the licences of its text where that is `packages`."""
    licences: dict[str, list[str]] = {}
    if record.corpus.split("[")[0] == "packages":
        for wheel in pinned_wheels():
            licences.setdefault(wheel.licence, []).append(f"{wheel.name} {wheel.version}")
    kind = str(record.config["kind"])
    return {
        "title": f"The course's base {kind}",
        "about": ABOUT,
        "corpus": record.corpus,
        "tokenizer": record.tokenizer,
        "tokens": record.n_tokens,
        "epochs": record.epochs,
        "steps": round(record.n_tokens / record.batch_tokens),
        "loss_nats": record.loss_nats,
        "bits_per_byte": record.bits_per_byte,
        "n_params": record.n_params,
        "flops": record.flops,
        "seconds": record.seconds,
        "device": record.device,
        "seed": record.seed,
        "versions": dict(record.versions),
        "commit": record.commit,
        "licences": licences,
    }


def without_untrained_pooler(model: Model) -> Model:
    """An encoder that learnt hidden tokens alone, without the pooler which that leaves as it was drawn."""
    if not isinstance(model, Encoder):
        return model
    config = model.config
    if not (config.mlm_head and config.pooler and not config.nsp_head):
        return model
    smaller = Encoder(dataclasses.replace(config, pooler=False), device="meta")
    kept = {n: tensor for n, tensor in model.state_dict().items() if not n.startswith("pooler.")}
    smaller.load_state_dict(kept, assign=True)
    return smaller.train(model.training)


def _named(special: SpecialTokens) -> dict[str, int]:
    return {
        "end_of_text": special.end_of_text,
        "pad": special.pad,
        "cls": special.cls,
        "sep": special.sep,
        "mask": special.mask,
    }
