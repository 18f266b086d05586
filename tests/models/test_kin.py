"""GPT-NeoX and SmolLM3 are Decoders too: with their weights carried over by hand, the logits are theirs."""

from __future__ import annotations

import pytest
import torch

from scalelab.core.config import DecoderConfig
from scalelab.models import Decoder

transformers = pytest.importorskip("transformers")


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty(parameter.shape).normal_(0, 0.15, generator=generator))
    return model.eval()


def assert_same_logits(
    config: DecoderConfig, state: dict[str, torch.Tensor], theirs: torch.nn.Module
) -> None:
    ours = Decoder(config, device="meta")
    ours.load_state_dict(state, assign=True)
    tokens = torch.randint(config.vocab_size, (2, 20), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parallel", [True, False])
def test_parallel_residual_and_partial_rotation_equal_gpt_neox(parallel: bool) -> None:
    theirs = shaken(transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(
        num_hidden_layers=2, hidden_size=32, num_attention_heads=2, intermediate_size=64, vocab_size=53,
        max_position_embeddings=32, rotary_pct=0.25, use_parallel_residual=parallel, bos_token_id=None,
        eos_token_id=None,
    )))  # fmt: skip
    source = theirs.state_dict()
    head = "embed_out.weight" if "embed_out.weight" in source else "lm_head.weight"
    state = {"token_embedding.weight": source["gpt_neox.embed_in.weight"], "head.weight": source[head]}
    names = {"attention_norm": "input_layernorm", "attention.out": "attention.dense",
             "feed_forward_norm": "post_attention_layernorm", "feed_forward.up": "mlp.dense_h_to_4h",
             "feed_forward.down": "mlp.dense_4h_to_h"}  # fmt: skip
    for kind in ("weight", "bias"):
        state[f"final_norm.{kind}"] = source[f"gpt_neox.final_layer_norm.{kind}"]
        for layer in range(2):
            block = f"gpt_neox.layers.{layer}"
            for our, their in names.items():
                state[f"blocks.{layer}.{our}.{kind}"] = source[f"{block}.{their}.{kind}"]
            mixed = source[f"{block}.attention.query_key_value.{kind}"]  # q, k, v of head 0, of head 1 ...
            by_head = mixed.unflatten(0, (2, 3, 16)).transpose(0, 1)
            state[f"blocks.{layer}.attention.qkv.{kind}"] = by_head.reshape(mixed.shape)
    config = DecoderConfig(
        n_layers=2, d_model=32, n_heads=2, vocab_size=53, seq_len=32, d_ff=64, positions="rope",
        rope_fraction=0.25, feed_forward="gelu", tie_embeddings=False, parallel_residual=parallel,
    )  # fmt: skip
    assert_same_logits(config, state, theirs)


def test_layers_without_rotation_equal_smollm3() -> None:
    theirs = shaken(transformers.SmolLM3ForCausalLM(transformers.SmolLM3Config(
        num_hidden_layers=4, hidden_size=32, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, vocab_size=53, max_position_embeddings=32, no_rope_layer_interval=2,
        bos_token_id=None, eos_token_id=None, pad_token_id=None, rope_theta=5000.0,
    )))  # fmt: skip
    source = theirs.state_dict()
    state = {
        "token_embedding.weight": source["model.embed_tokens.weight"],
        "final_norm.weight": source["model.norm.weight"],
    }
    names = {"attention_norm": "input_layernorm", "attention.out": "self_attn.o_proj",
             "feed_forward_norm": "post_attention_layernorm", "feed_forward.gate": "mlp.gate_proj",
             "feed_forward.up": "mlp.up_proj", "feed_forward.down": "mlp.down_proj"}  # fmt: skip
    for layer in range(4):
        block = f"model.layers.{layer}"
        for our, their in names.items():
            state[f"blocks.{layer}.{our}.weight"] = source[f"{block}.{their}.weight"]
        parts = [source[f"{block}.self_attn.{part}_proj.weight"] for part in "qkv"]
        state[f"blocks.{layer}.attention.qkv.weight"] = torch.cat(parts)
    config = DecoderConfig(
        n_layers=4, d_model=32, n_heads=4, n_kv_heads=2, vocab_size=53, seq_len=32, d_ff=48, norm="rmsnorm",
        norm_eps=theirs.config.rms_norm_eps, positions="rope", rope_theta=5000.0, rope_skip_every=2,
        feed_forward="swiglu", attention_bias=False, feed_forward_bias=False,
    )  # fmt: skip
    assert theirs.config.no_rope_layers == [int(config.uses_rope(layer)) for layer in range(4)]
    assert_same_logits(config, state, theirs)
