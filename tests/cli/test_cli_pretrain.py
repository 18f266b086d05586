"""`scalelab pretrain` makes a model that `transformers` and scalelab read alike, and goes on with a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from scalelab.cli import main
from scalelab.data import corpus
from scalelab.lab.pretrained import read_model_folder
from scalelab.lab.recipes import RECIPES

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty files of real source: enough to train on, to hold out, and to learn some merges from."""
    folder = tmp_path_factory.mktemp("texts")
    documents = sorted(corpus("python").train, key=lambda document: len(document.text))[200:240]
    for number, document in enumerate(documents):
        (folder / f"{number:02}.txt").write_text(document.text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_model_is_made_that_transformers_and_scalelab_compute_alike(
    name: str, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain", name, "--corpus", str(texts), "--tokens", "8192", "--out", str(tmp_path / "run")]
    assert main([*words, "--quiet", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)["record"]
    folder = tmp_path / "run" / "model"
    base = read_model_folder(folder)
    assert base.card["loss_nats"] == record["loss_nats"]
    assert base.card["tokens"] == 8192
    ids = torch.from_numpy(base.tokenizer.encode("def read(self):\n    return self")).long()[None]
    kind = {"decoder": "AutoModelForCausalLM", "encoder": "AutoModelForMaskedLM"}[name]
    theirs = getattr(transformers, kind).from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(base.model(ids), theirs(ids).logits, rtol=0, atol=1e-5)

    assert main([*words, "--quiet", "--json"]) == 0  # a finished run is not trained again
    again = json.loads(capsys.readouterr().out)["record"]
    assert again["loss_nats"] == record["loss_nats"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["vision", "--out", "x"], "no base model 'vision'; there are decoder, encoder"),
        (["decoder"], "--out"),
        (["decoder", "--out", "x", "--tokens", "0"], "tokens"),
        (["decoder", "--out", "x", "--corpus", "no-such-corpus"], "no-such-corpus"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", *words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()
