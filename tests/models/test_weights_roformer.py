"""Encoders with rotary positions are RoFormer's: equal outputs and gradients, equal tensors written back."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from scalelab.core.config import EncoderConfig
from scalelab.core.errors import WeightsError
from scalelab.models import Encoder, from_transformers, to_transformers, weights_roformer

transformers = pytest.importorskip("transformers")

SMALL = {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40,
         "vocab_size": 61, "max_position_embeddings": 20, "type_vocab_size": 2, "hidden_dropout_prob": 0.0,
         "attention_probs_dropout_prob": 0.0, "pad_token_id": None}  # fmt: skip
CLASSES = weights_roformer.CLASS_NAMES


def random_roformer(seed: int) -> dict[str, Any]:
    pick = random.Random(seed)
    heads = pick.choice([1, 2, 3, 5])
    return SMALL | {
        "num_hidden_layers": pick.randint(1, 3),
        "num_attention_heads": heads,
        "hidden_size": heads * pick.choice([4, 8, 10]),
        "intermediate_size": pick.choice([7, 32, 51]),
        "vocab_size": pick.randint(30, 90),
        "max_position_embeddings": pick.choice([17, 24]),
        "type_vocab_size": pick.randint(1, 3),
        "hidden_act": pick.choice(["gelu", "gelu", "gelu_new", "relu"]),
        "layer_norm_eps": pick.choice([1e-12, 1e-3]),
    }


CASES = [(CLASSES[seed % 2], random_roformer(seed)) for seed in range(10)]


def make(kind: str, settings: dict[str, Any]) -> Any:
    """A model of transformers with random weights, biases and norms, all large enough to matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, kind)(transformers.RoFormerConfig(**settings))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:  # the angles of its positions are given
                    parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.eval()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_outputs_and_gradients_equal_roformers(kind: str, settings: dict[str, Any], padded: bool) -> None:
    theirs = make(kind, settings)
    ours = from_transformers(theirs)
    assert isinstance(ours, Encoder)
    draw = torch.Generator().manual_seed(3)
    tokens = torch.randint(theirs.config.vocab_size, (3, 17), generator=draw)
    segments = torch.randint(theirs.config.type_vocab_size, (3, 17), generator=draw)
    padding = torch.arange(17) < torch.tensor([17, 11, 1] if padded else [17, 17, 17])[:, None]
    read = theirs(input_ids=tokens, token_type_ids=segments, attention_mask=padding.long())
    hidden = ours.hidden(tokens, segments, padding=padding if padded else None)
    found = ours.logits(hidden) if ours.config.mlm_head else hidden
    want = read.logits if ours.config.mlm_head else read.last_hidden_state
    torch.testing.assert_close(found[padding], want[padding], rtol=1e-5, atol=1e-5)
    for outputs in (found, want):
        outputs[padding].tanh().square().sum().backward()
    angles = weights_roformer.ANGLES
    gradients = {name: p.detach() if name.endswith(angles) else p.grad
                 for name, p in theirs.named_parameters(remove_duplicate=False)}  # fmt: skip
    carried = weights_roformer.read_weights(gradients, ours.config)
    assert set(carried) == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        scale = max(float(carried[name].norm()), 1e-4)
        assert (parameter.grad - carried[name]).norm() <= 1e-5 * scale, name


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_round_trip_writes_back_the_same_class_and_tensors(kind: str, settings: dict[str, Any]) -> None:
    theirs = make(kind, settings)
    back = to_transformers(from_transformers(theirs))
    assert type(back) is type(theirs)
    want, found = theirs.state_dict(), back.state_dict()
    assert set(want) == set(found)
    for name, tensor in want.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


def test_a_saved_folder_is_read(tmp_path: Path) -> None:
    theirs = make("RoFormerForMaskedLM", SMALL)
    theirs.save_pretrained(tmp_path)
    ours = from_transformers(tmp_path)
    tokens = torch.arange(17)[None]
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"rotary_value": True}, "rotary_value=True"),
        ({"is_decoder": True}, "is_decoder=True"),
        ({"embedding_size": 12}, "embedding_size=12"),
        ({"hidden_act": "silu"}, "hidden_act='silu'"),
        ({"hidden_dropout_prob": 0.1}, "set them equal"),
    ],
)
def test_what_an_encoder_does_not_compute_is_refused(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(WeightsError, match=named):
        from_transformers(make("RoFormerForMaskedLM", SMALL | wrong))


def test_other_angles_are_refused() -> None:
    theirs = make("RoFormerForMaskedLM", SMALL)
    theirs.roformer.encoder.embed_positions.weight.data[3] += 0.5
    with pytest.raises(WeightsError, match="embed_positions"):
        from_transformers(theirs)


@pytest.mark.parametrize(
    "wrong", [{"rope_theta": 500.0}, {"pooler": True}, {"norm_position": "pre"}, {"norm": "rmsnorm"}]
)
def test_an_encoder_that_is_none_is_not_written(wrong: dict[str, Any]) -> None:
    settings = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_ff": 16, "vocab_size": 11, "positions": "rope",
                "pooler": False}  # fmt: skip
    with pytest.raises(WeightsError, match=f"RoFormerForMaskedLM needs {next(iter(wrong))}="):
        to_transformers(Encoder(EncoderConfig(**settings | wrong), seed=0))
