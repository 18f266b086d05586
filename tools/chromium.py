"""Where a Chromium is, and how it is started without asking the network for anything."""

from __future__ import annotations

import shutil
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WAY_OUT = (
    "install it (Debian: apt install chromium fonts-liberation; Ubuntu and others: Google Chrome does too)"
)


def find() -> str | None:
    """The path of the first Chromium or Chrome among the programs; None without one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def main() -> int:
    """Print where it is; 1 where there is none, with the way out."""
    program = find()
    if program is None:
        print(f"error: no Chromium found: {WAY_OUT}", file=sys.stderr)
        return 1
    print(program)
    return 0


if __name__ == "__main__":
    sys.exit(main())
