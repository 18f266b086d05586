"""The command's frame: help, exit codes, one-line errors, and a stdout that holds answers only."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import scalelab
from scalelab.cli import app, main
from scalelab.cli.parser import Command, Parser, count, one_of, real_number, seed_number, whole_number
from scalelab.core.errors import ConfigError

COMMANDS = ("cost", "data", "train", "generate", "pretrain", "sweep", "fit", "launch")


def scalelab_process(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-m", "scalelab", *words], capture_output=True, text=True, timeout=120, **options
    )


def test_module_and_console_script_are_the_same_command() -> None:
    script = Path(sys.executable).with_name("scalelab")
    if not script.exists():
        pytest.skip("the package is not installed with its console script")
    by_script = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60)
    by_module = scalelab_process("--version")
    assert by_script.stdout == by_module.stdout == f"scalelab {scalelab.__version__}\n"
    assert by_script.returncode == by_module.returncode == 0


@pytest.mark.parametrize(
    "command", [(), *((name,) for name in COMMANDS), ("data", "fetch"), ("data", "show")]
)
def test_every_help_explains_its_flags_and_shows_examples(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert not err
    assert out.startswith(f"usage: {' '.join(('scalelab', *command))}")
    assert f"\n  {' '.join(('scalelab', *command))}" in out.split("examples:")[1]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    out = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n  {name}" in out


def test_mistake_in_a_process_is_one_line_on_stderr_and_exit_code_2() -> None:
    done = scalelab_process("cost", "gtp2")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("scalelab: error: ")
    assert done.stderr.count("\n") == 1


def run_as(monkeypatch: pytest.MonkeyPatch, body: Callable[[Sequence[str]], int]) -> int:
    """What `main` makes of a command with this body."""
    monkeypatch.setattr(app, "COMMANDS", (Command("try", "a test", body),))
    return main(["try"])


def test_ctrl_c_is_one_line_and_exit_code_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def body(words: Sequence[str]) -> int:
        raise KeyboardInterrupt

    assert run_as(monkeypatch, body) == 130
    assert capsys.readouterr().err == "scalelab: error: interrupted\n"


def test_our_error_of_several_lines_becomes_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def body(words: Sequence[str]) -> int:
        raise ConfigError("one\n  two")

    assert run_as(monkeypatch, body) == 2
    assert capsys.readouterr().err == "scalelab: error: one two\n"


def test_a_disk_that_refuses_is_one_line_that_names_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def body(words: Sequence[str]) -> int:
        raise OSError(28, "No space left on device", "runs/x")

    assert run_as(monkeypatch, body) == 2
    assert capsys.readouterr().err == "scalelab: error: cannot use 'runs/x': No space left on device\n"


def test_a_missing_package_is_one_line_with_the_way_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def body(words: Sequence[str]) -> int:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    assert run_as(monkeypatch, body) == 2
    assert "pip install 'scalelab[lab]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_memory_that_runs_out_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def body(words: Sequence[str]) -> int:
        raise error

    assert run_as(monkeypatch, body) == 2
    assert capsys.readouterr().err.startswith("scalelab: error: out of memory: ")


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(words: Sequence[str]) -> int:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_as(monkeypatch, body)


@pytest.mark.skipif(os.name != "posix", reason="shells on other systems have no SIGPIPE")
def test_a_reader_that_goes_away_leaves_no_traceback() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "scalelab", "cost", "--list"],
        stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(os.name != "posix", reason="SIGINT is sent to a process of its own")
def test_sigint_to_a_process_gives_exit_code_130() -> None:
    program = (
        # A shell starts what it runs in the background with SIGINT ignored, and children inherit that.
        "import signal, sys, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from scalelab.cli import app\nfrom scalelab.cli.parser import Command\n"
        "def body(words):\n    print('ready', flush=True)\n    time.sleep(60)\n    return 0\n"
        "app.COMMANDS = (Command('try', 'a test', body),)\nsys.exit(app.main(['try']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "scalelab: error: interrupted\n")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1e9", 10**9),
        ("2.5e6", 2_500_000),
        ("500k", 500_000),
        ("0.1k", 100),
        ("15T", 15 * 10**12),
        ("1_000", 1000),
        ("9007199254740993", 2**53 + 1),
    ],
)
def test_counts_are_read_as_people_write_them(text: str, value: int) -> None:
    assert whole_number(text) == value


@pytest.mark.parametrize(
    "text", ["0", "-1", "1.5", "x", "", "nan", "inf", "1e999", "0.1", "0.0001k", "k", "--"]
)
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="whole number"):
        whole_number(text)


def test_the_other_readers_keep_their_ranges() -> None:
    assert count("0") == 0
    assert real_number("-1.5e-3") == -0.0015
    assert seed_number(str(2**63 - 1)) == 2**63 - 1
    for read, text in ((count, "-1"), (real_number, "nan"), (seed_number, "-1"), (seed_number, str(2**63))):
        with pytest.raises(argparse.ArgumentTypeError):
            read(text)


def test_near_matches_are_offered_for_flags_and_words() -> None:
    parser = Parser("prog", "what", "none")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--norm", type=one_of("layernorm", "rmsnorm"))
    for words, hint in (
        (["--learning-rat", "1"], "did you mean --learning-rate"),
        (["--norm", "rms_norm"], "did you mean rmsnorm"),
        (["--learn", "1"], "unknown flag --learn"),
    ):
        with pytest.raises(ConfigError, match=hint):
            parser.parse(words)
