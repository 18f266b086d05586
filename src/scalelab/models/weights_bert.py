"""BERT's names and shapes: queries, keys and values apart, and up to two heads that make four classes.

Which class an encoder is depends on its heads: BertForPreTraining has both, BertForMaskedLM says which token
was hidden (and has no pooler), BertForNextSentencePrediction whether the second part follows, BertModel has
none.
Source: `transformers`, models/bert/modeling_bert.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from scalelab.core.config import EncoderConfig
from scalelab.core.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, CONFIG_NAME = EncoderConfig, "BertConfig"
# Of each class: whether it has the pooler, the head for hidden tokens, and the one for next sentences.
HEADS = {
    "BertForPreTraining": {"pooler": True, "mlm_head": True, "nsp_head": True},
    "BertForMaskedLM": {"pooler": False, "mlm_head": True, "nsp_head": False},
    "BertForNextSentencePrediction": {"pooler": True, "mlm_head": False, "nsp_head": True},
    "BertModel": {"pooler": True, "mlm_head": False, "nsp_head": False},
}
CLASS_NAMES = tuple(HEADS)

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
WRITTEN_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}

# Settings that change what is computed, and the only value that an Encoder computes.
REQUIRED = {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"}

EMBEDDING_NAMES = {
    "token_embedding": "word_embeddings",
    "position_embedding": "position_embeddings",
    "segment_embedding": "token_type_embeddings",
}
BLOCK_NAMES = {
    "attention.out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
QKV = ("query", "key", "value")


def read_config(config: Any, class_name: str, theirs: Mapping[str, Tensor] | None) -> EncoderConfig:
    """The config of the same model as an Encoder.

    Args:
        theirs: their tensors, which say whether a BertModel has its pooler; None before they are read.

    Raises:
        WeightsError: a setting that an Encoder does not have.
    """
    heads = dict(HEADS[class_name])
    settings = shared_settings(config, "BERT", REQUIRED, mlm_head=heads["mlm_head"])
    if theirs is not None and class_name == "BertModel":
        heads["pooler"] = "pooler.dense.weight" in theirs
    return EncoderConfig(**settings, pooler=heads["pooler"], nsp_head=heads["nsp_head"])


def shared_settings(config: Any, kind: str, required: Mapping[str, Any], *, mlm_head: bool) -> dict[str, Any]:
    """Arguments of an EncoderConfig that BERT and its kin say in the same words.

    Args:
        kind: what a message calls their model. required: settings that may have one value only.

    Raises:
        WeightsError: a setting that an Encoder does not have.
    """
    for name, needed in required.items():
        if getattr(config, name, needed) != needed:
            raise WeightsError(
                f"{kind} with {name}={getattr(config, name)!r} is not supported; needed: {needed!r}"
            )
    if mlm_head and not config.tie_word_embeddings:
        raise WeightsError(
            f"{kind} with tie_word_embeddings=False is not supported: the head multiplies by the input table"
        )
    if config.hidden_act not in ACTIVATIONS:
        raise WeightsError(
            f"{kind} with hidden_act={config.hidden_act!r} is not supported; known: {', '.join(ACTIVATIONS)}"
        )
    if config.hidden_dropout_prob != config.attention_probs_dropout_prob:
        raise WeightsError(
            f"{kind} with different hidden_dropout_prob and attention_probs_dropout_prob is not supported: "
            f"set them equal, got {config.hidden_dropout_prob} and {config.attention_probs_dropout_prob}"
        )
    return {
        "n_layers": config.num_hidden_layers,
        "d_model": config.hidden_size,
        "n_heads": config.num_attention_heads,
        "d_ff": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "seq_len": config.max_position_embeddings,
        "n_segments": config.type_vocab_size,
        "norm_eps": config.layer_norm_eps,
        "feed_forward": ACTIVATIONS[config.hidden_act],
        "dropout": float(config.hidden_dropout_prob),
        "mlm_head": mlm_head,
    }


def misfits(config: EncoderConfig) -> list[str]:
    """The settings that keep an Encoder from being written as BERT."""
    needed = {
        "norm": "layernorm",
        "norm_position": "post",
        "positions": "learned",
        "attention_bias": True,
        "feed_forward_bias": True,
    }
    wrong = [f"{name}={value!r}" for name, value in needed.items() if getattr(config, name) != value]
    if config.feed_forward not in WRITTEN_ACTIVATIONS:
        wrong.append(f"feed_forward one of {', '.join(WRITTEN_ACTIVATIONS)}")
    if config.mlm_head and config.pooler != config.nsp_head:
        wrong.append("beside an mlm_head either pooler=False, or nsp_head=True as well")
    return wrong


def class_name(config: EncoderConfig) -> str:
    """The class that has exactly this encoder's heads."""
    if config.mlm_head:
        return "BertForPreTraining" if config.nsp_head else "BertForMaskedLM"
    return "BertForNextSentencePrediction" if config.nsp_head else "BertModel"


