"""GPT-2's names and shapes: a learned position table, LayerNorm, and matrices stored input first.

Source: `transformers`, models/gpt2/modeling_gpt2.py (its Conv1D computes x W where a Linear computes x Wᵀ).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from scalelab.core.config import DecoderConfig
from scalelab.core.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, CONFIG_NAME = DecoderConfig, "GPT2Config"
CLASS_NAMES = ("GPT2LMHeadModel",)

ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}
WRITTEN_ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu"}

# Settings that change what is computed, and the only value that a Decoder computes.
REQUIRED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
}

BLOCK_NAMES = {
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",  # queries, keys and values side by side, as ours
    "attention.out": "attn.c_proj",
    "feed_forward_norm": "ln_2",
    "feed_forward.up": "mlp.c_fc",
    "feed_forward.down": "mlp.c_proj",
}


def read_config(config: Any, class_name: str, theirs: Mapping[str, Tensor] | None) -> DecoderConfig:
    """The config of the same model as a Decoder; their class and tensors say nothing that it does not.

    Raises:
        WeightsError: a setting that a Decoder does not have.
    """
    for name, needed in REQUIRED.items():
        if getattr(config, name, needed) != needed:
            raise WeightsError(
                f"GPT-2 with {name}={getattr(config, name)!r} is not supported; needed: {needed!r}"
            )
    if config.activation_function not in ACTIVATIONS:
        raise WeightsError(
            f"GPT-2 with activation_function={config.activation_function!r} is not supported; "
            f"known: {', '.join(ACTIVATIONS)}"
        )
    dropouts = {config.embd_pdrop, config.attn_pdrop, config.resid_pdrop}
    if len(dropouts) > 1:
        raise WeightsError(
            "GPT-2 with different embd_pdrop, attn_pdrop and resid_pdrop is not supported: set them equal, "
            f"got {config.embd_pdrop}, {config.attn_pdrop}, {config.resid_pdrop}"
        )
    return DecoderConfig(
        n_layers=config.n_layer,
        d_model=config.n_embd,
        n_heads=config.n_head,
        vocab_size=config.vocab_size,
        seq_len=config.n_positions,
        d_ff=config.n_inner,
        norm_eps=config.layer_norm_epsilon,
        feed_forward=ACTIVATIONS[config.activation_function],  # type: ignore[arg-type]
        tie_embeddings=config.tie_word_embeddings,
        dropout=float(config.embd_pdrop),
    )


def misfits(config: DecoderConfig) -> list[str]:
    """The settings that keep a Decoder from being written as GPT-2."""
    needed = {
        "norm": "layernorm",
        "norm_bias": True,
        "norm_position": "pre",
        "positions": "learned",
        "attention_bias": True,
        "feed_forward_bias": True,
        "parallel_residual": False,
        "n_kv_heads": config.n_heads,
    }
    wrong = [f"{name}={value!r}" for name, value in needed.items() if getattr(config, name) != value]
    if config.feed_forward not in WRITTEN_ACTIVATIONS:
        wrong.append(f"feed_forward one of {', '.join(WRITTEN_ACTIVATIONS)}")
    if config.head_width * config.n_heads != config.d_model:
        wrong.append("d_head = d_model / n_heads")
    return wrong


def class_name(config: DecoderConfig) -> str:
    """The one class."""
    return CLASS_NAMES[0]


def class_arguments(config: DecoderConfig) -> dict[str, Any]:
    """Nothing beside its config."""
    return {}


def write_config(config: DecoderConfig) -> dict[str, Any]:
    """Keyword arguments of a GPT2Config."""
    return {
        "n_layer": config.n_layers,
        "n_embd": config.d_model,
        "n_head": config.n_heads,
        "vocab_size": config.vocab_size,
        "n_positions": config.seq_len,
        "n_inner": config.ff_width,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": WRITTEN_ACTIVATIONS[config.feed_forward],
        "tie_word_embeddings": config.tie_embeddings,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def read_weights(theirs: Mapping[str, Tensor], config: DecoderConfig) -> dict[str, Tensor]:
    """Their tensors under a Decoder's names and in its shapes."""
    return {our: _transposed(our, theirs[their]) for our, their in _names(config)}


def write_weights(ours: Mapping[str, Tensor], config: DecoderConfig) -> dict[str, Tensor]:
    """The reverse of `read_weights`."""
    return {their: _transposed(our, ours[our]) for our, their in _names(config)}


def tied(config: DecoderConfig) -> dict[str, str]:
    """Names of tensors that are other ones again: copy → original."""
    return {"lm_head.weight": "transformer.wte.weight"} if config.tie_embeddings else {}


def _names(config: DecoderConfig) -> Iterator[tuple[str, str]]:
    """Pairs of a Decoder's name and GPT-2's for the same tensor."""
    yield "token_embedding.weight", "transformer.wte.weight"
    yield "position_embedding.weight", "transformer.wpe.weight"
    for layer in range(config.n_layers):
        for our, their in BLOCK_NAMES.items():
            for kind in ("weight", "bias"):
                yield f"blocks.{layer}.{our}.{kind}", f"transformer.h.{layer}.{their}.{kind}"
    for kind in ("weight", "bias"):
        yield f"final_norm.{kind}", f"transformer.ln_f.{kind}"
    if not config.tie_embeddings:
        yield "head.weight", "lm_head.weight"


def _transposed(our_name: str, tensor: Tensor) -> Tensor:
    """Conv1D's matrices have the other orientation; all of them sit in attention and feed-forward."""
    is_matrix = our_name.endswith("weight") and (".attention." in our_name or ".feed_forward." in our_name)
    return tensor.t() if is_matrix else tensor
