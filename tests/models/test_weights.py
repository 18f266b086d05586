"""Weights from and to transformers: equal logits, equal gradients, and the same tensors on the way back."""

from __future__ import annotations

import builtins
import dataclasses
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from scalelab.core.config import DecoderConfig, VisionConfig
from scalelab.core.errors import ConfigError, WeightsError
from scalelab.models import Decoder, from_transformers, to_transformers
from scalelab.models.weights import make_model

transformers = pytest.importorskip("transformers")

GPT2 = {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 67, "n_positions": 24, "bos_token_id": None,
        "eos_token_id": None, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}  # fmt: skip
LLAMA = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48,
         "vocab_size": 67, "max_position_embeddings": 48, "bos_token_id": None,
         "eos_token_id": None}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip


def random_gpt2(seed: int) -> dict[str, Any]:
    pick = random.Random(seed)
    heads = pick.choice([1, 2, 3, 4])
    return GPT2 | {
        "n_layer": pick.randint(1, 3),
        "n_head": heads,
        "n_embd": heads * pick.choice([4, 10, 16]),
        "n_inner": pick.choice([None, 20, 56]),
        "vocab_size": pick.randint(30, 120),
        "activation_function": pick.choice(["gelu_new", "gelu_pytorch_tanh", "gelu", "relu"]),
        "layer_norm_epsilon": pick.choice([1e-5, 1e-3]),
        "tie_word_embeddings": pick.choice([True, True, False]),
    }


def random_llama(seed: int) -> dict[str, Any]:
    pick = random.Random(seed)
    kv_heads, groups, width = pick.choice([1, 2]), pick.choice([1, 2, 3]), pick.choice([6, 8, 16])
    heads = kv_heads * groups
    return LLAMA | {
        "num_hidden_layers": pick.randint(1, 3),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_size": heads * 8,
        "head_dim": width,
        "intermediate_size": pick.choice([20, 64]),
        "vocab_size": pick.randint(30, 120),
        "rms_norm_eps": pick.choice([1e-6, 1e-3]),
        "rope_theta": pick.choice([100.0, 10_000.0, 500_000.0]),
        "rope_scaling": pick.choice([None, LLAMA3]),
        "attention_bias": pick.choice([True, False]),
        "mlp_bias": pick.choice([True, False]),
        "tie_word_embeddings": pick.choice([True, False]),
    }


CASES = [("GPT2", random_gpt2(seed)) for seed in range(8)] + [("Llama", random_llama(s)) for s in range(12)]
CLASSES = {"GPT2": "GPT2LMHeadModel", "Llama": "LlamaForCausalLM"}


