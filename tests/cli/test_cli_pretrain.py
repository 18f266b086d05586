"""`scalelab pretrain` makes a model that `transformers` and scalelab read alike, and goes on with a run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch

from scalelab.cli import main
from scalelab.cli import pretrain as command
from scalelab.data import corpus
from scalelab.lab import pretrained, recipes
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


def test_there_is_one_list_of_base_models() -> None:
    assert command.NAMES == pretrained.NAMES == tuple(RECIPES)


def test_how_to_go_on_can_be_pasted_where_a_path_has_spaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "pretrain", interrupted)
    words = ["pretrain", "decoder", "--out", str(tmp_path / "a run"), "--corpus", str(tmp_path / "my texts")]
    assert main([*words, "--tokens", "8192"]) == 130
    told = capsys.readouterr().err.strip()
    assert shlex.split(told.split("go on with: ")[1]) == ["scalelab", *words, "--tokens", "8192"]


def test_a_begun_run_goes_on_with_its_own_text_and_model_alone(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["--tokens", "4096", "--out", str(out), "--quiet"]
    assert main(["pretrain", "decoder", "--corpus", str(texts), *words]) == 0
    other = tmp_path / "other"
    other.mkdir()
    for number in range(40):  # few merges: the tokenizer, and so the model, is another one too
        (other / f"{number}.txt").write_text(f"x{number} = {number}\n" * 2000, encoding="utf-8")
    capsys.readouterr()
    assert main(["pretrain", "decoder", "--corpus", str(other), *words]) != 0
    told = capsys.readouterr().err
    assert "a run with other data: corpus is" in told
    assert main(["pretrain", "encoder", "--corpus", str(texts), *words]) != 0
    told = capsys.readouterr().err
    assert f"{out} holds a run with a model of DecoderConfig, not of EncoderConfig" in told
    assert told.count("\n") == 1
