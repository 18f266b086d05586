"""ZeRO-1 and ZeRO-2: replicas that share out what only the update needs.

Plain data parallelism keeps AdamW's moments p times over, though all replicas use them to compute the same
thing. ZeRO-1 lets each rank update one piece of the parameters and hand it round: an all-reduce is a
reduce-scatter and an all-gather, so putting the update between the two costs no more bytes. ZeRO-2 also drops
each gradient as soon as its sum is taken, during backward, and keeps its own piece.

Condition: each rank's loss is its *sum* over targets divided by the *whole* batch's count, so that gradients
are to be added, and not averaged again; and ranks go backward equally often, or not at all. Then loss and
gradients equal one process's up to the order of sums.
Source: Rajbhandari et al. 2019, arXiv:1910.02054, sections 5.1, 5.2 and 7. Taught in
book/parallelism/sharding.md.
"""

from __future__ import annotations

from torch import Tensor, nn

from scalelab.cost.sharding import States
from scalelab.parallel.scratch.bytes_held import storage_bytes
from scalelab.parallel.scratch.cut_optimizer import CutAdamW
from scalelab.parallel.scratch.flat import Unit, units_of, whole_tensors
from scalelab.parallel.scratch.group import Group


class ZeroOne:
    """A model whole on every rank, with AdamW's state cut.

    Args:
        model: rank 0's weights become everyone's. mixed: weights and gradients in bf16, AdamW in fp32.
        learning_rate, betas, weight_decay: AdamW's; matrices decay, vectors do not.

    Raises:
        ParallelError: frozen parameters, or several types.
    """

    def __init__(
        self,
        model: nn.Module,
        group: Group,
        *,
        mixed: bool = False,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
    ) -> None:
        self.model = model
        self.group = group
        self.units = [Unit(own, group, mixed=mixed) for _, own in units_of(model)]
        self.optimizer = CutAdamW(
            self.units, group, learning_rate=learning_rate, weight_decay=weight_decay, betas=betas
        )

    def reduce(self) -> None:
        """Sum the gradients over ranks, after a step's last backward pass; `step` does it if nobody has."""
        for unit in self.units:
            if unit.gradient is None:
                unit.reduce_gradient()

    def step(self, max_norm: float | None = None) -> Tensor:
        """After backward (of one micro-batch or more): update this rank's pieces, and hand them round.

        Args:
            max_norm: clip the whole gradient to this norm; None: do not.

        Returns:
            The whole gradient's norm before clipping; NaN when it was not asked for.
        """
        self.reduce()
        norm = self.optimizer.step(max_norm)
        for unit in self.units:
            unit.spread()
        return norm

    def held(self) -> States:
        """Bytes that this rank holds now, counted on its live tensors; before `step` for gradients."""
        gradients = [p.grad for p in self.model.parameters()] + [unit.gradient for unit in self.units]
        masters = [unit.master for unit in self.units]
        weights = storage_bytes(unit.whole for unit in self.units)
        both = storage_bytes([unit.whole for unit in self.units] + masters)
        return States(
            weights_bytes=weights,
            gradients_bytes=storage_bytes(gradients),
            optimizer_bytes=storage_bytes(self.optimizer.state()) + both - weights,
        )

    def whole_weights(self) -> dict[str, Tensor]:
        """Every parameter by name, whole: to save. In mixed precision the optimiser's fp32 ones."""
        return whole_tensors(self.model, self.units, [unit.master for unit in self.units])

    def whole_gradients(self) -> dict[str, Tensor]:
        """Every summed gradient by name, whole, between `reduce` and `step`: to look at."""
        return whole_tensors(self.model, self.units, [unit.gradient for unit in self.units])


class ZeroTwo(ZeroOne):
    """The same with gradients cut as well: a unit's are summed and dropped when the last of them is there.

    Micro-batches are summed over ranks one by one: to wait for the last would keep whole gradients until
    then.

    Args:
        model, group, mixed, learning_rate, weight_decay, betas: as `ZeroOne`.
    """

    def __init__(
        self,
        model: nn.Module,
        group: Group,
        *,
        mixed: bool = False,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
    ) -> None:
        super().__init__(
            model, group, mixed=mixed, learning_rate=learning_rate, weight_decay=weight_decay, betas=betas
        )
        for unit in self.units:
            unit.watch()

    def reduce(self) -> None:
        *blocks, rest = self.units
        for unit in [*reversed(blocks), rest]:  # backward's order: a rank that had no rows meets the others
            unit.finish_gradient()