def make(kind: str, settings: dict[str, Any], seed: int = 0) -> Any:
    """A model of transformers with random weights, biases and norms, all large enough to matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, CLASSES[kind])(getattr(transformers, f"{kind}Config")(**settings))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


def tokens_for(model: Any, time: int = 20) -> torch.Tensor:
    return torch.randint(model.config.vocab_size, (2, time), generator=torch.Generator().manual_seed(3))


def assert_gradients_equal(ours: Decoder, theirs: Any, tokens: torch.Tensor) -> None:
    """The gradient of the loss, tensor by tensor: ours, carried over, against theirs."""
    ours.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    theirs(input_ids=tokens, labels=tokens).loss.backward()
    carried = Decoder(ours.config, device="meta")
    carried.load_state_dict({n: p.grad for n, p in ours.named_parameters()}, assign=True)
    found = dict(to_transformers(carried).named_parameters())
    for name, parameter in theirs.named_parameters():
        assert (found[name] - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_logits_and_gradients_equal_those_of_transformers(kind: str, settings: dict[str, Any]) -> None:
    theirs = make(kind, settings)
    ours = from_transformers(theirs)
    tokens = tokens_for(theirs)
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5)
    assert_gradients_equal(ours, theirs, tokens)


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_round_trip_writes_back_the_same_tensors_and_logits(kind: str, settings: dict[str, Any]) -> None:
    theirs = make(kind, settings)
    back = to_transformers(from_transformers(theirs))
    assert type(back) is type(theirs)
    want, found = theirs.state_dict(), back.state_dict()
    assert set(want) == set(found)
    assert all(torch.equal(want[name], found[name]) for name in want)
    tokens = tokens_for(theirs)
    torch.testing.assert_close(back(tokens).logits, theirs(tokens).logits, rtol=1e-5, atol=1e-5)
    if settings.get("tie_word_embeddings", kind == "GPT2"):
        assert back.lm_head.weight is back.get_input_embeddings().weight


def test_the_drawn_cases_cover_what_they_are_meant_to() -> None:
    llamas = [settings for kind, settings in CASES if kind == "Llama"]
    for name in ("attention_bias", "mlp_bias", "tie_word_embeddings"):
        assert {settings[name] for settings in llamas} == {True, False}
    assert {settings["rope_scaling"] is None for settings in llamas} == {True, False}
    assert any(s["num_key_value_heads"] < s["num_attention_heads"] for s in llamas)
    assert any(s["head_dim"] * s["num_attention_heads"] != s["hidden_size"] for s in llamas)
    gpts = [settings for kind, settings in CASES if kind == "GPT2"]
    assert {settings["tie_word_embeddings"] for settings in gpts} == {True, False}
    assert len({settings["activation_function"] for settings in gpts}) >= 3


@pytest.mark.parametrize(("kind", "settings"), [("GPT2", GPT2), ("Llama", LLAMA | {"rope_scaling": LLAMA3})])
def test_a_saved_model_is_read_by_its_path(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    theirs = make(kind, settings).eval()
    theirs.save_pretrained(tmp_path / "model")
    ours = from_transformers(tmp_path / "model")
    assert not ours.training  # as transformers hands out models it has loaded
    tokens = tokens_for(theirs)
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5)
    to_transformers(ours).save_pretrained(tmp_path / "again")
    again = getattr(transformers, CLASSES[kind]).from_pretrained(tmp_path / "again").eval()
    torch.testing.assert_close(again(tokens).logits, theirs(tokens).logits, rtol=1e-5, atol=1e-5)


def test_a_decoder_trained_here_is_written_to_transformers() -> None:
    config = DecoderConfig(n_layers=2, d_model=32, n_heads=4, vocab_size=67, seq_len=24, tie_embeddings=False)
    ours = Decoder(config, seed=0)
    tokens = torch.randint(67, (2, 24), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(to_transformers(ours)(tokens).logits, ours(tokens), rtol=1e-5, atol=1e-5)


def test_weights_are_copied_and_not_shared() -> None:
    theirs = make("GPT2", GPT2)
    ours = from_transformers(theirs)
    with torch.no_grad():
        ours.token_embedding.weight.zero_()
        to_transformers(ours).transformer.wpe.weight.zero_()
    assert theirs.transformer.wte.weight.abs().sum() > 0
    assert ours.position_embedding.weight.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_type_and_mode_are_kept(dtype: torch.dtype) -> None:
    theirs = make("Llama", LLAMA).to(dtype).eval()
    ours = from_transformers(theirs)
    assert {p.dtype for p in ours.parameters()} == {dtype}
    assert not ours.training
    back = to_transformers(ours.train())
    assert {p.dtype for p in back.parameters()} == {dtype}
    assert back.training


def test_writing_leaves_the_global_random_state_alone() -> None:
    ours = from_transformers(make("GPT2", GPT2))
    state = torch.get_rng_state()
    to_transformers(ours)
    assert torch.equal(state, torch.get_rng_state())


UNSUPPORTED = [
    ("GPT2", {"activation_function": "silu"}, "activation_function='silu'"),
    ("GPT2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
    ("GPT2", {"scale_attn_weights": False}, "scale_attn_weights=False"),
    ("GPT2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn=True"),
    ("GPT2", {"add_cross_attention": True}, "add_cross_attention=True"),
    ("GPT2", {"attn_pdrop": 0.1}, "attn_pdrop"),
    ("Llama", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ("Llama", {"attention_dropout": 0.1}, "attention_dropout=0.1"),
    ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_type='linear'"),
    ("Llama", {"head_dim": 3}, "even number"),
]


@pytest.mark.parametrize(("kind", "change", "message"), UNSUPPORTED)
def test_what_a_decoder_cannot_compute_is_refused_by_name(
    kind: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    settings = (GPT2 if kind == "GPT2" else LLAMA) | change
    config = getattr(transformers, f"{kind}Config")(**settings)
    with torch.device("meta"):
        model = getattr(transformers, CLASSES[kind])(config)
    with pytest.raises(WeightsError, match=message):
        from_transformers(model)
    config.save_pretrained(tmp_path)  # by path it is refused from its config, before weights are read
    with pytest.raises(WeightsError, match=message):
        from_transformers(tmp_path)


def test_other_models_and_other_things_are_refused(tmp_path: Path) -> None:
    config = transformers.GPTNeoXConfig(
        num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=9,
        max_position_embeddings=8, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with pytest.raises(WeightsError, match="gpt_neox"):
        from_transformers(transformers.GPTNeoXForCausalLM(config))
    with pytest.raises(WeightsError, match="GPT2Model"):
        from_transformers(transformers.GPT2Model(transformers.GPT2Config(**GPT2)))
    with pytest.raises(WeightsError, match="known: GPT2LMHeadModel"):
        from_transformers(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match="nowhere"):
        from_transformers(tmp_path / "nowhere")


def test_a_folder_with_missing_or_damaged_weights_is_refused(tmp_path: Path) -> None:
    model = make("GPT2", GPT2)
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match="weights"):
        from_transformers(tmp_path)
    from safetensors.torch import load, save_file

    tensors = load(content)
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(WeightsError, match=r"h\.1\.mlp\.c_fc\.weight"):
        from_transformers(tmp_path)
    weights.unlink()
    with pytest.raises(WeightsError, match="weights"):
        from_transformers(tmp_path)


def test_a_head_that_differs_from_its_table_is_not_lost_silently() -> None:
    model = make("GPT2", GPT2)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 1)
    with pytest.raises(WeightsError, match=r"set model\.config\.tie_word_embeddings = False"):
        from_transformers(model)
    model.config.tie_word_embeddings = False  # the way out leads somewhere
    tokens = tokens_for(model)
    torch.testing.assert_close(from_transformers(model)(tokens), model(tokens).logits, rtol=1e-5, atol=1e-5)


GPT2_SHAPE = DecoderConfig(n_layers=1, d_model=32, n_heads=4, vocab_size=9, seq_len=8)


@pytest.mark.parametrize(
    "change",
    [
        {"positions": "sinusoidal"},
        {"parallel_residual": True},
        {"norm": "rmsnorm"},
        {"n_kv_heads": 2},
        {"d_head": 4},
        {"attention_bias": False},
        {"norm_bias": False},
    ],
)
def test_a_decoder_that_no_class_can_hold_is_not_written(change: dict[str, Any]) -> None:
    decoder = Decoder(dataclasses.replace(GPT2_SHAPE, **change), seed=0)
    with pytest.raises(WeightsError, match="no class of transformers"):
        to_transformers(decoder)


def test_without_transformers_the_way_to_get_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "transformers":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(WeightsError, match=r"pip install 'scalelab\[hub\]'"):
        to_transformers(Decoder(GPT2_SHAPE, seed=0))


def with_a_bias(kind: str) -> tuple[Any, str]:
    """A model with one parameter more than its config asks for, and that parameter's name."""
    if kind == "GPT2":
        model, name = make("GPT2", GPT2), "lm_head.bias"
        model.lm_head.bias = torch.nn.Parameter(torch.ones(67))
    else:
        model, name = make("Llama", LLAMA), "model.layers.1.self_attn.q_proj.bias"
        model.model.layers[1].self_attn.q_proj.bias = torch.nn.Parameter(torch.ones(32))
    return model, name


