"""Weights to and from `transformers`: the same numbers under other names give the same outputs.

Its models differ from ours in names, in GPT-2's transposed matrices, and in query, key and value matrices
that stand apart; nothing is approximated, and what our models cannot compute exactly is refused by name.
One module for each kind: weights_gpt2.py, weights_llama.py, weights_bert.py, weights_roformer.py,
weights_t5.py.
Taught in book/transformers/training.md and book/transformers/architectures.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from scalelab.core.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from scalelab.core.errors import ConfigError, WeightsError
from scalelab.models import weights_bert, weights_gpt2, weights_llama, weights_roformer, weights_t5
from scalelab.models.decoder import Decoder
from scalelab.models.encoder import Encoder
from scalelab.models.encoder_decoder import EncoderDecoder

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    Config = DecoderConfig | EncoderConfig | EncoderDecoderConfig
    Model = Decoder | Encoder | EncoderDecoder


class Format(Protocol):
    """What a module must offer to exchange weights with one kind of model in `transformers`."""

    @property
    def CONFIG(self) -> type[Config]:
        """The class of our configs that it reads and writes."""

    @property
    def CONFIG_NAME(self) -> str:
        """The name of theirs."""

    @property
    def CLASS_NAMES(self) -> tuple[str, ...]:
        """The names of their classes of models."""

    def read_config(self, config: Any, class_name: str, theirs: Mapping[str, Tensor] | None) -> Config:
        """The config of the same model as one of ours; WeightsError if there is none.

        Args:
            theirs: their tensors; None where they have not been read yet.
        """

    def read_weights(self, theirs: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
        """Their tensors under our names and in our shapes."""

    def misfits(self, config: Any) -> list[str]:
        """The settings that keep our model from being written in this kind; empty if none."""

    def class_name(self, config: Any) -> str:
        """Which of their classes our model is."""

    def class_arguments(self, config: Any) -> dict[str, Any]:
        """What that class is made with, beside its config."""

    def write_config(self, config: Any) -> dict[str, Any]:
        """Keyword arguments of their config class."""

    def write_weights(self, ours: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
        """The reverse of `read_weights`, without the names that `tied` gives."""

    def tied(self, config: Any) -> dict[str, str]:
        """Their names of tensors that are other ones again: copy → original."""


FORMATS: Mapping[str, Format] = {  # by their `model_type`
    "gpt2": weights_gpt2,
    "llama": weights_llama,
    "bert": weights_bert,
    "roformer": weights_roformer,
    "t5": weights_t5,
}


def from_transformers(model: PreTrainedModel | str | os.PathLike[str]) -> Model:
    """The model of ours that computes what one of `transformers` computes.

    A GPT2LMHeadModel or LlamaForCausalLM becomes a Decoder; a BertModel, BertForMaskedLM, BertForPreTraining,
    BertForNextSentencePrediction, RoFormerModel or RoFormerForMaskedLM an Encoder; a
    T5ForConditionalGeneration an EncoderDecoder.

    Args:
        model: the model, or the folder or hub name to load one from. Its weights are copied; their
            type and device are kept, and so is the model's training or evaluation mode.

    Raises:
        WeightsError: another class of model, a setting or a weight that ours do not have (named in the
            message), missing weights or weights of several types, a folder that cannot be read, or no
            `transformers` installed.
    """
    if isinstance(model, str | os.PathLike):
        model = _load(model)
    form = _format_of(getattr(model, "config", None), model)
    class_name = _class_of(form, model)
    theirs = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    config = _read_config(form, model.config, class_name, theirs)
    _check_tied(form.tied(config), theirs, isinstance(config, DecoderConfig))
    ours = make_model(config, device="meta")
    try:
        weights = {name: t.clone(memory_format=torch.contiguous_format)
                   for name, t in form.read_weights(theirs, config).items()}  # fmt: skip
        ours.load_state_dict(weights, assign=True)
    except (KeyError, RuntimeError) as error:
        raise WeightsError(f"the {class_name}'s weights do not fit its own config: {error}") from None
    _check_all_read(form, ours, model)
    _check_one_type(ours, class_name)
    return ours.train(model.training)


def to_transformers(model: Model) -> PreTrainedModel:
    """The model of `transformers` with this model's weights, in its mode, type and device.

    Which class that is follows from the config: a Decoder is a GPT2LMHeadModel or a LlamaForCausalLM, an
    Encoder a BERT with the same heads, an EncoderDecoder a T5ForConditionalGeneration. Its config names no
    special tokens that ours does not know: set them before `save_pretrained` where a tokenizer has them.

    Raises:
        WeightsError: no class can hold this model (the message names what stands in the way), it is none of
            ours, or `transformers` is not installed.
    """
    check_ours(model)
    config = model.config
    form = format_for(config)
    library = _transformers()
    theirs_config = getattr(library, form.CONFIG_NAME)(**form.write_config(config))
    with torch.random.fork_rng(devices=[]):  # it draws initial weights, which are then overwritten
        cls = getattr(library, form.class_name(config))
        theirs = cls(theirs_config, **form.class_arguments(config))
    _untie(theirs, form.tied(config))
    weight = model.token_embedding.weight
    theirs.to(device=weight.device, dtype=weight.dtype)
    theirs.load_state_dict(written_weights(form, model))
    return theirs.train(model.training)  # type: ignore[no-any-return]


def make_model(config: Config, *, seed: int | None = None, device: torch.device | str | None = None) -> Model:
    """The model that a config describes.

    Raises:
        ConfigError: no model of this package is built from such a config.
    """
    if isinstance(config, DecoderConfig):
        return Decoder(config, seed=seed, device=device)
    if isinstance(config, EncoderConfig):
        return Encoder(config, seed=seed, device=device)
    if isinstance(config, EncoderDecoderConfig):
        return EncoderDecoder(config, seed=seed, device=device)
    raise ConfigError(
        "a model is built from a DecoderConfig, an EncoderConfig or an EncoderDecoderConfig, got "
        f"{type(config).__name__}"
    )


def check_ours(model: object) -> None:
    """Refuse what is no model of this package.

    Raises:
        WeightsError: naming what it is.
    """
    if not isinstance(model, Decoder | Encoder | EncoderDecoder):
        raise WeightsError(
            f"weights are written of a Decoder, an Encoder or an EncoderDecoder, got {type(model).__name__}"
        )


def format_for(config: Config) -> Format:
    """The kind of model in `transformers` that can hold a model of ours.

    Raises:
        WeightsError: none can; the message names what stands in the way.
    """
    forms = [form for form in FORMATS.values() if form.CONFIG is type(config)]
    misfits = [form.misfits(config) for form in forms]
    for form, reasons in zip(forms, misfits, strict=True):
        if not reasons:
            return form
    told = (f"{form.CLASS_NAMES[0]} needs {', '.join(m)}" for form, m in zip(forms, misfits, strict=True))
    raise WeightsError(f"no class of transformers holds this model: {'; '.join(told)}")


def written_weights(form: Format, model: Model) -> dict[str, Tensor]:
    """A model's tensors under their names, tied ones under each of their names."""
    ours = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    theirs = form.write_weights(ours, model.config)
    return theirs | {copy: theirs[original] for copy, original in form.tied(model.config).items()}


