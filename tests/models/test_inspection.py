"""What we see inside is what transformers sees: attention weights and the stream after each block."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scalelab.core.config import DecoderConfig, EncoderDecoderConfig
from scalelab.core.errors import ConfigError
from scalelab.models import Decoder, EncoderDecoder, attention_maps, from_transformers, residual_stream

TOKENS = torch.randint(37, (2, 11), generator=torch.Generator().manual_seed(1))
COMMON = {"vocab_size": 37, "bos_token_id": None, "eos_token_id": None, "attn_implementation": "eager"}


def make(kind: str) -> Any:
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "gpt2":
            config = transformers.GPT2Config(n_layer=3, n_embd=30, n_head=3, n_positions=16, **COMMON)
            model = transformers.GPT2LMHeadModel(config)
        elif kind == "llama":
            config = transformers.LlamaConfig(
                num_hidden_layers=3, hidden_size=32, num_attention_heads=4, num_key_value_heads=2,
                intermediate_size=20, max_position_embeddings=16, **COMMON,
            )  # fmt: skip
            model = transformers.LlamaForCausalLM(config)
        else:
            config = transformers.BertConfig(
                num_hidden_layers=3, hidden_size=24, num_attention_heads=3, intermediate_size=40,
                max_position_embeddings=16, pad_token_id=None, **COMMON,
            )  # fmt: skip
            model = transformers.BertForMaskedLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_attention_maps_and_stream_equal_transformers(kind: str) -> None:
    theirs = make(kind)
    ours = from_transformers(theirs)
    read = theirs(input_ids=TOKENS, output_attentions=True, output_hidden_states=True)
    maps, stream = attention_maps(ours, TOKENS), residual_stream(ours, TOKENS)
    torch.testing.assert_close(maps, torch.stack(read.attentions), rtol=1e-4, atol=1e-5)
    want = torch.stack(read.hidden_states)
    last = len(want) if kind == "bert" else -1  # theirs hands out a pre-norm stream's end normed
    torch.testing.assert_close(stream[:last], want[:last], rtol=1e-4, atol=1e-5)
    assert len(stream) == len(want)
    torch.testing.assert_close(ours.final_norm(stream[-1]), want[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rope", "alibi", "none"])
def test_looking_leaves_no_trace_and_rows_sum_to_one(positions: str) -> None:
    config = DecoderConfig(
        n_layers=2, d_model=24, n_heads=3, vocab_size=37, seq_len=16, positions=positions, dropout=0.5
    )
    model = Decoder(config, seed=0).train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    maps = attention_maps(model, TOKENS)
    assert maps.shape == (2, 2, 3, 11, 11)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 2, 3, 11))
    assert maps.triu(1).abs().max() == 0  # nobody looks ahead
    residual_stream(model, TOKENS)
    assert modes == [module.training for module in model.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(maps, attention_maps(model, TOKENS))  # dropout is off


def test_the_first_stream_is_the_embedded_input() -> None:
    config = DecoderConfig(n_layers=1, d_model=24, n_heads=3, vocab_size=37, seq_len=16)
    model = Decoder(config, seed=0)
    embedded = model.token_embedding(TOKENS) + model.position_embedding.weight[:11]
    torch.testing.assert_close(residual_stream(model, TOKENS)[0], embedded)


@pytest.mark.parametrize("look", [attention_maps, residual_stream])
def test_a_model_of_two_stacks_is_refused(look: Any) -> None:
    config = EncoderDecoderConfig(n_layers=1, d_model=24, n_heads=3, d_head=8, d_ff=20, vocab_size=37)
    with pytest.raises(ConfigError, match="a Decoder or an Encoder can be looked into, got EncoderDecoder"):
        look(EncoderDecoder(config, seed=0), TOKENS)