@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_a_parameter_that_ours_do_not_have_is_not_lost_silently(kind: str, tmp_path: Path) -> None:
    model, name = with_a_bias(kind)
    with pytest.raises(WeightsError, match=rf"ours would lose: {re.escape(name)}"):
        from_transformers(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=rf"ours would lose: {re.escape(name)}"):
        from_transformers(tmp_path)


def add_to(folder: Path, shapes: dict[str, tuple[int, ...]], cut: str = "") -> None:
    """More tensors for a saved model, whose names lose the prefix `cut`."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    tensors = {name.removeprefix(cut): tensor for name, tensor in load_file(file).items()}
    save_file(tensors | {n: torch.ones(shape) for n, shape in shapes.items()}, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "cut", "more"),
    [
        ("Llama", "", {"model.norm.bias": (32,)}),
        ("Llama", "", {"model.layers.0.self_attn.q_norm.weight": (8,)}),
        ("Llama", "", {"model.layers.2.input_layernorm.weight": (32,)}),
        ("Llama", "model.", {"layers.0.mlp.up_proj.bias": (48,)}),
        ("GPT2", "transformer.", {"h.0.attn.c_attn.gate": (1,)}),
    ],
)
def test_a_folders_tensors_of_the_body_are_read_or_refused(
    kind: str, cut: str, more: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    make(kind, GPT2 if kind == "GPT2" else LLAMA).save_pretrained(tmp_path)
    add_to(tmp_path, more, cut)
    with pytest.raises(WeightsError, match=rf"ours would lose: {re.escape(next(iter(more)))}"):
        from_transformers(tmp_path)


@pytest.mark.parametrize(
    ("kind", "cut", "more"),
    [
        ("GPT2", "", {"transformer.h.0.attn.bias": (1, 1, 24, 24), "transformer.h.1.attn.masked_bias": (1,)}),
        ("GPT2", "transformer.", {"h.0.attn.bias": (1, 1, 24, 24)}),
        ("GPT2", "", {"score.weight": (2, 32)}),
        ("Llama", "", {"model.layers.0.self_attn.rotary_emb.inv_freq": (4,)}),
        ("Llama", "model.", {"rotary_emb.inv_freq": (4,)}),
    ],
)
def test_masks_angles_and_other_heads_in_a_folder_stay_behind(
    kind: str, cut: str, more: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    theirs = make(kind, GPT2 if kind == "GPT2" else LLAMA).eval()
    theirs.save_pretrained(tmp_path)
    add_to(tmp_path, more, cut)
    tokens = tokens_for(theirs)
    torch.testing.assert_close(
        from_transformers(tmp_path)(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5
    )


def test_what_is_no_model_of_ours_is_neither_made_nor_written() -> None:
    vision = VisionConfig(n_layers=1, d_model=4, n_heads=1, d_ff=4, patch_size=16)
    with pytest.raises(ConfigError, match="got VisionConfig"):
        make_model(vision)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match="got Linear"):
        to_transformers(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
