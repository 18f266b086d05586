"""T5's names and shapes: one table for both stacks, positions in each stack's first layer, no biases.

Version 1.0 ties the head to the table and shrinks the stream before it; version 1.1 does neither. Its gated
feed-forward is not among ours and is refused by name.
Source: `transformers`, models/t5/modeling_t5.py.

Differs: while training, T5 also drops numbers inside the feed-forward, which ours does not. With a dropout of
0, and whenever the model is in evaluation mode, the two are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from scalelab.core.config import EncoderDecoderConfig
from scalelab.core.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, CONFIG_NAME = EncoderDecoderConfig, "T5Config"
CLASS_NAMES = ("T5ForConditionalGeneration",)

ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
WRITTEN_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_new"}
QKV = ("q", "k", "v")
HEAD, TABLE = "lm_head.weight", "shared.weight"


def read_config(config: Any, class_name: str, theirs: Mapping[str, Tensor] | None) -> EncoderDecoderConfig:
    """The config of the same model as an EncoderDecoder.

    Args:
        class_name: always the one class. theirs: their tensors, which say whether the head is the table
            (today's library says "tied" of every T5); None before they are read.

    Raises:
        WeightsError: a setting that an EncoderDecoder does not have.
    """
    _check_settings(config)
    is_scaled = bool(getattr(config, "scale_decoder_outputs", config.tie_word_embeddings))
    is_tied = is_scaled if theirs is None else torch.equal(theirs[HEAD], theirs[TABLE])
    return EncoderDecoderConfig(
        n_layers=config.num_layers,
        d_model=config.d_model,
        n_heads=config.num_heads,
        d_head=config.d_kv,
        d_ff=config.d_ff,
        vocab_size=config.vocab_size,
        n_position_buckets=config.relative_attention_num_buckets,
        max_distance=config.relative_attention_max_distance,
        tie_embeddings=is_tied,
        scale_head=is_scaled,
        norm_eps=config.layer_norm_epsilon,
        feed_forward=ACTIVATIONS[config.feed_forward_proj],  # type: ignore[arg-type]
        pad_id=config.pad_token_id,
        dropout=float(config.dropout_rate),
    )


def misfits(config: EncoderDecoderConfig) -> list[str]:
    """The settings that keep an EncoderDecoder from being written as T5."""
    needed = {
        "norm": "rmsnorm",
        "norm_position": "pre",
        "positions": "relative",
        "scale_scores": False,
        "attention_bias": False,
        "feed_forward_bias": False,
    }
    wrong = [f"{name}={value!r}" for name, value in needed.items() if getattr(config, name) != value]
    if config.feed_forward not in WRITTEN_ACTIVATIONS:
        wrong.append(f"feed_forward one of {', '.join(WRITTEN_ACTIVATIONS)}")
    return wrong


def class_name(config: EncoderDecoderConfig) -> str:
    """The one class."""
    return CLASS_NAMES[0]


def class_arguments(config: EncoderDecoderConfig) -> dict[str, Any]:
    """Nothing beside its config."""
    return {}


def write_config(config: EncoderDecoderConfig) -> dict[str, Any]:
    """Keyword arguments of a T5Config; it names the tie, and means by it the shrinking before the head."""
    return {
        "num_layers": config.n_layers,
        "d_model": config.d_model,
        "num_heads": config.n_heads,
        "d_kv": config.d_head,
        "d_ff": config.d_ff,
        "vocab_size": config.vocab_size,
        "relative_attention_num_buckets": config.n_position_buckets,
        "relative_attention_max_distance": config.max_distance,
        "tie_word_embeddings": config.scale_head,
        "layer_norm_epsilon": config.norm_eps,
        "feed_forward_proj": WRITTEN_ACTIVATIONS[config.feed_forward],
        "dropout_rate": config.dropout,
        "pad_token_id": config.pad_id,
        "decoder_start_token_id": config.pad_id,
        "eos_token_id": None,
    }


def read_weights(theirs: Mapping[str, Tensor], config: EncoderDecoderConfig) -> dict[str, Tensor]:
    """Their tensors under an EncoderDecoder's names and in its shapes."""
    ours = {our: theirs[their] for our, their in _names(config)}
    for our, pattern, parts in _fused_names(config):
        ours[our] = torch.cat([theirs[pattern.format(part)] for part in parts])  # [parts·H·K, D]
    return ours


def write_weights(ours: Mapping[str, Tensor], config: EncoderDecoderConfig) -> dict[str, Tensor]:
    """The reverse of `read_weights`."""
    theirs = {their: ours[our] for our, their in _names(config)}
    for our, pattern, parts in _fused_names(config):
        for part, tensor in zip(parts, ours[our].chunk(len(parts)), strict=True):
            theirs[pattern.format(part)] = tensor
    return theirs


def tied(config: EncoderDecoderConfig) -> dict[str, str]:
    """Names of tensors that are other ones again: copy → original."""
    copies = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    return dict.fromkeys([*copies, HEAD] if config.tie_embeddings else copies, TABLE)


def _check_settings(config: Any) -> None:
    if config.feed_forward_proj not in ACTIVATIONS:
        raise WeightsError(
            f"T5 with feed_forward_proj={config.feed_forward_proj!r} is not supported; "
            f"known: {', '.join(ACTIVATIONS)}"
        )
    if config.num_decoder_layers != config.num_layers:
        raise WeightsError(
            f"T5 with num_decoder_layers={config.num_decoder_layers} beside num_layers={config.num_layers} "
            "is not supported: both stacks must have the same number"
        )
    if config.pad_token_id is None:
        raise WeightsError("T5 with pad_token_id=None is not supported: the decoder's input starts with it")
    start = getattr(config, "decoder_start_token_id", None)
    if start not in (None, config.pad_token_id):
        raise WeightsError(
            f"T5 with decoder_start_token_id={start!r} is not supported; needed: pad_token_id="
            f"{config.pad_token_id!r}"
        )


def _names(config: EncoderDecoderConfig) -> Iterator[tuple[str, str]]:
    """Pairs of an EncoderDecoder's name and T5's for the same tensor, where it is one."""
    yield "token_embedding.weight", TABLE
    if not config.tie_embeddings:
        yield "head.weight", HEAD
    for stack in ("encoder", "decoder"):
        relative = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield f"{stack}.relative_positions.table.weight", relative
        yield f"{stack}.final_norm.weight", f"{stack}.final_layer_norm.weight"
        last = 1 if stack == "encoder" else 2  # the feed-forward's place in a block
        names = {
            "attention_norm": "0.layer_norm",
            "attention.out": "0.SelfAttention.o",
            "feed_forward_norm": f"{last}.layer_norm",
            "feed_forward.up": f"{last}.DenseReluDense.wi",
            "feed_forward.down": f"{last}.DenseReluDense.wo",
        }
        if stack == "decoder":
            names |= {
                "cross_norm": "1.layer_norm",
                "cross_attention.q": "1.EncDecAttention.q",
                "cross_attention.out": "1.EncDecAttention.o",
            }
        for layer in range(config.n_layers):
            for our, their in names.items():
                yield f"{stack}.blocks.{layer}.{our}.weight", f"{stack}.block.{layer}.layer.{their}.weight"


def _fused_names(config: EncoderDecoderConfig) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """An EncoderDecoder's fused tensor, a pattern for T5's, and the parts to fill in."""
    for stack in ("encoder", "decoder"):
        for layer in range(config.n_layers):
            ours, theirs = f"{stack}.blocks.{layer}", f"{stack}.block.{layer}.layer"
            yield f"{ours}.attention.qkv.weight", f"{theirs}.0.SelfAttention.{{}}.weight", QKV
            if stack == "decoder":
                yield f"{ours}.cross_attention.kv.weight", f"{theirs}.1.EncDecAttention.{{}}.weight", QKV[1:]
