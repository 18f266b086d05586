"""The real command under the real torchrun: end to end, interrupted, failing, refusing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from scalelab.cli import main
from scalelab.core.records import read_records
from scalelab.train import load_checkpoint

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="looks for processes in /proc"
)

STEP = 8 * 32
TINY = [
    "--corpus", "markov", "--max-bytes", "20000", "--d-model", "32", "--n-layers", "2", "--n-heads", "2",
    "--seq-len", "32", "--batch-size", "8", "--n-evals", "2", "--quiet",
]  # fmt: skip
BROKEN = str(Path(__file__).with_name("broken.py"))


class Launched:
    """A command under torchrun, marked so that no process of it is missed."""

    def __init__(self, *words: object, module: bool = True, n_processes: int = 2, **environment: str) -> None:
        self.mark = uuid.uuid4().hex
        program = ["-m", "scalelab"] if module else [BROKEN]
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n_processes), *program,
                *map(str, words),
            ],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "SCALELAB_TEST_MARK": self.mark} | environment,
        )  # fmt: skip

    def end(self) -> tuple[int, str, str]:
        """The exit code, and what came on standard output and error; fails if it takes two minutes."""
        try:
            out, err = self.process.communicate(timeout=120)
        finally:
            for process in self.alive():
                os.kill(process, signal.SIGKILL)
        return self.process.returncode, out, err

    def alive(self) -> list[int]:
        """Processes with the mark in their environment."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment = (folder / "environ").read_bytes()
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if self.mark.encode() in environment and state != "Z":
                found.append(int(folder.name))
        return found