def _transformers() -> ModuleType:
    try:
        import transformers
    except ImportError:
        raise WeightsError(
            "exchanging weights needs the package transformers, which is not installed: "
            "pip install 'scalelab[hub]'"
        ) from None
    return transformers


def _load(name: str | os.PathLike[str]) -> PreTrainedModel:
    """A model from a folder or the hub; its config is judged before any weight is fetched."""
    library = _transformers()
    name = os.fspath(name)
    if os.sep in name and not Path(name).exists() and name.count("/") != 1:
        raise WeightsError(f"no model folder at {name}")
    try:
        config = library.AutoConfig.from_pretrained(name)
    except Exception as error:  # the hub and its validation raise kinds of their own
        raise WeightsError(f"cannot read a model's config from {name!r}: {error}") from None
    form = _format_of(config, name)
    class_name = _class_in(form, config)
    _read_config(form, config, class_name, None)
    try:
        model, report = getattr(library, class_name).from_pretrained(name, output_loading_info=True)
    except Exception as error:  # safetensors, pickle and the hub each raise their own kinds
        raise WeightsError(f"cannot read the weights of {name!r}: {error}") from None
    if report["missing_keys"] or report["mismatched_keys"]:
        missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise WeightsError(f"{name!r} lacks weights that its config asks for: {', '.join(missing[:3])}")
    _check_none_skipped(model, map(str, report["unexpected_keys"]), name)
    return model  # type: ignore[no-any-return]


def _format_of(config: Any, found: object) -> Format:
    kind = str(getattr(config, "model_type", ""))
    if kind not in FORMATS:
        known = ", ".join(name for form in FORMATS.values() for name in form.CLASS_NAMES)
        what = f"of type {kind!r}" if kind else f"found as {found!r:.80}"
        raise WeightsError(f"cannot read a model {what}; known: {known}")
    return FORMATS[kind]