def class_arguments(config: EncoderConfig) -> dict[str, Any]:
    """What their class is made with, beside its config."""
    return {} if config.mlm_head or config.nsp_head else {"add_pooling_layer": config.pooler}


def write_config(config: EncoderConfig) -> dict[str, Any]:
    """Keyword arguments of a BertConfig."""
    return {
        "num_hidden_layers": config.n_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.d_ff,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.seq_len,
        "type_vocab_size": config.n_segments,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": WRITTEN_ACTIVATIONS[config.feed_forward],
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "tie_word_embeddings": True,
        "pad_token_id": None,
    }


def read_weights(theirs: Mapping[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    """Their tensors under an Encoder's names and in its shapes."""
    ours = {our: theirs[their] for our, their in _names(config)}
    for our, their in _qkv_names(config):
        ours[our] = torch.cat([theirs[their.format(part)] for part in QKV])  # [3·D, D]
    return ours


def write_weights(ours: Mapping[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    """The reverse of `read_weights`."""
    theirs = {their: ours[our] for our, their in _names(config)}
    for our, their in _qkv_names(config):
        for part, tensor in zip(QKV, ours[our].chunk(3), strict=True):
            theirs[their.format(part)] = tensor
    return theirs


def tied(config: EncoderConfig) -> dict[str, str]:
    """Names of tensors that are other ones again: copy → original."""
    if not config.mlm_head:
        return {}
    return {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }


def _names(config: EncoderConfig) -> Iterator[tuple[str, str]]:
    """Pairs of an Encoder's name and BERT's for the same tensor."""
    body = _body(config)
    for our, their in EMBEDDING_NAMES.items():
        yield f"{our}.weight", f"{body}embeddings.{their}.weight"
    linear = {"embedding_norm": f"{body}embeddings.LayerNorm"}
    for layer in range(config.n_layers):
        linear |= {f"blocks.{layer}.{o}": f"{body}encoder.layer.{layer}.{t}" for o, t in BLOCK_NAMES.items()}
    if config.pooler:
        linear["pooler"] = f"{body}pooler.dense"
    if config.mlm_head:
        linear["mlm_head.dense"] = "cls.predictions.transform.dense"
        linear["mlm_head.norm"] = "cls.predictions.transform.LayerNorm"
        yield "mlm_head.bias", "cls.predictions.bias"
    if config.nsp_head:
        linear["nsp_head"] = "cls.seq_relationship"
    for our, their in linear.items():
        for kind in ("weight", "bias"):
            yield f"{our}.{kind}", f"{their}.{kind}"


def _qkv_names(config: EncoderConfig) -> Iterator[tuple[str, str]]:
    """Pairs of an Encoder's fused tensor and a pattern for BERT's three."""
    for layer in range(config.n_layers):
        for kind in ("weight", "bias"):
            their = f"{_body(config)}encoder.layer.{layer}.attention.self.{{}}.{kind}"
            yield f"blocks.{layer}.attention.qkv.{kind}", their


def _body(config: EncoderConfig) -> str:
    """What stands before the names of the body: in a class with heads it is a part of its own."""
    return "bert." if config.mlm_head or config.nsp_head else ""
