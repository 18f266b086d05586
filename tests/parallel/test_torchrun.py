"""The real command under the real torchrun: end to end, interrupted, failing, refusing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
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

    def __init__(
        self,
        *words: object,
        module: bool = True,
        n_processes: int = 2,
        torchrun: Sequence[object] | None = (),
        **environment: str,
    ) -> None:
        self.mark = uuid.uuid4().hex
        program = ["-m", "scalelab"] if module else [BROKEN]
        launcher = [
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            str(n_processes),
            *map(str, torchrun or ()),
        ]
        self.process = subprocess.Popen(
            [sys.executable, *(launcher if torchrun is not None else []), *program, *map(str, words)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "SCALELAB_TEST_MARK": self.mark} | environment,
        )  # fmt: skip

    def end(self) -> tuple[int, str, str]:
        """The exit code, and what came on standard output and error; fails if it takes two minutes."""
        try:
            out, err = self.process.communicate(timeout=120)
        finally:
            self.clear()
        return self.process.returncode, out, err

    def wait_for(self, folder: Path, pattern: str) -> None:
        """Until something of this name is there."""
        deadline = time.monotonic() + 100
        while not list(folder.glob(pattern)):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def clear(self) -> None:
        """Leave no process behind."""
        for process in self.alive():
            os.kill(process, signal.SIGKILL)

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
    words = [*TINY, "--tokens", str(30 * STEP), "--checkpoint-every", "5", "--out", str(out)]
    assert main(["train", *words]) == 0
    return out


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def two(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, int, str, str]:
    """The same run in two processes: its layout, folder and exit code, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "two"
    words = ("train", *TINY, "--tokens", 30 * STEP, "--checkpoint-every", 5, "--out", out, "--json")
    return request.param, out, *Launched(*words, "--parallel", request.param).end()


def test_the_command_trains_in_two_processes_as_in_one(two: Any, alone: Path) -> None:
    _, out, code, printed, err = two
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


CHECKPOINT = "checkpoints/step-*"
ENDLESS = ("--tokens", 100_000 * STEP, "--checkpoint-every", 5, "--parallel", "ddp")