def _class_of(form: Format, model: PreTrainedModel) -> str:
    """The name of the known class that a model belongs to."""
    for name in form.CLASS_NAMES:
        if isinstance(model, getattr(_transformers(), name)):
            return name
    raise WeightsError(f"cannot read a {type(model).__name__}; give a {' or '.join(form.CLASS_NAMES)}")


def _class_in(form: Format, config: Any) -> str:
    """The name of the class that a stored config names; the only one where there is but one."""
    named = getattr(config, "architectures", None) or []
    for name in form.CLASS_NAMES:
        if name in named or len(form.CLASS_NAMES) == 1:
            return name
    raise WeightsError(
        f"the config names {' and '.join(named) or 'no class'}; known: {', '.join(form.CLASS_NAMES)}: "
        "load the model by one of them, and give the model"
    )


def _read_config(form: Format, config: Any, class_name: str, theirs: Mapping[str, Tensor] | None) -> Config:
    try:
        return form.read_config(config, class_name, theirs)
    except ConfigError as error:
        raise WeightsError(f"the {class_name}'s config does not make a model of ours: {error}") from None


def _check_tied(tied: Mapping[str, str], theirs: Mapping[str, Tensor], may_untie: bool) -> None:
    """A config that says "tied" over two different tensors would silently lose one of them."""
    for copy, original in tied.items():
        if copy in theirs and not torch.equal(theirs[copy], theirs[original]):
            raise WeightsError(
                f"tie_word_embeddings ties {copy} to {original}, but their numbers differ: "
                "set model.config.tie_word_embeddings = False"
                if may_untie
                else f"{copy} and {original} hold different numbers, and ours has one tensor for both: "
                "this model cannot be read"
            )


def _check_all_read(form: Format, ours: Model, theirs: PreTrainedModel) -> None:
    """A parameter that ours has no place for would silently be lost. (Buffers are masks and angles.)"""
    names = {name for name, _ in theirs.named_parameters(remove_duplicate=False)}
    _refuse_extra(names - set(written_weights(form, ours)), f"the {type(theirs).__name__}")


def _check_none_skipped(theirs: PreTrainedModel, skipped: Iterable[str], name: str) -> None:
    """Of a folder's tensors that their model has no place for, refuse those that its body was trained with.

    These are more parameters of a layer that it has, and more layers in its blocks. Heads that are not asked
    for may stay behind, and so may the masks and angles that older versions stored in modules without any.
    """
    modules = dict(theirs.named_modules())

    def is_lost(key: str) -> bool:
        layer, _, kind = key.rpartition(".")
        if layer in modules:
            return bool(modules[layer]._parameters)
        parents = [key[:place] for place, letter in enumerate(key) if letter == "."]
        in_a_block = any(isinstance(modules.get(parent), nn.ModuleList) for parent in parents)
        return in_a_block and kind in ("weight", "bias")

    body = theirs.base_model_prefix  # checkpoints of the body alone leave it out
    _refuse_extra({key for key in skipped if is_lost(key) or is_lost(f"{body}.{key}")}, repr(name))


def _refuse_extra(names: Iterable[str], what: str) -> None:
    extra = sorted(names)
    if extra:
        more = f" and {len(extra) - 3} more" if len(extra) > 3 else ""
        raise WeightsError(
            f"{what} has weights that its config does not ask for and ours would lose: "
            f"{', '.join(extra[:3])}{more}"
        )


def _check_one_type(ours: Model, class_name: str) -> None:
    """Products of two types cannot be taken; theirs cast on the way (T5 in fp16 keeps some in fp32)."""
    types = sorted({str(parameter.dtype) for parameter in ours.parameters()})
    if len(types) > 1:
        raise WeightsError(
            f"the {class_name}'s weights are of several types, {' and '.join(types)}: load it with "
            f"{class_name}.from_pretrained(..., dtype=torch.float32), or call its float(), and give the model"
        )


def _untie(model: PreTrainedModel, tied: Mapping[str, str]) -> None:
    """Give the head a tensor of its own where theirs is always tied (T5) and ours is not."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    table = model.get_input_embeddings()
    if head is None or head.weight is not table.weight:
        return
    name = next(name for name, module in model.named_modules() if module is head)
    if f"{name}.weight" not in tied:
        head.weight = nn.Parameter(torch.empty_like(table.weight))
