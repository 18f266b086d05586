"""`scalelab train` and `generate`, end to end on a tiny model: trained, killed, resumed, asked for text."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scalelab.cli import main
from scalelab.core.records import read_records

TINY = [
    "--d-model", "16", "--n-layers", "1", "--n-heads", "2", "--seq-len", "16", "--batch-size", "4",
    "--vocab-size", "280", "--n-evals", "2", "--quiet",
]  # fmt: skip
STEP = 4 * 16  # tokens


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for number in range(8):
        lines = [f"{a} times {number} is {a * number}, and that is all.\n" for a in range(120)]
        (folder / f"{number}.txt").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module", autouse=True)
def _one_thread_and_own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The same arithmetic in this process and in those it starts, and no cache but our own."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("SCALELAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 40 steps."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    assert main(["train", "--corpus", str(texts), *TINY, "--tokens", str(40 * STEP), "--out", str(out)]) == 0
    return out


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "scalelab", *map(str, words)]


def final_weights(out: Path) -> bytes:
    newest = max((out / "checkpoints").glob("step-*"))
    return (newest / "weights.safetensors").read_bytes()


def test_run_leaves_record_metrics_settings_tokenizer_and_checkpoints(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {
        "checkpoints", "metrics.jsonl", "record.jsonl", "settings.json", "tokenizer.json",
    }  # fmt: skip
    (record,) = read_records(trained / "record.jsonl")
    assert record.n_tokens == 40 * STEP
    assert record.config["d_model"] == 16
    assert record.curve[-1][1] < record.curve[0][1]
    assert len(list((trained / "checkpoints").iterdir())) == 2


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_run_resumes_to_the_same_bits_and_writes_the_same_text(
    texts: Path, tmp_path: Path, capsys: Any
) -> None:
    settings = ["--corpus", texts, *TINY, "--tokens", 500 * STEP, "--checkpoint-every", 50]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(command("train", *settings, "--out", killed), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 90
    while not list(killed.glob("checkpoints/step-*")) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (killed / "record.jsonl").exists()

    resumed = subprocess.run(
        command("train", "--out", killed, "--resume", "--quiet", "--json"), capture_output=True, text=True
    )
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert json.loads(resumed.stdout)["record"]["n_tokens"] == 500 * STEP
    assert main(["train", *map(str, settings), "--out", str(whole)]) == 0
    assert final_weights(killed) == final_weights(whole)

    asked = ["--prompt", "7 times", "--max-new-tokens", 40, "--seed", 5]
    by_process = subprocess.run(command("generate", killed, *asked), capture_output=True, text=True)
    assert (by_process.returncode, by_process.stderr) == (0, "")
    capsys.readouterr()
    assert main(["generate", str(whole), *map(str, asked)]) == 0
    assert capsys.readouterr().out == by_process.stdout
    assert by_process.stdout.startswith("7 times")


def test_resume_before_the_first_checkpoint_starts_at_the_beginning(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "early"
    out.mkdir()
    for name in ("settings.json", "tokenizer.json"):
        (out / name).write_bytes((trained / name).read_bytes())
    assert main(["train", "--out", str(out), "--resume", "--quiet"]) == 0
    assert final_weights(out) == final_weights(trained)


def test_resume_of_a_finished_run_says_what_it_reached(trained: Path, capsys: Any) -> None:
    before = final_weights(trained)
    assert main(["train", "--out", str(trained), "--resume", "--quiet"]) == 0
    assert "bits per byte" in capsys.readouterr().out
    assert final_weights(trained) == before
    assert len(read_records(trained / "record.jsonl")) == 1


def test_resume_with_the_same_flags_is_allowed(trained: Path, texts: Path) -> None:
    same = ["--corpus", str(texts), *TINY, "--tokens", str(40 * STEP)]
    assert main(["train", *same, "--out", str(trained), "--resume"]) == 0


def test_run_from_another_folder_and_by_file_is_the_same_run(
    trained: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        f"corpus = '{texts}'\nout = 'from-file'\nvocab_size = 280\n"
        "[model]\nd_model = 16\nn_layers = 1\nn_heads = 2\nseq_len = 16\n"
        f"[train]\nbatch_size = 4\nn_evals = 2\nn_tokens = {40 * STEP}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", str(file), "--quiet"]) == 0
    assert final_weights(tmp_path / "from-file") == final_weights(trained)


def test_json_is_all_that_stands_on_stdout(texts: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["--corpus", str(texts), *TINY, "--tokens", str(2 * STEP), "--out", str(tmp_path / "a"), "--json"]
    words.remove("--quiet")
    assert main(["train", *words]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["record"]["n_tokens"] == 2 * STEP
    assert "step 2/2" in err


def test_markov_is_cut_into_its_own_symbols(tmp_path: Path, capsys: Any) -> None:
    words = [word for word in TINY if word not in ("--vocab-size", "280")]
    words += ["--corpus", "markov", "--max-bytes", "2000", "--tokens", str(2 * STEP)]
    assert main(["train", *words, "--out", str(tmp_path / "a"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)["record"]
    assert (record["tokenizer"], record["config"]["vocab_size"]) == ("symbols", 129)


def test_tensorboard_files_appear_when_asked_for(texts: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    words = ["--corpus", str(texts), *TINY, "--tokens", str(2 * STEP), "--out", str(tmp_path / "a")]
    assert main(["train", *words, "--tensorboard"]) == 0
    assert list((tmp_path / "a" / "tensorboard").glob("events.*"))


@pytest.mark.skipif(os.name != "posix", reason="os.kill")
def test_resume_switches_on_the_loggers_that_the_run_had(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    wandb = pytest.importorskip("wandb")
    from scalelab.train import Trainer

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()  # it reads the environment once a process, and another test may have used it before
    out = tmp_path / "a"
    advance = Trainer._advance

    def interrupted(self: Trainer) -> None:
        advance(self)
        if self.step_count == 7:
            os.kill(os.getpid(), signal.SIGINT)

    words = ["--corpus", str(texts), *TINY, "--tokens", str(40 * STEP), "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_advance", interrupted)
        assert main(["train", *words, "--tensorboard", "--wandb", "mine"]) == 130
    assert json.loads((out / "settings.json").read_text())["loggers"] == {
        "tensorboard": True,
        "wandb": "mine",
    }
    wandb_files = "wandb/wandb/offline-run-*/*.wandb"  # their names hold the id
    (begun,) = out.glob(wandb_files)
    shutil.rmtree(out / "wandb" / "wandb")
    assert main(["train", "--out", str(out), "--resume", "--quiet"]) == 0
    assert len(list((out / "tensorboard").glob("events.*"))) == 2
    (gone_on,) = out.glob(wandb_files)
    assert gone_on.name == begun.name
    assert main(["train", "--out", str(out), "--resume", "--quiet", "--no-tensorboard", "--no-wandb"]) == 0
    assert json.loads((out / "settings.json").read_text())["loggers"] == {}


@pytest.mark.parametrize("loggers", [[], {"tensorboard": "yes"}, {"wandb": 3}, {"other": True}])
def test_damaged_loggers_in_the_settings_are_one_clear_error(
    loggers: Any, trained: Path, tmp_path: Path, capsys: Any
) -> None:
    content = json.loads((trained / "settings.json").read_text())
    (tmp_path / "settings.json").write_text(json.dumps({**content, "loggers": loggers}))
    assert main(["train", "--out", str(tmp_path), "--resume"]) == 2
    assert "'loggers' holds" in capsys.readouterr().err


def test_ctrl_c_keeps_the_steps_taken_and_says_how_to_go_on(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from scalelab.train import Trainer

    advance = Trainer._advance

    def interrupted(self: Trainer) -> None:
        advance(self)
        if self.step_count == 7:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_advance", interrupted)
    words = ["--corpus", str(texts), *TINY, "--tokens", str(40 * STEP), "--out", str(tmp_path / "a")]
    assert main(["train", *words]) == 130
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"scalelab train --out {tmp_path / 'a'} --resume" in err
    assert (tmp_path / "a" / "checkpoints" / "step-000000007").is_dir()


def test_generate_writes_the_same_text_for_a_seed_and_another_for_another(trained: Path, capsys: Any) -> None:
    def text(*words: str) -> str:
        assert main(["generate", str(trained), "--prompt", "2 times", "--max-new-tokens", "30", *words]) == 0
        out: str = capsys.readouterr().out
        return out

    assert text("--seed", "1") == text("--seed", "1") != text("--seed", "2")
    assert text("--temperature", "0", "--seed", "1") == text("--temperature", "0", "--seed", "2")
    assert text("--top-k", "1", "--seed", "1") == text("--temperature", "0")
    assert text().startswith("2 times")


def test_generate_without_a_prompt_begins_a_text(trained: Path, capsys: Any) -> None:
    assert main(["generate", str(trained), "--max-new-tokens", "20", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["prompt"] == ""
    assert isinstance(answer["text"], str)


def test_generate_after_the_newest_checkpoint_broke_warns_in_one_line_and_uses_the_one_before(
    trained: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "broken"
    shutil.copytree(trained, out)
    newest = max((out / "checkpoints").glob("step-*"))
    (newest / "weights.safetensors").write_bytes(b"")
    assert main(["generate", str(out), "--prompt", "2", "--max-new-tokens", "5"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("scalelab: warning: passing over a damaged checkpoint")
    assert err.count("\n") == 1


def test_what_cannot_fit_into_memory_is_refused_before_it_is_tried(
    texts: Path, tmp_path: Path, capsys: Any
) -> None:
    words = ["--corpus", str(texts), *TINY, "--d-model", "1_000_000", "--out", str(tmp_path / "a")]
    assert main(["train", *words]) == 2
    assert "TiB" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