@pytest.mark.parametrize("by_terminal", [True, False])
def test_ctrl_c_stops_all_after_the_same_step_leaves_no_process_and_says_how_to_go_on(
    by_terminal: bool, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    launched = Launched("train", *TINY, *ENDLESS, "--out", out)
    launched.wait_for(out, CHECKPOINT)
    workers = [process for process in launched.alive() if process != launched.process.pid]
    assert len(workers) == 2
    for process in launched.alive() if by_terminal else [launched.process.pid]:
        os.kill(process, signal.SIGINT)  # torchrun passes it on to its processes
    code, _, err = launched.end()
    assert code != 0
    assert launched.alive() == []
    assert "Traceback" not in err.split("scalelab: error")[0]
    (line,) = said(err)
    step = int(line.split("stopped after step ")[1].split()[0])
    found = load_checkpoint(out)
    assert found.step == step == len(found.history)
    assert f"go on with: scalelab train --out {out} --resume, in one process; or torchrun" in line
    assert "--nproc-per-node 2 -m scalelab train" in line


@pytest.mark.parametrize("way", ["meets", "reads"])
def test_ctrl_c_before_training_ends_all_at_once_and_is_no_failure(way: str, tmp_path: Path) -> None:
    flag, out = tmp_path / "flag", tmp_path / "run"
    launched = Launched(
        "train", *TINY, *ENDLESS, "--out", out, module=False, BROKEN=f"0:{way}", FLAG=str(flag)
    )
    launched.wait_for(tmp_path, "flag")
    time.sleep(0.5)  # the other one waits for it by now
    pressed = time.monotonic()
    launched.process.send_signal(signal.SIGINT)
    _, _, err = launched.end()
    assert time.monotonic() - pressed < 10
    assert said(err) == ([] if way == "meets" else ["scalelab: error: interrupted"])
    assert "forcefully exiting" not in err
    assert not out.exists()


def test_processes_end_when_torchrun_is_killed_and_keep_what_they_trained(tmp_path: Path) -> None:
    out = tmp_path / "run"
    launched = Launched("train", *TINY, *ENDLESS, "--out", out)
    try:
        launched.wait_for(out, CHECKPOINT)
        launched.process.kill()
        launched.process.wait()
        killed = time.monotonic()
        while launched.alive():
            assert time.monotonic() - killed < 10, "processes outlive torchrun"
            time.sleep(0.1)
    finally:
        launched.clear()
    assert launched.process.stderr is not None
    (line,) = said(launched.process.stderr.read())
    assert f"stopped after step {load_checkpoint(out).step} of" in line


def test_a_mistake_is_told_once_however_long_rank_0_takes_to_close_its_loggers(tmp_path: Path) -> None:
    launched = Launched("train", *TINY, *ENDLESS, "--out", tmp_path / "run", module=False, BROKEN="0:late")
    code, _, err = launched.end()
    assert code != 0
    assert said(err) == ["scalelab: error: the loss is nan, everywhere"]


def test_a_reader_who_goes_away_is_no_failure(tmp_path: Path) -> None:
    words = ("train", *TINY, "--tokens", 4 * STEP, "--parallel", "ddp", "--json", "--out", tmp_path / "run")
    launched = Launched(*words)
    assert launched.process.stdout is not None
    launched.process.stdout.close()
    launched.process.stdout = None
    _, _, err = launched.end()
    assert said(err) == []
    assert "BrokenPipe" not in err
    assert (tmp_path / "run" / "record.jsonl").exists()


def test_a_run_of_two_processes_is_resumed_in_one_and_that_in_two_again(
    two: Any, alone: Path, tmp_path: Path
) -> None:
    from scalelab.train import Trainer

    out = tmp_path / "run"
    shutil.copytree(two[1], out)
    other = {"ddp": "fsdp", "fsdp": "ddp"}[two[0]]

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
    code, printed, err = Launched("train", "--out", out, "--resume", "--quiet", "--parallel", other).end()
    assert code == 0, err
    assert "2 × cpu" in printed
    assert load_checkpoint(out).history.loss_nats == pytest.approx(expected, abs=1e-3)


def data_of(out: Path) -> Any:
    from scalelab.data import corpus, encode_corpus, load_tokenizer

    return encode_corpus(corpus("markov", max_bytes=20_000), load_tokenizer(out / "tokenizer.json"))


@pytest.mark.parametrize(("rank", "way"), [(0, "bug"), (1, "mistake")])
def test_an_error_of_one_process_ends_all_within_ten_seconds_with_its_rank_and_traceback(
    rank: int, way: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ("train", *TINY, "--tokens", 10_000 * STEP, "--checkpoint-every", 3, "--out", out)
    launched = Launched(*words, "--parallel", "ddp", module=False, BROKEN=f"{rank}:{way}")
    launched.wait_for(out, CHECKPOINT)  # it fails in the next step
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


# --- a process that does not answer -----------------------------------------------------------------------


def test_a_process_that_hangs_is_named_with_what_was_waited_for_and_outlives_nobody(tmp_path: Path) -> None:
    """One stops in a pipeline, and torchrun ends it; one sleeps, and torchrun is killed: at the same time."""

    def hung(layout: str, way: str) -> Launched:
        return Launched(
            "train", *TINY, *ENDLESS[:-1], layout, "--timeout", 4, "--out", tmp_path / way, module=False,
            BROKEN=f"1:{way}", FLAG=str(tmp_path / f"flag-{way}"),
        )  # fmt: skip

    ended, killed = hung("pp=2", "stopped"), hung("ddp", "sleeps")
    try:
        killed.wait_for(tmp_path, "flag-sleeps")
        killed.process.kill()
        killed.process.wait()
        ended.wait_for(tmp_path, "flag-stopped")
        code, _, err = ended.end()
        deadline = time.monotonic() + 35
        while killed.alive():
            assert time.monotonic() < deadline, "processes outlive torchrun"
            time.sleep(0.2)
    finally:
        killed.clear()
        ended.clear()
    assert code != 0
    waited, told = said(err)
    assert re.search(
        r"process 0 of 2 waited in vain in \S*p2p \(train, scalelab/parallel/engine/pipeline\.py:\d+\)",
        waited,
    )
    assert told == (
        "scalelab: error: process 1 of 2 did not answer within --timeout: it hangs, or its machine is gone"
    )
    assert "failed, alone" not in err


def test_a_process_that_never_comes_is_told_where_it_was_waited_for(tmp_path: Path) -> None:
    port = free_port()
    launched = Launched(
        "train", *TINY, *ENDLESS, "--timeout", 3, "--out", tmp_path / "run",
        WORLD_SIZE="2", RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), torchrun=None,
    )  # fmt: skip
    code, _, err = launched.end()
    assert code == 2
    (line,) = said(err)
    assert f"process 0 of 2 waited 3 s for the others to come to 127.0.0.1:{port}" in line


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
