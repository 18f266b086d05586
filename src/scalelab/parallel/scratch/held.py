"""What a rank's activations weigh: autograd keeps them from a micro-batch's forward pass to its backward one.

Counted where autograd puts them away, so nothing is estimated: each piece of memory once; weights and tokens
not at all, since they are there anyway, nor dropout's masks (a byte a number). What a pass has kept is let go
when the pass that uses it has ended.
Taught in book/parallelism/pipeline.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from scalelab.parallel.scratch.schedules import Operation
from scalelab.parallel.scratch.trace import Trace


class HoldingTrace(Trace):
    """A trace that also counts the bytes that autograd keeps.

    Args:
        rank: whose. weights: what is not counted. settings: as for `Trace`.

    Attributes:
        pass_bytes: (micro-batch, chunk) → bytes that its forward pass left for its backward one.
        most_bytes: the most that was held at a time.
    """

    def __init__(self, rank: int, weights: Iterable[Tensor], **settings: Any) -> None:
        super().__init__(rank, **settings)
        self.pass_bytes: dict[tuple[int, int], int] = {}
        self.most_bytes = 0
        self._held_bytes = 0
        self._weights = {weight.untyped_storage().data_ptr() for weight in weights}

    @contextlib.contextmanager
    def span(self, operation: Operation) -> Iterator[None]:
        """The block is one operation."""
        place = (operation.micro_batch, operation.chunk)
        pieces: dict[int, int] = {}  # address → bytes, so that what is kept twice counts once

        def put_away(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if tensor.is_floating_point() and storage.data_ptr() not in self._weights:
                pieces[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # the tensor itself would keep its own graph alive

        counting = saved_tensors_hooks(put_away, lambda tensor: tensor)
        with super().span(operation), counting if operation.kind == "F" else contextlib.nullcontext():
            yield
        if operation.kind == "F":
            self.pass_bytes[place] = sum(pieces.values())
            self._held_bytes += self.pass_bytes[place]
            self.most_bytes = max(self.most_bytes, self._held_bytes)
        elif operation.kind in "BW":
            self._held_bytes -= self.pass_bytes[place]
