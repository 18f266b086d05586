"""A mistake on the command line is one line that names it and the way out, never a page of usage."""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from scalelab.core.errors import ConfigError

_SUFFIXES = {"k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}


@dataclass(frozen=True, slots=True)
class Command:
    """One word after `scalelab`.

    Attributes:
        name: the word.
        summary: what it does, in half a line, for the list in `--help`.
        run: takes the words after it, prints the answer, returns the exit code.
    """

    name: str
    summary: str
    run: Callable[[Sequence[str]], int]


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes raise ConfigError instead of printing usage and leaving the process."""

    def __init__(self, prog: str, description: str, examples: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"examples:\n{examples.strip(chr(10))}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # an abbreviation that works today is ambiguous after the next flag
        )

    def error(self, message: str) -> NoReturn:
        """What argparse calls on a mistake.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{message.removeprefix('argument ')}; see {self.prog} --help")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The parsed arguments; unknown flags are named first, with those that are spelt alike.

        Raises:
            ConfigError: an unknown flag, a missing or surplus argument, an unusable value.
        """
        self._refuse_unknown_flags(argv)
        known, surplus = self.parse_known_args(argv)
        if surplus:
            self.error(f"unexpected argument {surplus[0]!r}")
        return known

    def _refuse_unknown_flags(self, argv: Sequence[str]) -> None:
        # argparse would first complain of a missing argument, which is often the one misspelt.
        for word in argv:
            if word == "--":
                return
            flag = word.split("=", 1)[0]
            if flag.startswith("--") and " " not in word and flag not in self._option_string_actions:
                flags = [name for name in self._option_string_actions if name.startswith("--")]
                self.error(f"unknown flag {flag}{did_you_mean(flag, flags)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean X or Y?" with the known names spelt most alike, or nothing when none is."""
    near = difflib.get_close_matches(name, list(known), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def pick(commands: Sequence[Command], argv: Sequence[str], prog: str) -> Command:
    """The command that the first word names.

    Raises:
        ConfigError: no word, or one that names no command.
    """
    names = [command.name for command in commands]
    if not argv:
        raise ConfigError(f"no command given: one of {', '.join(names)}; see {prog} --help")
    for command in commands:
        if command.name == argv[0]:
            return command
    what = "flag" if argv[0].startswith("-") else "command"
    raise ConfigError(
        f"unknown {what} {argv[0]!r}{did_you_mean(argv[0], [*names, '--help', '--version'])}; "
        f"the commands are {', '.join(names)}; see {prog} --help"
    )


def named_lines(lines: Mapping[str, str]) -> str:
    """Names and what they stand for, a line each, aligned."""
    width = max(map(len, lines))
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in lines.items())


def whole_number(text: str) -> int:
    """A number of at least 1, as people write one: 1024, 1_000_000, 1e9, 2.5e6, 500k, 2M, 15T.

    Raises:
        argparse.ArgumentTypeError: anything else; argparse puts the flag's name before the message.
    """
    return _whole(text, least=1)


def count(text: str) -> int:
    """A whole number of at least 0.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    return _whole(text, least=0)


def seed_number(text: str) -> int:
    """A whole number of at least 0 that fits torch's and numpy's generators (below 2^63).

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    if not (text.isascii() and text.isdigit()) or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2^63 - 1, got {text!r}")
    return int(text)


def real_number(text: str) -> float:
    """A finite number; its range is checked where it is used.

    Raises:
        argparse.ArgumentTypeError: no number, or nan or infinite.
    """
    return float(_number(text, "a number"))


def one_of(*choices: str) -> Callable[[str], str]:
    """A reader of one of a few words, which names those spelt alike when it gets another."""

    def read(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(
                f"must be one of {', '.join(choices)}; got {text!r}{did_you_mean(text, choices)}"
            )
        return text

    return read


def _whole(text: str, least: int) -> int:
    expected = f"a whole number of at least {least} (1024, 1e9, 500k, 2M)"
    value = _number(text, expected)
    if value != int(value) or value < least:
        raise argparse.ArgumentTypeError(f"must be {expected}, got {text!r}")
    return int(value)


def _number(text: str, expected: str) -> int | float:
    digits, scale = text.strip(), 1
    if digits[-1:] in _SUFFIXES:
        digits, scale = digits[:-1], _SUFFIXES[digits[-1]]
    try:
        value = int(digits) * scale  # not by float, which loses digits beyond 2^53
    except ValueError:
        try:
            value = float(digits) * scale  # type: ignore[assignment]
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {expected}, got {text!r}") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be {expected}, got {text!r}")
    return value
