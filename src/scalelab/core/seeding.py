"""One seed makes a run: each use of chance draws from a stream of its own, and leaves all others alone.

Weights, data order and dropout get seeds derived from the run's seed and a name, so that changing how
much one of them draws never moves another. Taught in book/transformers/training.md.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from scalelab.core.checks import check_count
from scalelab.core.errors import CheckpointError

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed for one use of chance: the same for the same names, unrelated for others.

    Adding 1 to the seed for the next use, the common habit, makes run 0's second stream run 1's first.

    Returns:
        A whole number below 2^63, which torch's and numpy's generators take.

    Raises:
        ConfigError: seed is not a whole number of at least 0.
    """
    check_count("seed", seed)
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


class RandomStream:
    """torch's global generators, borrowed for the length of a `with` block.

    Dropout can only draw from torch's global generators. A run that owns its stream puts it in place for
    its own steps and the caller's back afterwards, so that neither disturbs the other.

    Args:
        seed: where the stream starts.
        device: a CUDA device's generator is part of the stream; the CPU's always is.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._own: dict[str, torch.Tensor] | None = None  # where this stream stands, outside its blocks
        self._callers: dict[str, torch.Tensor] | None = None  # what to put back, inside one
        with self:
            self._seed_generators(seed)

    def __enter__(self) -> RandomStream:
        assert self._callers is None, "a stream cannot be entered twice"
        self._callers = self._read()
        if self._own is not None:
            self._write(self._own)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._callers is not None
        self._own = self._read()
        self._write(self._callers)
        self._callers = None

    def state(self) -> dict[str, torch.Tensor]:
        """The stream's position as byte tensors, for a checkpoint."""
        assert self._own is not None
        return {name: value.clone() for name, value in self._own.items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a stored position.

        Raises:
            CheckpointError: the position was stored on another kind of device, or by another generator.
        """
        wanted = ["cpu"] if self._cuda is None else ["cpu", "cuda"]
        if sorted(state) != wanted:
            raise CheckpointError(
                f"the stored random state is of {', '.join(sorted(state)) or 'nothing'}, this device needs "
                f"{', '.join(wanted)}: resume on the kind of device that the run was started on"
            )
        assert self._own is not None
        for name, value in state.items():
            own = self._own[name]
            if value.dtype != own.dtype or value.shape != own.shape:
                raise CheckpointError(
                    f"the stored random state of {name} is {tuple(value.shape)} {value.dtype}, torch's here "
                    f"{tuple(own.shape)} {own.dtype}: resume with the version that the run was started with"
                )
        self._own = {name: value.clone() for name, value in state.items()}

    def _seed_generators(self, seed: int) -> None:
        import torch

        torch.default_generator.manual_seed(seed)
        if self._cuda is not None:
            with torch.cuda.device(self._cuda):
                torch.cuda.manual_seed(seed)

    def _read(self) -> dict[str, torch.Tensor]:
        import torch

        state = {"cpu": torch.get_rng_state()}
        if self._cuda is not None:
            state["cuda"] = torch.cuda.get_rng_state(self._cuda)
        return state

    def _write(self, state: Mapping[str, torch.Tensor]) -> None:
        import torch

        torch.set_rng_state(state["cpu"])
        if self._cuda is not None:
            torch.cuda.set_rng_state(state["cuda"], self._cuda)


@contextlib.contextmanager
def deterministic_kernels(device: torch.device) -> Iterator[None]:
    """Ask CUDA for kernels that give the same bits each time; on a CPU they always do, and nothing changes.

    FlashAttention's backward pass, for one, adds in an order that varies unless told not to. Operations that
    have no such kernel warn. cuBLAS also wants `CUBLAS_WORKSPACE_CONFIG=:4096:8` in the environment before
    the process first uses CUDA; torch warns where it is missing.
    """
    import torch

    if device.type != "cuda":
        yield
        return
    was_on = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=only_warned)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
