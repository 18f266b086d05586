"""Where `scalelab` begins: picks the command, and turns what went wrong into one line and an exit code.

Exit codes: 0 done; 2 a mistake that the user can mend; 130 interrupted by Ctrl-C; 141 the reader of our
output went away. Anything else is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Sequence

from scalelab import __version__
from scalelab.cli import cost, data, fit, generate, launch, pretrain, sweep, train
from scalelab.cli.explain import explained, warn_in_one_line
from scalelab.cli.parser import Parser, named_lines, pick

COMMANDS = (
    train.COMMAND,
    launch.COMMAND,
    generate.COMMAND,
    cost.COMMAND,
    sweep.COMMAND,
    fit.COMMAND,
    data.COMMAND,
    pretrain.COMMAND,
)


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
    with warnings.catch_warnings():
        warnings.showwarning = warn_in_one_line
        return explained(lambda: _run(words))


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
