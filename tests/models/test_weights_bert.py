"""Encoders are BERT's, under all its heads: equal outputs and gradients, the same tensors on the way back."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from scalelab.core.config import EncoderConfig
from scalelab.core.errors import WeightsError
from scalelab.models import Encoder, from_transformers, to_transformers, weights_bert

transformers = pytest.importorskip("transformers")

BERT = {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40,
        "vocab_size": 61, "max_position_embeddings": 20, "type_vocab_size": 2, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "pad_token_id": None}  # fmt: skip
CLASSES = weights_bert.CLASS_NAMES


def random_bert(seed: int) -> dict[str, Any]:
    pick = random.Random(seed)
    heads = pick.choice([1, 2, 3, 5])
    return BERT | {
        "num_hidden_layers": pick.randint(1, 3),
        "num_attention_heads": heads,
        "hidden_size": heads * pick.choice([3, 8, 11]),
        "intermediate_size": pick.choice([7, 32, 51]),
        "vocab_size": pick.randint(30, 90),
        "max_position_embeddings": pick.choice([17, 24]),
        "type_vocab_size": pick.randint(1, 3),
        "hidden_act": pick.choice(["gelu", "gelu", "gelu_new", "relu"]),
        "layer_norm_eps": pick.choice([1e-12, 1e-3]),
    }


CASES = [(CLASSES[seed % len(CLASSES)], random_bert(seed)) for seed in range(12)]


def make(kind: str, settings: dict[str, Any], **more: Any) -> Any:
    """A model of transformers with random weights, biases and norms, all large enough to matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, kind)(transformers.BertConfig(**settings), **more)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.eval()


def inputs_for(config: Any, side: str = "right") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, segments, and padding on one side of all rows but the first."""
    draw = torch.Generator().manual_seed(3)
    tokens = torch.randint(config.vocab_size, (3, 17), generator=draw)
    segments = torch.randint(config.type_vocab_size, (3, 17), generator=draw)
    padding = torch.arange(17) < torch.tensor([17, 11, 1])[:, None]
    return tokens, segments, padding if side == "right" else padding.flip(1)


def assert_all_close(found: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    assert len(found) == len(want) > 0
    for one, other in zip(found, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def outputs_of(ours: Encoder, theirs: Any, side: str | None) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What either says of the same input, at places that hold tokens, head by head.

    A pooler reads the first place, which is filling where that is on the left.
    """
    tokens, segments, padding = inputs_for(theirs.config, side or "right")
    if side is None:
        padding = torch.ones_like(padding)
    read = theirs(input_ids=tokens, token_type_ids=segments, attention_mask=padding.long())
    hidden = ours.hidden(tokens, segments, padding=padding if side else None)
    pairs = []
    if isinstance(theirs, transformers.BertModel):
        pairs.append((hidden[padding], read.last_hidden_state[padding]))
        if ours.config.pooler and side != "left":
            pairs.append((ours.pooled(hidden), read.pooler_output))
    if ours.config.mlm_head:
        logits = read.prediction_logits if "prediction_logits" in read else read.logits
        pairs.append((ours.logits(hidden)[padding], logits[padding]))
    if ours.config.nsp_head and side != "left":
        follows = read.seq_relationship_logits if "seq_relationship_logits" in read else read.logits
        pairs.append((ours.follows_logits(hidden), follows))
    return [a for a, _ in pairs], [b for _, b in pairs]


@pytest.mark.parametrize(
    ("kind", "settings", "side"),
    [(k, s, side) for k, s in CASES for side in (None, "right", "left")
     if side != "left" or k != "BertForNextSentencePrediction"],
)  # fmt: skip
def test_outputs_and_gradients_equal_berts(kind: str, settings: dict[str, Any], side: str | None) -> None:
    theirs = make(kind, settings)
    ours = from_transformers(theirs)
    assert isinstance(ours, Encoder)
    found, want = outputs_of(ours, theirs, side)
    assert_all_close(found, want)
    for outputs in (found, want):  # any smooth function of every output
        torch.stack([output.tanh().square().sum() for output in outputs]).sum().backward()
    named = theirs.named_parameters(remove_duplicate=False)
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in named}
    carried = weights_bert.read_weights(gradients, ours.config)
    assert set(carried) == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        found_gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        scale = max(float(carried[name].norm()), 1e-4)
        assert (found_gradient - carried[name]).norm() <= 1e-5 * scale, name


def test_the_loss_over_hidden_tokens_equals_berts() -> None:
    theirs = make("BertForMaskedLM", BERT)
    tokens, _, _ = inputs_for(theirs.config)
    targets = torch.where(tokens % 5 == 0, tokens, -100)
    want = theirs(input_ids=tokens, labels=targets).loss
    found = from_transformers(theirs).loss(tokens, targets)
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)


