"""Weights to and from `transformers`: the same numbers under other names give the same logits.

GPT-2 and Llama differ from a `Decoder` in names, in GPT-2's transposed matrices, and in Llama's
separate query, key and value matrices; nothing is approximated, and what a Decoder cannot compute
exactly is refused by name. Taught in book/transformers/training.md.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import torch

from scalelab.core.config import DecoderConfig
from scalelab.core.errors import ConfigError, WeightsError
from scalelab.models import weights_gpt2, weights_llama
from scalelab.models.decoder import Decoder

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Format(Protocol):
    """What a module must offer to exchange weights with one class of `transformers`."""

    CLASS_NAME: str
    CONFIG_NAME: str

    def read_config(self, config: Any) -> DecoderConfig:
        """The config of the same model as a Decoder; WeightsError if there is none."""

    def read_weights(self, theirs: Mapping[str, Tensor], config: DecoderConfig) -> dict[str, Tensor]:
        """Their tensors under a Decoder's names and in its shapes."""

    def misfits(self, config: DecoderConfig) -> list[str]:
        """The settings that keep a Decoder from being written as this class; empty if none."""

    def write_config(self, config: DecoderConfig) -> dict[str, Any]:
        """Keyword arguments of their config class."""

    def write_weights(self, ours: Mapping[str, Tensor], config: DecoderConfig) -> dict[str, Tensor]:
        """The reverse of `read_weights`."""


FORMATS: Mapping[str, Format] = {"gpt2": weights_gpt2, "llama": weights_llama}  # by their `model_type`


def from_transformers(model: PreTrainedModel | str | os.PathLike[str]) -> Decoder:
    """A Decoder that computes what a GPT2LMHeadModel or LlamaForCausalLM computes.

    Args:
        model: the model, or the folder or hub name to load one from. Its weights are copied; their
            type and device are kept, and so is the model's training or evaluation mode.

    Raises:
        WeightsError: another class of model, a setting that a Decoder does not have (named in the
            message), missing weights, a folder that cannot be read, or no `transformers` installed.
    """
    if isinstance(model, str | os.PathLike):
        model = _load(model)
    form = _format_of(getattr(model, "config", None), model)
    cls = getattr(_transformers(), form.CLASS_NAME)
    if not isinstance(model, cls):
        raise WeightsError(f"cannot read a {type(model).__name__}; give a {form.CLASS_NAME}")
    config = _read_config(form, model.config)
    theirs = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    _check_head(theirs, model, config)
    decoder = Decoder(config, device="meta")
    try:
        ours = {name: t.clone(memory_format=torch.contiguous_format)
                for name, t in form.read_weights(theirs, config).items()}  # fmt: skip
        decoder.load_state_dict(ours, assign=True)
    except (KeyError, RuntimeError) as error:
        raise WeightsError(f"the {form.CLASS_NAME}'s weights do not fit its own config: {error}") from None
    return decoder.train(model.training)


def to_transformers(decoder: Decoder) -> PreTrainedModel:
    """The GPT2LMHeadModel or LlamaForCausalLM with this decoder's weights, in its mode, type and device.

    Its config names no special tokens, since a Decoder knows none: set them before `save_pretrained`
    where a tokenizer has them.

    Raises:
        WeightsError: neither class can hold this decoder (the message names what stands in the way),
            or `transformers` is not installed.
    """
    config = decoder.config
    misfits = {name: form.misfits(config) for name, form in FORMATS.items()}
    closest = min(misfits, key=lambda name: len(misfits[name]))
    if misfits[closest]:
        reasons = "; ".join(f"{FORMATS[name].CLASS_NAME} needs {', '.join(m)}" for name, m in misfits.items())
        raise WeightsError(f"no class of transformers holds this decoder: {reasons}")
    form, library = FORMATS[closest], _transformers()
    theirs_config = getattr(library, form.CONFIG_NAME)(**form.write_config(config))
    with torch.random.fork_rng(devices=[]):  # it draws initial weights, which are then overwritten
        model = getattr(library, form.CLASS_NAME)(theirs_config)
    weight = decoder.token_embedding.weight
    model.to(device=weight.device, dtype=weight.dtype)
    ours = {name: tensor.detach() for name, tensor in decoder.state_dict().items()}
    theirs = form.write_weights(ours, config)
    theirs["lm_head.weight"] = decoder.head_weight.detach()  # the state dict names a tied head too
    model.load_state_dict(theirs)
    return model.train(decoder.training)  # type: ignore[no-any-return]


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
    _read_config(form, config)
    try:
        model, report = getattr(library, form.CLASS_NAME).from_pretrained(name, output_loading_info=True)
    except Exception as error:  # safetensors, pickle and the hub each raise their own kinds
        raise WeightsError(f"cannot read the weights of {name!r}: {error}") from None
    if report["missing_keys"] or report["mismatched_keys"]:
        missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise WeightsError(f"{name!r} lacks weights that its config asks for: {', '.join(missing[:3])}")
    return model  # type: ignore[no-any-return]


def _format_of(config: Any, found: object) -> Format:
    kind = str(getattr(config, "model_type", ""))
    if kind not in FORMATS:
        known = ", ".join(form.CLASS_NAME for form in FORMATS.values())
        what = f"of type {kind!r}" if kind else f"found as {found!r:.80}"
        raise WeightsError(f"cannot read a model {what}; known: {known}")
    return FORMATS[kind]


def _read_config(form: Format, config: Any) -> DecoderConfig:
    try:
        return form.read_config(config)
    except ConfigError as error:
        raise WeightsError(f"the {form.CLASS_NAME}'s config does not make a decoder: {error}") from None


def _check_head(theirs: Mapping[str, Tensor], model: PreTrainedModel, config: DecoderConfig) -> None:
    """A config that says "tied" over two different tables would silently lose one of them."""
    table = model.get_input_embeddings().weight
    assert isinstance(table, torch.Tensor)
    if config.tie_embeddings and not torch.equal(theirs["lm_head.weight"], table):
        raise WeightsError(
            "tie_word_embeddings is set, but the head's weights differ from the input table's: "
            "set model.config.tie_word_embeddings = False"
        )
