"""Base models: written from a run, read with their tokenizer, and by transformers as well."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import scalelab.lab
from scalelab.core.config import DecoderConfig, EncoderConfig, config_to_dict
from scalelab.core.errors import LabError, WeightsError
from scalelab.core.records import RunRecord
from scalelab.data import train_bpe
from scalelab.data.special import special_tokens
from scalelab.data.tokenization import BpeTokenizer
from scalelab.lab.pretrained import NAMES, base, base_folder, read_model_folder, write_base_model
from scalelab.models import Decoder, Encoder

TEXT = "def fetch(name, default=None):\n    return table.get(name, default)  # naïve\n" * 4


@pytest.fixture(scope="module")
def tokenizer() -> BpeTokenizer:
    return train_bpe([TEXT, "a class of its own"], 300, cache=None)


def decoder(tokenizer: BpeTokenizer) -> Decoder:
    return Decoder(
        DecoderConfig(
            n_layers=1, d_model=16, n_heads=2, vocab_size=tokenizer.vocab_size + 4, seq_len=32,
            norm="rmsnorm", positions="rope", feed_forward="swiglu", attention_bias=False,
            feed_forward_bias=False,
        ), seed=0,
    )  # fmt: skip


def encoder(tokenizer: BpeTokenizer, **heads: bool) -> Encoder:
    config = EncoderConfig(
        n_layers=1, d_model=16, n_heads=2, d_ff=24, vocab_size=tokenizer.vocab_size + 4, seq_len=32, **heads
    )
    return Encoder(config, seed=0)


def record_of(model: Any, corpus: str = "packages") -> RunRecord:
    return RunRecord(
        run_id="r", config=config_to_dict(model.config), corpus=corpus, tokenizer="bpe-300", n_params=1000,
        n_params_matmul=900, n_params_non_embedding=800, n_tokens=4096, n_tokens_unique=4096, epochs=1.0,
        flops=1e9, loss_nats=3.0, bits_per_byte=2.5, curve=((4096, 3.0),), learning_rate=1e-3,
        batch_tokens=512, seed=0, seconds=2.0, device="cpu", versions={"torch": "2"}, commit="abc",
    )  # fmt: skip


def test_a_written_model_is_read_with_its_tokenizer_and_card(tokenizer: BpeTokenizer, tmp_path: Path) -> None:
    model = decoder(tokenizer)
    write_base_model(model, tokenizer, record_of(model), tmp_path / "m")
    found = read_model_folder(tmp_path / "m")
    assert found.model.config == model.config
    assert found.tokenizer.fingerprint == tokenizer.fingerprint
    assert found.special == special_tokens(tokenizer)
    assert found.special.vocab_size == model.config.vocab_size
    assert found.card["steps"] == 8
    told = {"corpus": "packages", "tokens": 4096, "loss_nats": 3.0, "bits_per_byte": 2.5, "n_params": 1000}
    told |= {"seconds": 2.0, "device": "cpu", "versions": {"torch": "2"}, "commit": "abc"}
    assert told.items() <= dict(found.card).items()
    assert "MIT" in " ".join(found.card["licences"])


def test_only_packages_names_the_licences_of_its_wheels(tokenizer: BpeTokenizer, tmp_path: Path) -> None:
    model = decoder(tokenizer)
    write_base_model(model, tokenizer, record_of(model, "python"), tmp_path / "m")
    assert not read_model_folder(tmp_path / "m").card["licences"]


def test_transformers_reads_the_same_model_and_ids(tokenizer: BpeTokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = decoder(tokenizer)
    write_base_model(model, tokenizer, record_of(model), tmp_path / "m")
    ours = read_model_folder(tmp_path / "m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    ids = torch.as_tensor(ours.tokenizer.encode(TEXT)[:30]).long()[None]
    torch.testing.assert_close(ours.model(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)
    found = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")(TEXT)["input_ids"]
    assert np.array_equal(found, ours.tokenizer.encode(TEXT))


def test_a_pooler_that_nothing_trained_is_left_out(tokenizer: BpeTokenizer, tmp_path: Path) -> None:
    model = encoder(tokenizer, mlm_head=True)
    write_base_model(model, tokenizer, record_of(model), tmp_path / "m")
    found = read_model_folder(tmp_path / "m").model
    assert found.config == dataclasses.replace(model.config, pooler=False)
    ids = torch.as_tensor(tokenizer.encode(TEXT)[:20]).long()[None]
    torch.testing.assert_close(found(ids), model.eval()(ids), rtol=0, atol=2e-3)  # fp16's rounding
    both = encoder(tokenizer, mlm_head=True, nsp_head=True)
    write_base_model(both, tokenizer, record_of(both), tmp_path / "m")
    assert read_model_folder(tmp_path / "m").model.config == both.config


def test_a_folder_whose_special_ids_are_others_is_refused(tokenizer: BpeTokenizer, tmp_path: Path) -> None:
    from scalelab.models.pretrained import save_pretrained

    save_pretrained(decoder(tokenizer), tokenizer.description, {}, tmp_path / "m", {})
    with pytest.raises(WeightsError, match="special ids"):
        read_model_folder(tmp_path / "m")


def test_base_is_a_function_of_the_package_whatever_was_imported_before() -> None:
    assert scalelab.lab.base is base
    assert callable(scalelab.lab.base)


def test_an_unknown_base_model_is_refused_by_name() -> None:
    with pytest.raises(LabError, match="'bert'; there are decoder, encoder"):
        scalelab.lab.base("bert")


@pytest.mark.parametrize("name", NAMES)
def test_the_base_models_that_ship_are_read_alike_by_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    found = base(name)
    assert found.model.config.vocab_size == found.special.vocab_size
    ids = torch.as_tensor(found.tokenizer.encode(TEXT)[:60]).long()[None]
    auto = "AutoModelForCausalLM" if name == "decoder" else "AutoModelForMaskedLM"
    theirs = getattr(transformers, auto).from_pretrained(base_folder(name))
    torch.testing.assert_close(found.model(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base_folder(name))
    assert tokenizer(TEXT, add_special_tokens=False)["input_ids"] == found.tokenizer.encode(TEXT).tolist()
