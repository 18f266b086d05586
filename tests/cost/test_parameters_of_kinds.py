"""Parameters of encoders and encoder–decoders with any parts, against our modules and `transformers`."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from scalelab.core.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from scalelab.cost import count_params, params
from scalelab.cost.parameters import matrix_weights
from scalelab.models import Decoder, Encoder, EncoderDecoder

MODELS: dict[str, Any] = {"decoder": Decoder, "encoder": Encoder, "encoder-decoder": EncoderDecoder}
BERT = {"n_layers": 3, "d_model": 48, "n_heads": 4, "d_ff": 100, "vocab_size": 321, "seq_len": 60}


def _count(model: nn.Module) -> int:
    return sum(p.numel() for _, p in model.named_parameters())  # a shared parameter is met once


def _on_meta(build: Any) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = build()
    return model


def _bert() -> hf.BertConfig:
    return hf.BertConfig(
        vocab_size=321, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=100,
        max_position_embeddings=60, type_vocab_size=2,
    )  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("seed", range(25))
def test_any_shape_has_as_many_parameters_as_its_module(kind: str, seed: int, random_config: Any) -> None:
    config = random_config(kind, random.Random(seed))
    model = MODELS[kind](config, device="meta")
    found = params(config)
    assert found.total == sum(found.parts.values()) == _count(model)
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    is_tied = config.mlm_head if isinstance(config, EncoderConfig) else config.tie_embeddings
    matrices += model.token_embedding.weight.numel() if is_tied else 0
    assert matrix_weights(config) == matrices


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("seed", range(25))
def test_the_three_counts_are_sums_over_the_modules_that_they_name(
    kind: str, seed: int, random_config: Any
) -> None:
    config = random_config(kind, random.Random(seed))
    model = MODELS[kind](config, device="meta")
    tables = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding))
    heads = sum(
        p.numel()
        for name, p in model.named_parameters()
        if name.split(".")[0] in ("head", "mlm_head", "nsp_head")
    )
    is_tied = config.mlm_head if isinstance(config, EncoderConfig) else config.tie_embeddings
    again = config.vocab_size * config.d_model if is_tied else 0
    found = params(config)
    assert found.matmul == _count(model) - tables + again
    assert found.non_embedding == _count(model) - tables - heads


@pytest.mark.parametrize(
    ("build", "heads"),
    [
        (lambda: hf.BertModel(_bert()), {}),
        (lambda: hf.BertModel(_bert(), add_pooling_layer=False), {"pooler": False}),
        (lambda: hf.BertForMaskedLM(_bert()), {"pooler": False, "mlm_head": True}),
        (lambda: hf.BertForNextSentencePrediction(_bert()), {"nsp_head": True}),
        (lambda: hf.BertForPreTraining(_bert()), {"mlm_head": True, "nsp_head": True}),
    ],
    ids=["model", "no-pooler", "masked", "sentences", "pretraining"],
)
def test_each_bert_of_transformers_is_an_encoder_with_its_heads(build: Any, heads: dict[str, bool]) -> None:
    assert count_params(EncoderConfig(**BERT, **heads)) == _count(_on_meta(build))


def test_bert_base_for_pretraining_has_110_106_428_parameters() -> None:
    # By hand: the base model's 109,482,240, a dense layer, a norm and a bias for each token, two outputs.
    base = EncoderConfig(n_layers=12, d_model=768, n_heads=12, d_ff=3072, vocab_size=30_522)
    full = EncoderConfig(
        n_layers=12, d_model=768, n_heads=12, d_ff=3072, vocab_size=30_522, mlm_head=True, nsp_head=True
    )
    assert count_params(base) == 109_482_240
    assert count_params(full) == 109_482_240 + (768 * 768 + 768) + 2 * 768 + 30_522 + (768 * 2 + 2)
    assert count_params(full) == _count(_on_meta(lambda: hf.BertForPreTraining(hf.BertConfig())))


def test_t5_of_transformers_has_the_parameters_of_our_default() -> None:
    both = hf.T5Config(
        vocab_size=321, d_model=48, d_kv=6, d_ff=100, num_layers=2, num_heads=4,
        relative_attention_num_buckets=16,
    )  # fmt: skip
    model = _on_meta(lambda: hf.T5ForConditionalGeneration(both))
    config = EncoderDecoderConfig(
        n_layers=2, d_model=48, n_heads=4, d_head=6, d_ff=100, vocab_size=321, n_position_buckets=16,
    )  # fmt: skip
    assert count_params(config) == _count(model)


def test_vaswanis_base_model_has_torchs_parameters_and_about_its_tables_65_million() -> None:
    # Vaswani et al. 2017, table 3: 65 million with about 37,000 tokens in the shared table.
    config = EncoderDecoderConfig(
        n_layers=6, d_model=512, n_heads=8, d_head=64, d_ff=2048, vocab_size=37_000, norm="layernorm",
        norm_position="post", positions="sinusoidal", scale_scores=True, attention_bias=True,
        feed_forward_bias=True,
    )  # fmt: skip
    torchs = nn.Transformer(512, 8, 6, 6, 2048, batch_first=True, device="meta")
    ends = 2 * 2 * 512  # nn.Transformer norms each stack's end, which the paper does not
    assert count_params(config) == _count(torchs) - ends + 37_000 * 512
    assert count_params(config) / 1e6 == pytest.approx(65, abs=2.5)


def test_a_post_norm_decoder_lacks_the_norm_at_the_end() -> None:
    shape: dict[str, Any] = {"n_layers": 2, "d_model": 32, "n_heads": 4, "vocab_size": 100, "seq_len": 16}
    pre, post = DecoderConfig(**shape), DecoderConfig(**shape, norm_position="post")
    assert count_params(pre) - count_params(post) == 2 * 32
