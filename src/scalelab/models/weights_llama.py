"""Llama's names and shapes: rotary positions, RMSNorm, SwiGLU, and queries, keys and values apart.

Its rotary pairs are halves of a head, as ours (positions.py), so no rows change places.
Source: `transformers`, models/llama/modeling_llama.py and modeling_rope_utils.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from scalelab.core.config import DecoderConfig, RopeScaling
from scalelab.core.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, CONFIG_NAME = DecoderConfig, "LlamaConfig"
CLASS_NAMES = ("LlamaForCausalLM",)

# Settings that change what is computed, and the only value that a Decoder computes.
REQUIRED = {"hidden_act": "silu", "attention_dropout": 0.0, "pretraining_tp": 1}

BLOCK_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.out": "self_attn.o_proj",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
}
QKV = ("q_proj", "k_proj", "v_proj")


def read_config(config: Any, class_name: str, theirs: Mapping[str, Tensor] | None) -> DecoderConfig:
    """The config of the same model as a Decoder; their class and tensors say nothing that it does not.

    Raises:
        WeightsError: a setting that a Decoder does not have.
    """
    for name, needed in REQUIRED.items():
        if getattr(config, name, needed) != needed:
            raise WeightsError(
                f"Llama with {name}={getattr(config, name)!r} is not supported; needed: {needed!r}"
            )
    theta, scaling = _read_rope(config)
    return DecoderConfig(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        d_head=getattr(config, "head_dim", None),
        vocab_size=config.vocab_size,
        seq_len=config.max_position_embeddings,
        d_ff=config.intermediate_size,
        norm="rmsnorm",
        norm_eps=config.rms_norm_eps,
        positions="rope",
        rope_theta=theta,
        rope_scaling=scaling,
        feed_forward="swiglu",
        attention_bias=config.attention_bias,
        feed_forward_bias=getattr(config, "mlp_bias", False),
        norm_bias=False,
        tie_embeddings=config.tie_word_embeddings,
    )


def misfits(config: DecoderConfig) -> list[str]:
    """The settings that keep a Decoder from being written as Llama."""
    needed = {
        "norm": "rmsnorm",
        "norm_position": "pre",
        "positions": "rope",
        "rope_fraction": 1.0,
        "rope_skip_every": None,
        "feed_forward": "swiglu",
        "parallel_residual": False,
        "dropout": 0.0,
    }
    wrong = [f"{name}={value!r}" for name, value in needed.items() if getattr(config, name) != value]
    if config.d_model % config.n_heads:
        wrong.append("n_heads that divide d_model")
    return wrong


def class_name(config: DecoderConfig) -> str:
    """The one class."""
    return CLASS_NAMES[0]


def class_arguments(config: DecoderConfig) -> dict[str, Any]:
    """Nothing beside its config."""
    return {}


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """Keyword arguments of a LlamaConfig, in the names that old and new versions of it understand."""
    scaling = config.rope_scaling
    return {
        "num_hidden_layers": config.n_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.seq_len,
        "intermediate_size": config.ff_width,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None
        if scaling is None
        else {
            "rope_type": "llama3",
            "factor": float(scaling.factor),
            "low_freq_factor": float(scaling.low_freq_factor),
            "high_freq_factor": float(scaling.high_freq_factor),
            "original_max_position_embeddings": scaling.original_seq_len,
        },
        "attention_bias": config.attention_bias,
        "mlp_bias": config.feed_forward_bias,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def read_weights(theirs: Mapping[str, Tensor], config: DecoderConfig) -> dict[str, Tensor]:
    """Their tensors under a Decoder's names and in its shapes."""
    ours = {our: theirs[their] for our, their in _names(config)}
    for our, their in _qkv_names(config):
        ours[our] = torch.cat([theirs[their.format(part)] for part in QKV])  # [(H + 2·KV)·K, D]
    return ours


def write_weights(ours: Mapping[str, Tensor], config: DecoderConfig) -> dict[str, Tensor]:
    """The reverse of `read_weights`."""
    theirs = {their: ours[our] for our, their in _names(config)}
    sizes = [heads * config.head_width for heads in (config.n_heads, config.kv_heads, config.kv_heads)]
    for our, their in _qkv_names(config):
        for part, tensor in zip(QKV, torch.split(ours[our], sizes), strict=True):
            theirs[their.format(part)] = tensor
    return theirs


def tied(config: DecoderConfig) -> dict[str, str]:
    """Names of tensors that are other ones again: copy → original."""
    return {"lm_head.weight": "model.embed_tokens.weight"} if config.tie_embeddings else {}


def _names(config: DecoderConfig) -> Iterator[tuple[str, str]]:
    """Pairs of a Decoder's name and Llama's for the same tensor."""
    yield "token_embedding.weight", "model.embed_tokens.weight"
    for layer in range(config.n_layers):
        for our, their in BLOCK_NAMES.items():
            has_bias = (our.startswith("attention.") and config.attention_bias) or (
                our.startswith("feed_forward.") and config.feed_forward_bias
            )
            for kind in ("weight", "bias") if has_bias else ("weight",):
                yield f"blocks.{layer}.{our}.{kind}", f"model.layers.{layer}.{their}.{kind}"
    yield "final_norm.weight", "model.norm.weight"
    if not config.tie_embeddings:
        yield "head.weight", "lm_head.weight"


def _qkv_names(config: DecoderConfig) -> Iterator[tuple[str, str]]:
    """Pairs of a Decoder's fused tensor and a pattern for Llama's three."""
    for layer in range(config.n_layers):
        for kind in ("weight", "bias") if config.attention_bias else ("weight",):
            yield f"blocks.{layer}.attention.qkv.{kind}", f"model.layers.{layer}.self_attn.{{}}.{kind}"


def _read_rope(config: Any) -> tuple[float, RopeScaling | None]:
    """Base and stretching, from transformers 5's one dict or from 4's two settings."""
    rope = getattr(config, "rope_parameters", None)
    if rope is None:
        rope = {"rope_theta": config.rope_theta, **(getattr(config, "rope_scaling", None) or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise WeightsError(f"Llama with rope_type={kind!r} is not supported; known: default, llama3")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise WeightsError(
            f"Llama with partial_rotary_factor={rope['partial_rotary_factor']!r} is not supported; "
            "needed: 1.0"
        )
    theta = float(rope["rope_theta"])
    if kind == "default":
        return theta, None
    return theta, RopeScaling(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_seq_len=int(rope["original_max_position_embeddings"]),
    )
