"""How many processes stand along which axis, read from a text such as "dp_shard=2,tp=2"; needs no torch.

Who takes which rows: `dp_replicate` processes each hold the whole model and other rows of the batch (DDP).
`dp_shard` processes hold other rows as well, and a part of each weight (FSDP). Both at once is hybrid
sharding: groups of `dp_shard` processes share a model, and there are `dp_replicate` such groups.
Who computes what of the same rows: `tp` processes hold some heads and some columns of every layer (tensor
parallelism); `pp` processes hold some of the layers (pipeline parallelism).

Ranks are counted with `tp` innermost and `pp` outermost, because neighbours in rank share a machine. Tensor
parallelism waits for its neighbours several times in every layer, sharding gathers a layer's weights ahead of
their use, replicas talk once a step, and a pipeline hands over one activation at each of its few cuts: what
talks most gets the shortest wires.

Source: Li et al. 2020, arXiv:2006.15704 (DDP); Zhao et al. 2023, arXiv:2304.11277 (FSDP, hybrid sharding in
section 3.2.2); Narayanan et al. 2021, arXiv:2104.04473, section 3 (tensor parallelism inside a machine,
pipelines across). Taught in book/transformers/training.md and book/parallelism/.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from scalelab.core.checks import check_positive_int
from scalelab.core.errors import ConfigError

Order = Literal["1f1b", "gpipe"]  # in which a pipeline's stage goes through its micro-batches
ORDERS = get_args(Order)
SHORTHANDS = {"ddp": "dp_replicate", "fsdp": "dp_shard"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Processes along each axis, the outermost first.

    Attributes:
        pp: stages that the layers are dealt out to.
        dp_replicate: copies of the model.
        dp_shard: processes that each weight of a copy is cut over.
        tp: processes that heads and columns of each layer are dealt out to.

    Raises:
        ConfigError: a count that is no positive whole number.
    """

    pp: int = 1
    dp_replicate: int = 1
    dp_shard: int = 1
    tp: int = 1

    def __post_init__(self) -> None:
        for axis in AXES:
            check_positive_int(axis, getattr(self, axis))

    @property
    def n_processes(self) -> int:
        """All of them."""
        return math.prod(self.shape)

    @property
    def n_shares(self) -> int:
        """Parts that a batch's rows are cut into; processes along tp and pp work on the same rows."""
        return self.dp_replicate * self.dp_shard

    @property
    def n_parts(self) -> int:
        """Parts that the model and its optimiser are cut into."""
        return self.pp * self.dp_shard * self.tp

    @property
    def shape(self) -> tuple[int, ...]:
        """Counts along `AXES`."""
        return tuple(getattr(self, axis) for axis in AXES)

    def coordinates(self, rank: int) -> dict[str, int]:
        """Where a process stands along each axis; the innermost runs fastest."""
        found = {}
        for axis in reversed(AXES):
            rank, found[axis] = divmod(rank, getattr(self, axis))
        return found

    def share_of(self, rank: int) -> int:
        """Which of the `n_shares` parts of a batch a process takes."""
        place = self.coordinates(rank)
        return place["dp_replicate"] * self.dp_shard + place["dp_shard"]

    def __str__(self) -> str:
        named = [f"{axis}={count}" for axis, count in zip(AXES, self.shape, strict=True) if count > 1]
        return ",".join(named) or "dp_replicate=1"


AXES = tuple(field.name for field in fields(Layout))


def processes_of(text: str) -> int:
    """How many processes a layout asks for; a shorthand takes any number, and is for two or more.

    Raises:
        ConfigError: as `parse_layout`.
    """
    return 2 if text.strip() in SHORTHANDS else Layout(**_counts(text)).n_processes


def parse_layout(text: str, n_processes: int) -> Layout:
    """The layout that a text means among so many processes.

    Args:
        text: "ddp" or "fsdp", all processes along one axis; or axes with their counts and commas between, as
            in "dp_shard=4,tp=2".
        n_processes: as many as were started.

    Raises:
        ConfigError: an unknown or repeated axis, a count that is no positive whole number, or counts whose
            product is not the number of processes; the message says which.
    """
    if text.strip() in SHORTHANDS:
        return Layout(**{SHORTHANDS[text.strip()]: n_processes})
    layout = Layout(**_counts(text))
    if layout.n_processes != n_processes:
        raise ConfigError(
            f"the layout {text!r} is of {layout.n_processes} processes, {n_processes} were started: "
            f"start {layout.n_processes}, or let the counts multiply to {n_processes}"
        )
    return layout


def _counts(text: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for word in text.split(","):
        axis, equals, value = (part.strip() for part in word.partition("="))
        if axis in SHORTHANDS:
            raise ConfigError(
                f"{axis!r} stands for all processes and takes no count, got {text!r}: write {axis} alone, "
                f"or {SHORTHANDS[axis]}=N"
            )
        if axis not in AXES:
            raise ConfigError(
                f"unknown axis {axis!r} in {text!r}{_alike(axis)}; the axes are {', '.join(AXES)}, "
                f"the shorthands {', '.join(SHORTHANDS)}"
            )
        if axis in counts:
            raise ConfigError(f"the axis {axis} stands twice in {text!r}: give it one count")
        counts[axis] = _count(axis, value if equals else "nothing", text)
    return counts


def _count(axis: str, value: str, text: str) -> int:
    if not (value.isascii() and value.isdigit()) or int(value) < 1:
        raise ConfigError(
            f"{axis} must be a whole number of at least 1, got {value!r} in {text!r}: as in {axis}=2"
        )
    return int(value)


def _alike(axis: str) -> str:
    near = difflib.get_close_matches(axis, [*AXES, *SHORTHANDS], n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""
