"""Which process this is, as torchrun says it in the environment; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scalelab.core.errors import ConfigError

# How long a process waits for another. Rank 0 may cut a large text into tokens while the others wait. A
# process that ends does not need this long to be noticed: its connections close.
TIMEOUT_S = 1800


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """One of several processes that were started together.

    Attributes:
        rank: of n_processes, from 0. local_rank: of local_processes on this machine.
    """

    rank: int
    n_processes: int
    local_rank: int
    local_processes: int


def read_launch(environment: Mapping[str, str]) -> Launch | None:
    """The launch that an environment describes, or None outside of one.

    Raises:
        ConfigError: some variables of a launcher are there and others are not, or they contradict each other.
    """
    if "RANK" not in environment and environment.get("WORLD_SIZE", "1") == "1":
        return None  # some schedulers set WORLD_SIZE=1 for a job of one process, and no rank
    n_processes = _number(environment, "WORLD_SIZE")
    rank = _number(environment, "RANK")
    local_processes = _number(environment, "LOCAL_WORLD_SIZE", n_processes)
    local_rank = _number(environment, "LOCAL_RANK", rank % max(local_processes, 1))
    for name, value, size_name, size in (
        ("RANK", rank, "WORLD_SIZE", n_processes),
        ("LOCAL_RANK", local_rank, "LOCAL_WORLD_SIZE", local_processes),
    ):
        if size < 1 or value >= size:
            raise ConfigError(
                f"{name}={value} is no process of {size_name}={size}: start by torchrun, which sets both"
            )
    for name in ("MASTER_ADDR", "MASTER_PORT") if n_processes > 1 else ():
        if not environment.get(name):
            raise ConfigError(
                f"WORLD_SIZE={n_processes} is set and {name} is not: start by torchrun, which sets both, or "
                "unset WORLD_SIZE and RANK to train in one process"
            )
    return Launch(rank=rank, n_processes=n_processes, local_rank=local_rank, local_processes=local_processes)


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None or not (text.isascii() and text.isdigit()):
        raise ConfigError(
            f"{name} must be a whole number of at least 0, got {text!r}: start by torchrun, which sets it, "
            "or unset WORLD_SIZE and RANK to train in one process"
        )
    return int(text)
