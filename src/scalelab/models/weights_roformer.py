"""RoFormer's names and shapes: BERT's, with rotary positions in place of the table.

RoFormer turns neighbouring numbers of a head together, ours turn those that stand half a head apart: the
same model with the rows of queries and keys in another order.
Source: Su et al. 2021, arXiv:2104.09864; `transformers`, models/roformer/modeling_roformer.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from scalelab.core.config import EncoderConfig
from scalelab.core.errors import WeightsError
from scalelab.models import weights_bert as bert
from scalelab.models.positions import rope_frequencies

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

CONFIG, CONFIG_NAME = EncoderConfig, "RoFormerConfig"
CLASS_NAMES = ("RoFormerForMaskedLM", "RoFormerModel")
BODY, BERTS_BODY = "roformer.", "bert."
ANGLES = "encoder.embed_positions.weight"  # sines, then cosines, of each place: [T, K]
BERTS_TABLE = "embeddings.position_embeddings.weight"
THETA = 10_000.0  # theirs is not a setting

# Settings that change what is computed, and the only value that an Encoder computes.
REQUIRED = {"is_decoder": False, "add_cross_attention": False, "rotary_value": False}


def read_config(config: Any, class_name: str, theirs: Mapping[str, Tensor] | None) -> EncoderConfig:
    """The config of the same model as an Encoder.

    Raises:
        WeightsError: a setting that an Encoder does not have.
    """
    has_head = class_name == "RoFormerForMaskedLM"
    settings = bert.shared_settings(config, "RoFormer", REQUIRED, mlm_head=has_head)
    if config.embedding_size != config.hidden_size:
        raise WeightsError(
            f"RoFormer with embedding_size={config.embedding_size} is not supported; needed: hidden_size, "
            f"{config.hidden_size}"
        )
    return EncoderConfig(**settings, positions="rope", rope_theta=THETA, pooler=False)


def misfits(config: EncoderConfig) -> list[str]:
    """The settings that keep an Encoder from being written as RoFormer."""
    needed = {
        "norm": "layernorm",
        "norm_position": "post",
        "positions": "rope",
        "rope_theta": THETA,
        "attention_bias": True,
        "feed_forward_bias": True,
        "pooler": False,
    }
    wrong = [f"{name}={value!r}" for name, value in needed.items() if getattr(config, name) != value]
    if config.feed_forward not in bert.WRITTEN_ACTIVATIONS:
        wrong.append(f"feed_forward one of {', '.join(bert.WRITTEN_ACTIVATIONS)}")
    return wrong


def class_name(config: EncoderConfig) -> str:
    """The class that has this encoder's head, or none."""
    return "RoFormerForMaskedLM" if config.mlm_head else "RoFormerModel"


def class_arguments(config: EncoderConfig) -> dict[str, Any]:
    """What their class is made with, beside its config: nothing."""
    return {}


def write_config(config: EncoderConfig) -> dict[str, Any]:
    """Keyword arguments of a RoFormerConfig."""
    return {**bert.write_config(config), "embedding_size": config.d_model, "rotary_value": False}


def read_weights(theirs: Mapping[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    """Their tensors under an Encoder's names and in its shapes.

    Raises:
        WeightsError: angles that are not those of rotary positions.
    """
    body = BODY if config.mlm_head else ""
    angles = theirs[body + ANGLES]
    if not torch.allclose(angles.float(), _angles(config).to(angles.device), atol=1e-2):
        raise WeightsError(f"{body}{ANGLES} are not the sines and cosines of RoFormer's positions")
    as_bert = {_berts_name(name): tensor for name, tensor in theirs.items() if name != body + ANGLES}
    # A table for BERT's reader to find; it has no place in an Encoder that turns its queries and keys.
    as_bert[(BERTS_BODY if config.mlm_head else "") + BERTS_TABLE] = angles
    ours = bert.read_weights(as_bert, config)
    del ours["position_embedding.weight"]
    return {name: _reordered(tensor, name, config, apart=True) for name, tensor in ours.items()}


def write_weights(ours: Mapping[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    """The reverse of `read_weights`."""
    angles = _angles(config).to(ours["token_embedding.weight"])
    reordered = {name: _reordered(tensor, name, config, apart=False) for name, tensor in ours.items()}
    as_bert = bert.write_weights({**reordered, "position_embedding.weight": angles}, config)
    body, berts = (BODY, BERTS_BODY) if config.mlm_head else ("", "")
    theirs = {body + name.removeprefix(berts) if name.startswith(berts) else name: tensor
              for name, tensor in as_bert.items() if not name.endswith(BERTS_TABLE)}  # fmt: skip
    return {**theirs, body + ANGLES: angles}


def tied(config: EncoderConfig) -> dict[str, str]:
    """Names of tensors that are other ones again: copy → original."""
    return {copy: original.replace(BERTS_BODY, BODY) for copy, original in bert.tied(config).items()}


def _berts_name(name: str) -> str:
    return BERTS_BODY + name.removeprefix(BODY) if name.startswith(BODY) else name


def _reordered(tensor: Tensor, name: str, config: EncoderConfig, *, apart: bool) -> Tensor:
    """Rows of queries and keys, pairs from neighbours to half a head apart or back; others as they are."""
    if ".attention.qkv." not in name:
        return tensor
    half = config.head_width // 2
    now = (half, 2) if apart else (2, half)
    parts = tensor.reshape(3, config.n_heads, *now, -1)  # queries, keys, values
    turned = parts[:2].transpose(2, 3).reshape(2 * config.d_model, -1)
    return torch.cat((turned, parts[2].reshape(config.d_model, -1))).reshape(tensor.shape)


def _angles(config: EncoderConfig) -> Float[Tensor, "T K"]:
    """Sines and then cosines of every place's angles."""
    places = torch.arange(config.seq_len, dtype=torch.float32)
    angles = places[:, None] * rope_frequencies(config)  # [T, K/2]
    return torch.cat((angles.sin(), angles.cos()), dim=1)
