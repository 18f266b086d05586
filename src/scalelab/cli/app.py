"""Where `scalelab` begins: picks the command, and turns what went wrong into one line and an exit code.

Exit codes: 0 done; 2 a mistake that the user can mend; 130 interrupted by Ctrl-C; 141 the reader of our
output went away. Anything else is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence

from scalelab import __version__
from scalelab.cli import cost, data, generate, train
from scalelab.cli.parser import Parser, named_lines, pick
from scalelab.core.errors import ScalelabError

COMMANDS = (train.COMMAND, generate.COMMAND, cost.COMMAND, data.COMMAND)
USER_MISTAKE, INTERRUPTED, READER_GONE = 2, 130, 141  # the last two as a shell counts signals: 128 + signal


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `scalelab`; those of this process when None.

    Returns:
        The exit code.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a sample must not crash on a narrow terminal
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            code = _run(words)
        sys.stdout.flush()
        return code
    except ScalelabError as error:
        return _fail(str(error))
    except KeyboardInterrupt as stop:
        return _fail(str(stop) or "interrupted", INTERRUPTED)
    except BrokenPipeError:
        _discard_output()
        return READER_GONE
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "scalelab":
            raise
        return _fail(f"this command needs the package {error.name}: pip install 'scalelab[lab]'")
    except OSError as error:
        return _fail(f"cannot use {error.filename!r}: {error.strerror}" if error.filename else str(error))
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return _fail("out of memory: choose a smaller model, batch or corpus")


def _run(words: Sequence[str]) -> int:
    if words and words[0] in ("-h", "--help"):
        _parser().print_help()
        return 0
    if words and words[0] == "--version":
        print(f"scalelab {__version__}")
        return 0
    try:
        return pick(COMMANDS, words, "scalelab").run(words[1:])
    except SystemExit as done:  # argparse leaves this way after it has printed a command's help
        return int(done.code or 0)


def _parser() -> Parser:
    parser = Parser(
        "scalelab",
        "How language models scale: train small ones, and count what any of them costs.\n\n"
        f"commands:\n{named_lines({c.name: c.summary for c in COMMANDS})}\n\n"
        "`scalelab COMMAND --help` explains each.",
        """
  scalelab cost gpt2 --tokens 1e9 --device a100
  scalelab train --corpus python --d-model 128 --tokens 2e6 --out runs/first
  scalelab generate runs/first --prompt "def "
""",
    )
    parser.usage = "scalelab [--help] [--version] COMMAND ..."
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    return parser


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    """A warning as one line, without the place in our code that Python would print."""
    print(f"scalelab: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _fail(message: str, code: int = USER_MISTAKE) -> int:
    print(f"scalelab: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _is_out_of_memory(error: Exception) -> bool:
    """torch raises no MemoryError: on a GPU it is a RuntimeError of its own, on a CPU a plain one."""
    gpu, cpu = type(error).__name__ == "OutOfMemoryError", "DefaultCPUAllocator" in str(error)
    return isinstance(error, MemoryError) or gpu or cpu


def _discard_output() -> None:
    """Point stdout at nothing, or the interpreter complains once more when it flushes at its end."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)
