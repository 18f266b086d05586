"""Kill training runs at random moments: each must, once resumed, end in the uninterrupted run's bits.

    python benchmarks/kills.py                      # 50 kills, 10 or more inside a checkpoint's writing
    python benchmarks/kills.py --kills 6 --inside 2

The model is that of the lab `training` (3 layers, width 96, vocabulary 1,024, on the standard library's
source); runs are short, with a checkpoint every few steps. Each run is a forked child of one process that
has torch imported and has started no threads, so a kill costs a run, not an import. "Inside the writing" is
seen after the kill: the half-written folder is still there. Compared are all tensor files of the last
checkpoint: weights, optimiser, random state, history.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: a process with threads must not fork

import numpy as np
import torch

from scalelab.core.artifacts import MANIFEST, sha256_of_file
from scalelab.core.config import DecoderConfig, config_to_dict
from scalelab.data import TokenData, corpus, encode_corpus, train_bpe
from scalelab.train import TrainConfig, train, train_config_to_dict

MODEL = DecoderConfig(
    n_layers=3, d_model=96, n_heads=3, vocab_size=1024, seq_len=128, positions="rope", feed_forward="gelu"
)
STEPS, EVERY = 20, 4
SETTINGS = TrainConfig(
    n_tokens=STEPS * 8 * 128, batch_size=8, seq_len=128, learning_rate=2e-3, n_evals=2, eval_tokens=1024,
    checkpoint_every=EVERY, keep_checkpoints=2,
)  # fmt: skip


@dataclass
class Tally:
    """What happened so far."""

    kills: int = 0
    inside: int = 0
    identical: int = 0
    finished_first: int = 0
    resumed_from: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--inside", type=int, default=10, help="at least so many inside a writing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kills.json")
    args = parser.parse_args(argv)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        root = Path(folder)
        data = prepare(root)

        def run(run_dir: Path) -> None:
            torch.set_num_threads(args.threads)
            train(MODEL, data, SETTINGS, run_dir=run_dir, progress=False)

        begun = time.perf_counter()
        wait_for(fork(run, root / "whole"))
        duration = time.perf_counter() - begun
        expected = bits_of(root / "whole")
        print(f"uninterrupted run: {duration:.1f} s, {len(expected)} files to compare")
        tally = kill_and_resume(run, root, expected, duration, args)
    report(tally, args, duration, time.perf_counter() - started)
    return 0 if not tally.failures and tally.inside >= args.inside else 1


def kill_and_resume(
    run: Callable[[Path], None],
    root: Path,
    expected: dict[str, str],
    duration: float,
    args: argparse.Namespace,
) -> Tally:
    """Kill until there are enough, both in all and inside a checkpoint's writing."""
    rng, tally, trial = random.Random(args.seed), Tally(), 0
    while (tally.kills < args.kills or tally.inside < args.inside) and trial < 4 * args.kills + 20:
        trial += 1
        run_dir = root / f"run-{trial}"
        worker = fork(run, run_dir)
        aimed = tally.inside < args.inside and (trial % 3 == 0 or tally.kills + 2 * args.inside >= args.kills)
        if aimed:
            watch(run_dir, rng.randint(1, STEPS // EVERY), duration, whole=False)
            time.sleep(rng.uniform(0, 0.004))  # a writing takes longer than that
        else:
            # By progress, not by the clock: on a busy machine the clock would kill all runs near their start.
            watch(run_dir, rng.randrange(STEPS // EVERY), duration, whole=True)
            time.sleep(rng.uniform(0, duration * EVERY / STEPS))
        os.kill(worker, signal.SIGKILL)
        if not os.WIFSIGNALED(os.waitpid(worker, 0)[1]):
            tally.finished_first += 1
            continue
        tally.kills += 1
        tally.inside += any(run_dir.glob("checkpoints/.step-*.tmp"))
        whole = sorted(run_dir.glob("checkpoints/step-*"))
        tally.resumed_from.append(int(whole[-1].name.removeprefix("step-")) if whole else 0)
        judge(run, run_dir, expected, tally)
        shutil.rmtree(run_dir, ignore_errors=True)
        if tally.kills % 10 == 0:
            print(
                f"{tally.kills} kills, {tally.inside} inside a writing, {tally.identical} identical",
                flush=True,
            )
    return tally


def judge(run: Callable[[Path], None], run_dir: Path, expected: dict[str, str], tally: Tally) -> None:
    """Resume a killed run, and compare."""
    try:
        wait_for(fork(run, run_dir))
        found = bits_of(run_dir)
    except (RuntimeError, OSError) as error:
        tally.failures.append(f"kill {tally.kills}: {error}")
        return
    differing = [name for name in expected if found.get(name) != expected[name]]
    if differing:
        tally.failures.append(f"kill {tally.kills}, from step {tally.resumed_from[-1]}: {differing} differ")
    else:
        tally.identical += 1


def bits_of(run_dir: Path) -> dict[str, str]:
    """sha256 of each tensor file of the last checkpoint."""
    last = run_dir / "checkpoints" / f"step-{STEPS:09d}"
    return {file.name: sha256_of_file(file) for file in last.iterdir() if file.name != MANIFEST}


def watch(run_dir: Path, count: int, duration: float, *, whole: bool) -> None:
    """Return when so many checkpoints are written (`whole`), or that many writings have begun."""
    deadline = time.perf_counter() + 20 * duration
    wanted = (count if whole else count - 1) * EVERY  # the step of the last whole checkpoint by then
    while time.perf_counter() < deadline:
        names = os.listdir(run_dir / "checkpoints") if (run_dir / "checkpoints").is_dir() else []
        newest = max(
            (int(name.removeprefix("step-")) for name in names if name.startswith("step-")), default=0
        )
        writing = any(name.startswith(".step-") and name.endswith(".tmp") for name in names)
        if newest >= wanted and (whole or writing):
            return
        time.sleep(0.0005)


def prepare(root: Path) -> TokenData:
    """The data, made by a child that may start threads; this process only reads arrays."""

    def make(target: Path) -> None:
        text = corpus("python", max_bytes=300_000)
        tokenizer = train_bpe([document.text for document in text.train], 1024)
        made = encode_corpus(text, tokenizer, cache=None)
        np.savez(target, train=made.train, held_out=made.held_out, bytes=made.bytes_per_token)
        (root / "end").write_text(str(made.end_of_text))

    wait_for(fork(make, root / "data.npz"))
    with np.load(root / "data.npz") as arrays:
        return TokenData(
            name="python",
            tokenizer_name="bpe-1024",
            train=arrays["train"],
            held_out=arrays["held_out"],
            vocab_size=len(arrays["bytes"]),
            end_of_text=int((root / "end").read_text()),
            bytes_per_token=arrays["bytes"],
        )


def fork(work: Callable[[Path], None], target: Path) -> int:
    """Do the work in a child, whose id is returned; it ends without this process's clean-up."""
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 on forks beside threads
        child = os.fork()
    if child:
        return child
    try:
        work(target)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def wait_for(child: int) -> None:
    """Wait for a child's end.

    Raises:
        RuntimeError: it failed; its traceback is on the screen.
    """
    status = os.waitpid(child, 0)[1]
    if status:
        raise RuntimeError(f"a run failed with status {os.waitstatus_to_exitcode(status)}")


def report(tally: Tally, args: argparse.Namespace, duration: float, seconds: float) -> None:
    """Print and store the outcome."""
    result = {
        "what": "SIGKILL at random moments, resumed, last checkpoint compared bit for bit",
        "kills": tally.kills,
        "inside_a_checkpoints_writing": tally.inside,
        "identical": tally.identical,
        "failures": tally.failures,
        "resumed_from_step": {
            str(step): tally.resumed_from.count(step) for step in sorted(set(tally.resumed_from))
        },
        "model": config_to_dict(MODEL),
        "settings": train_config_to_dict(SETTINGS),
        "threads": args.threads,
        "torch": str(torch.__version__),
        "seed": args.seed,
        "seconds_of_one_run": round(duration, 2),
        "seconds": round(seconds, 1),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(
        f"{tally.kills} kills, {tally.inside} inside the writing of a checkpoint: {tally.identical} runs, "
        f"resumed, identical to the uninterrupted one, {len(tally.failures)} not ({seconds:.0f} s)"
    )
    for failure in tally.failures:
        print(f"  {failure}")


if __name__ == "__main__":
    sys.exit(main())