def said(err: str) -> list[str]:
    """What scalelab itself wrote, without torchrun's own report."""
    return [line for line in err.splitlines() if line.startswith("scalelab: ")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process, 30 steps."""
    out = tmp_path_factory.mktemp("runs") / "alone"
    assert main(["train", *TINY, "--tokens", str(30 * STEP), "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_the_command_trains_in_two_processes_as_in_one(layout: str, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    words = ("train", *TINY, "--tokens", 30 * STEP, "--out", out, "--parallel", layout, "--json")
    code, printed, err = Launched(*words).end()
    assert code == 0, err
    assert said(err) == []
    record = json.loads(printed)["record"]  # printed once, by rank 0
    (expected,) = read_records(alone / "record.jsonl")
    (kept,) = read_records(out / "record.jsonl")
    assert kept.run_id == record["run_id"] == expected.run_id
    assert kept.loss_nats == pytest.approx(expected.loss_nats, abs=1e-3)
    assert kept.device.startswith("2 × cpu (")
    assert {path.name for path in out.iterdir()} == {path.name for path in alone.iterdir()}
    ours, theirs = load_checkpoint(out), load_checkpoint(alone)
    assert ours.weights.keys() == theirs.weights.keys()
    assert ours.history.loss_nats == pytest.approx(theirs.history.loss_nats, abs=1e-3)
    assert main(["generate", str(out), "--max-new-tokens", "5"]) == 0


def test_ctrl_c_stops_all_after_the_same_step_leaves_no_process_and_one_process_goes_on(
    tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "run"
    words = ("train", *TINY, "--tokens", 100_000 * STEP, "--checkpoint-every", 5, "--out", out)
    launched = Launched(*words, "--parallel", "ddp")
    deadline = time.monotonic() + 100
    while not list(out.glob("checkpoints/step-*")):
        assert launched.process.poll() is None, launched.process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = [process for process in launched.alive() if process != launched.process.pid]
    assert len(workers) == 2
    for process in launched.alive():  # as a terminal does; torchrun then passes it on to its processes
        os.kill(process, signal.SIGINT)
    code, _, err = launched.end()
    assert code != 0
    assert launched.alive() == []
    assert "Traceback" not in err.split("scalelab: error")[0]
    (line,) = said(err)
    step = int(line.split("stopped after step ")[1].split()[0])
    assert load_checkpoint(out).step == step
    assert f"go on with: scalelab train --out {out} --resume, in one process; or torchrun" in line
    assert "--nproc-per-node 2 -m scalelab train" in line

    found = load_checkpoint(out)
    capsys.readouterr()
    assert found.step == len(found.history)
    code, _, err = Launched("train", "--out", out, "--resume").end()
    assert code != 0
    assert said(err) == [
        "scalelab: error: 2 processes were started, and nothing says how they train together: --parallel ddp "
        "(each holds the whole model) or --parallel fsdp (each holds a part)"
    ]


def test_a_run_of_two_processes_is_resumed_in_one_and_that_in_two_again(alone: Path, tmp_path: Path) -> None:
    from scalelab.train import Trainer

    out = tmp_path / "run"
    words = ("train", *TINY, "--tokens", 30 * STEP, "--checkpoint-every", 5, "--out", out)
    code, _, err = Launched(*words, "--parallel", "fsdp").end()
    assert code == 0, err

    def cut_to(step: int) -> None:
        """As if the run had been killed after this step."""
        (out / "record.jsonl").unlink()
        for folder in (out / "checkpoints").glob("step-*"):
            if int(folder.name[-9:]) > step:
                for file in folder.iterdir():
                    file.unlink()
                folder.rmdir()

    cut_to(25)
    with pytest.warns(UserWarning, match="device was '2 × cpu"):
        trainer = Trainer.resume(out, data_of(out), progress=False)
    assert trainer.step_count == 25
    trainer.run()
    assert load_checkpoint(out).step == 30
    expected = load_checkpoint(alone).history.loss_nats
    assert load_checkpoint(out).history.loss_nats == pytest.approx(expected, abs=1e-3)

    cut_to(25)
    code, printed, err = Launched("train", "--out", out, "--resume", "--quiet", "--parallel", "ddp").end()
    assert code == 0, err
    assert "2 × cpu" in printed
    assert load_checkpoint(out).history.loss_nats == pytest.approx(expected, abs=1e-3)


def data_of(out: Path) -> Any:
    from scalelab.data import corpus, encode_corpus, load_tokenizer

    return encode_corpus(corpus("markov", max_bytes=20_000), load_tokenizer(out / "tokenizer.json"))


@pytest.mark.parametrize("way", ["bug", "mistake"])
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_process_ends_all_within_ten_seconds_with_its_rank_and_traceback(
    way: str, rank: int, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ("train", *TINY, "--tokens", 10_000 * STEP, "--checkpoint-every", 3, "--out", out)
    launched = Launched(*words, "--parallel", "ddp", module=False, BROKEN=f"{rank}:{way}")
    deadline = time.monotonic() + 100
    while not list(out.glob("checkpoints/step-*")):  # it fails in the next step
        assert time.monotonic() < deadline
        time.sleep(0.02)
    failed = time.monotonic()
    code, _, err = launched.end()
    assert time.monotonic() - failed < 10
    assert code != 0
    assert launched.alive() == []
    assert f"scalelab: process {rank} of 2 failed, alone:" in err
    assert "something that only this process met" in err
    assert 'broken.py", line' in err
    assert f"process {1 - rank} of 2 failed" not in err
    root_cause = err.split("Root Cause")[1]
    assert f"rank      : {rank} " in root_cause
    assert "something that only this process met" in root_cause


def test_a_process_that_is_killed_ends_the_others(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ("train", *TINY, "--tokens", 10_000 * STEP, "--out", out, "--parallel", "fsdp")
    launched = Launched(*words, module=False, BROKEN="1:killed")
    code, _, err = launched.end()
    assert code != 0
    assert launched.alive() == []
    assert "Signal 9 (SIGKILL)" in err
    assert "failed, alone" not in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--parallel", "dp_replicate=3"), "the layout 'dp_replicate=3' is of 3 processes, 2 were started"),
        (("--parallel", "ddp", "--batch-size", "7"), "batch_size=7 cannot be shared equally by 2 processes"),
        (("--parallel", "ddp", "--d-modell", "7"), "unknown flag --d-modell; did you mean --d-model"),
    ],
)
def test_a_mistake_that_all_processes_meet_is_told_once(
    words: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    code, printed, err = Launched("train", *TINY, "--tokens", 30 * STEP, "--out", out, *words).end()
    assert code != 0
    assert not printed
    (line,) = said(err)
    assert says in line
    assert not out.exists()


def test_a_folder_that_holds_a_run_is_refused_once(alone: Path) -> None:
    code, _, err = Launched("train", *TINY, "--out", alone, "--parallel", "fsdp").end()
    assert code != 0
    (line,) = said(err)
    assert "holds a run already" in line


def test_one_process_under_torchrun_is_one_process(alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ("train", *TINY, "--tokens", 30 * STEP, "--out", out, "--parallel", "fsdp")
    code, _, err = Launched(*words, n_processes=1).end()
    assert code == 0, err
    newest = [max((folder / "checkpoints").glob("step-*")) for folder in (out, alone)]
    assert load_checkpoint(newest[0]).history.loss_nats == load_checkpoint(newest[1]).history.loss_nats
