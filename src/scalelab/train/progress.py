"""One line that says how training goes, rewritten in place, at most twice a second.

In a terminal it is overwritten; in a notebook it is one output that changes; in a file, where every line
stays, there is one at each held-out evaluation only.
"""

from __future__ import annotations

import sys
import time
from typing import IO, Any, Protocol

from scalelab.core.units import format_count, format_seconds

INTERVAL_S = 0.5


class Display(Protocol):
    """Shows a line; `final` ones stay."""

    def show(self, line: str, *, final: bool) -> None: ...


class TerminalDisplay:
    """Overwrites its line on a terminal."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._width = 0

    def show(self, line: str, *, final: bool) -> None:
        self._stream.write("\r" + line.ljust(self._width) + ("\n" if final else ""))
        self._stream.flush()
        self._width = 0 if final else len(line)


class FileDisplay:
    """Writes only the lines that stay."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def show(self, line: str, *, final: bool) -> None:
        if final:
            self._stream.write(line + "\n")
            self._stream.flush()


class NotebookDisplay:
    """One output of a notebook's cell, replaced in place, so that a stored notebook keeps the last state."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._handle: Any = None

    def show(self, line: str, *, final: bool) -> None:
        from IPython.display import display

        content = _Plain("\n".join([*self._lines, line]))
        if self._handle is None:
            self._handle = display(content, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(content)
        if final:
            self._lines.append(line)


class _Plain:
    """Text that IPython shows without quotes."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


class Silent:
    """Shows nothing."""

    def show(self, line: str, *, final: bool) -> None:
        return


def make_display(shown: bool) -> Display:
    """The display that suits where this process's output goes."""
    if not shown:
        return Silent()
    if _in_notebook():
        return NotebookDisplay()
    return TerminalDisplay(sys.stderr) if sys.stderr.isatty() else FileDisplay(sys.stderr)


class Meter:
    """Tokens per second, without the time that evaluation and saving take."""

    def __init__(self) -> None:
        self.tokens_per_s = 0.0
        self._stretch_tokens, self._stretch_s = 0, 0.0
        self.skip()

    def add(self, n_tokens: int) -> None:
        """Count tokens trained on."""
        self._tokens += n_tokens

    def due(self) -> bool:
        """Whether the last reading is old."""
        return time.perf_counter() - self._start >= INTERVAL_S

    def so_far(self) -> float:
        """The rate since the last reading; the last reading itself where nothing was counted since."""
        spent = time.perf_counter() - self._start
        return self._tokens / spent if self._tokens and spent > 0 else self.tokens_per_s

    def read(self) -> float:
        """The rate since the last reading; starts the next."""
        self.tokens_per_s = self.so_far()
        self._stretch_tokens += self._tokens
        self._stretch_s += (time.perf_counter() - self._start) if self._tokens else 0.0
        self.skip()
        return self.tokens_per_s

    def stretch(self) -> float:
        """The rate over all readings since this was last asked, one made now among them."""
        self.read()
        tokens, seconds = self._stretch_tokens, self._stretch_s
        self._stretch_tokens, self._stretch_s = 0, 0.0
        return tokens / seconds if seconds > 0 else self.tokens_per_s

    def skip(self) -> None:
        """Start counting afresh: what happened since the last reading was no training."""
        self._start, self._tokens = time.perf_counter(), 0


def progress_line(where: str, *, loss_nats: float, tokens_per_s: float, left_s: float, mfu: str) -> str:
    """The line that changes: where, how well, how fast, how long still."""
    parts = [where, f"loss {loss_nats:.3f} nats/token", *_speed(tokens_per_s, mfu)]
    if 0 < left_s < float("inf"):
        parts.append(f"{format_seconds(left_s)} left")
    return " · ".join(parts)


def evaluation_line(
    where: str, *, loss_nats: float, bits_per_byte: float, tokens_per_s: float, mfu: str
) -> str:
    """The line that stays: the held-out loss in both units, and how fast training was until then."""
    held_out = f"held out {loss_nats:.3f} nats/token, {bits_per_byte:.3f} bits/byte"
    return " · ".join([where, held_out, *_speed(tokens_per_s, mfu)])


def _speed(tokens_per_s: float, mfu: str) -> list[str]:
    rate = f"{format_count(tokens_per_s)} tokens/s" if tokens_per_s > 0 else ""
    return [part for part in (rate, mfu) if part]


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})
