"""Floor 5: the `scalelab` command, thin over the packages below it.

Asking what a model costs needs no torch and answers at once: each command imports what it needs when it
runs, so `scalelab cost` and every `--help` stay quick.
"""

from scalelab.cli.app import main

__all__ = ["main"]
