"""Bad command lines: each is one line on stderr that names the culprit, exit code 2, and nothing on disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scalelab.cli import main

TRAIN = ["train", "--corpus", "{tmp}/texts", "--quiet"]
OUT = ["--out", "{tmp}/run"]

# kind → (the words, "{tmp}" being a folder with a few files; what the line must name)
CASES: dict[str, tuple[list[str], str]] = {
    "no command": ([], "cost"),
    "unknown command": (["benchmark"], "'benchmark'"),
    "misspelt command": (["trian"], "did you mean train"),
    "command that is a flag": (["--train"], "'--train'"),
    "misspelt global flag": (["--verison"], "--version"),
    "empty command": ([""], "''"),
    "unknown flag": (["cost", "gpt2", "--colour", "red"], "--colour"),
    "misspelt flag": (["cost", "gpt2", "--seq-length", "8"], "--seq-len"),
    "misspelt flag with an equals sign": (["cost", "gpt2", "--toknes=5"], "--tokens"),
    "abbreviated flag": (["cost", "gpt2", "--batch", "8"], "--batch-size"),
    "flag with one dash": (["cost", "gpt2", "-json"], "-json"),
    "flag with an underscore": ([*TRAIN, *OUT, "--d_model", "16"], "--d-model"),
    "flag without its value": (["cost", "gpt2", "--tokens"], "--tokens"),
    "switch with a value": (["cost", "gpt2", "--json=yes"], "--json"),
    "surplus argument": (["cost", "gpt2", "gpt2-xl"], "'gpt2-xl'"),
    "unknown preset": (["cost", "llama-9b"], "'llama-9b'"),
    "misspelt preset": (["cost", "gtp2"], "gpt2"),
    "cost of nothing": (["cost"], "--list"),
    "preset and shape": (["cost", "gpt2", "--n-layers", "3"], "--n-layers"),
    "preset and file": (["cost", "gpt2", "--config", "{tmp}/good.toml"], "--config"),
    "shape whose heads do not divide": (["cost", "--d-model", "10"], "d_model=10"),
    "tokens that are text": (["cost", "gpt2", "--tokens", "many"], "'many'"),
    "tokens that are zero": (["cost", "gpt2", "--tokens", "0"], "'0'"),
    "tokens that are negative": (["cost", "gpt2", "--tokens", "-5"], "'-5'"),
    "tokens that are a fraction": (["cost", "gpt2", "--tokens", "1.5"], "'1.5'"),
    "tokens that are nan": (["cost", "gpt2", "--tokens", "nan"], "'nan'"),
    "tokens that are infinite": (["cost", "gpt2", "--tokens", "1e999"], "'1e999'"),
    "tokens with an unknown suffix": (["cost", "gpt2", "--tokens", "5Q"], "'5Q'"),
    "sequence beyond the context": (["cost", "gpt2", "--seq-len", "2048"], "2048"),
    "unknown precision": (["cost", "gpt2", "--precision", "fp4"], "'fp4'"),
    "misspelt precision": (["cost", "gpt2", "--precision", "bf61"], "bf16"),
    "unknown accelerator": (["cost", "gpt2", "--device", "h1000"], "'h1000'"),
    "accelerator without the precision": (["cost", "gpt2", "--device", "t4", "--precision", "bf16"], "bf16"),
    "utilisation above one": (["cost", "gpt2", "--device", "t4", "--mfu", "40"], "40"),
    "utilisation of zero": (["cost", "gpt2", "--device", "t4", "--mfu", "0"], "--mfu"),
    "utilisation in per cent": (["cost", "gpt2", "--device", "t4", "--mfu", "40%"], "'40%'"),
    "time of a model that reads no tokens": (["cost", "vit-b-16", "--tokens", "1e9"], "vit-b-16"),
    "settings file that is missing": (["cost", "--config", "{tmp}/gone.toml"], "gone.toml"),
    "settings file that is no TOML": (["cost", "--config", "{tmp}/texts/a.txt"], "a.txt"),
    "settings file that is a folder": (["cost", "--config", "{tmp}/texts"], "texts"),
    "settings file with an unknown key": (["cost", "--config", "{tmp}/unknown.toml"], "n_layers"),
    "settings file of binary": (["train", "--config", "{tmp}/binary.toml", *OUT], "binary.toml"),
    "settings file whose value is refused": (["train", "--config", "{tmp}/refused.toml", *OUT], "'four'"),
    "settings file whose tokens are text": (["cost", "--config", "{tmp}/tokens.toml"], "'many'"),
    "settings file whose batch is a table": (["cost", "--config", "{tmp}/batch.toml"], "batch_size"),
    "data without a command": (["data"], "fetch"),
    "data with an unknown command": (["data", "lsit"], "did you mean list"),
    "data fetch of nothing": (["data", "fetch"], "--all"),
    "data fetch of an unknown set": (["data", "fetch", "imagenet"], "'imagenet'"),
    "data fetch of a misspelt set": (["data", "fetch", "tinyshakespeare"], "tiny-shakespeare"),
    "data show of nothing": (["data", "show"], "NAME"),
    "data show of what is not there": (["data", "show", "{tmp}/gone.txt"], "gone.txt"),
    "data show of a misspelt corpus": (["data", "show", "pyton"], "python"),
    "data show of a binary file": (["data", "show", "{tmp}/binary.toml"], "binary.toml"),
    "train without a place": (TRAIN, "--out"),
    "train into a folder that is full": ([*TRAIN, "--out", "{tmp}/texts"], "texts"),
    "train into a file": ([*TRAIN, "--out", "{tmp}/good.toml"], "good.toml"),
    "train below a file": ([*TRAIN, "--tokens", "8k", "--out", "{tmp}/good.toml/run"], "good.toml"),
    "train into nobody's home": ([*TRAIN, "--out", "~nobody-here/run"], "~nobody-here"),
    "train on a corpus in nobody's home": (["train", "--corpus", "~nobody-here/a", *OUT], "~nobody-here"),
    "generate from nobody's home": (["generate", "~nobody-here/run"], "~nobody-here"),
    "train on a corpus that is not there": (["train", "--corpus", "{tmp}/gone", *OUT], "gone"),
    "train on a misspelt corpus": (["train", "--corpus", "markow", *OUT], "markov"),
    "train on labels": (["train", "--corpus", "sst-2", *OUT], "sst-2"),
    "train with an unknown tokenizer": ([*TRAIN, *OUT, "--tokenizer", "wordpiece"], "'wordpiece'"),
    "train with symbols of another language": ([*TRAIN, *OUT, "--tokenizer", "symbols"], "symbol"),
    "train with a vocabulary below the bytes": ([*TRAIN, *OUT, "--vocab-size", "100"], "100"),
    "train with a vocabulary for bytes": (
        [*TRAIN, *OUT, "--tokenizer", "bytes", "--vocab-size", "300"], "vocab_size=300",
    ),
    "train with an unknown norm": ([*TRAIN, *OUT, "--norm", "rms"], "rmsnorm"),
    "train with heads that do not divide": ([*TRAIN, *OUT, "--n-heads", "3"], "n_heads=3"),
    "train with dropout of one": ([*TRAIN, *OUT, "--dropout", "1"], "1.0"),
    "train with one beta": ([*TRAIN, *OUT, "--betas", "0.9"], "'0.9'"),
    "train with a beta above one": ([*TRAIN, *OUT, "--betas", "0.9,1.5"], "1.5"),
    "train with a negative seed": ([*TRAIN, *OUT, "--seed", "-1"], "'-1'"),
    "train with a seed too large": ([*TRAIN, *OUT, "--seed", str(2**63)], str(2**63)),
    "train for less than a step": ([*TRAIN, *OUT, "--tokens", "100"], "n_tokens=100"),
    "train with a batch larger than the text": ([*TRAIN, *OUT, "--batch-size", "512"], "batch_size"),
    "train with windows longer than the text": ([*TRAIN, *OUT, "--batch-size=1", "--seq-len=9k"], "9000"),
    "train on a device that is not there": ([*TRAIN, *OUT, "--device", "cuda:9"], "'cuda:9'"),
    "train on a device that does not exist": ([*TRAIN, *OUT, "--device", "abacus"], "'abacus'"),
    "train with more warm-up than run": ([*TRAIN, *OUT, "--warmup-steps", "9k"], "9000"),
    "train with an infinite learning rate": ([*TRAIN, *OUT, "--learning-rate", "inf"], "'inf'"),
    "resume of what is not there": (["train", "--resume", *OUT], "{tmp}/run"),
    "resume of what is no run": (["train", "--resume", "--out", "{tmp}/texts"], "settings.json"),
    "generate from nothing": (["generate"], "RUN"),
    "generate from a run that is not there": (["generate", "{tmp}/run"], "{tmp}/run"),
    "generate from a folder that is no run": (["generate", "{tmp}/texts"], "settings.json"),
    "generate from a file": (["generate", "{tmp}/good.toml"], "good.toml"),
    "generate with a temperature that is text": (["generate", "{tmp}/run", "--temperature=warm"], "'warm'"),
    "generate with no tokens": (["generate", "{tmp}/run", "--max-new-tokens", "0"], "'0'"),
    "generate from no tokens": (["generate", "{tmp}/run", "--top-k", "0"], "'0'"),
    "generate with a misspelt flag": (["generate", "{tmp}/run", "--promt", "def"], "--prompt"),
    "generate with a fractional seed": (["generate", "{tmp}/run", "--seed", "0.5"], "'0.5'"),
}  # fmt: skip

BY_PROCESS = (
    "no command",
    "misspelt flag",
    "settings file that is no TOML",
    "generate from a folder that is no run",
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a few small texts and settings files, which is also the current one."""
    (tmp_path / "texts").mkdir()
    for name in "abc":
        (tmp_path / "texts" / f"{name}.txt").write_text(f"All the words that {name} would ever need. " * 60)
    (tmp_path / "good.toml").write_text("[model]\nn_layers = 2\n")
    (tmp_path / "unknown.toml").write_text("[model]\nn_layer = 2\n")
    (tmp_path / "refused.toml").write_text("[model]\nn_layers = 'four'\n")
    (tmp_path / "tokens.toml").write_text("[model]\nn_layers = 2\n[train]\nn_tokens = 'many'\n")
    (tmp_path / "batch.toml").write_text("[model]\nn_layers = 2\n[train]\nbatch_size = {rows = 8}\n")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\0\0" * 9)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCALELAB_CACHE", str(tmp_path.parent / f"{tmp_path.name}-cache"))
    monkeypatch.delenv("SCALELAB_DATA", raising=False)
    return tmp_path


def filled(case: tuple[list[str], str], place: Path) -> tuple[list[str], str]:
    words, says = case
    return [word.replace("{tmp}", str(place)) for word in words], says.replace("{tmp}", str(place))


def check(code: int, out: str, err: str, says: str) -> None:
    assert code == 2
    assert out == ""
    assert err.startswith("scalelab: error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert says in err, f"the line does not name {says!r}: {err}"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_bad_command_line_is_one_line_and_exit_code_2(
    case: tuple[list[str], str], place: Path, capsys: pytest.CaptureFixture[str], contents: Any
) -> None:
    words, says = filled(case, place)
    before = contents(place)
    code = main(words)
    check(code, *capsys.readouterr(), says)
    assert contents(place) == before
    assert not (place / "run").exists()


@pytest.mark.parametrize("kind", BY_PROCESS)
def test_bad_command_line_in_a_process_is_the_same(kind: str, place: Path) -> None:
    words, says = filled(CASES[kind], place)
    done = subprocess.run(
        [sys.executable, "-m", "scalelab", *words], capture_output=True, text=True, timeout=120
    )
    check(done.returncode, done.stdout, done.stderr, says)
