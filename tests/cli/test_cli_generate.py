"""`scalelab generate` on a model folder: the library's own tokens, and one line for each mistake."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from scalelab.cli import main
from scalelab.core.config import DecoderConfig, EncoderConfig
from scalelab.data import train_bpe
from scalelab.data.special import special_tokens
from scalelab.data.tokenization import BpeTokenizer
from scalelab.lab import pretrained
from scalelab.models import Decoder, Encoder, generate
from scalelab.models.pretrained import save_pretrained

Capture = pytest.CaptureFixture[str]
TEXT = "def fetch(name, default=None):\n    return table.get(name, default)\n" * 4


@pytest.fixture(scope="module")
def tokenizer() -> BpeTokenizer:
    return train_bpe([TEXT], 300, cache=None)


def decoder(tokenizer: BpeTokenizer) -> Decoder:
    config = DecoderConfig(
        n_layers=1, d_model=16, n_heads=2, vocab_size=tokenizer.vocab_size + 4, seq_len=64, norm="rmsnorm",
        positions="rope", feed_forward="swiglu", attention_bias=False, feed_forward_bias=False,
    )  # fmt: skip
    return Decoder(config, seed=0)


def save(model: Decoder | Encoder, tokenizer: BpeTokenizer, folder: Path) -> Path:
    special = special_tokens(tokenizer)
    named = {f.name: getattr(special, f.name) for f in dataclasses.fields(special) if f.name != "sentinels"}
    named["end_of_text"] = special.end_of_text
    save_pretrained(model, tokenizer.description, named, folder, {})
    return folder


@pytest.fixture(scope="module")
def folder(tokenizer: BpeTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(decoder(tokenizer), tokenizer, tmp_path_factory.mktemp("models") / "small")


def written(capsys: Capture, *words: str) -> str:
    assert main(["generate", *words, "--prompt", "def ", "--max-new-tokens", "20", "--json"]) == 0
    text: str = json.loads(capsys.readouterr().out)["text"]
    return text


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["--top-k", "all", "--top-p", "0.5"], {"top_p": 0.5}),
        (["--top-p", "0.9"], {"top_k": 40, "top_p": 0.9}),
        (["--temperature", "0"], {"temperature": 0.0, "top_k": 40}),
    ],
)
def test_a_model_folder_writes_what_the_library_writes(
    words: list[str], settings: dict[str, float], folder: Path, tokenizer: BpeTokenizer, capsys: Capture
) -> None:
    model = pretrained.read_model_folder(folder).model
    assert isinstance(model, Decoder)
    start = torch.from_numpy(tokenizer.encode("def ")).long()[None]
    ids = generate(  # type: ignore[misc]
        model, start, max_new_tokens=20, seed=3, end_id=tokenizer.end_of_text,
        **{"temperature": 0.8, **settings},  # type: ignore[arg-type]
    )[0, start.shape[1] :]  # fmt: skip
    want = tokenizer.decode([i for i in ids.tolist() if i < tokenizer.end_of_text])
    assert written(capsys, str(folder), "--seed", "3", *words) == want


def test_decoder_is_the_base_model_unless_a_folder_has_that_name(
    folder: Path, tokenizer: BpeTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(pretrained, "base_folder", lambda name: {"decoder": folder}[name])
    monkeypatch.chdir(tmp_path)
    assert written(capsys, "decoder") == written(capsys, str(folder))
    other = decoder(tokenizer)
    with torch.no_grad():
        other.token_embedding.weight.mul_(9)
    save(other, tokenizer, tmp_path / "decoder")
    assert written(capsys, "decoder") == written(capsys, str(tmp_path / "decoder"))
    assert written(capsys, "decoder") != written(capsys, str(folder))


def test_special_ids_and_the_end_spell_nothing(
    tokenizer: BpeTokenizer, tmp_path: Path, capsys: Capture
) -> None:
    model = decoder(tokenizer)
    with torch.no_grad():  # the longest rows of a tied table are the likeliest tokens
        model.token_embedding.weight[tokenizer.end_of_text + 1 :] *= 200
    save(model, tokenizer, tmp_path / "m")
    assert len(written(capsys, str(tmp_path / "m"), "--temperature", "5", "--top-k", "all")) < 200


def test_mistakes_are_one_line(
    folder: Path, tokenizer: BpeTokenizer, tmp_path: Path, capsys: Capture
) -> None:
    config = EncoderConfig(
        n_layers=1, d_model=16, n_heads=2, d_ff=24, vocab_size=tokenizer.vocab_size + 4, seq_len=32
    )
    encoder = save(Encoder(config, seed=0), tokenizer, tmp_path / "encoder")
    damaged = save(decoder(tokenizer), tokenizer, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for words, says in (
        ([encoder], "is an Encoder: only a Decoder continues a text"),
        ([damaged], "model.safetensors"),
        ([tmp_path / "empty"], "holds no settings.json"),
        ([tmp_path / "nowhere"], "there is no run at"),
        (["decodr"], "or the name of a base model (decoder, encoder)"),
        ([folder, "--top-p", "1.5"], "top_p must lie in (0, 1], got 1.5"),
        ([folder, "--top-p", "much"], "--top-p"),
        ([folder, "--top-k", "0"], "--top-k"),
        ([folder, "--top-k", "4000"], "top_k=4000 is more than the vocabulary's"),
    ):
        assert main(["generate", *map(str, words)]) != 0
        err = capsys.readouterr().err
        assert err.startswith("scalelab: error: ")
        assert says in err
        assert err.count("\n") == 1