def test_a_padded_rows_outputs_are_those_of_the_row_alone() -> None:
    ours = from_transformers(make("BertModel", BERT))
    tokens, segments, padding = inputs_for(transformers.BertConfig(**BERT))
    together = ours.hidden(tokens, segments, padding=padding)
    alone = ours.hidden(tokens[1:2, :11], segments[1:2, :11])
    torch.testing.assert_close(together[1:2, :11], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_round_trip_writes_back_the_same_class_and_tensors(kind: str, settings: dict[str, Any]) -> None:
    theirs = make(kind, settings)
    back = to_transformers(from_transformers(theirs))
    assert type(back) is type(theirs)
    want, found = theirs.state_dict(), back.state_dict()
    assert set(want) == set(found)
    assert all(torch.equal(want[name], found[name]) for name in want)
    for name in ("hidden_act", "layer_norm_eps", "type_vocab_size", "max_position_embeddings"):
        activations = {"gelu_pytorch_tanh": "gelu_new"}
        assert getattr(back.config, name) == activations.get(
            getattr(theirs.config, name), getattr(theirs.config, name)
        )


def test_a_bert_without_pooler_is_one_on_both_ways() -> None:
    theirs = make("BertModel", BERT, add_pooling_layer=False)
    ours = from_transformers(theirs)
    assert not ours.config.pooler
    back = to_transformers(ours)
    assert back.pooler is None
    assert set(back.state_dict()) == set(theirs.state_dict())


@pytest.mark.parametrize("kind", CLASSES)
def test_a_saved_bert_is_read_by_its_path_as_the_class_it_names(kind: str, tmp_path: Path) -> None:
    theirs = make(kind, BERT)
    theirs.save_pretrained(tmp_path)
    found, want = outputs_of(from_transformers(tmp_path), theirs, side="right")
    assert_all_close(found, want)


def test_an_encoder_trained_here_is_written_to_transformers() -> None:
    config = EncoderConfig(
        n_layers=2, d_model=24, n_heads=2, d_ff=40, vocab_size=50, seq_len=17, mlm_head=True, nsp_head=True
    )
    ours = Encoder(config, seed=0)
    theirs = to_transformers(ours)
    assert type(theirs) is transformers.BertForPreTraining
    assert_all_close(*outputs_of(ours, theirs, side="right"))


UNSUPPORTED = [
    ("BertForMaskedLM", {"hidden_act": "silu"}, "hidden_act='silu'"),
    ("BertForMaskedLM", {"is_decoder": True}, "is_decoder=True"),
    ("BertForMaskedLM", {"tie_word_embeddings": False}, "tie_word_embeddings=False"),
    ("BertModel", {"hidden_dropout_prob": 0.1}, "hidden_dropout_prob"),
]


@pytest.mark.parametrize(("kind", "change", "message"), UNSUPPORTED)
def test_what_an_encoder_cannot_compute_is_refused_by_name(
    kind: str, change: dict[str, Any], message: str
) -> None:
    with torch.device("meta"):
        model = getattr(transformers, kind)(transformers.BertConfig(**BERT | change))
    with pytest.raises(WeightsError, match=message):
        from_transformers(model)


def test_other_bert_classes_are_refused_by_object_and_by_path(tmp_path: Path) -> None:
    model = transformers.BertForTokenClassification(transformers.BertConfig(**BERT))
    with pytest.raises(WeightsError, match="BertForTokenClassification"):
        from_transformers(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="BertForTokenClassification"):
        from_transformers(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": "rope"}, "positions='learned'"),
        ({"positions": "sinusoidal"}, "positions='learned'"),
        ({"norm": "rmsnorm"}, "norm='layernorm'"),
        ({"norm_position": "pre"}, "norm_position='post'"),
        ({"attention_bias": False}, "attention_bias=True"),
        ({"feed_forward": "swiglu"}, "feed_forward one of"),
        ({"mlm_head": True}, "pooler=False, or nsp_head=True"),
    ],
)
def test_an_encoder_that_is_no_bert_is_not_written(change: dict[str, Any], message: str) -> None:
    config = EncoderConfig(n_layers=1, d_model=8, n_heads=2, d_ff=8, vocab_size=9, seq_len=8, **change)
    with pytest.raises(WeightsError, match=message):
        to_transformers(Encoder(config, seed=0))


def test_the_masked_head_bends_as_the_feed_forward_does() -> None:
    config = EncoderConfig(
        n_layers=1, d_model=8, n_heads=2, d_ff=8, vocab_size=9, feed_forward="relu", mlm_head=True
    )
    head, x = (
        Encoder(config, seed=0).mlm_head,
        torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)),
    )
    table = torch.eye(9, 8)
    want = F.layer_norm(F.relu(head.dense(x)), (8,), eps=1e-12) @ table.T + head.bias
    torch.testing.assert_close(head(x, table), want)


@pytest.mark.parametrize("named", ["BertForMaskedLM", "BertForNextSentencePrediction", "BertModel"])
def test_heads_that_a_folder_has_and_its_class_has_not_stay_behind(named: str, tmp_path: Path) -> None:
    """As in the released BERTs, which hold both heads and are mostly read for one of them, or none."""
    from safetensors.torch import load_file, save_file

    theirs = make("BertForPreTraining", BERT)
    theirs.config.architectures = [named]
    theirs.save_pretrained(tmp_path)
    file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    old = {"bert.embeddings.position_ids": torch.arange(20)[None]}  # which older versions stored
    save_file(load_file(file) | old, file, {"format": "pt"})
    config.write_text(config.read_text().replace("BertForPreTraining", named))
    ours = from_transformers(tmp_path)
    tokens, segments, _ = inputs_for(theirs.config)
    want = theirs.bert(tokens, token_type_ids=segments).last_hidden_state
    torch.testing.assert_close(ours.hidden(tokens, segments), want, rtol=1e-5, atol=1e-5)


def test_a_head_of_its_own_is_refused_without_a_way_out_that_leads_nowhere() -> None:
    theirs = make("BertForMaskedLM", BERT)
    theirs.cls.predictions.decoder.weight = torch.nn.Parameter(torch.zeros(61, 24))
    with pytest.raises(WeightsError, match=r"decoder\.weight .* this model cannot be read") as caught:
        from_transformers(theirs)
    assert "tie_word_embeddings" not in str(caught.value)
