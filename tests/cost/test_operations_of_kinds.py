"""FLOPs of encoders and encoder–decoders, against torch's FlopCounterMode on the meta device."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from scalelab.core.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from scalelab.core.errors import ConfigError
from scalelab.core.presets import preset
from scalelab.cost import flops, mfu
from scalelab.cost.parameters import matrix_weights
from scalelab.models import Decoder, Encoder, EncoderDecoder


def _tokens(batch_size: int, n_tokens: int) -> Tensor:
    return torch.zeros(batch_size, n_tokens, dtype=torch.long, device="meta")


def _counted(run: Any) -> tuple[int, int]:
    """FLOPs that torch counts: forward, and forward with backward from the sum of all outputs."""
    with FlopCounterMode(display=False) as counter:
        outputs = run()
        forward = counter.get_total_flops()
        sum(out.sum() for out in outputs).backward()
    return forward, counter.get_total_flops()


def _ours(config: Any, **shape: Any) -> tuple[int, int]:
    return flops(config, **shape, training=False).total, flops(config, **shape, training=True).total


def _encoder_outputs(model: Encoder, tokens: Tensor, places: Any = slice(None)) -> list[Tensor]:
    hidden = model.hidden(tokens)
    outputs = [hidden]
    if model.config.mlm_head:
        outputs.append(model.logits(hidden[:, places]))
    if model.config.nsp_head:
        outputs.append(model.follows_logits(hidden))
    elif model.config.pooler:
        outputs.append(model.pooled(hidden))
    return outputs


@pytest.mark.parametrize("seed", range(20))
def test_flops_agree_with_torch_on_our_encoder_whatever_its_parts(seed: int, random_config: Any) -> None:
    draw = random.Random(seed)
    config, batch, time = random_config("encoder", draw), draw.randint(1, 4), draw.randint(1, 48)
    model = Encoder(config, device="meta")
    found = _counted(lambda: _encoder_outputs(model, _tokens(batch, time)))
    assert _ours(config, batch_size=batch, seq_len=time) == found


@pytest.mark.parametrize("n_targets", [1, 7, 40])
def test_a_head_at_hidden_places_alone_costs_what_torch_counts(n_targets: int) -> None:
    config = EncoderConfig(
        n_layers=2, d_model=32, n_heads=4, d_ff=70, vocab_size=99, mlm_head=True, pooler=False
    )
    model, places = Encoder(config, device="meta"), torch.arange(n_targets)
    found = _counted(lambda: _encoder_outputs(model, _tokens(3, 40), places))
    assert _ours(config, batch_size=3, seq_len=40, n_targets=n_targets) == found


@pytest.mark.parametrize("seed", range(20))
def test_flops_agree_with_torch_on_our_encoder_decoder_whatever_its_parts(
    seed: int, random_config: Any
) -> None:
    draw = random.Random(seed)
    config, batch = random_config("encoder-decoder", draw), draw.randint(1, 4)
    time, target = draw.randint(1, 30), draw.randint(1, 30)
    model = EncoderDecoder(config, device="meta")
    found = _counted(lambda: [model(_tokens(batch, time), _tokens(batch, target))])
    assert _ours(config, batch_size=batch, seq_len=time, target_len=target) == found


@pytest.mark.parametrize("seed", range(20))
def test_flops_agree_with_torch_on_post_norm_and_alibi_decoders(seed: int, random_config: Any) -> None:
    draw = random.Random(seed)
    config, batch, time = random_config("decoder", draw), draw.randint(1, 4), draw.randint(1, 48)
    model = Decoder(config, device="meta")
    assert _ours(config, batch_size=batch, seq_len=time) == _counted(lambda: [model(_tokens(batch, time))])


def _bert(model_class: Any, **shape: Any) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = model_class(hf.BertConfig(**shape)).eval()
    return model


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("model_class", "heads", "outputs"),
    [
        (hf.BertModel, {}, ("last_hidden_state", "pooler_output")),
        (hf.BertForMaskedLM, {"pooler": False, "mlm_head": True}, ("logits",)),
        (
            hf.BertForPreTraining,
            {"mlm_head": True, "nsp_head": True},
            ("prediction_logits", "seq_relationship_logits"),
        ),
    ],
    ids=["model", "masked", "pretraining"],
)
def test_flops_agree_with_torch_on_random_berts_of_transformers(
    model_class: Any, heads: dict[str, bool], outputs: tuple[str, ...], seed: int
) -> None:
    draw = random.Random(seed)
    layers, n_heads, vocab, d_ff = draw.randint(1, 3), draw.choice([2, 4]), draw.randint(50, 150), 70
    width, batch, time = n_heads * draw.choice([8, 12]), draw.randint(1, 4), draw.randint(2, 40)
    model = _bert(
        model_class, vocab_size=vocab, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=n_heads, intermediate_size=d_ff, max_position_embeddings=64,
    )  # fmt: skip
    # Given a mask, the model need not look into the tokens, which on the meta device have no values.
    mask = torch.zeros(batch, 1, time, time, device="meta")

    def run() -> list[Tensor]:
        out = model(_tokens(batch, time), attention_mask=mask)
        return [out[name] for name in outputs]

    config = EncoderConfig(
        n_layers=layers, d_model=width, n_heads=n_heads, d_ff=d_ff, vocab_size=vocab, seq_len=64, **heads
    )
    assert _ours(config, batch_size=batch, seq_len=time) == _counted(run)


def _t5(**shape: Any) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = hf.T5ForConditionalGeneration(hf.T5Config(**shape)).eval()
    return model


def _run_t5(model: nn.Module, batch: int, time: int, target: int) -> list[Tensor]:
    out = model(
        input_ids=_tokens(batch, time), decoder_input_ids=_tokens(batch, target), use_cache=False,
        attention_mask=torch.zeros(batch, 1, 1, time, device="meta"),  # for both sides
        decoder_attention_mask=torch.zeros(batch, 1, target, target, device="meta"),
    )  # fmt: skip
    return [out.logits]


@pytest.mark.parametrize("seed", range(6))
def test_flops_agree_with_torch_on_random_t5s_of_transformers(seed: int) -> None:
    draw = random.Random(seed)
    layers, heads, vocab, width = draw.randint(1, 3), draw.choice([2, 4]), draw.randint(50, 150), 40
    d_head, batch, time, target = (
        draw.choice([6, 8]),
        draw.randint(1, 4),
        draw.randint(2, 30),
        draw.randint(2, 30),
    )
    is_gated = seed % 2 == 1  # version 1.1 has three matrices
    model = _t5(
        vocab_size=vocab, d_model=width, d_kv=d_head, d_ff=70, num_layers=layers, num_heads=heads,
        feed_forward_proj="gated-gelu" if is_gated else "relu",
    )  # fmt: skip
    config = EncoderDecoderConfig(
        n_layers=layers, d_model=width, n_heads=heads, d_head=d_head, d_ff=70, vocab_size=vocab,
        feed_forward="swiglu" if is_gated else "relu",
    )  # fmt: skip
    found = _counted(lambda: _run_t5(model, batch, time, target))
    assert _ours(config, batch_size=batch, seq_len=time, target_len=target) == found


def test_flops_of_the_presets_agree_with_torch_at_full_size() -> None:
    model, mask = _bert(hf.BertModel), torch.zeros(2, 1, 512, 512, device="meta")

    def run() -> list[Tensor]:
        out = model(_tokens(2, 512), attention_mask=mask)
        return [out.last_hidden_state, out.pooler_output]

    assert _ours("bert-base-uncased", batch_size=2, seq_len=512) == _counted(run)
    t5 = _t5(vocab_size=32128, d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8)
    found = _counted(lambda: _run_t5(t5, 2, 512, 114))
    assert _ours("t5-small", batch_size=2, seq_len=512, target_len=114) == found


def test_an_encoder_reads_a_text_for_what_a_decoder_of_its_shape_pays() -> None:
    shape: dict[str, Any] = {"n_layers": 3, "d_model": 64, "n_heads": 4, "d_ff": 256, "vocab_size": 300}
    encoder = EncoderConfig(**shape, seq_len=64, pooler=False, mlm_head=True)
    decoder = DecoderConfig(**shape, seq_len=64)
    more = _ours(encoder, batch_size=2, seq_len=64)[0] - _ours(decoder, batch_size=2, seq_len=64)[0]
    assert more == 2 * 2 * 64 * 64 * 64  # the dense layer of its head, at 128 places


@pytest.mark.parametrize(("seq_len", "target_len"), [(40, 40), (64, 9)])
def test_each_side_multiplies_its_own_weights_with_its_own_tokens(seq_len: int, target_len: int) -> None:
    config = preset("t5-small")
    assert isinstance(config, EncoderDecoderConfig)
    found = flops(config, batch_size=1, seq_len=seq_len, target_len=target_len, training=True)
    inner, d, layers = config.n_heads * config.d_head, config.d_model, config.n_layers
    reading = layers * (4 * d * inner + 2 * d * config.d_ff) + layers * 2 * d * inner  # and keys across
    writing = matrix_weights(config) - reading
    scores = seq_len**2 + target_len**2 + seq_len * target_len
    by_hand = 6 * (reading * seq_len + writing * target_len) + 12 * layers * inner * scores
    assert found.total == by_hand == sum(found.parts.values())


def test_a_target_is_as_long_as_its_source_where_nothing_else_is_said() -> None:
    shape: dict[str, Any] = {"batch_size": 2, "seq_len": 30, "training": True}
    assert flops("t5-small", **shape) == flops("t5-small", **shape, target_len=30)


def test_mfu_of_an_encoder_decoder_counts_its_sources_tokens() -> None:
    step = flops("t5-small", batch_size=1, seq_len=512, target_len=114, training=True).total
    assert mfu(512, "t5-small", 512, 2.0 * step, target_len=114) == pytest.approx(0.5)


def test_a_model_of_pictures_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"encoder–decoders only, got VisionConfig.*count_params"):
        flops("vit-b-16", batch_size=1, seq_len=16, training=True)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("bert-base-uncased", {"seq_len": 513}, "seq_len=513 exceeds the model's context of 512"),
        ("bert-base-uncased", {"target_len": 8}, "target_len=8 is for encoder–decoders, got EncoderConfig"),
        ("gpt2", {"target_len": 8}, "target_len=8 is for encoder–decoders, got DecoderConfig"),
        ("t5-small", {"target_len": 0}, "target_len must be a whole number"),
        ("t5-small", {"target_len": 8, "n_targets": 9}, "n_targets=9 places are more than the 8"),
        ("gpt2", {"n_targets": 17}, "n_targets=17 places are more than the 16 of a sequence"),
        ("gpt2", {"n_targets": 0}, "n_targets must be a whole number"),
    ],
)
def test_impossible_lengths_are_refused_by_name(name: str, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        flops(name, **{"batch_size": 1, "seq_len": 16, "training": True, **change})
